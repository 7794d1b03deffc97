"""A record as one line of text, the same from here as from a reader in C:

    [   12.345678] (3 lost) #5 <2 0000:01:10.2 write to-kernel bind failed EBUSY 1234 us vfio-pci (+9 bytes)

that is: when (CLOCK_MONOTONIC), records missing before it, transaction and what caused it, VF, type,
direction, operation, status, error, how long it took, arguments, and what was cut off them. What is zero is
left out.

Rule: a line is printable ASCII whatever a record holds. Every other byte, and the backslash, reads \\xNN.
"""

from __future__ import annotations

from sriovd.trace.names import name_error, name_member
from sriovd.trace.reader import Entry
from sriovd.trace.record import Direction, Record, RecordType

_ESCAPES = {
    byte: chr(byte) if 0x20 <= byte <= 0x7E and byte != 0x5C else f"\\x{byte:02x}" for byte in range(256)
}
_DEPTH_MAX = 20  # of indentation; a tree has three or four, a damaged one may have any


def format_entry(entry: Entry, depth: int = 0) -> str:
    """The line, without its end. `depth`: by how many steps of two the part after the VF is moved in."""
    record = entry.record
    parts = [f"[{_format_time(record.time_nsec)}]"]
    parts += [f"({record.lost} lost)"] if record.lost else []
    parts += [f"#{record.transaction}"]
    parts += [f"<{record.parent}"] if record.parent else []
    parts += [f"{record.vf}{'  ' * depth}", name_member(record.type)]
    parts += [name_member(record.direction)] if record.direction is not Direction.NONE else []
    parts += [escape(record.operation) or "-", *_format_outcome(record)]
    parts += [escape(record.arguments)] if record.arguments else []
    parts += [f"(+{entry.cut_bytes} bytes)"] if entry.cut_bytes else []
    return " ".join(parts)


def format_counts(shown: int, lost: int, damaged: int) -> str:
    """What a reader says at the end: records it has had, records that are gone, records it cannot read."""
    return f"{shown} records, {lost} lost, {damaged} damaged"


def escape(text: str) -> str:
    """`text` as bytes of UTF-8, each of them printable or as \\xNN."""
    return "".join(map(_ESCAPES.__getitem__, text.encode("utf-8", "surrogateescape")))


def _format_time(nsec: int) -> str:
    return f"{nsec // 1_000_000_000:5}.{nsec // 1000 % 1_000_000:06}"


def _format_outcome(record: Record) -> list[str]:
    error = [name_error(record.errno)] if record.errno else []
    latency = [f"{record.latency_nsec // 1000} us"] if record.latency_nsec else []
    return [name_member(record.status), *error, *latency]


class Tree:
    """How deep each record lies below what has caused it; it is told all records, in their order."""

    def __init__(self) -> None:
        self._depths: dict[int, int] = {}  # by transaction
        self._begun: set[int] = set()

    def find_depth(self, record: Record) -> int:
        """0 for what nothing has caused, and one more for what is done in a transaction or because of it."""
        above = self._depths.get(record.parent, 0) + 1 if record.parent else 0
        if not record.transaction:
            return above
        depth = self._depths.setdefault(record.transaction, min(above, _DEPTH_MAX))
        if record.type is RecordType.BEGIN:
            self._begun.add(record.transaction)
        is_inside = record.type not in (RecordType.BEGIN, RecordType.END)
        return depth + (is_inside and record.transaction in self._begun)
