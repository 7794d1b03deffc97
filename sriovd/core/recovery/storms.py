"""Counting correctable errors: how many there were, and whether they come in storms.

Rule: memory is bounded: a function that errs has one window of a minute, and the quietest are forgotten.
"""

from __future__ import annotations

from collections import Counter

from sriovd.pci import PciAddress

_WINDOW_USEC = 60_000_000
_FUNCTIONS = 1024


class Storms:
    """Of all functions."""

    def __init__(self) -> None:
        self._windows: dict[PciAddress, tuple[int, int]] = {}  # when it began, and how many since
        self._totals: Counter[str] = Counter()

    def count(self, slot: str, address: PciAddress, now_usec: int, threshold: int) -> bool:
        """One more, of a function of that adapter; whether that is the one too many, told once a window."""
        self._totals[slot] += 1
        began, count = self._windows.pop(address, (now_usec, 0))
        if now_usec - began > _WINDOW_USEC:
            began, count = now_usec, 0
        self._windows[address] = began, count + 1
        if len(self._windows) > _FUNCTIONS:
            del self._windows[next(iter(self._windows))]
        return count == threshold

    def total(self, slot: str) -> int:
        """How many that adapter has had since the daemon began."""
        return self._totals[slot]
