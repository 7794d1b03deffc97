"""How a trace lies in memory: one header page, then the records.

Rule: HEADER_FIELDS and RECORD_FIELDS are the format. The codec here and the C header (header.py) are made
from them, and what they say never changes within a major version. Everything is little-endian and naturally
aligned. A field that is `live` changes while others read it: it is stored and loaded in one piece.

Record n (from 0) lies in slot n % capacity. Its writer stores 0 as its sequence, then the body, then n + 1;
the header's `producer` comes last of all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag

from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, Record, RecordType, Status

MAGIC = b"SRIOVTRC"
MAJOR, MINOR = 1, 0
HEADER_BYTES = 4096
RECORD_BYTES = 256
CAPACITY_MIN = 2  # of which, in overwrite mode, one is being written
OPERATION_BYTES = 24
ARGUMENTS_BYTES = 168
_U32_MAX = 0xFFFFFFFF


class TraceError(ValueError):
    """Memory that is no trace, or none that this version reads; the message says what is wrong with it."""


class Flag(IntFlag):
    """The header's flags."""

    DROP = 1  # what finds the buffer full is dropped; otherwise the oldest is overwritten
    ACTIVE = 2  # the daemon writes to it


NO_FLAGS = Flag(0)


@dataclass(frozen=True, slots=True)
class Field:
    """`code`: its type, as the struct module writes it. `live`: it changes while others read."""

    offset: int
    code: str
    name: str
    meaning: str
    live: bool = False

    @property
    def size(self) -> int:
        """In bytes."""
        return struct.calcsize(f"<{self.code}")


HEADER_FIELDS: tuple[Field, ...] = (
    Field(0, "8s", "magic", "SRIOVTRC"),
    Field(8, "H", "major", "1; another one is another format"),
    Field(10, "H", "minor", "0; a higher one has new fields where zeroes were, or new numbers"),
    Field(12, "I", "header_bytes", "4096: the records begin there"),
    Field(16, "I", "record_bytes", "256: from one record to the next"),
    Field(20, "I", "capacity", "how many records there is room for, 2 at least"),
    Field(24, "I", "flags", "bit 0: drop mode, else overwrite; bit 1: active, sriovd writes", live=True),
    Field(28, "I", "vf", "the VF when tracing began: domain (its lower 16 bits) << 16 | routing id"),
    Field(32, "Q", "started_nsec", "when tracing began, CLOCK_MONOTONIC, in ns"),
    Field(40, "Q", "realtime_nsec", "the same moment, CLOCK_REALTIME, in ns since 1970"),
    Field(48, "Q", "lease", "number of the lease that is traced"),
    Field(64, "Q", "producer", "records ever published; stored last", live=True),
    Field(72, "Q", "lost", "records that are not to be had any more", live=True),
    Field(80, "Q", "next_transaction", "the id that the next transaction will have", live=True),
    Field(128, "Q", "consumer", "drop mode: records taken; the reader's to write, nobody else's", live=True),
)  # fmt: skip

RECORD_FIELDS: tuple[Field, ...] = (
    Field(0, "Q", "sequence", "n + 1 for record n; 0 while it is being written", live=True),
    Field(8, "H", "type", "what it tells of"),
    Field(10, "B", "direction", "from whom to whom, as seen by sriovd"),
    Field(11, "B", "status", "how it went"),
    Field(12, "I", "size", "bytes of arguments as they were; what goes beyond 168 is cut off"),
    Field(16, "Q", "time_nsec", "when it had happened, CLOCK_MONOTONIC, in ns"),
    Field(24, "Q", "latency_nsec", "how long it took, in ns"),
    Field(32, "Q", "transaction", "id of the transaction, rising within one trace; 0: of none"),
    Field(40, "Q", "parent", "the transaction that caused it; 0: none"),
    Field(48, "I", "vf", "the VF as it was addressed then, as in the header"),
    Field(52, "i", "error", "the kernel's errno, positive; 0: none"),
    Field(56, "I", "lost", "how many records are missing right before this one"),
    Field(60, "I", "zero", "0"),
    Field(64, "24s", "operation", "a word in UTF-8, padded with NUL"),
    Field(88, "168s", "arguments", "text in UTF-8, padded with NUL, cut at a character's border"),
)  # fmt: skip


def find_offset(fields: tuple[Field, ...], name: str) -> int:
    """Where the field `name` lies, in bytes."""
    return next(field.offset for field in fields if field.name == name)


FLAGS = find_offset(HEADER_FIELDS, "flags")
PRODUCER = find_offset(HEADER_FIELDS, "producer")
LOST = find_offset(HEADER_FIELDS, "lost")
NEXT_TRANSACTION = find_offset(HEADER_FIELDS, "next_transaction")
CONSUMER = find_offset(HEADER_FIELDS, "consumer")
SEQUENCE = find_offset(RECORD_FIELDS, "sequence")
BODY = SEQUENCE + 8  # what of a record is written between its two stores of the sequence
BODY_BYTES = RECORD_BYTES - BODY


def _make_struct(fields: tuple[Field, ...], start: int, end: int) -> struct.Struct:
    """Of the `fields` from `start` to `end`, with zeroes where there are none."""
    code = "<"
    for field in fields:
        if field.offset >= start:
            code += f"{field.offset - start - struct.calcsize(code)}x{field.code}"
    return struct.Struct(f"{code}{end - start - struct.calcsize(code)}x")


_HEADER = _make_struct(HEADER_FIELDS, 0, HEADER_BYTES)
_BODY = _make_struct(RECORD_FIELDS, BODY, RECORD_BYTES)
_TYPES = {int(each): each for each in RecordType}
_DIRECTIONS = {int(each): each for each in Direction}
_STATES = {int(each): each for each in Status}


@dataclass(frozen=True, slots=True)
class Header:
    """The header page; HEADER_FIELDS says what each field means."""

    vf: PciAddress
    capacity: int
    flags: Flag = NO_FLAGS
    started_nsec: int = 0
    realtime_nsec: int = 0
    lease: int = 0
    producer: int = 0
    lost: int = 0
    next_transaction: int = 1
    consumer: int = 0
    minor: int = MINOR

    @property
    def buffer_bytes(self) -> int:
        """What header and records take together."""
        return HEADER_BYTES + self.capacity * RECORD_BYTES


def encode_header(header: Header) -> bytes:
    """The header page. Raises struct.error for a number that does not fit its field."""
    return _HEADER.pack(
        MAGIC, MAJOR, header.minor, HEADER_BYTES, RECORD_BYTES, header.capacity, header.flags,
        _encode_address(header.vf), header.started_nsec, header.realtime_nsec, header.lease,
        header.producer, header.lost, header.next_transaction, header.consumer,
    )  # fmt: skip


def decode_header(page: bytes, buffer_bytes: int) -> Header:
    """The header of a buffer of `buffer_bytes` that begins with `page`. Raises TraceError if it is none, or
    if the buffer is smaller than it says."""
    if len(page) < HEADER_BYTES:
        raise TraceError(f"{len(page)} bytes are too few for a trace, which begins with {HEADER_BYTES}")
    magic, major, minor, header_bytes, record_bytes, capacity, flags, vf, *numbers = _HEADER.unpack_from(
        page
    )
    if magic != MAGIC:
        raise TraceError(f"it begins with {magic!r} and not with {MAGIC!r}")
    if major != MAJOR:
        raise TraceError(f"its format is {major}.{minor}; this reader reads {MAJOR}.x")
    if (header_bytes, record_bytes) != (HEADER_BYTES, RECORD_BYTES):
        raise TraceError(f"its header says {header_bytes} bytes of header and {record_bytes} a record")
    started, realtime, lease, producer, lost, next_transaction, consumer = numbers
    header = Header(
        _decode_address(vf), capacity, Flag(flags), started, realtime, lease, producer, lost,
        next_transaction, consumer, minor,
    )  # fmt: skip
    if capacity < CAPACITY_MIN or header.buffer_bytes > buffer_bytes:
        raise TraceError(f"{buffer_bytes} bytes cannot hold {capacity} records, as its header says")
    return header


def encode_record(record: Record) -> bytes:
    """The body of a record, all but its sequence. Raises struct.error for a number that does not fit its
    field; a count of lost records stops at its highest."""
    arguments = record.arguments.encode("utf-8", "backslashreplace")
    operation = record.operation.encode("utf-8", "backslashreplace")
    return _BODY.pack(
        record.type,
        record.direction,
        record.status,
        min(len(arguments), _U32_MAX),
        record.time_nsec,
        record.latency_nsec,
        record.transaction,
        record.parent,
        _encode_address(record.vf),
        record.errno,
        min(record.lost, _U32_MAX),
        0,
        operation if len(operation) <= OPERATION_BYTES else _cut(operation, OPERATION_BYTES),
        arguments if len(arguments) <= ARGUMENTS_BYTES else _cut(arguments, ARGUMENTS_BYTES),
    )


def decode_record(body: bytes) -> tuple[Record, int]:
    """The record of a body as encode_record() makes it, and how many bytes of its arguments are missing.
    Bytes that are no UTF-8 are kept as surrogates. Raises TraceError for a number that has no meaning."""
    (
        type_, direction, status, size, time_nsec, latency_nsec, transaction, parent, vf, error, lost, _,
        operation, arguments,
    ) = _BODY.unpack(body)  # fmt: skip
    try:
        numbers = (_TYPES[type_], _DIRECTIONS[direction], _STATES[status])
    except KeyError as unknown:
        raise TraceError(f"a record of type {type_}, direction {direction}, status {status}") from unknown
    arguments = arguments[:size].rstrip(b"\0")
    record = Record(
        *numbers,
        _decode_address(vf),
        operation.rstrip(b"\0").decode("utf-8", "surrogateescape"),
        arguments.decode("utf-8", "surrogateescape"),
        error,
        time_nsec,
        latency_nsec,
        transaction,
        parent,
        lost,
    )
    return record, size - len(arguments) if size > ARGUMENTS_BYTES else 0


def _cut(text: bytes, size: int) -> bytes:
    """The first `size` bytes of UTF-8 or a few less: never a part of a character."""
    while text[size] & 0xC0 == 0x80:
        size -= 1
    return text[:size]


def _encode_address(address: PciAddress) -> int:
    domain, bus, device, function = address
    return (domain & 0xFFFF) << 16 | bus << 8 | device << 3 | function


def _decode_address(number: int) -> PciAddress:
    return PciAddress(number >> 16, number >> 8 & 0xFF, number >> 3 & 0x1F, number & 7)
