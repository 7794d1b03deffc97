"""Who has donated a buffer for which lease: begins and ends their traces, and goes on after a restart.

Rule: a buffer is one lease's, and ends with it. What a former daemon has kept is checked again as if it were
new; what will not do is let go, and the lease goes on without. A descriptor that was given is never kept: it
is mapped, and put where it outlives the daemon.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sriovd.core.errors import InUse, InvalidArgument, NotSupported, SriovdError
from sriovd.core.lease.record import Lease
from sriovd.core.trace.buffer import BufferWriter, Mode
from sriovd.core.trace.donation import (
    Donation,
    FileId,
    check_donation,
    check_room,
    read_donation,
)
from sriovd.core.trace.ledger import Account, Ledger, LedgerSlot, make_ledger
from sriovd.core.trace.stream import ROOT_ID
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, Record, RecordType, Status

_log = logging.getLogger(__name__)
_NOWHERE = PciAddress(0, 0, 0, 0)  # of a VF that is away


class Sink(Protocol):
    """Where the records of a lease's VF go."""

    def write(self, record: Record) -> None:
        """Never waits, never fails."""


class Recording(Protocol):
    """What is asked of the recorder, by the lease's number."""

    def attach(self, lease_number: int, sink: Sink, history: bool, /) -> None:
        """Give `sink` every record from now on; with `history` those first that are kept of this lease."""

    def detach(self, lease_number: int, /) -> None:
        """Give it none any more."""

    def next_transaction(self, lease_number: int, /) -> int:
        """The id that the next transaction will have."""

    def seed(self, lease_number: int, next_transaction: int, /) -> None:
        """Ids begin there, after a restart."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """What outlives the daemon: descriptors by the lease's number, and the ledger's."""

    keep: Callable[[int, int], None] = lambda _number, _fd: None
    drop: Callable[[int], None] = lambda _number: None
    keep_ledger: Callable[[int], None] = lambda _fd: None
    drop_ledger: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class _Trace:
    uid: int  # of the lease's owner
    file: FileId
    memory: mmap.mmap
    slot: LedgerSlot
    writer: BufferWriter

    def close(self) -> None:
        """Nothing is written any more."""
        self.writer.end()
        self.memory.close()
        self.slot.free()


class TraceDesk:
    """The traces. `find_vf`: where a lease's VF is now."""

    def __init__(
        self, recording: Recording, find_vf: Callable[[Lease], PciAddress | None], shelf: Shelf
    ) -> None:
        self._recording = recording
        self._find_vf = find_vf
        self._shelf = shelf
        self._traces: dict[int, _Trace] = {}
        self._ledger: Ledger | None = None  # made with the first trace

    def start(
        self, lease: Lease, uid: int, fd: int, mode: str, *, history: bool, trusted: bool
    ) -> tuple[int, int]:
        """Write the lease's trace into the memory `fd`, given by user `uid`; `mode`: as text; `trusted`: who
        may give any.
        Returns the buffer's capacity in records, and the id of its next transaction. Raises InvalidArgument,
        InUse, PoolExhausted, BackendFailed."""
        drops = _parse_mode(mode) is Mode.DROP
        if lease.number in self._traces:
            raise InUse(f"{lease} is being traced.", "Trace.Stop ends that.")
        given = read_donation(fd)
        check_donation(given, uid, trusted=trusted, used=self._files())
        shares = [(trace.uid, len(trace.memory)) for trace in self._traces.values()]
        check_room(lease.uid, given.size_bytes, shares, trusted=trusted)
        following = self._recording.next_transaction(lease.number)
        account = Account(lease.number, drops, given.file, following)
        trace = self._map(lease, fd, given, self._open_ledger().claim(account))
        self._begin(lease, trace)
        try:
            self._shelf.keep(lease.number, fd)
            self._recording.attach(lease.number, trace.writer, history)
        except BaseException:
            self.end(lease)
            raise
        return trace.writer.capacity, self._recording.next_transaction(lease.number)

    def stop(self, lease: Lease) -> None:
        """End the trace; the buffer stays as it is. Raises NotSupported when there is none."""
        if lease.number not in self._traces:
            raise NotSupported(f"{lease} is not being traced.", "Trace.Start begins that.")
        self.end(lease)

    def end(self, lease: Lease) -> None:
        """The lease is over, or its trace."""
        if lease.number in self._traces:
            self._recording.detach(lease.number)
            self._let_go(lease.number)

    def _let_go(self, number: int) -> None:
        self._traces.pop(number).close()
        self._shelf.drop(number)

    def restore(
        self, kept: Mapping[int, int], ledger: int | None, find_lease: Callable[[int], Lease | None]
    ) -> None:
        """Go on with the traces of former daemons. `kept`: their buffers by lease, and `ledger`: what their
        Shelf has kept; they are closed here."""
        try:
            slots = {} if ledger is None else self._read_ledger(ledger)
            for number, fd in kept.items():
                if not self._go_on(find_lease(number), fd, slots.pop(number, None)):
                    self._shelf.drop(number)
            for slot in slots.values():
                slot.free()  # its buffer was not kept
        finally:
            _close_all(kept.values() if ledger is None else (*kept.values(), ledger))

    def _read_ledger(self, fd: int) -> dict[int, LedgerSlot]:
        """The slots in use, by lease."""
        try:
            self._ledger = Ledger(fd)
        except (ValueError, OSError) as error:
            _log.error("No trace of a former daemon goes on: %s", error)
            self._shelf.drop_ledger()
            return {}
        slots: dict[int, LedgerSlot] = {}
        wrong: list[str] = []
        for slot in self._ledger.used():
            try:
                number = slot.read().lease
                if number in slots:
                    raise ValueError(f"lease {number} has two traces")
            except ValueError as error:
                wrong.append(str(error))
                slot.free()
            else:
                slots[number] = slot
        if wrong:
            _log.error(
                "Of %d traces nothing sensible is known, and they do not go on: %s", len(wrong), wrong[0]
            )
        return slots

    def _go_on(self, lease: Lease | None, fd: int, slot: LedgerSlot | None) -> bool:
        """Whether the trace goes on."""
        if slot is None:
            return False
        try:
            trace = self._map(lease, fd, self._check_again(fd, slot), slot)
        except (SriovdError, OSError) as error:
            _log.warning("A trace does not go on, of %s: %s", lease or "a lease that is over", error)
            slot.free()
            return False
        if lease is None:
            trace.close()  # it was over before the daemon could say so
            return False
        try:
            self._resume(lease, trace)
        except Exception:  # a defect, which every start of the daemon would meet again
            _log.exception("A trace does not go on, of %s", lease)
            self._recording.detach(lease.number)
            self._traces.pop(lease.number).close()
            return False
        return True

    def _check_again(self, fd: int, slot: LedgerSlot) -> Donation:
        """As Start did; whose it is does not change. Raises InvalidArgument, BackendFailed."""
        given = read_donation(fd)
        check_donation(given, given.uid, trusted=True, used=self._files())
        if given.file != slot.read().file:
            raise InvalidArgument("The buffer is not the one that was given.")
        return given

    def _resume(self, lease: Lease, trace: _Trace) -> None:
        """Say so in the trace itself: what has happened in between is not in it."""
        self._begin(lease, trace)
        number, following = lease.number, trace.writer.next_transaction
        trace.writer.write(
            Record(
                RecordType.NOTE, Direction.NONE, Status.OK, self._vf_of(lease), "resumed",
                time_nsec=time.monotonic_ns(), transaction=following, parent=ROOT_ID,
            )
        )  # fmt: skip
        self._recording.seed(number, trace.writer.next_transaction)
        self._recording.attach(number, trace.writer, True)  # what this daemon has seen since it began

    def _map(self, lease: Lease | None, fd: int, given: Donation, slot: LedgerSlot) -> _Trace:
        """Raises OSError; the slot is free then."""
        try:
            memory = mmap.mmap(fd, given.size_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        except BaseException:
            slot.free()
            raise
        return _Trace(lease.uid if lease else 0, given.file, memory, slot, BufferWriter(memory, slot))

    def _begin(self, lease: Lease, trace: _Trace) -> None:
        trace.writer.publish(self._vf_of(lease))
        self._traces[lease.number] = trace

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            fd = make_ledger()
            try:
                self._ledger = Ledger(fd)
                self._shelf.keep_ledger(fd)
            finally:
                os.close(fd)
        return self._ledger

    def _files(self) -> set[FileId]:
        return {trace.file for trace in self._traces.values()}

    def _vf_of(self, lease: Lease) -> PciAddress:
        return self._find_vf(lease) or _NOWHERE


def _parse_mode(text: str) -> Mode:
    try:
        return Mode(text)
    except ValueError:
        known = " or ".join(f"'{each}'" for each in Mode)
        raise InvalidArgument(f"{text[:32]!r} is no way to fill a buffer.", f"Give {known}.") from None


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
