"""Reading a trace, saved or while it is written.

Rule: nothing in the buffer is believed that cannot be checked. Capacity and mode are taken once; a record
counts only if its sequence is what it must be before it is copied and after. The one error is TraceError,
and the work of one read is bounded by the capacity, whatever the bytes say.

Python cannot ask the processor for an order of its loads. What it does between two of them takes far longer
than any processor delays a store, and a record that was mixed up all the same has the wrong sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sriovd.trace.layout import (
    BODY,
    CONSUMER,
    FLAGS,
    HEADER_BYTES,
    LOST,
    PRODUCER,
    RECORD_BYTES,
    Flag,
    Header,
    TraceError,
    decode_header,
    decode_record,
)
from sriovd.trace.record import Record
from sriovd.trace.source import Source

_TRIES = 3  # for a record that is being written
_PRODUCER_MAX = 1 << 63  # a record each ns for 292 years


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it was read. `sequence`: its number in the trace, from 1. `cut_bytes`: of its arguments,
    how many did not fit."""

    sequence: int
    record: Record
    cut_bytes: int = 0


class TraceReader:
    """`header`: as it was when reading began. `position`: how many records are behind; the next to read.
    `damaged`: how many of them should have been there and cannot be read.

    Starts with the oldest record; in drop mode with the first that nobody has taken; or at `position`.
    Raises TraceError if the source is no trace.
    """

    def __init__(self, source: Source, position: int | None = None) -> None:
        self._source = source
        page = source.read(0, min(HEADER_BYTES, source.size))
        self.header: Header = decode_header(page, source.size)
        self._drops = bool(self.header.flags & Flag.DROP)
        self._window = self.header.capacity - (0 if self._drops else 1)
        self._gone = 0
        self.damaged = 0
        self.position = position or 0
        if position is None and self._drops:
            self.position = self._find_untaken(self._load_producer())

    def read(self) -> Iterator[Entry]:
        """What has been published since the last time, oldest first. Raises TraceError if the buffer ends
        early, or if its producer has gone back."""
        producer = self._load_producer()
        self._skip_to(self._find_oldest(producer))
        while self.position < producer:
            entry = self._read_record(self.position)
            if entry is not None:
                self.position += 1
                yield entry
                continue
            oldest = self._find_oldest(self._load_producer())
            if oldest > self.position:  # overwritten while this was reading
                self._skip_to(oldest)
            else:
                self.damaged += 1
                self.position += 1

    @property
    def lost(self) -> int:
        """Records that are gone: overwritten before this could read them, or never written. In drop mode it
        is the header's word, in overwrite mode this reader's own count."""
        return self._gone + (self._load(LOST, 8) if self._drops else 0)

    @property
    def is_active(self) -> bool:
        """Whether the daemon still writes. Ask before read(), so that nothing comes in between unread."""
        return bool(self._load(FLAGS, 4) & Flag.ACTIVE)

    def release(self) -> None:
        """In drop mode: make room of what has been read. Raises TraceError if it cannot be written to."""
        if self._drops:
            self._source.store(CONSUMER, self.position)

    def _read_record(self, number: int) -> Entry | None:
        """The record, or None if it is not there: overwritten, never written, or nonsense."""
        offset = HEADER_BYTES + number % self.header.capacity * RECORD_BYTES
        for _ in range(_TRIES):
            before = self._load(offset, 8)
            body = self._source.read(offset + BODY, RECORD_BYTES - BODY)
            if before == self._load(offset, 8) == number + 1:
                break
        else:
            return None
        try:
            return Entry(number + 1, *decode_record(body))
        except TraceError:
            return None

    def _skip_to(self, oldest: int) -> None:
        self._gone += max(0, oldest - self.position)
        self.position = max(oldest, self.position)

    def _find_oldest(self, producer: int) -> int:
        return max(0, producer - self._window)

    def _find_untaken(self, producer: int) -> int:
        consumer = self._load(CONSUMER, 8)
        oldest = self._find_oldest(producer)
        return consumer if oldest <= consumer <= producer else oldest

    def _load_producer(self) -> int:
        producer = self._load(PRODUCER, 8)
        if producer >= _PRODUCER_MAX:
            raise TraceError(f"its header speaks of {producer} records, which nobody can have written")
        if producer < self.position:
            raise TraceError(
                f"its header speaks of {producer} records, and {self.position} were read: start again"
            )
        return producer

    def _load(self, offset: int, size: int) -> int:
        return int.from_bytes(self._source.read(offset, size), "little")
