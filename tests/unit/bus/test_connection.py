"""The connection itself: opening, losing, waiting for others, and the send queue when nobody reads."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sriovd.bus import transport
from sriovd.bus.calls import (
    CallTimedOut,
    ConnectFailed,
    ConnectionLost,
    NameTaken,
    RemoteError,
    ServiceMissing,
)
from sriovd.bus.connection import BUS, BUS_PATH, Connection
from sriovd.bus.private import PrivateBus, PrivateBusFailed
from sriovd.bus.sendqueue import QueueFull, SendQueue
from sriovd.bus.wire import WireError

from .support import NAME, THING, Client, in_loop, object_path, open_fds, running_service, until


@in_loop
async def test_a_bus_that_is_not_there_is_named(tmp_path: Path) -> None:
    for address in (f"unix:path={tmp_path}/none", "nonsense", "tcp:host=localhost,port=1"):
        with pytest.raises(ConnectFailed, match=f"cannot connect to the bus at '{address}'"):
            await Connection.open(address)


@in_loop
async def test_a_bus_that_accepts_and_then_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CONNECT_TIMEOUT_S", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/mute")
        listener.listen()
        before = open_fds()
        with pytest.raises(ConnectFailed, match=r"no answer within 0\.1 s"):
            await Connection.open(f"unix:path={tmp_path}/mute")
        assert open_fds() <= before


@in_loop
async def test_the_name_is_owned_once(bus: PrivateBus) -> None:
    async with running_service(bus.address):
        second = await Connection.open(bus.address)
        with pytest.raises(NameTaken, match=f"'{NAME}' belongs to another process"):
            await second.request_name(NAME)
        await second.close()


@in_loop
async def test_a_lost_bus_says_why_and_fails_what_waits(bus: PrivateBus) -> None:
    connection = await Connection.open(bus.address)
    async with running_service(bus.address):
        waiting = asyncio.ensure_future(connection.call(NAME, object_path(0), THING, "Wait"))
        await asyncio.sleep(0)
        bus.stop()
        with pytest.raises(ConnectionLost, match=r"closed the connection|failed"):
            await waiting
        assert "bus" in await connection.closed
        with pytest.raises(ConnectionLost):
            await connection.call(NAME, object_path(0), THING, "WhoAmI")


@in_loop
async def test_calls_to_others_end_in_typed_errors(bus: PrivateBus) -> None:
    connection = await Connection.open(bus.address)
    async with running_service(bus.address):
        target = (NAME, object_path(0), THING)
        assert (await connection.call(*target, "WhoAmI"))[:2] == (connection.unique_name, os.getuid())
        with pytest.raises(ServiceMissing, match="ServiceUnknown"):
            await connection.call("org.example.Nobody", "/", THING, "WhoAmI")
        with pytest.raises(ServiceMissing, match="NameHasNoOwner"):
            await connection.call(BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", (":1.999",))
        with pytest.raises(RemoteError, match="UnknownMethod") as refused:
            await connection.call(*target, "Nope")
        assert not isinstance(refused.value, ServiceMissing)
        with pytest.raises(CallTimedOut, match=r"has not answered Wait within 0\.05 s"):
            await connection.call(*target, "Wait", timeout_s=0.05)
        with pytest.raises(WireError):
            await connection.call(*target, "Fail", "s", (1,))
        assert not connection._pending
    await connection.close()


@in_loop
async def test_a_watched_name_that_leaves_is_reported_once(bus: PrivateBus) -> None:
    connection = await Connection.open(bus.address)
    gone: list[int] = []
    async with Client.connected(bus.address) as client, Client.connected(bus.address):
        name = client.name
        await connection.watch_name(name, lambda: gone.append(1))
        second = await connection.watch_name(name, lambda: gone.append(2))
        await second.cancel()
        await connection.watch_name(name, lambda: gone.append(3))
    await until(lambda: gone)
    assert gone == [1, 3]
    await connection.watch_name(name, lambda: gone.append(4))
    assert gone == [1, 3, 4]
    assert not connection._watches
    await connection.close()


@in_loop
async def test_a_descriptor_waits_for_room_and_leaves_once_with_its_message() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    queue = SendQueue(ours, pytest.fail)
    reading, writing = os.pipe()
    inode = os.fstat(reading).st_ino
    before, filler, marked = open_fds(), b"a" * 700_000, b"b" * 700_000
    queue.put(filler)
    queue.put(marked, [reading])
    queue.put(b"c")
    await asyncio.sleep(0)
    assert queue.waiting_bytes > 0
    received, numbers = b"", list[int]()
    theirs.setblocking(False)
    while len(received) < len(filler) + len(marked) + 1:
        try:
            data, fds, _, _ = socket.recv_fds(theirs, 65536, 4)
        except BlockingIOError:
            await asyncio.sleep(0)
            continue
        if fds:
            assert received.rstrip(b"a") == b""
        received += data
        numbers += fds
    assert received == filler + marked + b"c"
    assert [os.fstat(number).st_ino for number in numbers] == [inode]
    assert len(open_fds()) == len(before)  # the one that was received is open, the one that was sent is not
    for number in (*numbers, writing):
        os.close(number)
    queue.close()
    ours.close()
    theirs.close()


@in_loop
async def test_the_queue_is_bounded_and_keeps_no_descriptor() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    queue = SendQueue(ours, lambda _: None, max_bytes=1 << 20)
    queue.put(b"x" * (1 << 20))
    reading, writing = os.pipe()
    with pytest.raises(QueueFull, match="has not read the last 1048576 bytes"):
        queue.put(b"y", [reading])
    queue.close()
    queue.put(b"after the end", [writing])
    for number in (reading, writing):
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(number)
    await queue.drain()
    ours.close()
    theirs.close()


@in_loop
async def test_a_bus_that_never_reads_ends_the_connection_and_not_the_memory(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service:
        bus.process.send_signal(signal.SIGSTOP)
        for number in range(100):
            service.tree.update(object_path(0), THING, {"Details": {}, "Driver": str(number) * 1_000_000})
            service.tree.flush()
            if service.connection.closed.done():
                break
        assert "has not read" in await service.connection.closed
        bus.process.send_signal(signal.SIGCONT)


def test_a_private_bus_that_does_not_start_says_why(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 120)  # longer than a UNIX socket's path can be
    directory.mkdir()
    with pytest.raises(PrivateBusFailed, match=r"did not start .*too long"):
        PrivateBus.start(directory)


def test_a_private_bus_ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path;"
        "from sriovd.bus.private import PrivateBus;"
        "print(PrivateBus.start(Path(sys.argv[1])).process.pid, flush=True);"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(result.stdout)}/stat")
    deadline = time.monotonic() + 10.0
    while status.exists() and status.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline, "the bus outlived the process that started it"
        time.sleep(0.01)


def test_a_private_bus_ends_with_its_block(tmp_path: Path) -> None:
    with PrivateBus.start(tmp_path) as bus:
        assert bus.process.poll() is None
    assert bus.process.poll() is not None
