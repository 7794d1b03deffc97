"""The defects of dbus-next that would hit this daemon, one test each: that is why its service half is not
used.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import xml.etree.ElementTree as ET

import pytest

from sriovd.bus.contract import load_contract
from sriovd.bus.private import PrivateBus
from sriovd.bus.tree import ROOT, Tree

from .support import (
    CONTRACT,
    NAME,
    PART,
    THING,
    Client,
    busctl,
    in_loop,
    object_path,
    open_fds,
    running_service,
    thing,
    until,
)

OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"


@in_loop
async def test_a_burst_of_signals_at_a_bus_that_does_not_read_loses_nothing(bus: PrivateBus) -> None:
    count = 3000
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        bus.process.send_signal(signal.SIGSTOP)
        for number in range(count):
            service.tree.emit_signal(object_path(0), THING, "Poked", number)
        service.tree.flush()
        everything = service.connection.queued_bytes
        await asyncio.sleep(0)
        assert 0 < service.connection.queued_bytes < everything  # the socket is full
        assert not service.connection.closed.done()
        bus.process.send_signal(signal.SIGCONT)
        await until(lambda: len(client.named("Poked")) == count)
        assert [poked.body[0] for poked in client.named("Poked")] == list(range(count))


@in_loop
async def test_interfaces_added_comes_from_the_root_once_with_all_interfaces(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        part = {"Level": 1, "Paths": [object_path(0)]}
        paths = [object_path(number) for number in range(1, 121)]
        for number, path in enumerate(paths, 1):
            service.tree.add(path, {THING: thing(f"n{number}"), PART: part})
        await until(lambda: len(client.signals) >= 120)
        await client.call("Ping", interface="org.freedesktop.DBus.Peer")
        assert {added.path for added in client.signals} == {ROOT}
        assert [added.body[0] for added in client.named("InterfacesAdded")] == paths
        assert client.signals[0].interface == OBJECT_MANAGER
        assert len(client.signals) == 120
        interfaces = client.signals[7].body[1]
        plain = {name: {key: value.value for key, value in of.items()} for name, of in interfaces.items()}
        assert plain == {THING: thing("n8"), PART: part}


@in_loop
async def test_interfaces_removed_comes_once_from_the_root(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        service.tree.remove(object_path(0))
        await until(lambda: client.signals)
        (removed,) = client.signals
        assert (removed.path, removed.member, removed.body) == (
            ROOT, "InterfacesRemoved", [object_path(0), [THING]],
        )  # fmt: skip


@pytest.mark.alone
def test_managed_objects_take_a_time_proportional_to_their_number() -> None:
    def time_for(count: int) -> float:
        tree = Tree(load_contract(CONTRACT), lambda *_: None, schedule=lambda _: None)
        for number in range(count):
            tree.add(object_path(number), {THING: thing(f"n{number}")})
        return min(_timed(tree.encode_managed_objects) for _ in range(5))

    few, many = time_for(500), time_for(4000)
    assert many / few < 8 * 2, f"8 times the objects took {many / few:.1f} times as long"


def _timed(action: object) -> float:
    assert callable(action)
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


@in_loop
async def test_an_exception_leaves_as_an_incident_never_as_a_traceback(
    bus: PrivateBus, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_service(bus.address) as service:
        target = (NAME, object_path(0), THING)
        with caplog.at_level(logging.ERROR):
            said = await busctl(service.address, "call", *target, "Fail", "s", "unexpected")
    assert said.status != 0
    assert "Thing.Fail ended in an internal error (see the journal for incident " in said.text
    for leak in ("Traceback", "KeyError", "secret detail", "support.py", "Error("):
        assert leak not in said.text
    incident = said.text.strip().rpartition(" ")[2].rstrip(")")
    (record,) = [record for record in caplog.records if incident in record.getMessage()]
    assert record.exc_info and record.exc_info[0] is KeyError


@in_loop
async def test_a_cancelled_handler_replies(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        waiting = asyncio.ensure_future(client.call("Wait"))
        await until(lambda: service.waiting)
        not_yet_run = asyncio.ensure_future(client.call("Wait"))
        while len(service.dispatcher._tasks) < 2:
            await asyncio.sleep(0)
        for task in service.dispatcher._tasks:
            task.cancel()
        for reply in (await waiting, await not_yet_run, await client.call("Fail", "s", "cancelled")):
            assert reply.error_name == "org.sriovd1.Error.Cancelled"
            assert "was cancelled" in reply.body[0]


@in_loop
async def test_descriptors_that_nobody_expects_are_closed(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        reading, writing = os.pipe()
        await client.call("WhoAmI")
        before = open_fds()
        replies = [
            await client.call("Echo", "sa{sv}h", "x", {}, 0, fds=[reading]),
            await client.call("WhoAmI", "h", 0, fds=[writing]),
            await client.call("TakeFd", "hb", 0, False, fds=[reading]),
            await client.call("Nothing", "h", 0, fds=[reading]),
            await client.call("Ping", "h", 0, interface="org.freedesktop.DBus.Peer", fds=[reading]),
            await client.call("Echo", "sa{sv}", "x", {}, fds=[reading, writing, reading]),
        ]
        assert [reply.message_type.name for reply in replies] == [
            "ERROR", "ERROR", "METHOD_RETURN", "ERROR", "ERROR", "METHOD_RETURN",
        ]  # fmt: skip
        assert open_fds() <= before
        assert replies[2].body == [os.fstat(reading).st_ino]
        os.close(reading)
        os.close(writing)
        assert not service.kept


@in_loop
async def test_a_descriptor_that_is_taken_stays_open(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        reading, writing = os.pipe()
        reply = await client.call("TakeFd", "hb", 0, True, fds=[reading])
        (kept,) = service.kept
        assert reply.body == [os.fstat(kept).st_ino] == [os.fstat(reading).st_ino]
        for number in (kept, reading, writing):
            os.close(number)


@pytest.mark.parametrize("owned", [True, False])
@in_loop
async def test_returned_descriptors_do_not_stay_open_here(bus: PrivateBus, owned: bool) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        await client.call("WhoAmI")
        before = open_fds()
        for _ in range(20):
            reply = await client.call("GiveFd", "b", owned)
            (received,) = reply.unix_fds
            assert os.read(received, 9) == b"hello"
            os.close(received)
        for number in service.given:
            os.close(number)
        await until(lambda: open_fds() <= before)


@in_loop
async def test_methods_see_the_sender_the_user_and_the_flags(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        reply = await client.call("WhoAmI")
        assert reply.body == [client.name, os.getuid(), False]
        target = (NAME, object_path(0), THING, "WhoAmI")
        for allowed in ("yes", "no"):
            option = f"--allow-interactive-authorization={allowed}"
            said = await busctl(service.address, option, "call", *target)
            assert said.text.endswith(f" {os.getuid()} {'true' if allowed == 'yes' else 'false'}\n")
        assert (await busctl(service.address, "--expect-reply=no", "call", *target)).text == ""


@in_loop
async def test_introspection_names_and_documents_every_argument(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service:
        said = await busctl(service.address, "introspect", "--xml-interface", NAME, object_path(0))
        table = await busctl(service.address, "introspect", NAME, object_path(0))
    live = ET.fromstring(said.text).find(f"interface[@name='{THING}']")
    assert live is not None
    written = ET.parse(CONTRACT).getroot().find(f"interface[@name='{THING}']")
    assert written is not None
    described = [(arg.get("name"), arg.get("type"), _doc(arg)) for arg in live.iter("arg")]
    assert described == [
        (arg.get("name"), arg.get("type"), arg.findtext("doc")) for arg in written.iter("arg")
    ]
    assert ".Echo                               method    sa{sv}    su" in table.text
    assert '.Name                               property  s         "n0"         const' in table.text


def _doc(element: ET.Element) -> str | None:
    annotation = element.find("annotation[@name='org.freedesktop.DBus.DocString']")
    return None if annotation is None else annotation.get("value")
