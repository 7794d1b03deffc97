"""The tables of the two life cycles: nothing is missing in them, and what they promise holds for every way
through them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.errors import Frozen, InvalidArgument, LockedOut, Quarantined, SriovdError
from sriovd.core.recovery import automaton
from sriovd.core.recovery.automaton import (
    ADAPTER_IGNORED,
    ADAPTER_REFUSED,
    ADAPTER_TABLE,
    VF_IGNORED,
    VF_REFUSED,
    VF_TABLE,
    AdapterEffect,
    AdapterEvent,
    AdapterState,
    VfEffect,
    VfEvent,
    VfState,
    advance_adapter,
    advance_vf,
)

README = Path(__file__).parents[4] / "README.md"
MARKERS = ("<!-- recovery diagrams: begin -->\n", "<!-- recovery diagrams: end -->")

PAIRS = [(state, event) for state in AdapterState for event in AdapterEvent]
VF_PAIRS = [(state, event) for state in VfState for event in VfEvent]
ENDS = {AdapterState.ONLINE, AdapterState.QUARANTINED, AdapterState.REMOVED}
VF_ENDS = {VfState.ONLINE, VfState.FAILED, VfState.REMOVED}

# What an effect may end with by itself; all other events come from outside.
ANSWERS: Mapping[AdapterEffect, tuple[AdapterEvent, ...]] = {
    AdapterEffect.FENCE: (AdapterEvent.FENCED,),
    AdapterEffect.COLLECT: (AdapterEvent.COLLECTED,),
    AdapterEffect.CLIMB: (
        AdapterEvent.RESET, AdapterEvent.RESET_FAILED, AdapterEvent.EXHAUSTED, AdapterEvent.GONE,
    ),
    AdapterEffect.RESTORE: (AdapterEvent.RESTORED, AdapterEvent.RESTORE_FAILED),
    AdapterEffect.VERIFY: (AdapterEvent.VERIFIED, AdapterEvent.VERIFY_FAILED),
    AdapterEffect.PERMIT_VFS: (AdapterEvent.PERMITTED,),
}  # fmt: skip
VF_ANSWERS: Mapping[VfEffect, tuple[VfEvent, ...]] = {
    VfEffect.COLLECT: (VfEvent.PERMIT,),
    VfEffect.AWAIT_OWNER: (VfEvent.UNFREEZE,),
    VfEffect.RECOVER: (VfEvent.RECOVERED, VfEvent.RECOVER_FAILED),
}
DEVICE_EFFECTS = {VfEffect.FENCE, VfEffect.RECOVER}  # those that write to the VF

# The more, the less may be done with it. A card that is gone can do no harm, and is in neither.
STRICTNESS = {
    state: rank
    for rank, state in enumerate(
        (
            AdapterState.ONLINE, AdapterState.PERMITTING, AdapterState.VERIFYING, AdapterState.RESTORING,
            AdapterState.RESETTING, AdapterState.COLLECTING, AdapterState.FROZEN, AdapterState.QUARANTINED,
        )
    )
}  # fmt: skip
VF_STRICTNESS = {
    VfState.ONLINE: 0, VfState.RECOVERING: 1, VfState.PERMITTED: 2, VfState.FROZEN_OWN: 3,
    VfState.FROZEN_PROPAGATED: 4, VfState.LOCKED_OUT: 4, VfState.FAILED: 5,
}  # fmt: skip


def name_pair(pair: tuple[Any, Any]) -> str:
    return f"{pair[0]}+{pair[1]}"


def list_answered(
    table: Mapping[Any, Any], answers: Mapping[Any, Iterable[Any]]
) -> Iterator[tuple[Any, Any]]:
    """Every step from state to row that a row's own effects can bring about."""
    for row in table.values():
        for effect in row.effects:
            for event in answers.get(effect, ()):
                if (row.state, event) in table:
                    yield row.state, table[row.state, event]


def reach(start: Any, steps: Iterable[tuple[Any, Any]]) -> set[Any]:
    """The states that can follow `start`."""
    every, seen, new = list(steps), {start}, {start}
    while new:
        new = {row.state for state, row in every if state in new} - seen
        seen |= new
    return seen


# Every pair has one answer.


@pytest.mark.parametrize("pair", PAIRS, ids=name_pair)
def test_every_adapter_pair_is_followed_refused_or_ignored(pair: tuple[AdapterState, AdapterEvent]) -> None:
    state, event = pair
    found = [pair in ADAPTER_TABLE, pair in ADAPTER_REFUSED, state in ADAPTER_IGNORED.get(event, ())]
    assert found.count(True) == 1


@pytest.mark.parametrize("pair", VF_PAIRS, ids=name_pair)
def test_every_vf_pair_is_followed_refused_or_ignored(pair: tuple[VfState, VfEvent]) -> None:
    state, event = pair
    found = [pair in VF_TABLE, pair in VF_REFUSED, state in VF_IGNORED.get(event, ())]
    assert found.count(True) == 1


def test_the_tables_hold_no_pair_twice() -> None:
    ignored = [(state, event) for event, each in ADAPTER_IGNORED.items() for state in each]
    assert sorted([*ADAPTER_TABLE, *ADAPTER_REFUSED, *ignored]) == sorted(PAIRS)
    vf_ignored = [(state, event) for event, each in VF_IGNORED.items() for state in each]
    assert sorted([*VF_TABLE, *VF_REFUSED, *vf_ignored]) == sorted(VF_PAIRS)


# Ends are reached.


@pytest.mark.parametrize("state", [state for state in AdapterState if state not in ENDS])
def test_a_recovery_ends_by_itself(state: AdapterState) -> None:
    assert reach(state, list_answered(ADAPTER_TABLE, ANSWERS)) & ENDS


@pytest.mark.parametrize("state", [state for state in AdapterState if state not in ENDS])
def test_every_answer_but_the_good_one_ends_too(state: AdapterState) -> None:
    """From whichever state a recovery comes to by the answers of effects, an end can be reached."""
    steps = list(list_answered(ADAPTER_TABLE, ANSWERS))
    assert all(reach(each, steps) & ENDS for each in reach(state, steps))


@pytest.mark.parametrize("state", [VfState.FROZEN_OWN, VfState.PERMITTED, VfState.RECOVERING])
def test_a_vf_that_waits_for_no_adapter_ends_by_itself(state: VfState) -> None:
    assert reach(state, list_answered(VF_TABLE, VF_ANSWERS)) & VF_ENDS


@pytest.mark.parametrize("state", [VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT])
def test_a_vf_that_waits_for_its_adapter_is_moved_by_it_alone(state: VfState) -> None:
    steps = [*list_answered(VF_TABLE, VF_ANSWERS)]
    assert reach(state, steps) == {state}
    by_adapter = [
        (before, row) for (before, event), row in VF_TABLE.items() if event in (VfEvent.LOCK, VfEvent.PERMIT)
    ]
    assert reach(state, [*steps, *by_adapter]) & VF_ENDS


@pytest.mark.parametrize("state", [state for state in AdapterState if state not in ENDS])
def test_answers_go_round_only_by_way_of_another_rung(state: AdapterState) -> None:
    steps = [
        (before, row)
        for before, row in list_answered(ADAPTER_TABLE, ANSWERS)
        if AdapterEffect.CLIMB not in row.effects
    ]
    following = [row.state for before, row in steps if before is state]
    assert all(state not in reach(each, steps) for each in following)


@pytest.mark.parametrize("state", VfState)
def test_the_answers_about_a_vf_never_go_round(state: VfState) -> None:
    steps = list(list_answered(VF_TABLE, VF_ANSWERS))
    assert all(state not in reach(row.state, steps) for before, row in steps if before is state)


@pytest.mark.parametrize("state", [state for state in AdapterState if state is not AdapterState.REMOVED])
def test_every_working_state_has_an_effect_that_answers(state: AdapterState) -> None:
    rows = [row for row in ADAPTER_TABLE.values() if row.state is state]
    for row in rows:
        answering = [
            effect for effect in row.effects if effect in ANSWERS and effect is not AdapterEffect.FENCE
        ]
        assert bool(answering or state is AdapterState.FROZEN) == (state not in ENDS)
        assert (AdapterEffect.FENCE in row.effects) == (
            state in (AdapterState.FROZEN, AdapterState.QUARANTINED)
        )


# Locked out.


def test_a_vf_leaves_locked_out_only_with_permission_or_for_good() -> None:
    left = {event: row.state for (state, event), row in VF_TABLE.items() if state is VfState.LOCKED_OUT}
    assert left == {VfEvent.PERMIT: VfState.PERMITTED, VfEvent.GONE: VfState.REMOVED}


def test_a_vf_comes_into_locked_out_only_from_frozen_with_its_adapter() -> None:
    rows = [pair for pair, row in VF_TABLE.items() if row.state is VfState.LOCKED_OUT]
    assert rows == [(VfState.FROZEN_PROPAGATED, VfEvent.LOCK)]


@pytest.mark.parametrize("state", [VfState.LOCKED_OUT, VfState.FROZEN_PROPAGATED])
def test_nothing_touches_a_vf_that_is_frozen_with_its_adapter(state: VfState) -> None:
    for row in VF_TABLE.values():
        assert row.state is not state or not DEVICE_EFFECTS.intersection(row.effects)


def test_a_restart_does_nothing_to_a_vf_that_is_locked_out() -> None:
    for state in (VfState.LOCKED_OUT, VfState.FROZEN_PROPAGATED, VfState.FAILED):
        assert advance_vf(state, VfEvent.RESTARTED) is None


def test_every_freeze_stops_all_vfs_before_anything_else() -> None:
    for row in ADAPTER_TABLE.values():
        stops = row.state in (AdapterState.FROZEN, AdapterState.QUARANTINED)
        assert (row.effects[0] is AdapterEffect.FREEZE_VFS) == stops


def test_vfs_are_locked_before_anything_is_collected_and_permitted_only_when_verified() -> None:
    for (state, event), row in ADAPTER_TABLE.items():
        if AdapterEffect.COLLECT in row.effects:
            assert row.effects.index(AdapterEffect.LOCK_VFS) < row.effects.index(AdapterEffect.COLLECT)
        if AdapterEffect.PERMIT_VFS in row.effects:
            assert (state, event) in (
                (AdapterState.VERIFYING, AdapterEvent.VERIFIED),
                (AdapterState.PERMITTING, AdapterEvent.RESTARTED),
            )


def test_nothing_is_climbed_without_what_was_collected() -> None:
    entries = [pair for pair, row in ADAPTER_TABLE.items() if row.state is AdapterState.RESETTING]
    inside = (AdapterState.RESETTING, AdapterState.RESTORING, AdapterState.VERIFYING)
    assert [pair for pair in entries if pair[0] not in inside] == [
        (AdapterState.COLLECTING, AdapterEvent.COLLECTED)
    ]


def test_only_an_operator_ends_a_quarantine() -> None:
    left = {
        event: row.state
        for (state, event), row in ADAPTER_TABLE.items()
        if state is AdapterState.QUARANTINED and row.state is not state
    }
    assert left == {AdapterEvent.LIFT: AdapterState.FROZEN, AdapterEvent.GONE: AdapterState.REMOVED}


@pytest.mark.parametrize("state", [AdapterState.ONLINE, AdapterState.PERMITTING])
def test_over_budget_means_quarantined_without_another_rung(state: AdapterState) -> None:
    row = ADAPTER_TABLE[state, AdapterEvent.OVER_BUDGET]
    assert row.state is AdapterState.QUARANTINED
    assert AdapterEffect.CLIMB not in row.effects
    assert AdapterEffect.GIVE_UP in row.effects


# Restarts.


@given(st.sampled_from(AdapterState))
def test_a_restart_never_leads_an_adapter_to_less(state: AdapterState) -> None:
    row = advance_adapter(state, AdapterEvent.RESTARTED)
    if row is None:
        assert state in (AdapterState.ONLINE, AdapterState.REMOVED), "the others have something to do"
        return
    assert STRICTNESS[row.state] >= STRICTNESS[state]
    assert row == ADAPTER_TABLE[row.state, AdapterEvent.RESTARTED], "a second crash at once changes nothing"


@given(st.sampled_from(VfState))
def test_a_restart_never_leads_a_vf_to_less(state: VfState) -> None:
    row = advance_vf(state, VfEvent.RESTARTED)
    if row is not None:
        assert VF_STRICTNESS[row.state] >= VF_STRICTNESS[state]
        assert row == VF_TABLE[row.state, VfEvent.RESTARTED]


# Refusals.


@pytest.mark.parametrize("state", [state for state in AdapterState if state is not AdapterState.QUARANTINED])
def test_only_a_quarantined_adapter_can_be_lifted(state: AdapterState) -> None:
    with pytest.raises(InvalidArgument, match="not quarantined"):
        advance_adapter(state, AdapterEvent.LIFT)


@pytest.mark.parametrize("state", [state for state in VfState if state is not VfState.FAILED])
def test_only_a_failed_vf_can_be_lifted(state: VfState) -> None:
    with pytest.raises(InvalidArgument, match="has not failed"):
        advance_vf(state, VfEvent.LIFT)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        (VfState.FROZEN_OWN, Frozen),
        (VfState.FROZEN_PROPAGATED, Frozen),
        (VfState.LOCKED_OUT, LockedOut),
        (VfState.FAILED, Quarantined),
    ],
)
def test_owners_are_refused_until_they_are_permitted(state: VfState, error: type[SriovdError]) -> None:
    with pytest.raises(error, match=r"^VF 3 .* For 2 s\."):
        advance_vf(state, VfEvent.UNFREEZE, lambda: ("VF 3", "For 2 s."))


# Diagrams.


def test_the_readme_shows_the_tables() -> None:
    _, begin, rest = README.read_text().partition(MARKERS[0])
    shown, end, _ = rest.partition(MARKERS[1])
    assert begin
    assert end
    for diagram in (automaton.draw_adapter(), automaton.draw_vf()):
        assert diagram in shown, "python -m sriovd.core.recovery.automaton prints what belongs there"
    assert shown.count("```mermaid") == 2


def test_the_diagrams_have_every_row() -> None:
    for diagram, table in ((automaton.draw_adapter(), ADAPTER_TABLE), (automaton.draw_vf(), VF_TABLE)):
        assert diagram.count("-->") == len(table) + 1  # how it begins
    assert "    locked-out --> permitted: permit / tell, await-owner" in automaton.draw_vf().splitlines()


def test_the_module_prints_the_diagrams() -> None:
    command = [sys.executable, "-m", "sriovd.core.recovery.automaton"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=README.parent)
    assert done.stdout == f"{automaton.draw_adapter()}\n{automaton.draw_vf()}"
