"""The kernel's trace buffer in binary: where an event has its fields, and what a page of the buffer holds.

Rule: pure. Where things are is taken from the files in which the kernel says so (events/*/*/format and
events/header_page), because it differs between releases. How events follow each other in a page does not
(include/linux/ring_buffer.h, enum ring_buffer_type): every trace tool relies on it.

Binary and not text, because the text has names for an error's bits, which differ between releases, and none
for its severity that could be told from the rest for sure.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_ORDER = sys.byteorder
_ID = re.compile(r"^ID: (\d+)$", re.MULTILINE)
_FIELD = re.compile(
    r"^\s*field:(?P<declaration>[^;]+);\s*offset:(?P<offset>\d+);\s*size:(?P<size>\d+);", re.MULTILINE
)
_NAME = re.compile(r"(\w+)(?:\[\w*\])?\s*$")
# kernel/trace/ring_buffer.c RB_MISSED_EVENTS, and what is left for the number of bytes
_MISSED_EVENTS = 1 << 31
_COMMIT_MASK = (1 << 27) - 1
_WORD_BYTES = 4
_DELTA_BITS = 27
_DELTA_MASK = (1 << _DELTA_BITS) - 1
_TIME_MASK = (1 << 64) - 1
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_STAMP_BITS = _DELTA_BITS + 32  # what an absolute time has; those above are the page's


@dataclass(frozen=True, slots=True)
class Field:
    """Where a field is, in bytes."""

    offset: int
    size: int

    def read(self, data: bytes) -> int:
        """Its number. Raises ValueError when `data` ends before."""
        raw = data[self.offset : self.offset + self.size]
        if len(raw) < self.size:
            raise ValueError(f"{len(data)} bytes are too few")
        return int.from_bytes(raw, _ORDER)

    def read_words(self, data: bytes) -> tuple[int, ...]:
        """Its numbers of 32 bits each. Raises ValueError."""
        ends = range(self.offset, self.offset + self.size, _WORD_BYTES)
        return tuple(Field(offset, _WORD_BYTES).read(data) for offset in ends)

    def read_bytes(self, data: bytes) -> bytes:
        """The bytes that it locates (__data_loc: offset in the lower, length in the upper 16 bits). Raises
        ValueError."""
        place = self.read(data)
        offset, length = place & 0xFFFF, place >> 16
        return data[offset : offset + length]

    def read_text(self, data: bytes) -> str:
        """The text that it locates. Raises ValueError."""
        return self.read_bytes(data).partition(b"\0")[0].decode("ascii", "backslashreplace")


@dataclass(frozen=True, slots=True)
class EventFormat:
    """An event's number, which each of its records has in the field common_type, and its fields."""

    number: int
    fields: Mapping[str, Field]


def parse_format(text: str) -> EventFormat:
    """An event's `format` file. Raises ValueError when it has no number."""
    number = _ID.search(text)
    if number is None:
        raise ValueError("an event's format has no ID")
    return EventFormat(int(number[1]), parse_fields(text))


def parse_fields(text: str) -> dict[str, Field]:
    """The fields of a `format` or `header_page` file."""
    found = {}
    for field in _FIELD.finditer(text):
        name = _NAME.search(field["declaration"])
        if name is not None:
            found[name[1]] = Field(int(field["offset"]), int(field["size"]))
    return found


def split_page(layout: Mapping[str, Field], page: bytes) -> tuple[list[tuple[int, bytes]], bool]:
    """The records of a page as time in nanoseconds and bytes, and whether some before it were lost.

    `layout`: of header_page. Raises ValueError for a page that makes no sense.
    """
    time_nsec, commit = layout["timestamp"].read(page), layout["commit"].read(page)
    begin = layout["data"].offset
    end = begin + (commit & _COMMIT_MASK)
    if end > len(page):
        raise ValueError(f"a page of {len(page)} bytes claims {end}")
    records = [(time & _TIME_MASK, data) for time, data in _walk(page[:end], begin, time_nsec)]
    return records, bool(commit & _MISSED_EVENTS)


def _walk(page: bytes, at: int, time_nsec: int) -> Iterator[tuple[int, bytes]]:
    """The records from the offset `at` on; rb_event_length() says how long each is."""
    while at < len(page):
        kind, delta = _split_header(Field(at, _WORD_BYTES).read(page))
        if kind == _PADDING and not delta:  # the rest of the page is empty
            return
        start = at + _WORD_BYTES
        if 0 < kind < _PADDING:
            at = start + kind * _WORD_BYTES
            time_nsec += delta
            yield time_nsec, page[start:at]
            continue
        first = Field(start, _WORD_BYTES).read(page)
        if kind in (_TIME_EXTEND, _TIME_STAMP):
            stamp = first << _DELTA_BITS | delta
            time_nsec = time_nsec + stamp if kind == _TIME_EXTEND else _complete(stamp, time_nsec)
            at = start + _WORD_BYTES
            continue
        at = start + max(first, _WORD_BYTES)
        if kind != _PADDING:  # which was a record that has been discarded
            time_nsec += delta
            yield time_nsec, page[start + _WORD_BYTES : at]


def _split_header(word: int) -> tuple[int, int]:
    """Type (or length in words) and time since the record before: bit fields of 5 and 27 bits."""
    if _ORDER == "little":
        return word & 31, word >> 5
    return word >> _DELTA_BITS, word & _DELTA_MASK


def _complete(stamp: int, time_nsec: int) -> int:
    return time_nsec >> _STAMP_BITS << _STAMP_BITS | stamp
