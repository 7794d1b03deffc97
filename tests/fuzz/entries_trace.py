"""The reader of traces: a buffer is its owner's memory, and a saved one may be anybody's file."""

from __future__ import annotations

import struct

from sriovd.pci import PciAddress
from sriovd.trace import layout
from sriovd.trace.layout import HEADER_BYTES, RECORD_BYTES, Flag, Header, TraceError
from sriovd.trace.reader import TraceReader
from sriovd.trace.record import Direction, Record, RecordType, Status
from sriovd.trace.source import MemorySource
from sriovd.trace.view import Filter, Form, View
from tests.fuzz.entry import Entry

_VF = PciAddress.parse("0000:01:10.2")
_CAPACITY = 4
_HEADER_USED = layout.CONSUMER + 8
_RECORDS = tuple(
    Record(kind, direction, status, _VF, "bind", "vfio-pci" * 30, 16, 5_000_000, 7000, number, number - 1)
    for number, (kind, direction, status) in enumerate(
        (
            (RecordType.BEGIN, Direction.FROM_OWNER, Status.BEGUN),
            (RecordType.WRITE, Direction.TO_KERNEL, Status.FAILED),
            (RecordType.UEVENT, Direction.FROM_KERNEL, Status.OK),
            (RecordType.END, Direction.TO_OWNER, Status.REFUSED),
        ),
        start=1,
    )
)


def _show(data: bytes) -> object:
    """Everything that `python -m sriovd.trace` does with it, in each form. The zeroes that fill the header's
    page are added here: what is changed in them says nothing."""
    buffer = data[:_HEADER_USED].ljust(HEADER_BYTES, b"\0") + data[_HEADER_USED:]
    shown = []
    for form in Form:
        reader = TraceReader(MemorySource(bytearray(buffer)))
        shown.append(len("".join(View(reader, 1, form, Filter()).show())))
        assert reader.position - reader.damaged <= reader.header.producer
        _ = reader.lost, reader.is_active
        reader.release()
    return tuple(shown)


def _make(flags: Flag, producer: int, consumer: int = 0) -> bytes:
    header = Header(_VF, _CAPACITY, flags, 1, 2, 3, producer, 0, 9, consumer)
    slots = [bytes(RECORD_BYTES)] * _CAPACITY
    for number in range(max(0, producer - _CAPACITY), producer):
        record = _RECORDS[number % len(_RECORDS)]
        slots[number % _CAPACITY] = struct.pack("<Q", number + 1) + layout.encode_record(record)
    return layout.encode_header(header)[:_HEADER_USED] + b"".join(slots)


def _seeds() -> tuple[bytes, ...]:
    """Without records, full, overwritten, dropping, and the longest that a header may speak of."""
    return (
        _make(Flag.ACTIVE, 0),
        _make(Flag(0), 3),
        _make(Flag.ACTIVE, 11),
        _make(Flag.DROP, 4, 1),
        _make(Flag.DROP, 2**63 - 1, 2**63 - 2),
    )


# Where mutations count most: the live fields of the header and the numbers of the first records.
_WORDS = (layout.MAGIC, *(struct.pack("<Q", number) for number in (0, 1, 3, 4, 5, 2**63, 2**64 - 1)))

ENTRIES = (
    Entry(
        "trace-buffer",
        _show,
        (TraceError,),
        _seeds,
        (
            "sriovd.trace.layout",
            "sriovd.trace.reader",
            "sriovd.trace.source",
            "sriovd.trace.view",
            "sriovd.trace.jsonl",
        ),
        _WORDS,
        _HEADER_USED + RECORD_BYTES * 64,
        quick_inputs=1500,
    ),
)
