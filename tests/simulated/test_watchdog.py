"""What sriovd tells systemd: ready when it serves, alive while it can serve, stopping when it stops."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sriovd.bus.private import PrivateBus
from tests.simulated.client import BUS_NAME, IGB0, NVME, PFS, Client, make_options
from tests.simulated.process import DaemonProcess, running_daemon
from tests.unit.bus.support import in_loop

WATCHDOG_USEC = 200_000
STARVED_S = 4 * WATCHDOG_USEC / 1e6
DEADLINE_S = 10.0


class Notices:
    """The receiving end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.bind(self.path)

    def next(self, timeout_s: float = DEADLINE_S) -> str:
        """The next notice; empty if none comes in time."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(4096).decode()
        except TimeoutError:
            return ""

    def wait_for(self, wanted: str) -> None:
        """Until a notice has this line."""
        while wanted not in (notice := self.next()).splitlines():
            assert notice, f"{wanted} did not come"

    def drop(self) -> None:
        """Forget what has come."""
        while self.next(0.001):
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def notices(tmp_path: Path) -> Iterator[Notices]:
    found = Notices(tmp_path / "notify")
    yield found
    found.close()


@contextmanager
def watched_daemon(
    tmp_path: Path, root: str, bus: PrivateBus, notices: Notices, usec: int = WATCHDOG_USEC
) -> Iterator[DaemonProcess]:
    environment = {"NOTIFY_SOCKET": notices.path, "WATCHDOG_USEC": str(usec)}
    with running_daemon(tmp_path, root, bus=bus.address, environment=environment) as daemon:
        yield daemon


def test_ready_only_when_it_serves(bus: PrivateBus, tmp_path: Path, root: str, notices: Notices) -> None:
    """The name is there before READY, and the objects before the name."""

    @in_loop
    async def test() -> None:
        async with Client.connected(bus.address) as client:
            starting = asyncio.create_task(asyncio.to_thread(notices.next, DEADLINE_S))
            with watched_daemon(tmp_path, root, bus, notices) as daemon:
                notice = await starting
                assert notice.splitlines()[0] == "READY=1"
                assert "STATUS=4 functions, 4 adapters" in notice
                assert await client.functions() == PFS
                assert "looks after 4 functions of 4 adapters" in daemon.said()

    test()


def test_objects_are_there_when_the_name_is(bus: PrivateBus, tmp_path: Path, root: str) -> None:
    """Who asks in the very moment in which the name appears sees all."""

    @in_loop
    async def test() -> None:
        async with Client.connected(bus.address) as client:
            asking = asyncio.create_task(functions_at_first_sight(client))
            await asyncio.to_thread(start_and_stop, tmp_path, root, bus)
            assert await asking == PFS

    test()


def start_and_stop(tmp_path: Path, root: str, bus: PrivateBus) -> None:
    with running_daemon(tmp_path, root, bus=bus.address):
        pass


async def functions_at_first_sight(client: Client) -> dict[str, str]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            (there,) = await client.connection.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameHasOwner",
                "s", (BUS_NAME,),
            )  # fmt: skip
            if there:
                return await client.functions()


def test_fed_while_it_lives_and_works(bus: PrivateBus, tmp_path: Path, root: str, notices: Notices) -> None:
    with watched_daemon(tmp_path, root, bus, notices) as daemon:
        notices.wait_for("WATCHDOG=1")

        @in_loop
        async def hang() -> None:
            async with Client.connected(daemon.address) as client:
                await client.inject("reset", NVME, hang=True)
                await client.ask("Reset", "sa{sv}", NVME, make_options(wait_usec=0))

        hang()  # a write that hangs is no reason to be restarted
        notices.drop()
        for _ in range(4):
            assert notices.next(WATCHDOG_USEC / 1e6) == "WATCHDOG=1"
        daemon.process.terminate()
        notices.wait_for("STOPPING=1")


def test_starves_while_the_bus_is_silent(
    bus: PrivateBus, tmp_path: Path, root: str, notices: Notices
) -> None:
    with watched_daemon(tmp_path, root, bus, notices):
        notices.wait_for("WATCHDOG=1")
        bus.process.send_signal(signal.SIGSTOP)
        try:
            notices.drop()
            notices.next(WATCHDOG_USEC / 1e6)  # one may have been on its way
            assert notices.next(STARVED_S) == ""
        finally:
            bus.process.send_signal(signal.SIGCONT)
        notices.wait_for("WATCHDOG=1")


def test_starves_while_the_event_loop_is_blocked(
    bus: PrivateBus, tmp_path: Path, root: str, notices: Notices
) -> None:
    """A read that sysfs promises not to block does: here, a pipe that nobody writes to."""
    with watched_daemon(tmp_path, root, bus, notices) as daemon:
        attribute = Path(root) / "bus/pci/devices" / IGB0 / "reset_method"
        attribute.unlink()
        os.mkfifo(attribute)
        notices.wait_for("WATCHDOG=1")

        @in_loop
        async def block() -> None:
            async with Client.connected(daemon.address) as client:
                await client.rescan(wait_usec=0)

        block()
        notices.drop()
        notices.next(WATCHDOG_USEC / 1e6)  # one may have been on its way
        assert notices.next(STARVED_S) == ""
        with attribute.open("w") as pipe:
            pipe.write("flr\n")
            attribute.unlink()
            attribute.write_text("flr\n")
        notices.wait_for("WATCHDOG=1")


def test_says_nothing_where_nobody_watches(
    bus: PrivateBus, tmp_path: Path, root: str, notices: Notices
) -> None:
    with watched_daemon(tmp_path, root, bus, notices, usec=0):
        assert "READY=1" in notices.next()
        assert notices.next(STARVED_S) == ""
