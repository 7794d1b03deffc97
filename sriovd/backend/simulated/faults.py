"""Faults that are armed, and which of them an access meets.

Rule: faults are data; what a hang locks is the kernel's business (kernel.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from sriovd.backend.base import Fault
from sriovd.backend.simulated.uevents import EventFault
from sriovd.backend.steps import Verb
from sriovd.pci import PciAddress

_VERBS = frozenset({*Verb, *EventFault})


@dataclass(slots=True)
class _Armed:
    fault: Fault
    met: int = 0

    @property
    def worn_off(self) -> bool:
        return 0 < self.fault.times <= self.met


class FaultBoard:
    """The armed faults, oldest first. `generation` grows when they are cleared: hanging accesses watch
    it."""

    def __init__(self) -> None:
        self._armed: list[_Armed] = []
        self.generation = 0

    def inject(self, fault: Fault) -> None:
        """Arm one. Raises ValueError naming what makes no sense."""
        if fault.verb not in _VERBS:
            raise ValueError(f"unknown verb {fault.verb!r}; there are {', '.join(sorted(_VERBS))}")
        if fault.delay_usec < 0 or fault.errno < 0 or fault.times < 0:
            raise ValueError(f"{fault}: errno, delay_usec and times cannot be negative")
        self._armed.append(_Armed(fault))

    def clear(self) -> None:
        """Disarm all; what hangs returns."""
        self._armed.clear()
        self.generation += 1

    def meet(self, verbs: frozenset[str], address: PciAddress | None) -> Fault | None:
        """The first fault that one of `verbs` on `address` meets; it has then been met once more."""
        for armed in self._armed:
            if armed.fault.verb in verbs and armed.fault.address in (None, address) and not armed.worn_off:
                armed.met += 1
                return armed.fault
        return None
