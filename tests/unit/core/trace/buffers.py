"""Donated memory, how an owner reads it, and stand-ins for what the desk of traces talks to."""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass, field

from sriovd.core.lease.pool import Place
from sriovd.core.lease.record import Lease, LeaseState
from sriovd.core.trace.buffer import BufferWriter
from sriovd.core.trace.desk import Shelf, Sink
from sriovd.core.trace.ledger import Account, Ledger, LedgerSlot, make_ledger
from sriovd.pci import PciAddress
from sriovd.trace import layout
from sriovd.trace.layout import Header
from sriovd.trace.record import Direction, Record, RecordType, Status

PF, VF = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:10.0")
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
MFD_ALLOW_SEALING = 2  # include/uapi/linux/memfd.h
CONSUMER = layout.CONSUMER >> 3
FILE = (1, 2)


def make_memfd(size: int = 8192, seals: int = SEALS, *, allocate: bool = True, flags: int = 0) -> int:
    """What a tenant gives."""
    fd = os.memfd_create("trace", os.MFD_CLOEXEC | MFD_ALLOW_SEALING | flags)
    os.ftruncate(fd, size)
    if allocate and size:
        os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def make_lease(number: int = 1, uid: int = 1000) -> Lease:
    return Lease(number, uid, "vm", PF, 0, 1, "vfio-pci", "none", False, LeaseState.ACTIVE)


def make_record(number: int, arguments: str = "") -> Record:
    return Record(
        RecordType.WRITE, Direction.TO_KERNEL, Status.OK, VF, "bind", arguments or f"number {number}",
        time_nsec=number, transaction=number, parent=1,
    )  # fmt: skip


def read_trace(memory: bytes | memoryview | mmap.mmap) -> tuple[Header, list[tuple[int, Record]]]:
    """What its owner reads: the header, and the records that it vouches for, each with its sequence."""
    content = bytes(memory)
    header = layout.decode_header(content[: layout.HEADER_BYTES], len(content))
    if header.flags & layout.Flag.DROP:  # what was taken may be being overwritten
        first = max(header.consumer, header.producer - header.capacity)
    else:
        first = header.producer - (header.capacity - 1)
    found = []
    for number in range(max(0, first), header.producer):
        start = layout.HEADER_BYTES + number % header.capacity * layout.RECORD_BYTES
        sequence = int.from_bytes(content[start : start + 8], "little")
        record, _ = layout.decode_record(content[start + layout.BODY : start + layout.RECORD_BYTES])
        found.append((sequence, record))
    return header, found


class Buffer:
    """A buffer with its writer, as the desk puts them together, and its owner's view."""

    def __init__(self, capacity: int = 16, *, drops: bool = False) -> None:
        fd = make_ledger()
        self.ledger = Ledger(fd)
        os.close(fd)
        self.slot: LedgerSlot = self.ledger.claim(Account(1, drops, FILE))
        self.memory = mmap.mmap(-1, layout.HEADER_BYTES + capacity * layout.RECORD_BYTES)
        self.words = memoryview(self.memory).cast("Q")
        self.writer = BufferWriter(self.memory, self.slot)
        self.writer.publish(VF)

    def write(self, *numbers: int) -> None:
        for number in numbers:
            self.writer.write(make_record(number))

    def consume(self, count: int) -> None:
        """The reader has taken so many in all."""
        self.words[CONSUMER] = count

    def restart(self) -> None:
        """Another daemon goes on."""
        self.writer = BufferWriter(self.memory, self.slot)
        self.writer.publish(VF)

    def read(self) -> tuple[Header, list[Record]]:
        """The records must be those that belong there."""
        header, found = read_trace(self.memory)
        first = header.producer - len(found)
        assert [sequence for sequence, _ in found] == list(range(first + 1, header.producer + 1))
        return header, [record for _, record in found]


@dataclass
class FakeRecorder:
    """A Recording: ids by lease, and who is written to. `past`: what is kept of every lease."""

    next_ids: dict[int, int] = field(default_factory=dict)
    sinks: dict[int, Sink] = field(default_factory=dict)
    past: list[Record] = field(default_factory=list)
    tails: list[tuple[Place, int]] = field(default_factory=list)

    def attach(self, lease_number: int, sink: Sink, history: bool) -> None:
        assert lease_number not in self.sinks
        self.sinks[lease_number] = sink
        for record in self.past if history else ():
            sink.write(record)

    def detach(self, lease_number: int) -> None:
        self.sinks.pop(lease_number, None)

    def next_transaction(self, lease_number: int) -> int:
        return self.next_ids.get(lease_number, 1)

    def seed(self, lease_number: int, next_transaction: int) -> None:
        self.next_ids[lease_number] = next_transaction

    def tail(self, place: Place, lease_number: int = 0) -> list[Record]:
        self.tails.append((place, lease_number))
        return self.past

    def note(self, lease_number: int, text: str = "") -> None:
        """Something happens to the lease's VF."""
        number = self.next_transaction(lease_number)
        self.next_ids[lease_number] = number + 1
        self.sinks[lease_number].write(make_record(number, text))


class FakeStore:
    """The service manager's store of descriptors, for a desk; it closes nothing that it does not have."""

    def __init__(self) -> None:
        self.traces: dict[int, int] = {}
        self.ledger: int | None = None

    def shelf(self) -> Shelf:
        return Shelf(self._keep, self._drop, self._keep_ledger, self._drop_ledger)

    def hand_out(self) -> tuple[dict[int, int], int | None]:
        """As the next daemon gets them."""
        ledger = None if self.ledger is None else os.dup(self.ledger)
        return {number: os.dup(fd) for number, fd in self.traces.items()}, ledger

    def close(self) -> None:
        for number in list(self.traces):
            self._drop(number)
        self._drop_ledger()

    def _keep(self, number: int, fd: int) -> None:
        assert number not in self.traces
        self.traces[number] = os.dup(fd)

    def _drop(self, number: int) -> None:
        os.close(self.traces.pop(number))

    def _keep_ledger(self, fd: int) -> None:
        assert self.ledger is None
        self.ledger = os.dup(fd)

    def _drop_ledger(self) -> None:
        if self.ledger is not None:
            os.close(self.ledger)
            self.ledger = None
