"""The trace of one VF, from the time that nobody had it until its lease is over.

Rule: what happens is noted at once and made into records when somebody reads them: at once where the owner
has donated a buffer, else on demand, of the last that there were. So what nobody looks at costs an append.
Ids rise by one with every record, from 1; the first record is the VF itself, of which all others are
descendants: what nothing else has caused hangs below the error that the VF is suffering from, if it is, or
below its lease, or below the VF.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Protocol

from sriovd.backend.base import ErrorRecord, Uevent
from sriovd.backend.steps import ChainResult
from sriovd.core.trace.notes import Mark, Note, note_step, note_telling
from sriovd.core.trace.transaction import CURRENT, Branch, Transaction, speaks_for
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, Record, RecordType, Status

ROOT_ID = 1
_EVER = 1 << 63
_ENDED = attrgetter("ended_nsec")


class Sink(Protocol):
    """Where records are written as they come: an owner's buffer (core/trace/buffer.py)."""

    def write(self, record: Record) -> None:
        """Never waits, never fails."""


What = ChainResult | Note | Uevent | ErrorRecord | None
"""What can happen: of events, those about the VF itself. None: the transaction has but begun."""

_Entry = tuple[int, Transaction | None, What]
"""When (CLOCK_MONOTONIC, nanoseconds), by what, and what. A bare tuple, because there are many."""


class Stream:
    """`vf`: where it is now. `kept`: how many entries, and records, are kept."""

    def __init__(self, vf: PciAddress, kept: int) -> None:
        self.vf = vf
        self.sink: Sink | None = None
        self.next_id = ROOT_ID
        self._entries: deque[_Entry] = deque(maxlen=kept)
        self._records: deque[Record] = deque(maxlen=kept)
        self._open: list[Transaction] = []  # that have begun in the records, and not ended
        self._dropped = 0  # entries and records that were not kept
        self._root = 0  # ids
        self._lease = 0
        self._error = 0
        self._incident = 0

    def keep(self, kept: int) -> None:
        """Keep so many from now on."""
        self._entries = deque(self._entries, kept)
        self._records = deque(self._records, kept)

    def resume(self, next_id: int) -> None:
        """Go on where another stream of the same VF ended, of which nothing is here."""
        if next_id > self.next_id:
            self.next_id, self._root = next_id, self._root or ROOT_ID

    # What happens.

    def put(self, what: What) -> None:
        """It has happened just now, by the current transaction."""
        self.put_of(CURRENT.get(), what)

    def put_of(self, transaction: Transaction | None, what: What) -> None:
        """As put, by that transaction."""
        self._take((time.monotonic_ns(), transaction, what))

    def put_ends(self) -> None:
        """Transactions of which there are records have ended."""
        if self.sink is not None:
            self._write(self._list_ends(_EVER))

    def adopt(self, early: Stream) -> None:
        """What was told of the VF before it was known that it is this one; nobody has read it."""
        for entry in early._entries:
            self._take(entry)

    def _take(self, entry: _Entry) -> None:
        if self.sink is not None:
            self._write(self._make(entry))
            return
        self._dropped += len(self._entries) == self._entries.maxlen
        self._entries.append(entry)

    # What is read.

    def read(self) -> Sequence[Record]:
        """The records that are kept, the oldest first."""
        while self._entries:
            entry = self._entries.popleft()
            self._write(self._list_ends(entry[0]))
            self._write(self._make(entry))
        self._write(self._list_ends(_EVER))
        return list(self._records)

    @property
    def dropped(self) -> int:
        """How many entries and records there were before those that are kept, at least."""
        return self._dropped

    def _write(self, records: Iterable[Record]) -> None:
        kept, sink = self._records, self.sink
        for record in records:
            self._dropped += len(kept) == kept.maxlen
            kept.append(record)
            if sink is not None:
                sink.write(record)

    def _make(self, entry: _Entry) -> Iterator[Record]:
        time_nsec, transaction, what = entry
        if not self._root:
            self._root = self.next_id
            begin = Note(RecordType.BEGIN, Direction.NONE, Status.BEGUN, "vf", str(self.vf))
            yield self._record(time_nsec, begin, 0)
        parent = self._cause
        if transaction is not None:
            yield from self._begin(transaction, time_nsec)
            parent = transaction.branches[self].number
        match what:
            case ChainResult():
                yield from self._list_steps(time_nsec, what, parent)
            case Note():
                yield self._note(what.time_nsec or time_nsec, what, parent)
            case Uevent() | ErrorRecord():
                from sriovd.core.trace.joining import describe  # as long as nobody reads it is not needed

                note = note_telling(describe(what))
                yield self._note(note.time_nsec or time_nsec, note, parent)

    def _list_steps(self, time_nsec: int, chain: ChainResult, parent: int) -> Iterator[Record]:
        """They were done one right after the other, the last just now."""
        left_nsec = sum(result.duration_usec for result in chain.results) * 1000
        for result in chain.results:
            left_nsec -= result.duration_usec * 1000
            yield self._record(time_nsec - left_nsec, note_step(result), parent)

    def _note(self, time_nsec: int, note: Note, parent: int) -> Record:
        number = self.next_id
        match note.mark:
            case Mark.LEASE:
                self._lease = number
            case Mark.ERROR:
                self._error = number
            case Mark.INCIDENT if not self._incident:
                parent, self._incident = self._error or parent, number
            case Mark.END_OF_INCIDENT:
                self._incident = self._error = 0
        return self._record(time_nsec, note, parent)

    def _begin(self, transaction: Transaction, at_nsec: int) -> Iterator[Record]:
        """It and what has caused it, as far as they are not here yet."""
        if self in transaction.branches:
            return
        parent = self._cause
        if transaction.parent is not None:
            yield from self._begin(transaction.parent, at_nsec)
            parent = transaction.parent.branches[self].number
        transaction.branches[self] = Branch(self.next_id, parent)
        own, is_over = speaks_for(transaction, self), transaction.has_ended(at_nsec)
        if not is_over:
            self._open.append(transaction)
        direction = Direction.FROM_OWNER if own else Direction.NONE
        requester = f"for {transaction.requester}" if own else ""
        status = Status.OK if is_over else Status.BEGUN
        note = Note(RecordType.BEGIN, direction, status, transaction.operation, requester)
        yield self._record(transaction.began_nsec, note, parent)

    def _list_ends(self, before_nsec: int) -> Iterator[Record]:
        """Of the transactions that had ended by then; what one has caused has ended before it."""
        if not self._open:
            return
        over = [each for each in reversed(self._open) if each.has_ended(before_nsec)]
        for transaction in sorted(over, key=_ENDED) if len(over) > 1 else over:
            self._open.remove(transaction)
            yield self._end(transaction)

    def _end(self, transaction: Transaction) -> Record:
        """How it went is told to an owner who has asked: what others ask for is about other VFs, too."""
        own, outcome = speaks_for(transaction, self), transaction.outcome
        text = outcome.error
        if outcome.message and self in transaction.spoken_for:
            text = f"{text}: {outcome.message}"
        latency_nsec = transaction.ended_nsec - transaction.began_nsec
        return Record(
            RecordType.END,
            Direction.TO_OWNER if own else Direction.NONE,
            outcome.status if own else Status.OK,
            self.vf,
            transaction.operation,
            text if own else "",
            0,
            transaction.ended_nsec,
            latency_nsec,
            *transaction.branches[self],
        )

    @property
    def _cause(self) -> int:
        """Of what nothing else has caused."""
        return self._incident or self._lease or self._root

    def _record(self, time_nsec: int, note: Note, parent: int) -> Record:
        number, self.next_id = self.next_id, self.next_id + 1
        return Record(
            note.type, note.direction, note.status, self.vf, note.operation, note.arguments, note.errno,
            time_nsec, note.latency_nsec, number, parent,
        )  # fmt: skip
