"""How densely is told what concerns many VFs at once: what keeps coming is counted. Pure.

Rule: a marginal link gives corrected errors by the hundred a second, and each would be a record in the trace
of every VF of its adapter, where it pushes out all others. Of each kind a few are told at once, and what
follows is told together when the window ends; while it keeps coming, that is all, and windows grow. What has
failed is always told. Whoever holds a tally wakes it up when something is due, and never else.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity
from sriovd.backend.driver_events import MessagesLost
from sriovd.pci import PciAddress

WINDOW_NSEC = 1_000_000_000
LONGEST_NSEC = 16 * WINDOW_NSEC
ERRORS_AT_MOST = 4  # of one kind in a window
LOSSES_AT_MOST = 1


class _Kind(NamedTuple):
    """What counts as the same. `subject`: the function, None for the whole host; `what`: the status, or
    what has happened."""

    subject: PciAddress | None
    what: object
    at_most: int


class Counted(NamedTuple):
    """An event that is to be told, or the last of so many."""

    event: KernelEvent
    times: int = 1


class Tally:
    """What has come in the window that ends at `_end_nsec`. Times are CLOCK_MONOTONIC in nanoseconds."""

    def __init__(self) -> None:
        self._seen: Counter[_Kind] = Counter()
        self._held: dict[_Kind, KernelEvent] = {}  # the last of each
        self._length_nsec = WINDOW_NSEC
        self._end_nsec = 0

    @property
    def due_nsec(self) -> int:
        """When flush() has something to tell; 0: nothing is held."""
        return self._end_nsec if self._held else 0

    def take(self, event: KernelEvent, now_nsec: int) -> list[Counted]:
        """It has come: what is to be told now."""
        if (kind := _find_kind(event)) is None:
            return [Counted(event)]
        told = self.flush(now_nsec) if now_nsec >= self._end_nsec else []
        self._seen[kind] += 1
        if self._seen[kind] <= kind.at_most:
            return [*told, Counted(event)]
        self._held[kind] = event
        return told

    def flush(self, now_nsec: int) -> list[Counted]:
        """End the window: what was held."""
        told = [Counted(event, self._seen[kind] - kind.at_most) for kind, event in self._held.items()]
        self._length_nsec = min(2 * self._length_nsec, LONGEST_NSEC) if told else WINDOW_NSEC
        self._end_nsec = now_nsec + self._length_nsec
        self._seen = Counter({kind: kind.at_most for kind in self._held})
        self._held = {}
        return told


def _find_kind(event: KernelEvent) -> _Kind | None:
    """None for what is always told."""
    match event:
        case ErrorRecord(severity=Severity.CORRECTED):
            return _Kind(event.address, event.status, ERRORS_AT_MOST)
        case EventsLost() | MessagesLost(address=None):
            return _Kind(None, type(event), LOSSES_AT_MOST)
    return None
