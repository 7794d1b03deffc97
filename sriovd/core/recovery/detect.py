"""What the four sources say of an adapter, joined: uevents of the kernel's recovery, error records,
counters, and a look at its registers. Pure.

Rule: any source may be missing, late, repeated or out of order. A record names whose error it was; a uevent
says that the kernel walks over the adapter, whoever's error that is. An error of which nobody says whose it
was is the adapter's, which is the stricter answer. What is told twice counts once: a record by its time, a
uevent by the walk that it belongs to.

Linux: drivers/pci/pcie/err.c pcie_do_recovery, drivers/pci/pci-driver.c pci_uevent_ers; before 6.17 some
outcomes are told of the bridge only, and no beginning when a driver votes for a reset.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.pci import PciAddress

ECHO_USEC = 1_000_000  # uevents that come so long after the end of a walk still belong to it
_RECORDS = 16  # among which one that is repeated is recognized
WALK_USEC = 120_000_000  # a walk that has not ended by then is not going on any more


class Verdict(StrEnum):
    """How the kernel's own recovery has ended (pci_uevent_ers)."""

    RECOVERED = "recovered"
    FAILED = "failed"


class News(StrEnum):
    """What a signal means."""

    NOTHING = "nothing"  # known already
    CORRECTED = "corrected"
    VF_ERROR = "vf-error"  # one VF's own
    ADAPTER_ERROR = "adapter-error"
    VERDICT = "verdict"  # the kernel has ended its recovery


class Walk(StrEnum):
    """What the kernel says of its recovery (ERROR_EVENT of a uevent)."""

    BEGIN = "BEGIN_RECOVERY"
    SUCCESS = "SUCCESSFUL_RECOVERY"
    FAILURE = "FAILED_RECOVERY"


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of an adapter's last error. Times are CLOCK_MONOTONIC in microseconds.

    `settled_usec`: errors recorded before have been dealt with. `opened_usec`: when the last error was first
    told, 0: never. `culprit`: whose own error it is, None: the adapter's. `records`: the last ones. `begun`:
    the kernel walks. `verdict`, `closed_usec`: how and when that ended.
    """

    settled_usec: int = 0
    opened_usec: int = 0
    culprit: PciAddress | None = None
    records: tuple[ErrorRecord, ...] = ()
    begun: bool = False
    verdict: Verdict | None = None
    closed_usec: int = 0

    def is_open(self, now_usec: int) -> bool:
        """Whether an error was told and its walk may still go on."""
        return bool(self.opened_usec) and self.verdict is None and now_usec - self.opened_usec < WALK_USEC

    def echoes(self, now_usec: int) -> bool:
        """Whether a walk has ended only just now."""
        return self.verdict is not None and now_usec - self.closed_usec < ECHO_USEC

    def takes(self, now_usec: int) -> bool:
        """Whether a record that comes now tells of the same walk. After a failed one it does: the adapter is
        frozen then, and how the walk has ended must not be forgotten."""
        has_failed = self.verdict is Verdict.FAILED and self.echoes(now_usec)
        return self.is_open(now_usec) or (bool(self.opened_usec) and has_failed)

    def noting(self, record: ErrorRecord) -> Sight:
        """With that record."""
        return replace(self, records=(*self.records, record)[-_RECORDS:])


def judge_record(sight: Sight, record: ErrorRecord, of_vf: bool, now_usec: int) -> tuple[Sight, News]:
    """What an error record says. `of_vf`: it names a VF; else the PF or a bridge above. A fatal error resets
    the link, whoever's it is, so it is the adapter's."""
    if record.at_usec <= sight.settled_usec or record in sight.records:
        return sight, News.NOTHING
    sight = sight.noting(record)
    if record.severity is Severity.CORRECTED:
        return sight, News.CORRECTED
    own = of_vf and record.severity is Severity.NONFATAL
    if sight.takes(now_usec):  # the same walk may have several; the adapter's outweighs a VF's
        sight = replace(sight, culprit=sight.culprit if own else None)
    else:
        sight = _open(sight, now_usec, record.address if own else None)
    return sight, News.VF_ERROR if own else News.ADAPTER_ERROR


def judge_walk(sight: Sight, walk: Walk, now_usec: int) -> tuple[Sight, News]:
    """What a uevent of the kernel's recovery says."""
    if walk is Walk.BEGIN:
        return _begin(sight, now_usec)
    verdict = Verdict.RECOVERED if walk is Walk.SUCCESS else Verdict.FAILED
    if sight.is_open(now_usec):
        return replace(sight, begun=True, verdict=verdict, closed_usec=now_usec), News.VERDICT
    if sight.echoes(now_usec):
        if verdict is Verdict.FAILED and sight.verdict is Verdict.RECOVERED:  # of two, the stricter
            return replace(sight, verdict=verdict), News.VERDICT
        return sight, News.NOTHING
    if verdict is Verdict.RECOVERED:  # of an error that has been dealt with, or that cost nothing
        return sight, News.NOTHING
    opened = replace(_open(sight, now_usec), begun=True, verdict=verdict, closed_usec=now_usec)
    return opened, News.ADAPTER_ERROR


def _open(sight: Sight, now_usec: int, culprit: PciAddress | None = None) -> Sight:
    return Sight(sight.settled_usec, now_usec, culprit, sight.records)


def _begin(sight: Sight, now_usec: int) -> tuple[Sight, News]:
    if sight.is_open(now_usec):
        return (sight if sight.begun else replace(sight, begun=True)), News.NOTHING
    if sight.echoes(now_usec):
        return sight, News.NOTHING
    return replace(_open(sight, now_usec), begun=True), News.ADAPTER_ERROR


def suspect(sight: Sight, now_usec: int) -> tuple[Sight, News]:
    """Counters or registers tell of an error of which nothing else has told."""
    if sight.is_open(now_usec):
        return sight, News.NOTHING
    return _open(sight, now_usec), News.ADAPTER_ERROR


def settle(sight: Sight, now_usec: int) -> Sight:
    """Everything until now has been dealt with. A walk that has just ended may still echo."""
    return replace(sight, settled_usec=now_usec, opened_usec=0, culprit=None, begun=False)
