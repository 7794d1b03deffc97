"""Traces in an owner's memory: over the bus, against an owner who does what he can, and over the daemon's
end."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dbus_next.signature import Variant

from sriovd.backend.simulated import SimulatedBackend
from sriovd.bus.private import PrivateBus
from sriovd.bus.signature import Variant as OurVariant
from sriovd.core.trace.notes import Note
from sriovd.core.trace.recorder import Recorder
from sriovd.daemon import Daemon
from sriovd.pci import PciAddress
from sriovd.trace import layout
from sriovd.trace.reader import Entry, TraceReader
from sriovd.trace.record import Direction, RecordType, Status
from sriovd.trace.source import MemorySource
from tests.simulated.client import IGB0, MANAGER, ROOT, TRACE, VF0, VF1, Client, function_path
from tests.simulated.inside import Inside, running_inside
from tests.simulated.leases import OWNER, until_leases
from tests.simulated.test_keepsakes import FakeSystemd, daemon_on
from tests.unit.bus.support import Client as Owner
from tests.unit.bus.support import in_loop, open_fds, until
from tests.unit.core.trace.buffers import make_memfd
from tests.unit.core.trace.test_donation import HOSTILE

OWNED = {"owner": Variant("s", OWNER)}
OURS = {"owner": OurVariant("s", OWNER)}  # as our own connection has it


def note(inside: Inside, count: int = 1) -> None:
    """Something happens to VF0."""
    for number in range(count):
        told = Note(RecordType.NOTE, Direction.NONE, Status.OK, f"noted-{number}")
        recorder_of(inside.daemon).note((PciAddress.parse(IGB0), 0), told)


def recorder_of(daemon: Daemon) -> Recorder:
    return daemon._engine.recorder


def is_traced(inside: Inside) -> bool:
    """Whether anything would be written anywhere."""
    return any(trace.stream.sink for trace in recorder_of(inside.daemon)._traces.values())


def noted(entries: list[Entry]) -> list[str]:
    return [each.record.operation for each in entries if each.record.operation.startswith("noted")]


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch) -> FakeSystemd:
    fake = FakeSystemd()
    monkeypatch.setattr("sriovd.keepsakes.daemon", fake)
    return fake


@contextmanager
def mapped(fd: int) -> Iterator[mmap.mmap]:
    """The owner's own view."""
    with mmap.mmap(fd, 0) as memory:
        yield memory


def read(fd: int) -> list[Entry]:
    """What the owner reads, which must be whole and without a gap."""
    with mapped(fd) as memory:
        reader = TraceReader(MemorySource(memory))
        entries = list(reader.read())
        assert reader.damaged == 0
        numbers = [entry.sequence for entry in entries]
        assert numbers == list(range(reader.position - len(numbers) + 1, reader.position + 1))
        return entries


async def start(client: Owner, fd: int, address: str = VF0, **options: Any) -> Any:
    """Trace.Start; the reply, whatever it is."""
    given = {**OWNED, **options}
    return await client.call(
        "StartTrace", "sha{sv}", address, 0, given, path=ROOT, interface=MANAGER, fds=[fd]
    )


@asynccontextmanager
async def leased(bus: PrivateBus, root: str) -> AsyncIterator[tuple[Inside, Owner]]:
    """A daemon with two VFs, of which OWNER leases one, and a connection that can pass descriptors."""
    async with running_inside(bus.address, root) as inside, Owner.connected(bus.address) as owner:
        await inside.client.set_num_vfs(IGB0, 2)
        await inside.client.lease(address=VF0)
        yield inside, owner


@in_loop
async def test_an_owner_gets_every_record_in_his_memory(bus: PrivateBus, root: str) -> None:
    async with leased(bus, root) as (inside, owner):
        fd = make_memfd(64 << 10)
        reply = await owner.call(
            "Start", "ha{sv}", 0, OWNED, path=function_path(VF0), interface=TRACE, fds=[fd]
        )
        capacity, following = reply.body
        assert (reply.signature, capacity) == ("ut", 240)
        history = [entry.record for entry in read(fd)]
        assert [history[0].operation, history[0].transaction] == ["vf", 1]
        assert {"Lease", "bind", "hand-over"} <= {each.operation for each in history}  # the bring-up
        assert following - 1 in {each.transaction for each in history}  # more may have come since
        note(inside, 3)
        assert noted(read(fd)) == ["noted-0", "noted-1", "noted-2"]
        assert (await start(owner, fd)).error_name == "org.sriovd1.Error.InUse"
        await inside.client.call(function_path(VF0), TRACE, "Stop", "a{sv}", OURS)
        with mapped(fd) as memory:
            assert not TraceReader(MemorySource(memory)).is_active
        assert not is_traced(inside)
        told = await inside.client.refused("StopTrace", "sa{sv}", VF0, OURS)
        told.check("NotSupported", "is not being traced", "Trace.Start")
        os.close(fd)


@in_loop
async def test_without_history_it_begins_with_the_next_record(bus: PrivateBus, root: str) -> None:
    async with leased(bus, root) as (inside, owner):
        fd = make_memfd(8192)
        await start(owner, fd, history=Variant("b", False))
        before = len(read(fd))
        note(inside)
        assert len(read(fd)) == before + 1
        assert {each.record.operation for each in read(fd)} <= {"StartTrace", "noted-0"}
        os.close(fd)


@in_loop
async def test_a_trace_ends_with_its_lease(bus: PrivateBus, root: str) -> None:
    async with leased(bus, root) as (inside, owner):
        fd = make_memfd(64 << 10)
        await start(owner, fd)
        ((path, _),) = [
            (path, each) for path, each in (await inside.client.managed()).items() if "/lease/" in path
        ]
        await inside.client.release(path)
        await until_leases(inside.client)
        assert not is_traced(inside)
        assert "reset" in [each.record.operation for each in read(fd)]  # it was told to the end
        with mapped(fd) as memory:
            assert not TraceReader(MemorySource(memory)).is_active
        os.close(fd)


@in_loop
async def test_no_descriptor_that_will_not_do_is_taken_or_kept(bus: PrivateBus, root: str) -> None:
    async with leased(bus, root) as (inside, owner):
        await start(owner, fd := make_memfd())  # the ledger is there from now on
        await inside.client.ask("StopTrace", "sa{sv}", VF0, OURS)
        before = open_fds()
        for make, words in HOSTILE.values():
            with contextlib.suppress(PermissionError, FileNotFoundError, pytest.skip.Exception):
                hostile = make()
                reply = await start(owner, hostile)
                assert reply.error_name == "org.sriovd1.Error.InvalidArgument"
                assert words in reply.body[0], reply.body
                os.close(hostile)
        assert (await start(owner, fd, VF1)).error_name == "org.sriovd1.Error.NotOwner"
        assert (await start(owner, fd, mode=Variant("s", "x"))).error_name.endswith("InvalidArgument")
        await until(lambda: len(open_fds()) <= len(before))
        assert not is_traced(inside)
        assert (await start(owner, fd)).body[0] == 16
        os.close(fd)


@in_loop
async def test_anothers_descriptors_are_no_buffers(bus: PrivateBus, root: str) -> None:
    async with leased(bus, root) as (inside, owner):
        await inside.client.lease("other", address=VF1)
        opened = await owner.call("OpenGroup", "ts", 2, "other", path=ROOT, interface=MANAGER)
        fds = [*opened.unix_fds, make_memfd()]
        await start(owner, fds[1], VF1, owner=Variant("s", "other"))
        for fd, words in zip(fds, ("cannot be sealed", "is the buffer of another trace"), strict=True):
            assert words in (await start(owner, fd)).body[0]
            os.close(fd)


@in_loop
async def test_more_descriptors_than_one_are_closed(bus: PrivateBus, root: str) -> None:
    async with leased(bus, root) as (_, owner):
        fds = [make_memfd() for _ in range(4)]
        before = len(open_fds())
        reply = await owner.call(
            "StartTrace", "sha{sv}", VF0, 9, OWNED, path=ROOT, interface=MANAGER, fds=fds
        )  # fmt: skip
        assert "Error" in reply.error_name
        await until(lambda: len(open_fds()) <= before)
        reply = await owner.call(
            "StartTrace", "sha{sv}", VF0, 2, OWNED, path=ROOT, interface=MANAGER, fds=fds
        )  # fmt: skip
        assert reply.body[0] == 16
        await until(lambda: len(open_fds()) <= before + 2)  # the mapping's, and the ledger's
        for fd in fds:
            os.close(fd)


@in_loop
async def test_holes_made_after_the_checks_are_filled(bus: PrivateBus, root: str) -> None:
    async with leased(bus, root) as (inside, owner):
        fd = make_memfd(8192)
        await start(owner, fd, history=Variant("b", False))
        with mapped(fd) as memory, memoryview(memory).cast("Q") as words:
            count = words[layout.PRODUCER >> 3]
        note(inside)
        mode = "3"  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
        script = (
            "import ctypes, sys; ctypes.CDLL(None).fallocate(int(sys.argv[1]), int(sys.argv[2]), 0, 8192)"
        )
        subprocess.run([sys.executable, "-c", script, str(fd), mode], pass_fds=[fd], check=True)
        assert os.fstat(fd).st_blocks == 0
        note(inside)
        with mapped(fd) as memory, memoryview(memory).cast("Q") as words:
            assert words[layout.PRODUCER >> 3] == count + 2
            last = layout.HEADER_BYTES + (count + 1) * layout.RECORD_BYTES
            assert words[last >> 3] == count + 2
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(fd, 4096)
        os.close(fd)


@in_loop
async def test_the_next_daemon_goes_on_in_the_same_buffer(
    bus: PrivateBus, root: str, tmp_path: Path, systemd: FakeSystemd
) -> None:
    backend, fd = SimulatedBackend(root), make_memfd(64 << 10)
    async with Owner.connected(bus.address) as owner:
        async with daemon_on(backend, bus, tmp_path / "db") as client:
            await client.set_num_vfs(IGB0, 1)
            await client.lease(address=VF0)
            await start(owner, fd, mode=Variant("s", "drop"))
            assert set(systemd.kept) == {"trace-1", "trace-ledger"}
        before = read(fd)
        with mapped(fd) as memory:
            assert TraceReader(MemorySource(memory)).is_active
        async with daemon_on(backend, bus, tmp_path / "db") as client:
            assert (await start(owner, fd)).error_name.endswith("InUse")
            await _check_resumed(client, fd, before)
        assert set(systemd.kept) == {"trace-ledger"}
    os.close(fd)


async def _check_resumed(client: Client, fd: int, before: list[Entry]) -> None:
    entries = read(fd)
    assert entries[: len(before)] == before
    note, *later = [entry.record for entry in entries[len(before) :]]
    assert (note.type, note.operation, str(note.vf)) == (RecordType.NOTE, "resumed", VF0)
    last = max(entry.record.transaction for entry in before)
    fresh = [each.transaction for each in (note, *later) if each.type is not RecordType.END]
    assert fresh == list(range(last + 1, last + 1 + len(fresh)))
    known = {entry.record.transaction for entry in entries}
    assert all(each.parent in known for each in (note, *later)), "one tree before and after"
    await client.release(f"{ROOT}/lease/1")
    with mapped(fd) as memory:
        assert not TraceReader(MemorySource(memory)).is_active
