"""What shall be done about the errors of one PF, and what that amounts to for its adapter. Pure.

Rule: an adapter recovers as one, so where its PFs are wished different things, the strictest counts: what
one of them forbids is not done to the other either, and no owner has less time than was promised. What
nobody wishes has the default. It stands apart from the policies because every host needs it, and a host
without policies does not import what reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from sriovd.core.recovery.vocabulary import Permission, Response, Rung, Storm

_Word = TypeVar("_Word", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class RecoveryWish:
    """The table [recovery] of a PF's policies. `storm_threshold`: correctable errors of one function within
    a minute. `rungs`: those that are allowed, in the order of escalation. `grace_sec`: how long owners have
    before automatic permission unfreezes for them. `close_sec`: how long is waited for VFs to be closed
    before a rung that destroys them; the adapter is quarantined then."""

    correctable_storm: Storm = Storm.REPORT
    storm_threshold: int = 100
    non_fatal: Response = Response.RECOVER
    fatal: Response = Response.RECOVER
    rungs: tuple[Rung, ...] = tuple(Rung)
    permission: Permission = Permission.AUTOMATIC
    grace_sec: int = 0
    close_sec: int = 60


def combine_recovery(wishes: Sequence[RecoveryWish]) -> RecoveryWish:
    """The strictest of all `wishes`: the last word of each vocabulary, the lowest threshold, the rungs that
    all allow (there may be none), the longest times. The defaults when there are none."""
    if not wishes:
        return RecoveryWish()
    return RecoveryWish(
        correctable_storm=_find_last([each.correctable_storm for each in wishes]),
        storm_threshold=min(each.storm_threshold for each in wishes),
        non_fatal=_find_last([each.non_fatal for each in wishes]),
        fatal=_find_last([each.fatal for each in wishes]),
        rungs=tuple(rung for rung in Rung if all(rung in each.rungs for each in wishes)),
        permission=_find_last([each.permission for each in wishes]),
        grace_sec=max(each.grace_sec for each in wishes),
        close_sec=max(each.close_sec for each in wishes),
    )


def _find_last(words: Sequence[_Word]) -> _Word:
    order = list(type(words[0]))
    return max(words, key=order.index)
