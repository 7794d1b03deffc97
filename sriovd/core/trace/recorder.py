"""The one place where everything is recorded that is done for a VF, or happens to it.

Rule: whoever does something to a VF tells it here, once, and knows nothing of who reads it. A VF's trace
begins anew when its lease is over: the next owner sees what was done to make the VF, and nothing of the one
before. Operators may read that, too. What an event costs depends on how many VFs are told of it, and not on
how many there are.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sriovd.backend.base import ErrorRecord, Evidence, KernelEvent, LinkChanged, Uevent, UeventAction
from sriovd.backend.driver_events import DeviceReport, DriverMessage, MessagesLost
from sriovd.backend.steps import ChainResult, Script
from sriovd.core.inventory import Change, Function, FunctionChange, Inventory
from sriovd.core.recovery.record import Place
from sriovd.core.trace.guard import guarded
from sriovd.core.trace.notes import (
    Mark,
    Note,
    Subject,
    find_step,
    note_hang,
    note_refusal,
    note_telling,
    shorten,
    subject_of,
)
from sriovd.core.trace.stream import Sink, Stream
from sriovd.core.trace.tally import Counted, Scope, Tally
from sriovd.core.trace.transaction import CURRENT, Transaction, speaks_for
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, Record, RecordType, Status

_NOWHERE = PciAddress(0, 0, 0, 0)
KEPT = 128  # entries of one VF, of which a lease is a dozen
KEPT_OF_ALL = 32768  # some 30 MB
KEPT_AT_LEAST = 4
KEPT_EARLY = 1024  # functions of which something was told before they were seen
KEPT_OF_EARLY = 16  # entries of each
# A message of a driver's is stamped when journald has received it: of a burst of 600 lines the last are 2 s
# late (emulated). What was said right before a lease ended looks as if it had been said afterwards, and may
# be the words of a VM that the next owner must know nothing of. So what may be so is taken to be so.
LATE_NSEC = 3_000_000_000
_LATE = DriverMessage | DeviceReport | MessagesLost  # what the host has lost (address None) names nobody


@dataclass(slots=True)
class _Trace:
    """`lease`: the number of the present one, 0 for none. `before`: what was until the last lease's end,
    which was at `since_nsec` (CLOCK_MONOTONIC; 0: none has ended lately); None: it is not kept."""

    stream: Stream
    lease: int = 0
    before: Stream | None = None
    since_nsec: int = 0

    def stream_at(self, time_nsec: int, late_nsec: int) -> Stream | None:
        """Where that is told which has happened then (0: now), or up to `late_nsec` before."""
        is_before = self.since_nsec and 0 < time_nsec < self.since_nsec + late_nsec
        return self.before if is_before else self.stream


class Recorder:
    """The traces of all VFs."""

    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory
        self._traces: dict[Place, _Trace] = {}
        self._leased: dict[int, Place] = {}
        self._leased_on: defaultdict[str, dict[int, Place]] = defaultdict(dict)  # the same by adapter
        self._at: dict[PciAddress, Stream] = {}  # the traces of the VFs that are there, by address
        self._early: OrderedDict[PciAddress, Stream] = OrderedDict()
        self._away: dict[PciAddress, Place] = {}  # of leased VFs that are being made again
        self._ended: dict[Place, int] = {}  # when leases have, of late, the oldest first
        self._sinks: set[int] = set()  # leases that have one
        self._tally = Tally(self._scope_of)
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_nsec = 0
        self.on_wanted: Callable[[bool], None] = lambda _: None  # one more has; none has any more
        inventory.listen(guarded(self._take_change))

    # Who speaks, and what is done.

    def speak_for(self, place: Place) -> None:
        """The current transaction is a call of the owner of that VF, and about it."""
        stream, call = self._stream(place), CURRENT.get()
        if stream is not None and call is not None and stream not in call.spoken_for:
            call.spoken_for.add(stream)
            stream.put(None)

    def note(self, place: Place, note: Note) -> None:
        """That has happened to the VF just now, by the current transaction."""
        stream = self._stream(place)
        if stream is not None:
            stream.put(note)

    def note_chain(self, transaction: Transaction | None, script: Script, chain: ChainResult) -> None:
        """Steps that have been done for that transaction. Who only looks does nothing to a VF, and may look
        because something has happened to another: an owner is told when he has asked for it."""
        if not chain.results:
            return
        subject = subject_of(chain.results[0].step)
        stream = self._at.get(subject) or self._stream_of(subject)  # type: ignore[arg-type]
        if stream is not None and (script.writes or speaks_for(transaction, stream)):
            stream.put_of(transaction, shorten(chain))

    def note_refusal(self, script: Script, error: Exception) -> None:
        """A script that sriovd did not begin."""
        for chain in script.chains:
            stream = self._stream_of(subject_of(chain.steps[0]))
            if stream is not None:
                stream.put(note_refusal(chain.steps[0], error))

    def note_hang(self, script: Script, evidence: Evidence) -> None:
        """A script that was abandoned."""
        step = find_step(script, evidence.step)
        stream = self._stream_of(subject_of(step)) if step is not None else None
        if step is not None and stream is not None:
            stream.put(note_hang(step, evidence.running_usec))

    def take(self, event: KernelEvent) -> None:
        """An event of the host."""
        if isinstance(event, Uevent):
            self._take_uevent(event)
        elif not isinstance(event, LinkChanged):
            now_nsec = time.monotonic_ns()
            self._tell(self._tally.take(event, now_nsec))
            self._set_alarm(now_nsec)

    def _set_alarm(self, now_nsec: int) -> None:
        """Be woken up when something is due, and never else."""
        if (due_nsec := self._tally.due_nsec) == self._alarm_nsec:
            return
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if due_nsec:
            loop, left_sec = asyncio.get_running_loop(), (due_nsec - now_nsec) / 1e9
            self._alarm = loop.call_later(left_sec, self.flush)
        self._alarm_nsec = due_nsec

    @guarded
    def flush(self) -> None:
        """Tell what was only counted by now: it is due, or the daemon ends."""
        now_nsec = time.monotonic_ns()
        told = self._tally.flush(now_nsec)
        self._set_alarm(now_nsec)
        self._tell(told)

    def _tell(self, events: Iterable[Counted]) -> None:
        from sriovd.core.trace.joining import Neighbourhood, join  # most events never need it

        host = Neighbourhood(
            self._place_of, self._pf_driver_of, self._inventory.vfs_of, self._pfs_beside, self._list_traced
        )
        for event, times, known in events:
            late_nsec = LATE_NSEC if isinstance(event, _LATE) and event.address is not None else 0
            if told := join(event, host):
                note = note_telling(told[0][1], times)  # the same for all
                for place, telling in told:
                    if place not in known:
                        self._put(place, note, late_nsec)
                    elif times > known[place]:
                        self._put(place, note_telling(telling, times - known[place]), late_nsec)

    @guarded
    def _settle(self, place: Place) -> None:
        """Tell that VF alone what was only counted by now: its lease, its trace or itself ends now."""
        from sriovd.core.trace.joining import describe

        for event, times, is_own in self._tally.settle(place):
            if isinstance(event, ErrorRecord) or place in self._list_traced():
                self._put(place, note_telling(describe(event, is_own=is_own), times))

    def _take_uevent(self, event: Uevent) -> None:
        stream = self._at.get(event.address) or self._stream_of(event.address)
        if (
            stream is not None
            and stream is self._early.get(event.address)
            and event.action is UeventAction.REMOVE
        ):
            del self._early[event.address]  # of the VF that was there, and not of one to come
        elif stream is not None:
            stream.put_of(None, event)

    def _put(self, place: Place, note: Note, late_nsec: int = 0) -> None:
        """It has happened, or up to `late_nsec` before it says, and nobody has asked for it."""
        trace = self._trace(place)
        stream = trace.stream_at(note.time_nsec, late_nsec) if trace is not None else None
        if stream is not None:
            stream.put_of(None, note)

    def note_pe(self, place: Place, state: str, cause: str, mark: Mark | None) -> None:
        """The PE of the VF there, or of its adapter, has come to that state."""
        self._put(place, Note(RecordType.RECOVERY, Direction.TO_OWNER, Status.OK, state, cause, mark=mark))

    def note_adapter(self, slot: str, state: str, mark_of: Callable[[Place], Mark | None]) -> None:
        """The PE of the adapter in that slot has come to that state: its VFs' owners are told."""
        for place in self._leased_on[slot].values():
            self.note_pe(place, f"adapter-{state}", "", mark_of(place))

    # Leases.

    def begin_lease(self, number: int, place: Place, owner: str) -> None:
        """The VF there is lent from now on; after a restart it may be away."""
        if number in self._leased:
            return
        trace = self._traces.get(place) or self._begin(place)
        self._leased[number] = self._leased_on[str(place[0].slot)][number] = place
        trace.lease = number
        arguments = f"{number} of {owner}"
        trace.stream.put(
            Note(RecordType.BEGIN, Direction.FROM_OWNER, Status.BEGUN, "lease", arguments, mark=Mark.LEASE)
        )

    def end_lease(self, number: int) -> None:
        """It is over: what was traced meanwhile is nobody's but operators', whatever else may fail here."""
        place = self._leased.pop(number, None)
        if place is None:
            return
        self._leased_on[str(place[0].slot)].pop(number, None)
        if (trace := self._traces.get(place)) is None:
            return
        self._settle(place)
        over, now_nsec = trace.stream, time.monotonic_ns()
        self._note_ended(place, now_nsec)
        if self._address_of(place) is None:
            self._forget_away(place, trace)
            del self._traces[place]
        else:
            trace.before, trace.stream, trace.lease = over, self._make(over.vf), 0
            trace.since_nsec = now_nsec
            self._at[over.vf] = trace.stream
        self._let_go(number, over)

    def _note_ended(self, place: Place, now_nsec: int) -> None:
        """Known as long as it matters, should the VF be made again."""
        self._ended.pop(place, None)
        self._ended[place] = now_nsec
        while (oldest := next(iter(self._ended))) != place and self._ended[oldest] < now_nsec - LATE_NSEC:
            del self._ended[oldest]

    def attach(self, number: int, sink: Sink, history: bool) -> None:
        """Write the records of that lease to `sink`; with `history`, those that are kept first. Raises
        KeyError when there is no such lease."""
        self._settle(place := self._leased[number])  # what the host has lost before is nothing to this trace
        stream = self._traces[place].stream
        kept = stream.read()
        stream.sink = sink
        self._sinks.add(number)
        self.on_wanted(True)
        for record in kept if history else ():
            sink.write(record)

    def detach(self, number: int) -> None:
        """Write them there no more."""
        place = self._leased.get(number)
        if place is not None:
            self._settle(place)
            self._let_go(number, self._traces[place].stream)

    def _let_go(self, number: int, stream: Stream) -> None:
        stream.sink = None
        if number in self._sinks:
            self._sinks.discard(number)
            if not self._sinks:
                self.on_wanted(False)

    def next_transaction(self, number: int) -> int:
        """The id that the next record of that lease will have. Raises KeyError."""
        return self._traces[self._leased[number]].stream.next_id

    def seed(self, number: int, next_transaction: int) -> None:
        """Go on with ids from there: a former daemon has used those before. Raises KeyError."""
        self._traces[self._leased[number]].stream.resume(next_transaction)

    def tail(self, place: Place, lease: int = 0) -> Sequence[Record]:
        """The last records of the VF there, the oldest first: those of its present lease and of what made
        the VF before; `lease` 0: also those of the last lease, for operators."""
        trace = self._traces.get(place)
        if trace is None or (lease and trace.lease != lease):
            return ()
        before = trace.before.read() if trace.before is not None and not lease else ()
        return [*before, *trace.stream.read()]

    # VFs.

    def _take_change(self, change: Change) -> None:
        if change.before is not None and change.after is not None:
            return  # as most are
        match change:
            case FunctionChange(before=None, after=Function(virtual=virtual) as vf) if virtual is not None:
                self._note_vf(vf.address, (virtual.parent, virtual.index))
            case FunctionChange(before=Function(virtual=virtual) as vf, after=None) if virtual is not None:
                self._note_gone(vf.address, (virtual.parent, virtual.index))

    def _note_vf(self, vf: PciAddress, place: Place) -> None:
        """It is seen for the first time, or again."""
        early, trace = self._early.pop(vf, None), self._traces.get(place)
        if trace is not None:
            self._forget_away(place, trace)
            trace.stream.vf = vf
            self._at[vf] = trace.stream
            if early is not None:
                trace.stream.adopt(early)
        else:
            self._tally.settle(place)  # what was counted by now was before
        if trace is None and early is not None:
            early.keep(self._share())
            self._traces[place] = _Trace(early, since_nsec=self._ended.get(place, 0))
            self._at[vf] = early

    def _forget_away(self, place: Place, trace: _Trace) -> None:
        """It is back, maybe at another address than it was at, or nobody waits for it."""
        if self._away.get(trace.stream.vf) == place:
            del self._away[trace.stream.vf]

    def _note_gone(self, vf: PciAddress, place: Place) -> None:
        trace = self._traces.get(place)
        self._at.pop(vf, None)
        if trace is not None and trace.lease:
            self._away[vf] = place
            self._settle(place)
        elif trace is not None:
            del self._traces[place]

    def _stream_of(self, subject: Subject | None) -> Stream | None:
        """Of a VF; None for a PF. What is done to make a VF is told before it is seen."""
        if subject is None or not isinstance(subject, PciAddress):
            return self._stream(subject) if subject is not None else None
        function = self._inventory.functions.get(subject)
        if function is not None:
            virtual = function.virtual
            return self._stream((virtual.parent, virtual.index)) if virtual is not None else None
        if subject in self._away:
            return self._stream(self._away[subject])
        while subject not in self._early and len(self._early) >= KEPT_EARLY:
            self._early.popitem(last=False)
        return self._early.setdefault(subject, Stream(subject, KEPT_OF_EARLY))

    def _stream(self, place: Place) -> Stream | None:
        trace = self._trace(place)
        return trace.stream if trace is not None else None

    def _trace(self, place: Place) -> _Trace | None:
        trace = self._traces.get(place)
        if trace is None and self._address_of(place) is not None:
            trace = self._begin(place)
        return trace

    def _begin(self, place: Place) -> _Trace:
        """Of a VF that is away it is not known yet where it will be."""
        vf = self._address_of(place)
        trace = _Trace(self._make(vf or _NOWHERE), since_nsec=self._ended.get(place, 0))
        self._traces[place] = trace
        if vf is not None:
            self._at[vf] = trace.stream
        return trace

    def _list_traced(self) -> Sequence[Place]:
        """The VFs whose owners read along."""
        return [self._leased[number] for number in self._sinks if number in self._leased]

    def _place_of(self, address: PciAddress) -> Place | None:
        function = self._inventory.functions.get(address)
        if function is None:
            return self._away.get(address)
        return (function.virtual.parent, function.virtual.index) if function.virtual is not None else None

    def _pf_driver_of(self, address: PciAddress) -> str:
        function = self._inventory.functions.get(address)
        return function.facts.driver if function is not None and function.physical is not None else ""

    def _pfs_beside(self, address: PciAddress) -> tuple[PciAddress, ...]:
        function = self._inventory.functions.get(address)
        if function is None or function.physical is None:
            return ()
        return tuple(self._inventory.adapters[function.adapter].physical_functions)

    def _scope_of(self, address: PciAddress) -> Scope:
        place = self._place_of(address)
        return frozenset(self._pfs_beside(address) if place is None else (place,))

    def _address_of(self, place: Place) -> PciAddress | None:
        return self._inventory.vfs_of(place[0]).get(place[1])

    def _make(self, vf: PciAddress) -> Stream:
        return Stream(vf, self._share())

    def _share(self) -> int:
        """How much is kept of one more VF."""
        return max(KEPT_AT_LEAST, min(KEPT, KEPT_OF_ALL // (len(self._traces) + 1)))
