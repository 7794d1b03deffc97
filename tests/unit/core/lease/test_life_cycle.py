"""The life cycle in a small world: one VF, a tenant who opens it whenever he can, a host that destroys it,
effects that fail, a daemon that crashes at any step. The world is finite, so every order is tried.

The world keeps the registry's part of the bargain (automaton.py) and nothing more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import pytest

from sriovd.core.errors import SriovdError
from sriovd.core.lease.automaton import BEGIN, Effect, LeaseEvent, Transition, advance
from sriovd.core.lease.record import LeaseState

REQUESTS = [LeaseEvent.RELEASE_ASKED, LeaseEvent.FORCED, LeaseEvent.LIFT, LeaseEvent.OWNER_GONE]
EXISTING = (LeaseState.PREPARING, LeaseState.ACTIVE)


@dataclass(frozen=True, slots=True)
class World:
    """The VF, and what the registry is doing about its lease."""

    state: LeaseState | None = None  # None: no lease is in the store
    exists: bool = True
    handed_over: bool = False  # the owner may open it, or would be named by a CDI file that is left
    held_open: bool = False
    used: bool = False  # since it was last cleaned
    prepared: bool = False
    quarantined: bool = False
    pending: tuple[Effect, ...] = ()
    running: Effect | None = None
    answer_counts: bool = False  # of what is running: no newer row has come

    @property
    def is_settled(self) -> bool:
        return self.running is None and not self.pending


def enter(world: World, row: Transition) -> World:
    running = None if world.running is Effect.WATCH_HOLDERS else world.running
    return replace(world, state=row.state, pending=row.effects, running=running, answer_counts=False)


def say(world: World, event: LeaseEvent | None) -> World:
    """What follows from `event`."""
    if world.state is None or event is None:
        return world
    try:
        row = advance(world.state, event)
    except SriovdError:
        return world
    return world if row is None else enter(world, row)


def begin_effect(world: World) -> World:
    effect, *rest = world.pending
    if effect in (Effect.PREPARE, Effect.CLEAN, Effect.FORGET):
        assert not world.handed_over, f"{effect} while the owner may open it"
    if effect in (Effect.CLEAN, Effect.FORGET):
        assert not world.held_open, f"{effect} while somebody holds it open"
    if effect is Effect.FORGET:
        assert not world.used, "it goes to the next owner uncleaned"
    return replace(world, running=effect, pending=tuple(rest), answer_counts=True)


def end_effect(world: World, works: bool) -> World:
    assert world.running is not None
    after, answer = carry_out(replace(world, running=None), world.running, works)
    return say(after, answer if world.answer_counts else None)


def carry_out(world: World, effect: Effect, works: bool) -> tuple[World, LeaseEvent | None]:
    """Do it; and what there is to answer."""
    match effect:
        case Effect.PREPARE if not works:
            return world, LeaseEvent.PREPARE_FAILED
        case Effect.PREPARE:
            return replace(world, prepared=world.exists), None
        case Effect.HAND_OVER:  # a part of it may have worked
            answer = LeaseEvent.PREPARED if works else LeaseEvent.PREPARE_FAILED
            return replace(world, handed_over=True), answer
        case Effect.TAKE_BACK:
            return replace(world, handed_over=False), None
        case Effect.CHECK_CLOSED:
            return world, LeaseEvent.STILL_OPEN if world.held_open else LeaseEvent.CLOSED
        case Effect.WATCH_HOLDERS:
            return world, LeaseEvent.CLOSED
        case Effect.CLEAN if not works:
            return world, LeaseEvent.CLEAN_FAILED
        case Effect.CLEAN:
            return replace(world, used=False, prepared=False), LeaseEvent.CLEANED
        case Effect.QUARANTINE:
            return replace(world, quarantined=True), None
        case Effect.FORGET:
            return replace(world, state=None, quarantined=False, pending=()), None
    return world, None


def crash(world: World, works: bool) -> World:
    """Whether what was running `works` still counts; the answer is lost, as is the mark of quarantine."""
    if world.running is not None:
        world, _ = carry_out(world, world.running, works)
    before = replace(world, pending=(), running=None, quarantined=False)
    after = say(before, LeaseEvent.RESTARTED)
    assert before.state in EXISTING or after.state not in EXISTING, "a crash gave the VF back"
    return after


def move(world: World) -> Iterator[World]:
    """Every world that can be next."""
    if world.state is None and world.exists:
        yield enter(world, BEGIN)
    yield from (say(world, event) for event in REQUESTS)
    yield from (crash(world, works) for works in (True, False))
    if world.running is None and world.pending:
        yield begin_effect(world)
    if world.running is Effect.WATCH_HOLDERS:
        yield world if world.held_open else end_effect(world, works=True)
    elif world.running is not None:
        yield from (end_effect(world, works) for works in (True, False))
    if world.handed_over and world.prepared:  # a new VF is on no driver through which it could be opened
        yield replace(world, held_open=True, used=True)
    if world.held_open:
        yield replace(world, held_open=False)
    elif world.exists:  # the kernel does not destroy it while it is held open
        yield say(replace(world, exists=False, used=False, prepared=False), LeaseEvent.VF_GONE)
    if not world.exists:
        yield say(replace(world, exists=True), LeaseEvent.VF_BACK)


def check(world: World) -> None:
    """What must hold at every moment."""
    if world.state is None:
        assert not (world.handed_over or world.held_open or world.used)
    if world.state in EXISTING:
        assert world.exists, "a lease on a VF that is gone waits for it"
    if world.state is LeaseState.ABSENT:
        assert not world.exists, "a lease whose VF is back is prepared"
    if world.state is LeaseState.ACTIVE:
        assert world.handed_over
        assert world.prepared
    if world.is_settled:
        assert world.state in (None, LeaseState.ACTIVE, LeaseState.ABSENT, LeaseState.FAILED)
        assert world.handed_over == (world.state is LeaseState.ACTIVE)
        assert world.quarantined == (world.state is LeaseState.FAILED)


@lru_cache
def explore() -> frozenset[World]:
    """Every world that can come to be. Fails where one breaks a promise."""
    seen, new = {World()}, [World()]
    while new:
        world = new.pop()
        check(world)
        for following in move(world):
            if following not in seen:
                seen.add(following)
                new.append(following)
    return frozenset(seen)


def settle(world: World) -> World:
    """Let everything that is under way work."""
    while not world.is_settled:
        world = begin_effect(world) if world.running is None else end_effect(world, works=True)
    return world


def test_whatever_happens_the_vf_has_one_owner_and_the_next_finds_it_clean() -> None:
    assert {world.state for world in explore()} == {None, *LeaseState}


@pytest.mark.parametrize("event", [LeaseEvent.OWNER_GONE, LeaseEvent.RELEASE_ASKED, LeaseEvent.FORCED])
def test_every_lease_ends_when_its_holder_closes_and_the_hardware_works(event: LeaseEvent) -> None:
    for world in explore():
        after = settle(say(replace(world, held_open=False), event))
        if event is LeaseEvent.OWNER_GONE:
            after = settle(say(after, LeaseEvent.LIFT))
        assert settle(say(after, event)).state is None, f"{world} stays {after.state}"
