"""The life cycle of a lease: one table from state and event to state and effects. Run as a program it prints
the table as the diagram of README.md.

Rule: a row says all that its state needs. Effects of older rows that have not begun when a newer row comes
are dropped, as a crash would drop them, and nothing is lost by it. What the registry owes in return:

- it stores the new state before the first effect runs, and runs the effects of one lease in their order, one
  at a time; one that runs when a newer row comes is waited for (watch-holders is stopped instead);
- an effect's answer counts only while its row is the newest; after a failure the rest of its row is dropped;
- it says vf-gone when the VF is not the one that the lease was prepared for, also after a restart, before it
  says that there is another.
"""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import NamedTuple

from sriovd.core.errors import InUse, InvalidArgument, SriovdError
from sriovd.core.lease.record import LeaseState


class LeaseEvent(StrEnum):
    """What can happen to a lease: answers of effects, people's requests, and what the host does."""

    PREPARED = "prepared"  # prepare and hand-over have worked
    PREPARE_FAILED = "prepare-failed"  # one of them has not
    RELEASE_ASKED = "release-asked"
    FORCED = "forced"  # release asked with force
    LIFT = "lift"  # an operator ends the quarantine
    OWNER_GONE = "owner-gone"  # the last copy of the owner's descriptor was closed
    VF_GONE = "vf-gone"
    VF_BACK = "vf-back"  # there is a VF at the lease's place again
    STILL_OPEN = "still-open"  # the answer of check-closed, or what clean found instead of cleaning
    CLOSED = "closed"  # the answer of check-closed or watch-holders
    CLEANED = "cleaned"
    CLEAN_FAILED = "clean-failed"
    RESTARTED = "restarted"  # the daemon has found the lease in its store


class Effect(StrEnum):
    """What is to be done. Each may be repeated: done twice is as done once."""

    PREPARE = "prepare"  # attributes, then the tenant's driver; writes nothing that is already so
    HAND_OVER = "hand-over"  # ownership of the VFIO group, CDI file
    TAKE_BACK = "take-back"  # undo hand-over; also where there is nothing to undo
    CHECK_CLOSED = "check-closed"  # does anybody hold the VF open?
    WATCH_HOLDERS = "watch-holders"  # say closed when nobody does any more
    CLEAN = "clean"  # function level reset, attributes back to policy, driver back
    FORGET = "forget"  # out of the store; the VF is free and no longer quarantined
    QUARANTINE = "quarantine"  # nobody gets the VF
    TELL_OWNER = "tell-owner"  # the state and its reason


class Transition(NamedTuple):
    """The state that follows, and what is to be done, in this order."""

    state: LeaseState
    effects: tuple[Effect, ...] = ()


PREPARING, ACTIVE, ABSENT, RELEASING, CLEANING, RELEASED, FAILED = LeaseState

# What a state needs, whichever way a lease came into it. Take-back is first wherever the owner may no longer
# open the VF: a CDI file must not outlive its group, whose number the kernel gives to the next.
BEGIN = Transition(PREPARING, (Effect.TAKE_BACK, Effect.PREPARE, Effect.HAND_OVER))  # also of a new lease
_AWAIT_VF = Transition(ABSENT, (Effect.TAKE_BACK, Effect.TELL_OWNER))
_RELEASE = Transition(RELEASING, (Effect.TAKE_BACK, Effect.CHECK_CLOSED))
_EVICT = Transition(RELEASING, (Effect.TAKE_BACK, Effect.TELL_OWNER, Effect.CHECK_CLOSED))
_WATCH = Transition(RELEASING, (Effect.WATCH_HOLDERS,))
_END = Transition(RELEASED, (Effect.TAKE_BACK, Effect.TELL_OWNER, Effect.FORGET))
_FAIL = Transition(FAILED, (Effect.TAKE_BACK, Effect.QUARANTINE, Effect.TELL_OWNER))

TABLE: dict[tuple[LeaseState, LeaseEvent], Transition] = {
    (PREPARING, LeaseEvent.PREPARED): Transition(ACTIVE, (Effect.TELL_OWNER,)),
    (PREPARING, LeaseEvent.PREPARE_FAILED): _FAIL,
    (PREPARING, LeaseEvent.RELEASE_ASKED): _RELEASE,
    (PREPARING, LeaseEvent.FORCED): _EVICT,
    (PREPARING, LeaseEvent.OWNER_GONE): _RELEASE,
    (PREPARING, LeaseEvent.VF_GONE): _AWAIT_VF,
    (PREPARING, LeaseEvent.RESTARTED): BEGIN,
    # Release is refused while the VF is open (REFUSED), so nothing is taken back before the look.
    (ACTIVE, LeaseEvent.RELEASE_ASKED): Transition(ACTIVE, (Effect.CHECK_CLOSED,)),
    (ACTIVE, LeaseEvent.CLOSED): _RELEASE,  # and looks again: until take-back it could be opened
    (ACTIVE, LeaseEvent.FORCED): _EVICT,
    (ACTIVE, LeaseEvent.OWNER_GONE): _RELEASE,
    (ACTIVE, LeaseEvent.VF_GONE): _AWAIT_VF,
    # Nothing was under way, but a daemon that is killed while it opens the group leaves the node to root.
    (ACTIVE, LeaseEvent.RESTARTED): Transition(ACTIVE, (Effect.HAND_OVER,)),
    (ABSENT, LeaseEvent.VF_BACK): BEGIN,
    (ABSENT, LeaseEvent.RELEASE_ASKED): _END,  # a VF that is gone needs no cleaning
    (ABSENT, LeaseEvent.FORCED): _END,
    (ABSENT, LeaseEvent.OWNER_GONE): _END,
    (ABSENT, LeaseEvent.RESTARTED): _AWAIT_VF,
    (RELEASING, LeaseEvent.STILL_OPEN): _WATCH,
    (RELEASING, LeaseEvent.CLOSED): Transition(CLEANING, (Effect.CLEAN,)),
    (RELEASING, LeaseEvent.RELEASE_ASKED): _RELEASE,  # looks again
    (RELEASING, LeaseEvent.FORCED): _RELEASE,
    (RELEASING, LeaseEvent.VF_GONE): _END,
    (RELEASING, LeaseEvent.RESTARTED): _RELEASE,
    (CLEANING, LeaseEvent.CLEANED): _END,
    (CLEANING, LeaseEvent.CLEAN_FAILED): _FAIL,
    (CLEANING, LeaseEvent.STILL_OPEN): _WATCH,
    (CLEANING, LeaseEvent.VF_GONE): _END,
    (CLEANING, LeaseEvent.RESTARTED): _RELEASE,  # somebody may have opened it while nobody looked
    (FAILED, LeaseEvent.LIFT): _RELEASE,
    (FAILED, LeaseEvent.RELEASE_ASKED): _RELEASE,
    (FAILED, LeaseEvent.FORCED): _RELEASE,
    (FAILED, LeaseEvent.VF_GONE): _END,  # its successor is new and clean
    (FAILED, LeaseEvent.RESTARTED): _FAIL,
    (RELEASED, LeaseEvent.RESTARTED): _END,
}

# What changes nothing, because it is late, already so or under way. A failed lease keeps its quarantine when
# its owner dies: otherwise the next tenant would get the VF and fail the same way.
IGNORED: dict[LeaseEvent, tuple[LeaseState, ...]] = {
    LeaseEvent.PREPARED: (ACTIVE, ABSENT, RELEASING, CLEANING, RELEASED, FAILED),
    LeaseEvent.PREPARE_FAILED: (ACTIVE, ABSENT, RELEASING, CLEANING, RELEASED, FAILED),
    LeaseEvent.RELEASE_ASKED: (CLEANING, RELEASED),
    LeaseEvent.FORCED: (CLEANING, RELEASED),
    LeaseEvent.OWNER_GONE: (RELEASING, CLEANING, RELEASED, FAILED),
    LeaseEvent.VF_GONE: (ABSENT, RELEASED),
    LeaseEvent.VF_BACK: (PREPARING, ACTIVE, RELEASING, CLEANING, RELEASED, FAILED),
    LeaseEvent.STILL_OPEN: (PREPARING, ABSENT, RELEASED, FAILED),
    LeaseEvent.CLOSED: (PREPARING, ABSENT, CLEANING, RELEASED, FAILED),
    LeaseEvent.CLEANED: (PREPARING, ACTIVE, ABSENT, RELEASING, RELEASED, FAILED),
    LeaseEvent.CLEAN_FAILED: (PREPARING, ACTIVE, ABSENT, RELEASING, RELEASED, FAILED),
}


class _Refusal(NamedTuple):
    error: type[SriovdError]
    sentence: str  # what follows the name of the lease
    hint: str


_OPEN = _Refusal(InUse, "is in use: its VF is held open.", "End that use first, or release it with force.")
_NOTHING_TO_LIFT = _Refusal(InvalidArgument, "has not failed; there is nothing to lift.", "")

REFUSED: dict[tuple[LeaseState, LeaseEvent], _Refusal] = {
    (ACTIVE, LeaseEvent.STILL_OPEN): _OPEN,
    (PREPARING, LeaseEvent.LIFT): _NOTHING_TO_LIFT,
    (ACTIVE, LeaseEvent.LIFT): _NOTHING_TO_LIFT,
    (ABSENT, LeaseEvent.LIFT): _NOTHING_TO_LIFT,
    (RELEASING, LeaseEvent.LIFT): _NOTHING_TO_LIFT,
    (CLEANING, LeaseEvent.LIFT): _NOTHING_TO_LIFT,
    (RELEASED, LeaseEvent.LIFT): _NOTHING_TO_LIFT,
}


def advance(state: LeaseState, event: LeaseEvent, lease: str = "the lease") -> Transition | None:
    """What follows when `event` happens in `state`; None when it changes nothing and whatever is under way
    goes on. `lease` names it in a refusal. Raises InUse, InvalidArgument: the state stays."""
    if event in IGNORED and state in IGNORED[event]:
        return None
    refusal = REFUSED.get((state, event))
    if refusal is not None:
        raise refusal.error(f"{lease[:1].upper()}{lease[1:]} {refusal.sentence}", refusal.hint)
    return TABLE[state, event]


def draw_diagram() -> str:
    """TABLE as a Mermaid state diagram, one arrow for each row: event, then the effects in their order."""
    rows = [f"    [*] --> {BEGIN.state}: {', '.join(BEGIN.effects)}"]
    for (state, event), (following, effects) in TABLE.items():
        rows.append(
            f"    {state} --> {following}: {event}" + (f" / {', '.join(effects)}" if effects else "")
        )
    return "\n".join(["```mermaid", "stateDiagram-v2", *rows, f"    {RELEASED} --> [*]", "```", ""])


if __name__ == "__main__":
    sys.stdout.write(draw_diagram())
