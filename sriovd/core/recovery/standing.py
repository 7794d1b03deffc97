"""How a PE (partitionable endpoint) stands, for everybody who looks: one record for adapters and VFs.

Rule: what is here may be told to anybody who may look at the function; nothing names another tenant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sriovd.backend.base import Severity
from sriovd.pci import PciAddress

# of functions, by severity, by the kernel's name of the error, as Backend.read_error_counters has them
Counters = Mapping[PciAddress, Mapping[Severity, Mapping[str, int]]]


@dataclass(frozen=True, slots=True)
class PeStanding:
    """`state`: of the PE's automaton. `cause`: "own" for an error of its own, "propagated" for its
    adapter's, empty while it is online. `reason`: what has happened, in words. `since_usec`:
    CLOCK_REALTIME of the last change, 0 for never. `freezes`: how many count against its budget.
    `waits_for`: what and whom it waits for, in words, empty for nothing. `rung`: of the adapter's ladder,
    in progress or last. `audit`: what would make its recovery fail, in words. `corrected`: how many
    correctable errors were counted."""

    state: str
    cause: str = ""
    reason: str = ""
    since_usec: int = 0
    freezes: int = 0
    waits_for: str = ""
    rung: str = ""
    audit: tuple[str, ...] = ()
    corrected: int = 0


@dataclass(frozen=True, slots=True)
class BundleHead:
    """A forensic bundle in a list. `taken_usec`: CLOCK_REALTIME. `kind`: "freeze" or "give-up"."""

    number: int
    taken_usec: int
    kind: str
    title: str
