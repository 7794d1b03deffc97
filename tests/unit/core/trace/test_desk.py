"""A trace from the donation to the lease's end, and over the daemon's."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sriovd.core.errors import InUse, InvalidArgument, NotSupported, PoolExhausted, SriovdError
from sriovd.core.trace.buffer import Mode
from sriovd.core.trace.desk import TraceDesk
from sriovd.core.trace.donation import BUFFERS_PER_USER
from sriovd.core.trace.ledger import Account
from sriovd.trace.layout import HEADER_BYTES, Flag, Header, decode_header
from sriovd.trace.record import Record, RecordType
from tests.unit.core.trace.buffers import (
    VF,
    FakeRecorder,
    FakeStore,
    make_lease,
    make_memfd,
    make_record,
    read_trace,
)

UID = os.getuid()


@dataclass
class Site:
    """A daemon's desk; kill() and begin() the next."""

    store: FakeStore = field(default_factory=FakeStore)
    recorder: FakeRecorder = field(default_factory=FakeRecorder)
    leases: dict[int, Any] = field(default_factory=lambda: {1: make_lease(1), 2: make_lease(2)})
    desk: TraceDesk = field(init=False)

    def __post_init__(self) -> None:
        self.desk = TraceDesk(self.recorder, lambda _: VF, self.store.shelf())

    def start(self, number: int, fd: int, mode: Mode = Mode.OVERWRITE, **options: Any) -> tuple[int, int]:
        given = {"history": True, "trusted": False, **options}
        return self.desk.start(self.leases[number], UID, fd, mode, **given)

    def restart(self) -> None:
        """The daemon is killed, and the next takes up what systemd has kept."""
        for trace in self.desk._traces.values():  # as the kernel does for a process
            trace.writer._words.release()
            trace.writer._bytes.release()
            trace.memory.close()
        self.recorder = FakeRecorder()
        self.desk = TraceDesk(self.recorder, lambda _: VF, self.store.shelf())
        self.desk.restore(*self.store.hand_out(), self.leases.get)

    def close(self) -> None:
        for number in list(self.desk._traces):
            self.desk.end(self.leases[number])
        self.store.close()


@pytest.fixture
def site() -> Iterator[Site]:
    """Leaves no buffer open."""
    before = _count_buffers()
    made = Site()
    yield made
    made.close()
    assert _count_buffers() == before


def _count_buffers() -> int:
    """Descriptors and mappings; the ledger's live as long as what was logged refers to them."""
    links = (_read_link(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    mapped = Path("/proc/self/maps").read_text()
    return sum("/memfd:trace " in link for link in links) + mapped.count("/memfd:trace ")


def _read_link(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:  # the directory's own
        return ""


@pytest.fixture
def memory() -> Iterator[int]:
    fd = make_memfd()
    yield fd
    os.close(fd)


def read(fd: int) -> tuple[Header, list[Record]]:
    with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        header, found = read_trace(mapped)
        return header, [record for _, record in found]


def test_a_trace_begins_and_ends(site: Site, memory: int) -> None:
    assert site.start(1, memory) == (16, 1)
    for _ in range(3):
        site.recorder.note(1)
    header, records = read(memory)
    assert records == [make_record(number) for number in (1, 2, 3)]
    assert (header.flags, header.lease, header.vf, header.next_transaction) == (Flag.ACTIVE, 1, VF, 4)
    assert set(site.store.traces) == {1}
    assert site.store.ledger is not None
    site.desk.stop(site.leases[1])
    assert (read(memory)[0].flags, read(memory)[1]) == (Flag(0), records)
    assert site.store.traces == {}
    assert site.recorder.sinks == {}
    site.start(2, memory)  # it may be used again


def test_the_past_is_written_first_if_asked(site: Site, memory: int) -> None:
    site.recorder.past = [make_record(number) for number in (4, 5)]
    site.recorder.next_ids[1] = 6
    assert site.start(1, memory) == (16, 6)
    assert read(memory)[1] == site.recorder.past
    site.desk.end(site.leases[1])
    site.start(1, memory, history=False)
    header, records = read(memory)
    assert (records, header.next_transaction) == ([], 6)


def test_a_defect_ends_a_trace_at_a_restart_and_neither_the_others_nor_the_daemon(
    site: Site, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.start(1, memory)
    other = make_memfd()
    site.start(2, other)
    os.close(other)

    def seed(self: FakeRecorder, lease_number: int, next_transaction: int) -> None:
        self.next_ids[{2: 2}[lease_number]] = next_transaction

    monkeypatch.setattr(FakeRecorder, "seed", seed)
    site.restart()
    assert set(site.desk._traces) == set(site.store.traces) == set(site.recorder.sinks) == {2}
    assert read(memory)[0].flags == Flag(0)
    site.start(1, memory)


def test_a_buffer_that_cannot_be_kept_is_let_go(
    site: Site, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_number: int, _fd: int) -> None:
        raise OSError("systemd does not listen")

    with monkeypatch.context() as patch:
        patch.setattr(site.desk, "_shelf", replace(site.store.shelf(), keep=fail, drop=lambda _: None))
        with pytest.raises(OSError, match="does not listen"):
            site.start(1, memory)
    assert site.desk._traces == {}
    site.start(1, memory)


def test_a_lease_has_one_trace_and_a_buffer_too(site: Site, memory: int) -> None:
    site.start(1, memory)
    other = make_memfd()
    with pytest.raises(InUse, match=r"lease 1 .* is being traced"):
        site.start(1, other)
    with pytest.raises(InvalidArgument, match="another trace"):
        site.start(2, memory, trusted=True)
    copy = os.open(f"/proc/self/fd/{memory}", os.O_RDWR)
    with pytest.raises(InvalidArgument, match="another trace"):
        site.start(2, copy)
    os.close(other)
    os.close(copy)


def test_what_is_not_traced_cannot_be_stopped_but_may_end(site: Site) -> None:
    with pytest.raises(NotSupported, match="not being traced"):
        site.desk.stop(site.leases[1])
    site.desk.end(site.leases[1])


def test_who_is_refused_leaves_nothing(site: Site, memory: int) -> None:
    opened = _count_buffers()
    for seals in (0, fcntl.F_SEAL_GROW):
        bad = make_memfd(seals=seals)
        with pytest.raises(InvalidArgument):
            site.start(1, bad)
        os.close(bad)
    assert (site.store.traces, site.store.ledger, site.recorder.sinks) == ({}, None, {})
    assert _count_buffers() == opened


def test_a_start_that_fails_leaves_nothing(site: Site, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError(1)

    with monkeypatch.context() as patched:
        patched.setattr(site.recorder, "attach", fail)
        with pytest.raises(KeyError):
            site.start(1, memory)
    assert (site.store.traces, list_used(site)) == ({}, [])
    site.start(1, memory)


def test_a_user_has_so_many_and_root_more(site: Site) -> None:
    fds = [make_memfd() for _ in range(BUFFERS_PER_USER + 2)]
    site.leases = {number: make_lease(number) for number in range(1, len(fds) + 1)}
    for number in range(1, BUFFERS_PER_USER + 1):
        site.start(number, fds[number - 1])
    with pytest.raises(PoolExhausted, match="User 1000 has 32"):
        site.start(BUFFERS_PER_USER + 1, fds[-1])
    site.start(BUFFERS_PER_USER + 1, fds[-1], trusted=True)
    site.desk.end(site.leases[1])
    site.desk.end(site.leases[2])
    site.start(BUFFERS_PER_USER + 2, fds[0])
    for fd in fds:
        os.close(fd)


# The next daemon.


def list_used(site: Site) -> list[Account]:
    assert site.desk._ledger is not None
    return [slot.read() for slot in site.desk._ledger.used()]


def test_the_next_daemon_goes_on_in_the_same_buffer(site: Site, memory: int) -> None:
    site.recorder.next_ids[1] = 10
    site.start(1, memory, Mode.DROP)
    for _ in range(3):
        site.recorder.note(1)
    started = read(memory)[0].started_nsec
    site.restart()
    assert site.recorder.next_transaction(1) == 14
    site.recorder.note(1)
    header, records = read(memory)
    assert [record.transaction for record in records] == [10, 11, 12, 13, 14]
    note = records[3]
    assert (note.type, note.operation, note.vf) == (RecordType.NOTE, "resumed", VF)
    assert (header.flags, header.producer) == (Flag.DROP | Flag.ACTIVE, 5)
    assert header.started_nsec == started
    assert set(site.store.traces) == {1}
    site.desk.stop(site.leases[1])
    assert site.store.traces == {}


def test_what_was_scribbled_over_meanwhile_is_set_right(site: Site, memory: int) -> None:
    site.start(1, memory)
    site.recorder.note(1)
    os.pwrite(memory, b"\xff" * 8192, 0)
    site.restart()
    header = decode_header(os.pread(memory, HEADER_BYTES, 0), 8192)
    assert (header.producer, header.next_transaction, header.flags, header.capacity) == (
        2,
        3,
        Flag.ACTIVE,
        16,
    )


def test_a_lease_that_is_over_has_no_trace(site: Site, memory: int) -> None:
    site.start(1, memory)
    del site.leases[1]
    site.restart()
    assert (site.store.traces, site.recorder.sinks) == ({}, {})
    assert list_used(site) == []
    assert read(memory)[0].flags == Flag(0)
    site.start(2, memory)


def test_a_buffer_that_will_not_do_any_more_is_let_go(site: Site, memory: int) -> None:
    """Nobody maps it between two daemons, so seals may be added."""
    site.start(1, memory)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, 0x10)
    site.restart()
    assert (site.store.traces, site.recorder.sinks) == ({}, {})


def test_another_buffer_than_was_given_is_let_go(site: Site, memory: int) -> None:
    site.start(1, memory)
    os.close(site.store.traces[1])
    site.store.traces[1] = make_memfd()
    site.restart()
    assert (site.store.traces, site.recorder.sinks) == ({}, {})


def test_what_was_kept_for_no_trace_is_let_go(site: Site, memory: int) -> None:
    site.start(1, memory)
    site.store.traces[2] = make_memfd()
    site.restart()
    assert set(site.store.traces) == set(site.recorder.sinks) == {1}


def test_a_trace_whose_buffer_was_not_kept_frees_its_place(site: Site, memory: int) -> None:
    site.start(1, memory)
    os.close(site.store.traces.pop(1))
    site.restart()
    assert site.recorder.sinks == {}
    assert list_used(site) == []


@pytest.mark.parametrize("content", [b"", b"\xff" * 32768, b"\x01" * 32768, os.urandom(32768)])
def test_a_ledger_that_makes_no_sense_ends_the_traces(site: Site, memory: int, content: bytes) -> None:
    site.start(1, memory)
    assert site.store.ledger is not None
    os.ftruncate(site.store.ledger, len(content))
    os.pwrite(site.store.ledger, content, 0)
    site.restart()
    assert (site.store.traces, site.recorder.sinks) == ({}, {})
    site.start(1, memory)
    site.recorder.note(1)
    site.restart()
    assert set(site.store.traces) == {1}


def test_a_killed_start_leaves_nothing_or_a_trace(site: Site, memory: int) -> None:
    """Killed after the ledger knew, before systemd did."""

    def killed(_number: int, _fd: int) -> None:
        raise SriovdError("killed")

    site.desk._shelf = site.store.shelf().__class__(killed)
    with pytest.raises(SriovdError, match="killed"):
        site.start(1, memory)
    site.restart()
    site.start(1, memory)
    assert set(site.store.traces) == {1}
