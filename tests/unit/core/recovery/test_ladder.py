"""Which rung is next, and why not the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.recovery.detect import Verdict
from sriovd.core.recovery.ladder import Condition, choose_rung
from sriovd.core.recovery.probe import Signs
from sriovd.core.recovery.vocabulary import Rung

ALL = tuple(Rung)
ALIVE = Signs(answers=True, keeps_registers=True, vf_enable=True, num_vfs=7)
RESET = Signs(answers=True)  # its registers are as after a reset
DEAD = Signs()
WELL = Condition(
    present=True, verdict=Verdict.RECOVERED, signs=(ALIVE,), keeps_vfs=True, driver=True,
    survives_reset=True, can_reset=True, port=True,
)  # fmt: skip

CHOICES = [
    ("well", WELL, Rung.KERNEL, 0),
    ("the kernel did not try", replace(WELL, verdict=None), Rung.KERNEL, 0),
    ("the kernel has failed", replace(WELL, verdict=Verdict.FAILED), Rung.FUNCTION_RESET, 1),
    ("VF Enable is lost", replace(WELL, keeps_vfs=False), Rung.FUNCTION_RESET, 1),
    ("no driver survives", replace(WELL, keeps_vfs=False, survives_reset=False), Rung.DRIVER_REBIND, 2),
    ("no reset method", replace(WELL, keeps_vfs=False, can_reset=False), Rung.DRIVER_REBIND, 2),
    ("no driver", replace(WELL, keeps_vfs=False, can_reset=False, driver=False), Rung.REMOVE_RESCAN, 3),
    ("registers lost", replace(WELL, signs=(RESET,)), Rung.REMOVE_RESCAN, 3),
    ("one of two is dead", replace(WELL, signs=(ALIVE, DEAD)), Rung.REMOVE_RESCAN, 3),
    ("not there", replace(WELL, present=False, signs=()), Rung.REMOVE_RESCAN, 3),
    ("dead on a root bus", replace(WELL, signs=(DEAD,), port=False), None, 4),
]


@pytest.mark.parametrize(
    ("condition", "rung", "left_out"), [row[1:] for row in CHOICES], ids=[row[0] for row in CHOICES]
)
def test_the_lightest_rung_that_can_help(condition: Condition, rung: Rung | None, left_out: int) -> None:
    choice = choose_rung(condition, ALL, ())
    assert choice.rung is rung
    assert len(choice.left_out) == left_out


REASONS = [
    (replace(WELL, verdict=Verdict.FAILED), Rung.KERNEL, "the kernel's recovery has failed"),
    (replace(WELL, signs=(RESET,)), Rung.KERNEL, "the registers are lost"),
    (replace(WELL, keeps_vfs=False), Rung.KERNEL, "VF Enable is lost"),
    (replace(WELL, signs=(RESET,)), Rung.FUNCTION_RESET, "a reset brings none back"),
    (replace(WELL, survives_reset=False), Rung.FUNCTION_RESET, "the PF driver would not know of it"),
    (replace(WELL, can_reset=False), Rung.FUNCTION_RESET, "there is no reset method"),
    (replace(WELL, signs=(RESET,)), Rung.DRIVER_REBIND, "a driver brings none back"),
    (replace(WELL, driver=False), Rung.DRIVER_REBIND, "the PF has no driver"),
    (replace(WELL, port=False), Rung.REMOVE_RESCAN, "no bridge above"),
]


@pytest.mark.parametrize(("condition", "rung", "why"), REASONS)
def test_why_a_rung_is_left_out(condition: Condition, rung: Rung, why: str) -> None:
    others = [each for each in Rung if each is not rung]
    choice = choose_rung(condition, ALL, others)
    assert choice.rung is None
    assert any(text.startswith(f"{rung}: ") and why in text for text in choice.left_out)


CONDITIONS = st.builds(
    Condition,
    present=st.booleans(),
    verdict=st.sampled_from([None, *Verdict]),
    signs=st.lists(st.sampled_from([ALIVE, RESET, DEAD]), max_size=2).map(tuple),
    keeps_vfs=st.booleans(),
    driver=st.booleans(),
    survives_reset=st.booleans(),
    can_reset=st.booleans(),
    port=st.booleans(),
)


@given(CONDITIONS, st.sets(st.sampled_from(Rung)), st.sets(st.sampled_from(Rung)))
def test_nothing_is_climbed_twice_or_against_policy(
    condition: Condition, allowed: set[Rung], tried: set[Rung]
) -> None:
    choice = choose_rung(condition, allowed, tried)
    assert choice.rung is None or (choice.rung in allowed and choice.rung not in tried)
    named = [text.partition(":")[0] for text in choice.left_out]
    before = ALL[: ALL.index(choice.rung)] if choice.rung else ALL
    assert named == list(before), "each that is left out has its reason"


@given(st.lists(CONDITIONS, min_size=5, max_size=5))
def test_the_ladder_ends(conditions: list[Condition]) -> None:
    tried: list[Rung] = []
    for condition in conditions:
        rung = choose_rung(condition, ALL, tried).rung
        if rung is None:
            return
        tried.append(rung)
    raise AssertionError(f"a fifth rung: {tried}")
