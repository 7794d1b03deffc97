"""What the simulated kernel tells of errors: records, recovery's uevents, counters, its log; and what of it
is hidden.

Rule: no decisions. Who meets an error and what follows is in error_rules.py; here it is told, or not.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from sriovd.backend.simulated.device import Lock
from sriovd.pci import PciAddress

_LINES = 2000  # that the log keeps, as a kernel's ring buffer keeps its last
_MOST_LINES = 200  # that a reader gets


class Source(StrEnum):
    """What tells of errors."""

    RECORDS = "records"  # the tracepoint ras:aer_event
    UEVENTS = "uevents"  # recovery's: older kernels send few of them
    COUNTERS = "counters"  # aer_dev_*


@dataclass(frozen=True, slots=True)
class _Line:
    at_usec: int
    text: str

    def __str__(self) -> str:
        """kernel/printk/printk.c print_time."""
        seconds, rest = divmod(self.at_usec, 1_000_000)
        return f"[{seconds:5d}.{rest:06d}] {self.text}"


class ErrorNews:
    """The log, what is hidden, and the interrupt threads of the ports (drivers/pci/pcie/aer.c aer_isr): one
    error at a time each."""

    def __init__(self) -> None:
        self.hidden: frozenset[Source] = frozenset()
        self.threads: defaultdict[PciAddress | None, Lock] = defaultdict(lambda: Lock("aer_isr"))
        self._lines: deque[_Line] = deque(maxlen=_LINES)

    def hide(self, sources: Sequence[str]) -> None:
        """Hide these sources and no others. Raises ValueError for a word that is none."""
        unknown = [each for each in sources if each not in {*Source}]
        if unknown:
            raise ValueError(f"no source of errors {unknown[0]!r}; there are {', '.join(Source)}")
        self.hidden = frozenset(Source(each) for each in sources)

    def note(self, text: str) -> None:
        """printk: a line of the kernel's log."""
        self._lines.append(_Line(now_usec(), text))

    def read_log(self, since_usec: int, words: Sequence[str]) -> list[str]:
        """The lines from `since_usec` on that contain any of `words`; the latest, if there are too many."""
        fitting = [
            str(line)
            for line in self._lines
            if line.at_usec >= since_usec and any(word in line.text for word in words)
        ]
        return fitting[-_MOST_LINES:]


def now_usec() -> int:
    """CLOCK_MONOTONIC."""
    return time.monotonic_ns() // 1000
