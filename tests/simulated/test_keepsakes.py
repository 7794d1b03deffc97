"""What systemd keeps for the next daemon: the descriptors of leases, and nothing that nobody knows."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sriovd import keepsakes
from sriovd.backend.simulated import SimulatedBackend
from sriovd.bus.private import PrivateBus
from sriovd.core.engine import Places
from sriovd.daemon import Daemon, Settings
from tests.simulated.client import IGB0, LEASE, MANAGER, ROOT, VF0, Client, make_options
from tests.simulated.process import REPOSITORY
from tests.unit.bus.support import Client as DescriptorClient
from tests.unit.bus.support import in_loop, until


class FakeSystemd:
    """The service manager's store of descriptors."""

    def __init__(self) -> None:
        self.kept: dict[str, int] = {}

    def notify(self, text: str, fds: list[int] | None = None) -> None:
        fields = dict(line.split("=", 1) for line in text.splitlines())
        if "FDSTORE" in fields and fds:
            self.kept[fields["FDNAME"]] = os.dup(fds[0])
        elif "FDSTOREREMOVE" in fields and fields["FDNAME"] in self.kept:
            os.close(self.kept.pop(fields["FDNAME"]))

    def listen_fds_with_names(self) -> dict[int, str]:
        """The descriptors as the next daemon gets them; they stay in the store, too."""
        return {os.dup(fd): name for name, fd in self.kept.items()}


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    fake = FakeSystemd()
    monkeypatch.setattr(keepsakes, "daemon", fake)
    return fake


@asynccontextmanager
async def daemon_on(backend: SimulatedBackend, bus: PrivateBus, state: Path) -> AsyncIterator[Client]:
    """One daemon's life; at its end its descriptors are closed, as the kernel does for a process."""
    daemon = Daemon(backend, Settings(bus.address, private=True, places=Places(state=str(state))))
    ready = asyncio.Event()
    task = asyncio.create_task(daemon.run(ready.set))
    await ready.wait()
    try:
        async with Client.connected(bus.address) as client:
            yield client
    finally:
        daemon.stop()
        await task
        descriptors = daemon._descriptors
        if descriptors._poll is not None:
            asyncio.get_running_loop().remove_reader(descriptors._poll.fileno())
            descriptors._poll.close()
        for own, _ in descriptors._ends.values():
            own.close()


async def states(client: Client) -> dict[int, str]:
    found = [each[LEASE] for each in (await client.managed()).values() if LEASE in each]
    return {each["Number"]: each["State"] for each in found}


@in_loop
async def test_a_lease_outlives_the_daemon_as_long_as_its_descriptor(
    bus: PrivateBus, root: str, tmp_path: Path, systemd: FakeSystemd
) -> None:
    backend = SimulatedBackend(root)
    async with DescriptorClient.connected(bus.address) as owner:
        fds = []
        async with daemon_on(backend, bus, tmp_path / "db") as client:
            await client.set_num_vfs(IGB0, 3)
            for name in ("stays", "dies", "closes"):
                reply = await owner.call("Acquire", "sa{sv}", name, {}, path=ROOT, interface=MANAGER)
                fds += reply.unix_fds
            assert set(systemd.kept) == {"lease-1", "lease-2", "lease-3"}
            os.close(fds[2])
            await until(lambda: set(systemd.kept) == {"lease-1", "lease-2"})
        os.close(fds[1])
        os.close(systemd.kept.pop("lease-2"))  # systemd drops what has hung up
        async with daemon_on(backend, bus, tmp_path / "db") as client:
            async with asyncio.timeout(10):
                while await states(client) != {1: "active"}:
                    await asyncio.sleep(0.01)
            os.close(fds[0])
            async with asyncio.timeout(10):
                while await states(client):
                    await asyncio.sleep(0.01)
            assert systemd.kept == {}


@in_loop
async def test_a_descriptor_without_a_lease_is_closed(
    bus: PrivateBus, root: str, tmp_path: Path, systemd: FakeSystemd
) -> None:
    """The daemon was killed before the lease was on disk: its number goes to another, who must not lose his
    lease when this owner dies."""
    own, theirs = socket.socketpair()
    systemd.kept = {"lease-1": own.detach()}
    async with daemon_on(SimulatedBackend(root), bus, tmp_path / "db") as client:
        assert (theirs.recv(1), systemd.kept) == (b"", {})
        await client.set_num_vfs(IGB0, 1)
        path, _ = await client.lease()
        assert path.endswith("/1")
        theirs.close()
        await client.ask("ListFunctions")
        assert await states(client) == {1: "active"}


@pytest.mark.parametrize("verb", ["bind", "reset"])
def test_a_stop_half_way_is_no_failure(
    bus: PrivateBus, root: str, tmp_path: Path, systemd: FakeSystemd, verb: str
) -> None:
    """Preparing or cleaning goes on where it was when the next daemon comes."""

    @in_loop
    async def test() -> None:
        backend = SimulatedBackend(root)
        async with daemon_on(backend, bus, tmp_path / "db") as client:
            await client.set_num_vfs(IGB0, 1)
            if verb == "reset":
                path, _ = await client.lease()
            await client.inject(verb, VF0, delay_usec=300_000, times=1)
            if verb == "reset":
                await client.release(path, wait_usec=0)
            else:
                await client.ask("Lease", "sa{sv}", "vm", make_options(wait_usec=0))
            async with asyncio.timeout(10):
                while await states(client) != {1: "cleaning" if verb == "reset" else "preparing"}:
                    await asyncio.sleep(0.001)
        await until(lambda: not backend._runs)  # else the adapter is stuck for the next daemon
        async with daemon_on(backend, bus, tmp_path / "db") as client, asyncio.timeout(10):
            while await states(client) != ({} if verb == "reset" else {1: "active"}):
                assert "failed" not in (await states(client)).values()
                await asyncio.sleep(0.01)

    test()


def test_what_nobody_knows_is_let_go(systemd: FakeSystemd) -> None:
    ours, _theirs = socket.socketpair()
    systemd.kept = {
        "lease-7": ours.detach(), "lease-8": os.open("/dev/null", os.O_RDONLY),
        "lease-x": os.open("/dev/null", os.O_RDONLY), "stranger": os.open("/dev/null", os.O_RDONLY),
    }  # fmt: skip
    taken = keepsakes.take_descriptors()
    assert (set(taken.leases), set(taken.traces), taken.ledger) == ({7}, set(), None)
    assert set(systemd.kept) <= {"lease-7", "lease-8"}


def test_buffers_and_their_ledger_come_back(systemd: FakeSystemd) -> None:
    systemd.kept = {
        "trace-3": os.memfd_create("buffer"), "trace-ledger": os.memfd_create("ledger"),
        "trace-4": os.open("/dev/null", os.O_RDWR), "trace-0": os.memfd_create("odd"),
        "trace-": os.memfd_create("odd"), "trace-ledger-2": os.memfd_create("odd"),
        "lease-9": os.memfd_create("odd"),
    }  # fmt: skip
    taken = keepsakes.take_descriptors()
    assert (taken.leases, set(taken.traces)) == ({}, {3})
    assert taken.ledger is not None
    links = [os.readlink(f"/proc/self/fd/{fd}") for fd in (taken.traces[3], taken.ledger)]
    assert links == ["/memfd:buffer (deleted)", "/memfd:ledger (deleted)"]
    assert set(systemd.kept) <= {"trace-3", "trace-4", "trace-ledger", "lease-9"}


def test_systemds_own_library_gives_them() -> None:
    """Passed as systemd does it: from descriptor 3 on, with names and the process's own id."""
    own, theirs = socket.socketpair()
    script = (
        "from sriovd.keepsakes import take_descriptors;"
        "print({number: end.send(b'x') for number, end in take_descriptors().leases.items()})"
    )
    starter = (
        f"import os, sys; os.dup2({own.fileno()}, 3);"
        "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1', LISTEN_FDNAMES='lease-5');"
        "os.execv(sys.executable, [sys.executable, '-c', sys.argv[1]])"
    )
    done = subprocess.run(
        [sys.executable, "-c", starter, script], pass_fds=[own.fileno()], cwd=REPOSITORY,
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == "{5: 1}", done.stderr
    assert theirs.recv(1) == b"x"
    own.close()
    theirs.close()
