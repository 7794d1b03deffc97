"""Callers who mean no good, or cannot do better: refused with a sentence, at no cost to anybody else."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from sriovd.bus.calls import RemoteError
from sriovd.bus.connection import BUS, BUS_PATH
from sriovd.bus.message import Field, Kind, encode_field, encode_message
from sriovd.bus.signature import Variant
from sriovd.bus.transport import connect_socket
from sriovd.bus.wire import Fd, encode_body
from tests.simulated.client import (
    BUS_NAME,
    FUNCTION,
    IGB0,
    MANAGER,
    OBJECT_MANAGER,
    PFS,
    PROPERTIES,
    ROOT,
    Client,
    function_path,
)
from tests.simulated.process import DaemonProcess, busctl, running_daemon, wait_until
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import in_loop

STANDARD = "org.freedesktop.DBus.Error."
GROWTH_LIMIT_BYTES = 48 << 20
READ_LIMIT_S = 0.1


async def assert_serves_others(host: DaemonProcess) -> None:
    """A client who has done nothing is answered, and what he sees is right."""
    async with Client.connected(host.address) as other:
        assert await other.functions() == PFS
        assert shown_objects(await other.managed()) == expected_objects(host.root)


def open_descriptors(host: DaemonProcess) -> int:
    return len(os.listdir(f"/proc/{host.pid}/fd"))


def assert_descriptors(host: DaemonProcess, expected: int) -> None:
    """A call's own are closed by another thread, which may be after its reply."""
    wait_until(lambda: open_descriptors(host) == expected, f"{expected} descriptors again")


@pytest.mark.alone
@in_loop
async def test_flood_of_verbs(host: DaemonProcess) -> None:
    """So many at once that one caller may not have; the others' reads are quick meanwhile."""
    async with Client.connected(host.address) as client, Client.connected(host.address) as other:
        await client.inject("set-num-vfs", IGB0, delay_usec=400_000, times=1)
        await other.driver(IGB0)  # whose a connection is, is asked from the bus once
        calls = [asyncio.create_task(name_of(client.set_num_vfs(IGB0, 1))) for _ in range(200)]
        times = []
        while not all(call.done() for call in calls):
            began = time.monotonic()
            await other.driver(IGB0)
            times.append(time.monotonic() - began)
        names = await asyncio.gather(*calls)
        assert names.count("done") == 32
        assert names.count(f"{STANDARD}LimitsExceeded") == 200 - 32
        assert max(times) < READ_LIMIT_S
        assert (await client.set_num_vfs(IGB0, 0))[1] == "done"  # he is welcome again
    await assert_serves_others(host)


async def name_of(call: Any) -> str:
    """The state that a verb answered, or the name of its error."""
    try:
        return str((await call)[1])
    except RemoteError as error:
        return error.name


def test_flood_of_large_calls(tmp_path: Path, root: str) -> None:
    """40 MiB of arguments from one caller: refused before they are read, and memory stays as it was."""
    with running_daemon(tmp_path, root) as daemon:

        @in_loop
        async def test() -> None:
            async with Client.connected(daemon.address) as client:
                await client.functions()
                before = daemon.rss_bytes()
                names = [await name_of(client.bind(IGB0, "x" * 200_000)) for _ in range(220)]
                assert names[0] == f"{BUS_NAME}.Error.InvalidArgument"
                assert names[-1] == f"{STANDARD}LimitsExceeded"
                for _ in range(100):
                    await name_of(client.bind(IGB0, "x" * 1_000_000))
                grown = daemon.rss_bytes() - before
                print(f"{grown >> 10} KiB more after 140 MB of calls")
                assert grown < GROWTH_LIMIT_BYTES
            await assert_serves_others(daemon)

        test()
        assert "Traceback" not in daemon.said()


@in_loop
async def test_endless_strings(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        for text in ("x" * 100_000, "0000:01:00.0" + "\n" * 10_000, "\N{SNOWMAN}" * 30_000):
            refusal = await client.refused("SetNumVFs", "sua{sv}", text, 1, {})
            refusal.check("InvalidArgument")
            assert len(refusal.text) < 500
            refusal = await client.refused("Bind", "ssa{sv}", IGB0, text, {})
            assert len(refusal.text) < 500
            refusal = await client.refused("Reset", "sa{sv}", IGB0, {text[:5000]: Variant("s", text)})
            assert refusal.name == "InvalidArgument"
        refusal = await client.refused("Bind", "ssa{sv}", IGB0, "x" * (1 << 20), {})
        refusal.check(f"{STANDARD}InvalidArgs", "too large")
    await assert_serves_others(host)


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ("", ()),
        ("s", (IGB0,)),
        ("suas", (IGB0, 1, [])),
        ("sua{ss}", (IGB0, 1, {"driver": "none"})),
        ("sia{sv}", (IGB0, -1, {})),
        ("(sua{sv})", ((IGB0, 1, {}),)),
        ("v", (Variant("s", IGB0),)),
        ("sua{sv}s", (IGB0, 1, {}, "more")),
        ("aaaaaaaaaay", ([[[[[[[[[b"x"]]]]]]]]],)),
    ],
)
def test_wrong_types(host: DaemonProcess, signature: str, body: tuple[Any, ...]) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            refusal = await client.refused("SetNumVFs", signature, *body)
            refusal.check(f"{STANDARD}InvalidArgs", "address: s, count: u, options: a{sv}")

    test()


@in_loop
async def test_options_of_absurd_types(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        deep = Variant("s", "bottom")
        for _ in range(20):
            deep = Variant("v", deep)
        for value in (
            deep,
            Variant("a{sv}", {"x": Variant("ay", b"\xff" * 100)}),
            Variant("d", float("nan")),
        ):
            refusal = await client.refused("Reset", "sa{sv}", IGB0, {"wait-usec": value})
            refusal.check("InvalidArgument", "'wait-usec'")
        refusal = await client.refused("Reset", "sa{sv}", IGB0, {"wait-usec": Variant("d", 1.0)})
        refusal.check("InvalidArgument", "'wait-usec'", "'t'")
        options = {"wait-usec": Variant("t", 2**64 - 1)}
        assert (await client.ask("Reset", "sa{sv}", IGB0, options))[1] == "done"


@pytest.mark.parametrize(
    ("path", "interface", "member", "error"),
    [
        (f"{ROOT}/function/_none", FUNCTION, "Reset", "UnknownObject"),
        ("/org/somebody", MANAGER, "ListFunctions", "UnknownObject"),
        (f"{ROOT}/function", FUNCTION, "Reset", "UnknownInterface"),
        (ROOT, FUNCTION, "Reset", "UnknownInterface"),
        (ROOT, "org.example.Nothing", "ListFunctions", "UnknownInterface"),
        (ROOT, MANAGER, "Frobnicate", "UnknownMethod"),
        (ROOT, MANAGER, "__init__", "UnknownMethod"),
        (f"{ROOT}/job/999999", "org.sriovd1.Job", "Cancel", "UnknownObject"),
    ],
)
def test_what_does_not_exist(
    host: DaemonProcess, path: str, interface: str, member: str, error: str
) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            refusal = await client.refused(member, "", path=path, interface=interface)
            refusal.check(STANDARD + error)

    test()


@in_loop
async def test_properties_cannot_be_set(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        body = (FUNCTION, "Driver", Variant("s", "vfio-pci"))
        refusal = await client.refused("Set", "ssv", *body, path=function_path(IGB0), interface=PROPERTIES)
        refusal.check(f"{STANDARD}PropertyReadOnly", "'Driver'")
        assert await client.driver(IGB0) == "igb"


@in_loop
async def test_descriptors_nobody_asked_for(host: DaemonProcess) -> None:
    """They are closed, with calls that are refused and with calls that are not."""
    async with Client.connected(host.address) as client:
        await client.functions()
        before = open_descriptors(host)
        for _ in range(50):
            pipe = os.pipe()
            message = "h" * len(pipe)
            refusal = await client.refused("SetNumVFs", message, *(Fd(number) for number in pipe))
            refusal.check(f"{STANDARD}InvalidArgs")
            (number, *rest) = os.pipe()
            options = {"wait-usec": Variant("h", Fd(number))}
            (await client.refused("Reset", "sa{sv}", IGB0, options)).check("InvalidArgument", "'wait-usec'")
            for each in rest:
                os.close(each)
        assert_descriptors(host, before)


@in_loop
async def test_bytes_that_are_no_text(host: DaemonProcess) -> None:
    """A path that is not UTF-8: the bus throws its sender out, and nobody else notices."""
    sock = await connect_socket(host.address)
    sock.setblocking(True)
    sock.sendall(encode_call(1, BUS, BUS_PATH, BUS, "Hello"))
    broken = encode_call(2, BUS_NAME, f"{ROOT}/XX", MANAGER, "ListFunctions").replace(b"/XX", b"/\xff\xfe")
    await asyncio.to_thread(sock.sendall, broken)
    await asyncio.to_thread(read_to_the_end, sock)
    await assert_serves_others(host)


def encode_call(serial: int, destination: str, path: str, interface: str, member: str) -> bytes:
    """A call without arguments, as it goes over the wire."""
    texts = (
        (Field.PATH, path), (Field.INTERFACE, interface), (Field.MEMBER, member),
        (Field.DESTINATION, destination),
    )  # fmt: skip
    fields = [encode_field(field, text) for field, text in texts]
    return encode_message(Kind.CALL, serial, fields, encode_body("", ()))


def read_to_the_end(sock: socket.socket) -> None:
    """Until the bus has closed the connection."""
    sock.settimeout(10.0)
    try:
        while sock.recv(4096):
            pass
    except ConnectionResetError:
        pass
    sock.close()


@in_loop
async def test_caller_who_vanishes(host: DaemonProcess) -> None:
    """What he asked for is done all the same, once; nothing of him stays."""
    async with Client.connected(host.address) as client:
        await client.functions()
        before = open_descriptors(host)
        await client.inject("set-num-vfs", IGB0, delay_usec=200_000, times=1)
        async with Client.connected(host.address) as vanishing:
            call = asyncio.create_task(name_of(vanishing.set_num_vfs(IGB0, 3)))
            async with asyncio.timeout(5.0):
                while not any(
                    each.get("org.sriovd1.Job", {}).get("State") == "running"
                    for each in (await client.managed()).values()
                ):
                    await asyncio.sleep(0.005)
            call.cancel()
        async with asyncio.timeout(10.0):
            while len(await client.vfs(IGB0)) != 3:
                await asyncio.sleep(0.005)
        assert shown_objects(await client.managed()) == expected_objects(host.root)
        assert_descriptors(host, before)
    assert "Traceback" not in host.said()


@in_loop
async def test_caller_who_does_not_read(host: DaemonProcess) -> None:
    """He asks for everything many times and reads nothing: the bus holds his replies, the daemon goes on."""
    sock = await connect_socket(host.address)
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 7)
        grown_from = host.rss_bytes()
        sock.setblocking(True)
        sock.sendall(encode_call(1, BUS, BUS_PATH, BUS, "Hello"))
        for serial in range(2, 1000):
            message = encode_call(serial, BUS_NAME, ROOT, OBJECT_MANAGER, "GetManagedObjects")
            await asyncio.to_thread(sock.sendall, message)
        began = time.monotonic()
        assert len(await client.vfs(IGB0)) == 7
        assert time.monotonic() - began < 10.0
        wait_until(lambda: host.rss_bytes() - grown_from < GROWTH_LIMIT_BYTES, "the memory back")
        await client.set_num_vfs(IGB0, 0)
    sock.close()
    await assert_serves_others(host)


def test_refusals_on_the_command_line(host: DaemonProcess) -> None:
    """busctl gets a sentence, whatever is typed."""
    for words, says in (
        (("Bind", "ssa{sv}", IGB0, "a b; rm -rf /", "0"), "is not a driver name"),
        (("Bind", "ssa{sv}", "$(reboot)", "none", "0"), "0000:01:00.0"),
        (("SetNumVFs", "sua{sv}", IGB0, "1", "1", "driver", "u", "7"), "'driver'"),
        (("ListFunctions", "s", "x"), "takes no arguments"),
    ):
        done = busctl(host.address, "call", BUS_NAME, ROOT, MANAGER, *words)
        assert done.returncode != 0
        assert says in done.stderr
