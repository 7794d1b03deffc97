"""The ladder by which a dead adapter is brought back: which rung is next, and why not the others. Pure.

Rule: the lightest rung that can help comes first, none is climbed twice in one recovery, and one that
cannot help is left out with its reason: a rung that is tried in vain costs the tenants of the whole
adapter its time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from sriovd.core.recovery.detect import Verdict
from sriovd.core.recovery.probe import Signs
from sriovd.core.recovery.vocabulary import Rung

DESTROYING = frozenset({Rung.DRIVER_REBIND, Rung.REMOVE_RESCAN})  # VFs go, so nobody may hold one open


@dataclass(frozen=True, slots=True)
class Condition:
    """How an adapter was found. `present`: the kernel shows its PFs. `verdict`: how the kernel's own
    recovery has ended, None: it did not try, or nobody knows. `signs`: of each PF. `keeps_vfs`: each PF's
    SR-IOV capability has the VFs that it should. `driver`: each PF has one; `survives_reset`: which takes
    part in resets. `can_reset`: each PF has a reset method. `port`: there is a bridge above."""

    present: bool
    verdict: Verdict | None
    signs: tuple[Signs, ...]
    keeps_vfs: bool
    driver: bool
    survives_reset: bool
    can_reset: bool
    port: bool

    @property
    def answers(self) -> bool:
        return self.present and all(each.answers for each in self.signs)

    @property
    def keeps_registers(self) -> bool:
        return self.answers and all(each.keeps_registers for each in self.signs)


@dataclass(frozen=True, slots=True)
class Choice:
    """The next rung, None when there is none; and why each one before it, or each of all, is left out."""

    rung: Rung | None
    left_out: tuple[str, ...]


def choose_rung(condition: Condition, allowed: Collection[Rung], tried: Collection[Rung]) -> Choice:
    """The lightest rung that may help."""
    left_out: list[str] = []
    for rung in Rung:
        why_not = _why_not(rung, condition, allowed, tried)
        if not why_not:
            return Choice(rung, tuple(left_out))
        left_out.append(f"{rung}: {why_not}")
    return Choice(None, tuple(left_out))


def _why_not(rung: Rung, condition: Condition, allowed: Collection[Rung], tried: Collection[Rung]) -> str:
    if rung in tried:
        return "tried"
    if rung not in allowed:
        return "policy does not allow it"
    return _OBSTACLES[rung](condition)


def _obstacle_to_kernel(condition: Condition) -> str:
    if condition.verdict is Verdict.FAILED:
        return "the kernel's recovery has failed"
    if not condition.keeps_registers:
        return "the registers are lost"
    return "" if condition.keeps_vfs else "VF Enable is lost"


def _obstacle_to_function_reset(condition: Condition) -> str:
    if not condition.keeps_registers:
        return "the registers are lost, and a reset brings none back"
    if not condition.survives_reset:
        return "the PF driver would not know of it"
    return "" if condition.can_reset else "there is no reset method"


def _obstacle_to_driver_rebind(condition: Condition) -> str:
    if not condition.keeps_registers:
        return "the registers are lost, and a driver brings none back"
    return "" if condition.driver else "the PF has no driver"


def _obstacle_to_remove_rescan(condition: Condition) -> str:
    return "" if condition.port else "there is no bridge above the adapter to look below"


_OBSTACLES: Mapping[Rung, Callable[[Condition], str]] = {
    Rung.KERNEL: _obstacle_to_kernel,
    Rung.FUNCTION_RESET: _obstacle_to_function_reset,
    Rung.DRIVER_REBIND: _obstacle_to_driver_rebind,
    Rung.REMOVE_RESCAN: _obstacle_to_remove_rescan,
}
