"""Traces made by hand: a writer as the format describes it, and records of every kind.

Rule: pure, and on layout.py alone. What reads must not depend on how the daemon writes.
"""

from __future__ import annotations

import random
import struct
from typing import Any

from hypothesis import strategies as st

from sriovd.pci import PciAddress
from sriovd.trace.layout import (
    CONSUMER,
    HEADER_BYTES,
    LOST,
    PRODUCER,
    RECORD_BYTES,
    Flag,
    Header,
    encode_header,
    encode_record,
)
from sriovd.trace.names import ERROR_NAMES
from sriovd.trace.reader import TraceReader
from sriovd.trace.record import Direction, Record, RecordType, Status
from sriovd.trace.source import MemorySource

VF = PciAddress.parse("0000:01:10.2")
PLAIN = Record(
    RecordType.WRITE, Direction.TO_KERNEL, Status.OK, VF, "bind", "vfio-pci",
    time_nsec=12_345_678_000, latency_nsec=1_234_000, transaction=5, parent=2,
)  # fmt: skip

U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
RECORDS = st.builds(
    Record,
    type=st.sampled_from(RecordType),
    direction=st.sampled_from(Direction),
    status=st.sampled_from(Status),
    vf=st.builds(PciAddress.from_rid, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    operation=st.text(max_size=6),
    arguments=st.text(max_size=42),
    errno=st.integers(-(2**31), 2**31 - 1),
    time_nsec=U64,
    latency_nsec=U64,
    transaction=U64,
    parent=U64,
    lost=U32,
)


def replace(record: Record, **changes: Any) -> Record:
    """The record with other values."""
    return record._replace(**changes)


class Buffer:
    """A buffer and its writer. `memory` is what a tenant would have."""

    def __init__(self, capacity: int = 8, flags: Flag = Flag.ACTIVE) -> None:
        self.header = Header(VF, capacity, flags, started_nsec=10, realtime_nsec=20, lease=7)
        self.memory = bytearray(encode_header(self.header).ljust(self.header.buffer_bytes, b"\0"))
        self.producer = 0
        self._pending = 0

    def write(self, record: Record) -> None:
        """Publish `record`, or drop it, as layout.py says it."""
        if self.header.flags & Flag.DROP and self.producer - self._find_consumer() >= self.header.capacity:
            self._pending += 1
            self.store(LOST, self.load(LOST) + 1)
            return
        offset = self.offset_of(self.producer)
        self.store(offset, 0)
        self.memory[offset + 8 : offset + RECORD_BYTES] = encode_record(replace(record, lost=self._pending))
        self.store(offset, self.producer + 1)
        self.producer, self._pending = self.producer + 1, 0
        if not self.header.flags & Flag.DROP:
            self.store(LOST, max(0, self.producer - (self.header.capacity - 1)))
        self.store(PRODUCER, self.producer)

    def fill(self, count: int) -> None:
        """Publish `count` records whose transactions are their numbers, from 1."""
        for _ in range(count):
            self.write(replace(PLAIN, transaction=self.producer + 1))

    def reader(self, position: int | None = None) -> TraceReader:
        return TraceReader(MemorySource(self.memory), position)

    def offset_of(self, number: int) -> int:
        return HEADER_BYTES + number % self.header.capacity * RECORD_BYTES

    def load(self, offset: int) -> int:
        return int.from_bytes(self.memory[offset : offset + 8], "little")

    def store(self, offset: int, value: int) -> None:
        self.memory[offset : offset + 8] = value.to_bytes(8, "little")

    def _find_consumer(self) -> int:
        oldest = max(0, self.producer - self.header.capacity)
        consumer = self.load(CONSUMER)
        return consumer if oldest <= consumer <= self.producer else oldest


def make_random_record(source: random.Random) -> Record:
    """Any record; texts are of any bytes, too long at times."""
    letters = source.choice(["abc 0:.-=", 'é√\\"\t\x7f\x00', "\udc80\udcff\ud800a", "\U0001f600x"])
    return Record(
        source.choice(list(RecordType)),
        source.choice(list(Direction)),
        source.choice(list(Status)),
        PciAddress.from_rid(source.choice([0, 0x1234, 0x12345]), source.randrange(0x10000)),
        "".join(source.choices(letters, k=source.choice([0, 4, 23, 24, 25, 40]))),
        "".join(source.choices(letters, k=source.choice([0, 20, 167, 168, 169, 300]))),
        source.choice([0, 0, *ERROR_NAMES, -1, 36, 4095, -(2**31), 2**31 - 1]),
        source.choice([0, 12_345_678_901, source.randrange(2**64), 2**64 - 1]),
        source.choice([0, 1, 999, 1000, source.randrange(2**64), 2**64 - 1]),
        source.choice([0, 1, source.randrange(2**64), 2**64 - 1]),
        source.choice([0, 1, source.randrange(2**64)]),
    )


def make_random_buffer(source: random.Random) -> bytes:
    """A buffer in any state that a writer and a reader can bring it to."""
    flags = source.choice([Flag.DROP, Flag.ACTIVE, Flag.DROP | Flag.ACTIVE])
    buffer = Buffer(source.randrange(2, 9), flags)
    for _ in range(source.randrange(24)):
        buffer.write(make_random_record(source))
        if flags & Flag.DROP and source.random() < 0.2:
            buffer.store(CONSUMER, source.choice([buffer.producer, source.randrange(2**64), 0]))
    return bytes(buffer.memory)


INTERESTING = (0, 1, 2, 3, 7, 8, 9, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def damage(source: random.Random, whole: bytes) -> bytes:
    """`whole` with a few changes: in the header, in the records, at its end."""
    memory = bytearray(whole)
    for _ in range(source.randrange(1, 6)):
        where = source.choice([136, HEADER_BYTES + 16, len(memory)])
        size = source.choice([1, 2, 4, 8])
        offset = source.randrange(min(where, len(memory)) - size) // size * size
        value = source.choice([*INTERESTING, source.getrandbits(64)]) & (1 << 8 * size) - 1
        memory[offset : offset + size] = value.to_bytes(size, "little")
    if source.random() < 0.8:  # or little is reached but the check of the magic number
        struct.pack_into("<8sHHII", memory, 0, b"SRIOVTRC", 1, 0, HEADER_BYTES, RECORD_BYTES)
    return bytes(memory if source.random() < 0.95 else memory[: source.randrange(len(memory))])
