"""The table of the life cycle: nothing is missing in it, and its promises hold for any order of events."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.errors import InUse, InvalidArgument, SriovdError
from sriovd.core.lease.automaton import (
    BEGIN,
    IGNORED,
    REFUSED,
    TABLE,
    Effect,
    LeaseEvent,
    Transition,
    advance,
    draw_diagram,
)
from sriovd.core.lease.record import LeaseState

README = Path(__file__).parents[4] / "README.md"
MARKERS = ("<!-- lease diagram: begin -->\n", "<!-- lease diagram: end -->")
PAIRS = [(state, event) for state in LeaseState for event in LeaseEvent]

# What the owner may do with the VF in a state; only in RELEASED may somebody else have it.
MAY_OPEN = {LeaseState.ACTIVE: 2, LeaseState.PREPARING: 1, LeaseState.ABSENT: 1}

states = st.sampled_from(LeaseState)
histories = st.lists(st.sampled_from(LeaseEvent), max_size=30)


def follow(state: LeaseState, events: list[LeaseEvent]) -> list[Transition]:
    """The rows that `events` go through."""
    rows = [Transition(state)]
    for event in events:
        try:
            rows.append(advance(rows[-1].state, event) or Transition(rows[-1].state))
        except SriovdError:
            rows.append(Transition(rows[-1].state))
    return rows


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}+{pair[1]}")
def test_every_pair_is_followed_refused_or_ignored(pair: tuple[LeaseState, LeaseEvent]) -> None:
    state, event = pair
    assert [pair in TABLE, pair in REFUSED, state in IGNORED.get(event, ())].count(True) == 1


def test_the_tables_hold_no_pair_that_cannot_be() -> None:
    ignored = [(state, event) for event, each in IGNORED.items() for state in each]
    assert sorted([*TABLE, *REFUSED, *ignored]) == sorted(PAIRS)


def test_release_of_an_open_vf_is_refused_and_the_lease_stays() -> None:
    row = advance(LeaseState.ACTIVE, LeaseEvent.RELEASE_ASKED)
    assert row == (LeaseState.ACTIVE, (Effect.CHECK_CLOSED,))
    with pytest.raises(InUse, match=r"^Lease 7 is in use: its VF is held open\. .*force"):
        advance(LeaseState.ACTIVE, LeaseEvent.STILL_OPEN, "lease 7")


@pytest.mark.parametrize("event", [LeaseEvent.OWNER_GONE, LeaseEvent.FORCED])
def test_a_dead_owner_and_force_wait_for_the_last_holder(event: LeaseEvent) -> None:
    rows = follow(LeaseState.ACTIVE, [event, LeaseEvent.STILL_OPEN, LeaseEvent.CLOSED, LeaseEvent.CLEANED])
    assert [row.state for row in rows[1:]] == ["releasing", "releasing", "cleaning", "released"]
    assert rows[1].effects[0] is Effect.TAKE_BACK
    assert rows[2].effects == (Effect.WATCH_HOLDERS,)


@pytest.mark.parametrize("state", [state for state in LeaseState if state is not LeaseState.FAILED])
def test_only_a_failed_lease_can_be_lifted(state: LeaseState) -> None:
    with pytest.raises(InvalidArgument, match="has not failed"):
        advance(state, LeaseEvent.LIFT)


def test_a_clean_that_finds_a_holder_waits_for_him() -> None:
    assert advance(LeaseState.CLEANING, LeaseEvent.STILL_OPEN) == (
        LeaseState.RELEASING,
        (Effect.WATCH_HOLDERS,),
    )


def test_the_ends_of_a_lease_are_where_their_effects_are() -> None:
    for row in TABLE.values():
        assert (Effect.FORGET in row.effects) == (row.state is LeaseState.RELEASED)
        assert (Effect.QUARANTINE in row.effects) == (row.state is LeaseState.FAILED)


def test_a_vf_that_is_gone_is_not_cleaned() -> None:
    for state in (LeaseState.RELEASING, LeaseState.CLEANING, LeaseState.FAILED):
        row = TABLE[state, LeaseEvent.VF_GONE]
        assert row.state is LeaseState.RELEASED
        assert Effect.CLEAN not in row.effects


def test_a_failed_lease_stays_quarantined_when_its_owner_dies() -> None:
    assert advance(LeaseState.FAILED, LeaseEvent.OWNER_GONE) is None


@given(states, histories)
def test_released_is_final(state: LeaseState, events: list[LeaseEvent]) -> None:
    for before, after in pairwise(follow(state, events)):
        if before.state is LeaseState.RELEASED:
            assert after.state is LeaseState.RELEASED
            assert set(after.effects) <= {Effect.TAKE_BACK, Effect.TELL_OWNER, Effect.FORGET}


@given(states, histories)
def test_clean_needs_closed_as_the_last_word_on_holders(state: LeaseState, events: list[LeaseEvent]) -> None:
    word = LeaseEvent.STILL_OPEN
    for event, row in zip(events, follow(state, events)[1:], strict=True):
        word = event if event in (LeaseEvent.STILL_OPEN, LeaseEvent.CLOSED) else word
        assert Effect.CLEAN not in row.effects or word is LeaseEvent.CLOSED


@given(histories)
def test_take_back_comes_before_clean_and_forget(events: list[LeaseEvent]) -> None:
    handed_over = False
    for row in [BEGIN, *follow(BEGIN.state, events)]:
        for effect in row.effects:
            if effect in (Effect.HAND_OVER, Effect.TAKE_BACK):
                handed_over = effect is Effect.HAND_OVER
            assert not (handed_over and effect in (Effect.CLEAN, Effect.FORGET, Effect.QUARANTINE))


@given(states, histories)
def test_a_restart_gives_nobody_more_than_he_had(state: LeaseState, events: list[LeaseEvent]) -> None:
    before = follow(state, events)[-1].state
    after = TABLE[before, LeaseEvent.RESTARTED].state
    assert MAY_OPEN.get(after, 0) <= MAY_OPEN.get(before, 0)
    assert (after is LeaseState.RELEASED) == (before is LeaseState.RELEASED)


@given(states)
def test_a_restart_starts_again_what_the_state_needs(state: LeaseState) -> None:
    row = TABLE[state, LeaseEvent.RESTARTED]
    assert row.effects or state is LeaseState.ACTIVE
    assert TABLE[row.state, LeaseEvent.RESTARTED] == row, "a second crash at once changes nothing"


@pytest.mark.parametrize("start", LeaseState)
def test_released_can_be_reached_from_every_state(start: LeaseState) -> None:
    seen, new = {start}, {start}
    while new:
        new = {row.state for (state, _), row in TABLE.items() if state in new} - seen
        seen |= new
    assert LeaseState.RELEASED in seen


def test_the_readme_shows_the_table() -> None:
    _, begin, rest = README.read_text().partition(MARKERS[0])
    shown, end, _ = rest.partition(MARKERS[1])
    assert begin
    assert end
    assert shown == draw_diagram(), "python -m sriovd.core.lease.automaton prints what belongs there"


def test_the_diagram_has_every_row() -> None:
    arrows = [line for line in draw_diagram().splitlines() if "-->" in line]
    assert len(arrows) == len(TABLE) + 2  # how it begins and ends
    assert "    active --> releasing: owner-gone / take-back, check-closed" in arrows
    assert "    active --> active: restarted / hand-over" in arrows


def test_the_module_prints_the_diagram() -> None:
    command = [sys.executable, "-m", "sriovd.core.lease.automaton"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=README.parent)
    assert done.stdout == draw_diagram()
