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
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from sriovd.backend.base import ErrorRecord, Uevent
from sriovd.backend.steps import ChainResult
from sriovd.core import errors
from sriovd.core.trace.joining import describe
from sriovd.core.trace.notes import Mark, Note, note_step, note_telling
from sriovd.core.trace.transaction import CURRENT, Branch, Transaction, speaks_for
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, Record, RecordType, Status

# What has failed, other than what was not begun.
_TRIED = (
    errors.Stuck, errors.BindFailed, errors.ResetFailed, errors.NumVfsRejected, errors.TimedOut,
    errors.Cancelled, errors.BackendFailed,
)  # fmt: skip


ROOT_ID = 1


class Sink(Protocol):
    """Where records are written as they come: an owner's buffer (core/trace/buffer.py)."""

    def write(self, record: Record) -> None:
        """Never waits, never fails."""


class _End(NamedTuple):
    """What is told of the error that a transaction ended by; not the error, which holds all that was on the
    way of it."""

    status: Status
    name: str
    message: str


What = ChainResult | Note | Uevent | ErrorRecord | None
"""What can happen: of events, those about the VF itself. None: the transaction has but begun."""

_Entry = tuple[int, Transaction | None, What | _End]
"""When (CLOCK_MONOTONIC, nanoseconds), by what, and what. A bare tuple, because there are many."""


class Stream:
    """`vf`: where it is now. `kept`: how many entries, and records, are kept."""

    def __init__(self, vf: PciAddress, kept: int) -> None:
        self.vf = vf
        self.sink: Sink | None = None
        self.next_id = ROOT_ID
        self._entries: deque[_Entry] = deque(maxlen=kept)
        self._records: deque[Record] = deque(maxlen=kept)
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
        cause = transaction
        while cause is not None and self not in cause.touched:  # for their ends
            if not cause.is_over:
                cause.touched[self] = None
            cause = cause.parent
        self._take((time.monotonic_ns(), transaction, what))

    def put_end(self, transaction: Transaction, error: BaseException | None) -> None:
        """A transaction of which something is here has ended."""
        name = type(error).__name__ if error is not None else ""
        message = error.message if isinstance(error, errors.SriovdError) else ""
        self._take((time.monotonic_ns(), transaction, _End(status_of(error), name, message)))

    def adopt(self, early: Stream) -> None:
        """What was told of the VF before it was known that it is this one; nobody has read it."""
        for entry in early._entries:
            cause = entry[1]
            while cause is not None:
                if early in cause.touched:
                    del cause.touched[early]
                    cause.touched[self] = None
                cause = cause.parent
            self._take(entry)

    def _take(self, entry: _Entry) -> None:
        if self.sink is not None:
            self._write(entry)
            return
        self._dropped += len(self._entries) == self._entries.maxlen
        self._entries.append(entry)

    # What is read.

    def read(self) -> Sequence[Record]:
        """The records that are kept, the oldest first."""
        while self._entries:
            self._write(self._entries.popleft())
        return list(self._records)

    @property
    def dropped(self) -> int:
        """How many entries and records there were before those that are kept, at least."""
        return self._dropped

    def _write(self, entry: _Entry) -> None:
        for record in self._make(entry):
            self._dropped += len(self._records) == self._records.maxlen
            self._records.append(record)
            if self.sink is not None:
                self.sink.write(record)

    def _make(self, entry: _Entry) -> Iterator[Record]:
        time_nsec, transaction, what = entry
        if not self._root:
            self._root = self.next_id
            begin = Note(RecordType.BEGIN, Direction.NONE, Status.BEGUN, "vf", str(self.vf))
            yield self._record(time_nsec, begin, 0)
        parent = self._cause
        if transaction is not None:
            yield from self._open(transaction)
            parent = transaction.branches[self].number
        match what:
            case ChainResult():
                yield from self._list_steps(time_nsec, what, parent)
            case Note():
                yield self._note(what.time_nsec or time_nsec, what, parent)
            case _End() if transaction is not None:
                yield self._end(time_nsec, transaction, what)
            case Uevent() | ErrorRecord():
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

    def _open(self, transaction: Transaction) -> Iterator[Record]:
        """It and what has caused it, as far as they are not here yet."""
        if self in transaction.branches:
            return
        parent = self._cause
        if transaction.parent is not None:
            yield from self._open(transaction.parent)
            parent = transaction.parent.branches[self].number
        transaction.branches[self] = Branch(self.next_id, parent)
        own = speaks_for(transaction, self)
        direction = Direction.FROM_OWNER if own else Direction.NONE
        status = Status.BEGUN if self in transaction.touched else Status.OK
        requester = f"for {transaction.requester}" if own else ""
        note = Note(RecordType.BEGIN, direction, status, transaction.operation, requester)
        yield self._record(transaction.began_nsec, note, parent)

    def _end(self, time_nsec: int, transaction: Transaction, end: _End) -> Record:
        """How it went is told to an owner who has asked: what others ask for is about other VFs, too."""
        own, text = speaks_for(transaction, self), end.name
        if end.message and self in transaction.spoken_for:
            text = f"{text}: {end.message}"
        branch = transaction.branches[self]
        return Record(
            RecordType.END,
            Direction.TO_OWNER if own else Direction.NONE,
            end.status if own else Status.OK,
            self.vf,
            transaction.operation,
            text if own else "",
            0,
            time_nsec,
            time_nsec - transaction.began_nsec,
            *branch,
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


def status_of(error: BaseException | None) -> Status:
    """How something went that has ended so."""
    if error is None:
        return Status.OK
    tried = not isinstance(error, errors.SriovdError) or isinstance(error, _TRIED)
    return Status.FAILED if tried else Status.REFUSED
