"""How densely is told what concerns many VFs at once: what keeps coming is counted. Pure.

Rule: a marginal link gives corrected errors by the hundred a second, and each would be a record in the trace
of every VF of its adapter, where it pushes out all others. Of each kind a few are told at once, and what
follows is told together when the window ends; while it keeps coming, that is all, and windows grow. What has
failed is always told, after what was counted before it, which may be its cause. Who is to be told no more is
told alone what he has missed, and for all others the window goes on. Whoever holds a tally wakes it up when
something is due, and never else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity
from sriovd.backend.driver_events import MessagesLost
from sriovd.core.recovery.record import Place
from sriovd.pci import PciAddress

WINDOW_NSEC = 1_000_000_000
LONGEST_NSEC = 16 * WINDOW_NSEC
ERRORS_AT_MOST = 4  # of one kind in a window
LOSSES_AT_MOST = 1
_NOTHING: Mapping[Place, int] = {}

Scope = frozenset[Place | PciAddress]
"""Whom an error concerns: a VF, or the VFs of these PFs, whichever there are."""


class _Kind(NamedTuple):
    """What counts as the same. `subject`: the function, None for the whole host; `what`: the status, or
    what has happened."""

    subject: PciAddress | None
    what: object
    at_most: int


class Counted(NamedTuple):
    """An event that is to be told, or the last of so many. `known`: how many of them are no more to be told
    to these."""

    event: KernelEvent
    times: int = 1
    known: Mapping[Place, int] = _NOTHING


class Missed(NamedTuple):
    """What one VF has not been told, the last of so many. `is_own`: it is about the VF itself."""

    event: ErrorRecord | EventsLost | MessagesLost
    times: int
    is_own: bool


@dataclass(slots=True)
class _Held:
    """Events of a kind. `scope`: as it was when the first came, for a card may vanish; None: the host."""

    last: ErrorRecord | EventsLost | MessagesLost
    scope: Scope | None
    times: int = 0
    known: dict[Place, int] = field(default_factory=dict)


class Tally:
    """What has come in the window that ends at `_end_nsec`. Times are CLOCK_MONOTONIC in nanoseconds.
    `find_scope`: whom an error of that function concerns."""

    def __init__(self, find_scope: Callable[[PciAddress], Scope]) -> None:
        self._find_scope = find_scope
        self._seen: Counter[_Kind] = Counter()
        self._held: dict[_Kind, _Held] = {}
        self._length_nsec = WINDOW_NSEC
        self._end_nsec = 0

    @property
    def due_nsec(self) -> int:
        """When flush() has something to tell; 0: nothing is held."""
        return self._end_nsec if self._held else 0

    def take(self, event: KernelEvent, now_nsec: int) -> list[Counted]:
        """It has come: what is to be told now."""
        match event:
            case ErrorRecord(severity=Severity.CORRECTED):
                return self._count(_Kind(event.address, event.status, ERRORS_AT_MOST), event, now_nsec)
            case EventsLost() | MessagesLost(address=None):
                return self._count(_Kind(None, type(event), LOSSES_AT_MOST), event, now_nsec)
            case ErrorRecord():
                return [*self.flush(now_nsec), Counted(event)]
        return [Counted(event)]

    def _count(
        self, kind: _Kind, event: ErrorRecord | EventsLost | MessagesLost, now_nsec: int
    ) -> list[Counted]:
        told = self.flush(now_nsec) if now_nsec >= self._end_nsec else []
        self._seen[kind] += 1
        if self._seen[kind] <= kind.at_most:
            return [*told, Counted(event)]
        if (held := self._held.get(kind)) is None:
            scope = self._find_scope(kind.subject) if kind.subject is not None else None
            held = self._held[kind] = _Held(event, scope)
        held.last = event
        held.times += 1
        return told

    def flush(self, now_nsec: int) -> list[Counted]:
        """End the window: what was held."""
        told = [Counted(held.last, held.times, held.known) for held in self._held.values()]
        self._length_nsec = min(2 * self._length_nsec, LONGEST_NSEC) if told else WINDOW_NSEC
        self._end_nsec = now_nsec + self._length_nsec
        self._seen = Counter({kind: kind.at_most for kind in self._held})
        self._held = {}
        return told

    def settle(self, place: Place) -> list[Missed]:
        """What is held for that VF, which is told no more of it."""
        missed = []
        for held in self._held.values():
            times = held.times - held.known.get(place, 0)
            if times and (held.scope is None or held.scope & {place, place[0]}):
                missed.append(Missed(held.last, times, held.scope is not None and place in held.scope))
            held.known[place] = held.times
        return missed
