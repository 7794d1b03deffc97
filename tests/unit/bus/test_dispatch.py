"""Calls as clients make them: answers, refusals with what would be right, order, limits."""

from __future__ import annotations

import asyncio

import pytest
from dbus_next.constants import MessageFlag
from dbus_next.message import Message
from dbus_next.signature import Variant as LibraryVariant

from sriovd.bus.contract import ContractMismatch, load_contract
from sriovd.bus.dispatch import Dispatcher
from sriovd.bus.limits import Limits
from sriovd.bus.message import MAX_MESSAGE_BYTES
from sriovd.bus.private import PrivateBus
from sriovd.bus.tree import ROOT

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

STANDARD = "org.freedesktop.DBus.Error."
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"


@in_loop
async def test_busctl_finds_and_shows_everything(bus: PrivateBus) -> None:
    async with running_service(bus.address, objects=3) as service:
        tree = await busctl(service.address, "tree", "--list", NAME)
        assert tree.text.split() == [
            "/", "/org", ROOT, f"{ROOT}/function", object_path(0), object_path(1), object_path(2),
        ]  # fmt: skip
        for parent in ("/", "/org", f"{ROOT}/function"):
            shown = await busctl(service.address, "introspect", NAME, parent)
            assert (shown.status, "Thing" in shown.text) == (0, False)
        assert "GetManagedObjects" in (await busctl(service.address, "introspect", NAME, ROOT)).text
        got = await busctl(
            service.address, "get-property", NAME, object_path(2), THING, "Name", "Count", "Blob"
        )
        assert got.text == 's "n2"\nu 7\nay 2 1 2\n'
        managed = await busctl(service.address, "call", NAME, ROOT, OBJECT_MANAGER, "GetManagedObjects")
        assert managed.text.startswith(
            f'a{{oa{{sa{{sv}}}}}} 3 "{object_path(0)}" 1 "{THING}" 6 "Name" s "n0"'
        )


@in_loop
async def test_options_are_plain_and_checked(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service:

        async def echo(*options: str) -> str:
            target = (NAME, object_path(0), THING, "Echo", "sa{sv}")
            return (await busctl(service.address, "--", "call", *target, *options)).text

        assert await echo("hi", "0") == 'su "hi" 1\n'
        assert await echo("hi", "1", "count", "t", "5") == 'su "hi" 5\n'
        unknown = await echo("hi", "1", "cuont", "u", "5")
        assert "unknown option 'cuont' (Known options: 'count' (an unsigned 32-bit integer).)" in unknown
        wrong = await echo("hi", "1", "count", "s", "5")
        assert "option 'count' has type 's' (It takes an unsigned 32-bit integer ('u').)" in wrong
        assert "option 'count': -5 does not fit" in await echo("hi", "1", "count", "x", "-5")


OBJECT, VALUE = object_path(0), LibraryVariant("u", 1)


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "body", "error", "said"),
    [
        ("/nope", THING, "WhoAmI", "", [], "UnknownObject", "there is no object '/nope'"),
        ("/org", THING, "WhoAmI", "", [], "UnknownInterface", "'/org' has no interface 'org.example.Thing'"),
        (OBJECT, PART, "M", "", [], "UnknownInterface", "has no interface 'org.example.Part'"),
        (OBJECT, OBJECT_MANAGER, "GetManagedObjects", "", [], "UnknownInterface", "has no"),
        (OBJECT, THING, "Nope", "", [], "UnknownMethod", "org.example.Thing has no method 'Nope'"),
        (OBJECT, THING, "WhoAmI", "s", ["x"], "InvalidArgs", "WhoAmI takes no arguments; the call has"),
        (OBJECT, THING, "Echo", "u", [1], "InvalidArgs",
         "Echo takes (text: s, options: a{sv}), signature 'sa{sv}'; the call has signature 'u'"),
        (OBJECT, INTROSPECTABLE, "Introspect", "s", [""], "InvalidArgs", "Introspect takes no arguments"),
        (OBJECT, PROPERTIES, "Get", "ss", [THING, "Nope"], "UnknownProperty", "has no property 'Nope'"),
        (OBJECT, PROPERTIES, "Get", "ss", ["a.B", "Name"], "UnknownInterface", "no interface 'a.B'"),
        (OBJECT, PROPERTIES, "GetAll", "s", [PART], "UnknownInterface", "no interface 'org.example.Part'"),
        ("/nope", PROPERTIES, "GetAll", "s", [THING], "UnknownObject", "no object '/nope'"),
        (OBJECT, PROPERTIES, "Set", "ssv", [THING, "Count", VALUE], "PropertyReadOnly", "read-only"),
        (OBJECT, PROPERTIES, "Set", "ssv", [THING, "Nope", VALUE], "UnknownProperty", "'Nope'"),
    ],
)  # fmt: skip
@in_loop
async def test_what_does_not_exist_is_refused_by_its_standard_name(
    bus: PrivateBus,
    path: str,
    interface: str,
    member: str,
    signature: str,
    body: list[object],
    error: str,
    said: str,
) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        reply = await client.call(member, signature, *body, path=path, interface=interface)
        assert reply.error_name == STANDARD + error
        assert said in reply.body[0]


@in_loop
async def test_the_standard_interfaces_have_no_properties_and_an_empty_name_means_all(
    bus: PrivateBus,
) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        assert (await client.call("GetAll", "s", PROPERTIES, interface=PROPERTIES)).body == [{}]
        everything = await client.call("GetAll", "s", "", interface=PROPERTIES)
        assert {name: value.value for name, value in everything.body[0].items()} == thing("n0")
        assert (await client.call("Get", "ss", "", "Count", interface=PROPERTIES)).body[0].value == 7
        assert (await client.call("Ping", interface="org.freedesktop.DBus.Peer", path="/org")).body == []


@in_loop
async def test_the_interface_may_be_left_out(bus: PrivateBus) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        message = Message(destination=NAME, path=object_path(0), member="WhoAmI")
        reply = await client.bus.call(message)
        assert reply is not None
        assert reply.body[0] == client.name
        message = Message(destination=NAME, path=object_path(0), member="Nope")
        reply = await client.bus.call(message)
        assert reply is not None
        assert reply.error_name == STANDARD + "UnknownMethod"


@in_loop
async def test_typed_errors_have_their_name_and_hint(bus: PrivateBus) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        reply = await client.call("Fail", "s", "typed")
        assert (reply.error_name, reply.body) == (
            "org.sriovd1.Error.InUse",
            [f"{object_path(0)} is open (Close it.)"],
        )


@pytest.mark.parametrize("kind", ["bad type", "too many", "too big", "none"])
@in_loop
async def test_a_result_that_cannot_be_sent_is_an_error_and_not_silence(bus: PrivateBus, kind: str) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        reply = await client.call("Fail", "s", kind)
        assert reply.error_name == "org.sriovd1.Error.BackendFailed"
        assert "Thing.Fail ended in a result that cannot be sent" in reply.body[0]
        assert not service.connection.closed.done()


@in_loop
async def test_the_reply_comes_after_the_signals_that_the_call_caused(bus: PrivateBus) -> None:
    async with (
        running_service(bus.address, flushes_itself=False) as service,
        Client.connected(bus.address) as client,
    ):
        client.order.clear()
        await client.call("Rename", "s", "vfio-pci")
        assert client.order == ["InterfacesAdded", "PropertiesChanged", "reply"]
        (changed,) = client.named("PropertiesChanged")
        assert (changed.path, changed.body[0]) == (object_path(0), THING)
        for member, signature in (("Ping", ""), ("Nope", "")):
            client.order.clear()
            service.tree.update(object_path(0), THING, {"Driver": member})
            await client.call(member, signature, interface="org.freedesktop.DBus.Peer")
            assert client.order[0] == "PropertiesChanged"


@in_loop
async def test_a_call_that_wants_no_reply_gets_none(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        await client.call("WhoAmI")
        client.order.clear()
        before = open_fds()
        for member, signature, body in (("Rename", "s", ["x"]), ("GiveFd", "b", [True]), ("Nope", "", [])):
            message = Message(
                destination=NAME, path=object_path(0), interface=THING, member=member,
                signature=signature, body=body,
                flags=MessageFlag.NO_REPLY_EXPECTED,
            )  # fmt: skip
            await client.bus.call(message)
        await client.call("WhoAmI")
        assert client.order == ["InterfacesAdded", "PropertiesChanged", "reply"]
        assert not service.dispatcher._tasks
        assert open_fds() <= before


@in_loop
async def test_descriptors_of_a_result_that_cannot_be_sent_are_closed(bus: PrivateBus) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        await client.call("WhoAmI")
        before = open_fds()
        reply = await client.call("Fail", "s", "descriptors")
        assert reply.error_name == "org.sriovd1.Error.BackendFailed"
        assert open_fds() <= before


@in_loop
async def test_one_caller_may_run_only_so_many_calls_at_a_time(bus: PrivateBus) -> None:
    limits = Limits(max_calls_per_sender=3)
    async with (
        running_service(bus.address, limits=limits) as service,
        Client.connected(bus.address) as client,
        Client.connected(bus.address) as other,
    ):
        waiting = [asyncio.ensure_future(client.call("Wait")) for _ in range(3)]
        await until(lambda: service.waiting == 3)
        refused = await client.call("Wait")
        assert refused.error_name == STANDARD + "LimitsExceeded"
        assert refused.body == ["3 calls of yours are running: wait for one of them to end"]
        assert (await client.call("Get", "ss", THING, "Count", interface=PROPERTIES)).body[0].value == 7
        waiting.append(asyncio.ensure_future(other.call("Wait")))
        await until(lambda: service.waiting == 4)
        service.gate.set()
        assert {reply.message_type.name for reply in await asyncio.gather(*waiting)} == {"METHOD_RETURN"}
        assert (await client.call("WhoAmI")).body[0] == client.name


@in_loop
async def test_many_connections_are_still_one_user(bus: PrivateBus) -> None:
    limits = Limits(max_calls_per_user=2, exempt_uid=-1)
    async with (
        running_service(bus.address, limits=limits) as service,
        Client.connected(bus.address) as first,
        Client.connected(bus.address) as second,
        Client.connected(bus.address) as third,
    ):
        waiting = [asyncio.ensure_future(client.call("Wait")) for client in (first, second)]
        await until(lambda: service.waiting == 2)
        refused = await third.call("Wait")
        assert refused.error_name == STANDARD + "LimitsExceeded"
        assert refused.body == ["2 calls of yours are running: wait for one of them to end"]
        service.gate.set()
        await asyncio.gather(*waiting)
        assert (await third.call("WhoAmI")).body[0] == third.name


@in_loop
async def test_a_flood_is_refused_and_hurts_nobody_else(bus: PrivateBus) -> None:
    limits = Limits(rate_per_s=1.0, burst=20.0)
    async with (
        running_service(bus.address, limits=limits),
        Client.connected(bus.address) as client,
        Client.connected(bus.address) as other,
    ):
        replies = await asyncio.gather(*(client.call("WhoAmI") for _ in range(40)))
        refused = [reply.error_name for reply in replies if reply.error_name]
        assert len(refused) in (19, 20)
        assert set(refused) == {STANDARD + "LimitsExceeded"}
        assert "too many calls: 20 at once, then 1 per second" in replies[-1].body[0]
        assert (await other.call("WhoAmI")).error_name is None


@in_loop
async def test_what_no_message_can_hold_is_refused_and_the_connection_lives(
    bus: PrivateBus, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        service.tree.update(object_path(0), THING, {"Driver": "x" * MAX_MESSAGE_BYTES})
        for call in (("Get", "ss", THING, "Driver"), ("GetAll", "s", THING)):
            reply = await client.call(*call, interface=PROPERTIES)
            assert reply.error_name == STANDARD + "LimitsExceeded"
            assert f"more than the {MAX_MESSAGE_BYTES} bytes of a message" in reply.body[0]
        assert client.signals == []
        assert f"PropertiesChanged of {object_path(0)} was not sent" in caplog.text
        assert (await client.call("WhoAmI")).body[0] == client.name
        assert not service.connection.closed.done()


@in_loop
async def test_close_answers_everybody(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        waiting = [asyncio.ensure_future(client.call("Wait")) for _ in range(5)]
        await until(lambda: service.waiting == 5)
        await service.dispatcher.close()
        assert {reply.error_name for reply in await asyncio.gather(*waiting)} == {
            "org.sriovd1.Error.Cancelled"
        }


@in_loop
async def test_handlers_must_be_exactly_the_methods(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service:
        contract = load_contract(CONTRACT)
        with pytest.raises(ContractMismatch, match=r"org\.example\.Thing\.Echo, .*Thing\.WhoAmI"):
            Dispatcher(service.connection, contract, service.tree, {}, service.dispatcher._sights)
