"""The two life cycles of recovery, of the adapter PE and of the VF PE: tables from state and event to state
and effects. Run as a program it prints the tables as the diagrams of README.md.

Rule: a row says all that its state needs. Effects of older rows that have not begun when a newer row comes
are dropped, as a crash would drop them, and nothing is lost by it. What the keeper owes in return:

- a freeze takes effect in the turn of the event loop in which it is fired; the new state is on disk before
  the first effect of its row runs; an effect's answer counts only while its row is the newest;
- it fires over-budget in place of error when there were too many, adapter-frozen at every VF of an adapter
  that leaves online, permit at a VF only from permitting (or for an error of its own), and gone only when
  nothing of sriovd's own has taken the adapter away.

The model is US 9,304,849 B2 and its code in Linux (arch/powerpc/kernel/eeh_driver.c): freeze all, recover
the adapter while its VFs are locked out, then permit each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from sriovd.core.errors import Frozen, InvalidArgument, LockedOut, Quarantined, SriovdError


class AdapterState(StrEnum):
    """Where an adapter PE stands."""

    ONLINE = "online"
    FROZEN = "frozen"  # an error was seen; its VFs are being fenced
    COLLECTING = "collecting"  # error data; the kernel's own recovery is waited for
    RESETTING = "resetting"  # climbing the ladder
    RESTORING = "restoring"  # VFs made again, attributes and driver put back
    VERIFYING = "verifying"  # looked at, and not believed before
    PERMITTING = "permitting"  # one VF after the other
    QUARANTINED = "quarantined"  # nothing more is tried; for an operator
    REMOVED = "removed"  # the card is not there


class AdapterEvent(StrEnum):
    """What can happen to an adapter PE."""

    ERROR = "error"  # uncorrectable, and the whole adapter's
    ASKED = "asked"  # an operator wants it recovered
    OVER_BUDGET = "over-budget"  # an error once too often
    FENCED = "fenced"  # as far as it can be: what is dead needs no fence
    COLLECTED = "collected"  # the bundle is on disk, and the kernel has ended its own try
    RESET = "reset"  # a rung was climbed
    RESET_FAILED = "reset-failed"
    EXHAUSTED = "exhausted"  # there is no further rung
    RESTORED = "restored"
    RESTORE_FAILED = "restore-failed"
    VERIFIED = "verified"
    VERIFY_FAILED = "verify-failed"
    PERMITTED = "permitted"  # every VF PE has its permission
    LIFT = "lift"  # an operator ends the quarantine
    GONE = "gone"
    BACK = "back"  # a card is in the slot again
    RESTARTED = "restarted"  # the daemon has found it in its store


class AdapterEffect(StrEnum):
    """What is to be done for an adapter PE. Each may be repeated: done twice is as done once."""

    FREEZE_VFS = "freeze-vfs"  # adapter-frozen at every VF PE
    FENCE = "fence"  # no DMA, no resets, no link; VFs that are locked out by now are not touched
    LOCK_VFS = "lock-vfs"
    COLLECT = "collect"
    CLIMB = "climb"  # the next rung of the ladder
    RESTORE = "restore"  # what its policy and its snapshot say, and wishes that came meanwhile
    VERIFY = "verify"
    PERMIT_VFS = "permit-vfs"
    SETTLE = "settle"  # policy may act again
    GIVE_UP = "give-up"  # a last bundle, and advice
    DROP_VFS = "drop-vfs"  # their PEs are no more
    TELL = "tell"


class VfState(StrEnum):
    """Where a VF PE stands. The first two are both called frozen, their causes own and propagated."""

    FROZEN_OWN = "frozen-own"
    FROZEN_PROPAGATED = "frozen-propagated"
    ONLINE = "online"
    LOCKED_OUT = "locked-out"  # its adapter is being recovered
    PERMITTED = "permitted"  # its owner may take it back to life
    RECOVERING = "recovering"  # driver, fence and lease put right
    FAILED = "failed"  # for an operator
    REMOVED = "removed"

    @property
    def word(self) -> str:
        """What people read."""
        return "frozen" if self in (VfState.FROZEN_OWN, VfState.FROZEN_PROPAGATED) else self.value


class VfEvent(StrEnum):
    """What can happen to a VF PE."""

    OWN_ERROR = "own-error"
    OVER_BUDGET = "over-budget"  # an error of its own once too often
    ADAPTER_FROZEN = "adapter-frozen"
    LOCK = "lock"  # it is fenced, and waits for its adapter
    PERMIT = "permit"
    UNFREEZE = "unfreeze"  # its owner, or its policy when he has had his time
    RECOVERED = "recovered"
    RECOVER_FAILED = "recover-failed"
    LIFT = "lift"
    GONE = "gone"
    RESTARTED = "restarted"


class VfEffect(StrEnum):
    """What is to be done for a VF PE. As for adapters, each may be repeated."""

    FENCE = "fence"
    COLLECT = "collect"  # says permit when the kernel's walk has ended well
    AWAIT_OWNER = "await-owner"  # says unfreeze when policy does not wait, or no longer
    RECOVER = "recover"
    DROP = "drop"
    TELL = "tell"


State = TypeVar("State", AdapterState, VfState)
Event = TypeVar("Event", AdapterEvent, VfEvent)
Effect = TypeVar("Effect", AdapterEffect, VfEffect)


class Transition(NamedTuple, Generic[State, Effect]):
    """The state that follows, and what is to be done, in this order."""

    state: State
    effects: tuple[Effect, ...] = ()


class _Refusal(NamedTuple):
    error: type[SriovdError]
    sentence: str  # what follows the name of the PE
    hint: str


Describe = Callable[[], tuple[str, str]]
AdapterTransition = Transition[AdapterState, AdapterEffect]
VfTransition = Transition[VfState, VfEffect]

# What a state needs, whichever way the PE came into it.
_A, _V = AdapterEffect, VfEffect
_FREEZE = AdapterTransition(AdapterState.FROZEN, (_A.FREEZE_VFS, _A.TELL, _A.FENCE))
_CLIMB = AdapterTransition(AdapterState.RESETTING, (_A.TELL, _A.CLIMB))
_GIVE_UP = AdapterTransition(
    AdapterState.QUARANTINED, (_A.FREEZE_VFS, _A.TELL, _A.FENCE, _A.LOCK_VFS, _A.GIVE_UP)
)
_END = AdapterTransition(AdapterState.REMOVED, (_A.DROP_VFS, _A.TELL))

ADAPTER_TABLE: Mapping[tuple[AdapterState, AdapterEvent], AdapterTransition] = {
    (AdapterState.ONLINE, AdapterEvent.ERROR): _FREEZE,
    (AdapterState.ONLINE, AdapterEvent.ASKED): _FREEZE,
    (AdapterState.ONLINE, AdapterEvent.OVER_BUDGET): _GIVE_UP,
    (AdapterState.ONLINE, AdapterEvent.GONE): _END,
    (AdapterState.FROZEN, AdapterEvent.FENCED): AdapterTransition(
        AdapterState.COLLECTING, (_A.LOCK_VFS, _A.TELL, _A.COLLECT)
    ),
    (AdapterState.FROZEN, AdapterEvent.GONE): _END,
    (AdapterState.FROZEN, AdapterEvent.RESTARTED): _FREEZE,
    (AdapterState.COLLECTING, AdapterEvent.COLLECTED): _CLIMB,
    (AdapterState.COLLECTING, AdapterEvent.GONE): _END,
    (AdapterState.COLLECTING, AdapterEvent.RESTARTED): _FREEZE,
    (AdapterState.RESETTING, AdapterEvent.RESET): AdapterTransition(
        AdapterState.RESTORING, (_A.TELL, _A.RESTORE)
    ),
    (AdapterState.RESETTING, AdapterEvent.RESET_FAILED): _CLIMB,
    (AdapterState.RESETTING, AdapterEvent.EXHAUSTED): _GIVE_UP,
    (AdapterState.RESETTING, AdapterEvent.GONE): _END,
    (AdapterState.RESETTING, AdapterEvent.RESTARTED): _CLIMB,  # the rung that was begun, once more
    (AdapterState.RESTORING, AdapterEvent.RESTORED): AdapterTransition(
        AdapterState.VERIFYING, (_A.TELL, _A.VERIFY)
    ),
    (AdapterState.RESTORING, AdapterEvent.RESTORE_FAILED): _CLIMB,
    (AdapterState.RESTORING, AdapterEvent.GONE): _END,
    (AdapterState.RESTORING, AdapterEvent.RESTARTED): AdapterTransition(
        AdapterState.RESTORING, (_A.TELL, _A.RESTORE)
    ),
    (AdapterState.VERIFYING, AdapterEvent.VERIFIED): AdapterTransition(
        AdapterState.PERMITTING, (_A.TELL, _A.PERMIT_VFS)
    ),
    (AdapterState.VERIFYING, AdapterEvent.VERIFY_FAILED): _CLIMB,
    (AdapterState.VERIFYING, AdapterEvent.GONE): _END,
    (AdapterState.VERIFYING, AdapterEvent.RESTARTED): AdapterTransition(
        AdapterState.VERIFYING, (_A.TELL, _A.VERIFY)
    ),
    (AdapterState.PERMITTING, AdapterEvent.PERMITTED): AdapterTransition(
        AdapterState.ONLINE, (_A.TELL, _A.SETTLE)
    ),
    (AdapterState.PERMITTING, AdapterEvent.ERROR): _FREEZE,
    (AdapterState.PERMITTING, AdapterEvent.OVER_BUDGET): _GIVE_UP,
    (AdapterState.PERMITTING, AdapterEvent.GONE): _END,
    (AdapterState.PERMITTING, AdapterEvent.RESTARTED): AdapterTransition(
        AdapterState.PERMITTING, (_A.TELL, _A.PERMIT_VFS)
    ),
    (AdapterState.QUARANTINED, AdapterEvent.LIFT): _FREEZE,
    (AdapterState.QUARANTINED, AdapterEvent.GONE): _END,
    (AdapterState.QUARANTINED, AdapterEvent.RESTARTED): _GIVE_UP,
    (AdapterState.REMOVED, AdapterEvent.BACK): AdapterTransition(
        AdapterState.ONLINE, (_A.TELL, _A.SETTLE)
    ),
}  # fmt: skip

_UNDER_WAY = (
    AdapterState.FROZEN, AdapterState.COLLECTING, AdapterState.RESETTING, AdapterState.RESTORING,
    AdapterState.VERIFYING,
)  # fmt: skip
_ALL = tuple(AdapterState)


def _but(*states: AdapterState) -> tuple[AdapterState, ...]:
    return tuple(state for state in _ALL if state not in states)


# What changes nothing, because it is late, already so or under way. Errors while the adapter is being
# recovered are the same error told again, or what a reset does to it: verifying looks at the counters.
ADAPTER_IGNORED: Mapping[AdapterEvent, tuple[AdapterState, ...]] = {
    AdapterEvent.ERROR: (*_UNDER_WAY, AdapterState.QUARANTINED, AdapterState.REMOVED),
    AdapterEvent.OVER_BUDGET: (*_UNDER_WAY, AdapterState.QUARANTINED, AdapterState.REMOVED),
    AdapterEvent.FENCED: _but(AdapterState.FROZEN),
    AdapterEvent.COLLECTED: _but(AdapterState.COLLECTING),
    AdapterEvent.RESET: _but(AdapterState.RESETTING),
    AdapterEvent.RESET_FAILED: _but(AdapterState.RESETTING),
    AdapterEvent.EXHAUSTED: _but(AdapterState.RESETTING),
    AdapterEvent.RESTORED: _but(AdapterState.RESTORING),
    AdapterEvent.RESTORE_FAILED: _but(AdapterState.RESTORING),
    AdapterEvent.VERIFIED: _but(AdapterState.VERIFYING),
    AdapterEvent.VERIFY_FAILED: _but(AdapterState.VERIFYING),
    AdapterEvent.PERMITTED: _but(AdapterState.PERMITTING),
    AdapterEvent.GONE: (AdapterState.REMOVED,),
    AdapterEvent.BACK: _but(AdapterState.REMOVED),
    AdapterEvent.RESTARTED: (AdapterState.ONLINE, AdapterState.REMOVED),
}

_BUSY = _Refusal(LockedOut, "is being recovered already.", "Wait until its State is online or quarantined.")
_NOT_QUARANTINED = _Refusal(InvalidArgument, "is not quarantined; there is nothing to lift.", "")
_LIFT_FIRST = _Refusal(Quarantined, "is quarantined.", "Look at its last bundle, then call Lift.")

ADAPTER_REFUSED: Mapping[tuple[AdapterState, AdapterEvent], _Refusal] = {
    **{(state, AdapterEvent.ASKED): _BUSY for state in (*_UNDER_WAY, AdapterState.PERMITTING)},
    (AdapterState.QUARANTINED, AdapterEvent.ASKED): _LIFT_FIRST,
    (AdapterState.REMOVED, AdapterEvent.ASKED): _Refusal(InvalidArgument, "is gone.", ""),
    **{(state, AdapterEvent.LIFT): _NOT_QUARANTINED for state in _but(AdapterState.QUARANTINED)},
}

_OWN = VfTransition(VfState.FROZEN_OWN, (_V.TELL, _V.FENCE, _V.COLLECT))
_PROPAGATED = VfTransition(VfState.FROZEN_PROPAGATED, (_V.TELL,))
_PERMIT = VfTransition(VfState.PERMITTED, (_V.TELL, _V.AWAIT_OWNER))
_RECOVER = VfTransition(VfState.RECOVERING, (_V.TELL, _V.RECOVER))
_FAIL = VfTransition(VfState.FAILED, (_V.TELL,))
_TOO_OFTEN = VfTransition(VfState.FAILED, (_V.TELL, _V.FENCE, _V.COLLECT))
_DROP = VfTransition(VfState.REMOVED, (_V.DROP,))

VF_TABLE: Mapping[tuple[VfState, VfEvent], VfTransition] = {
    (VfState.ONLINE, VfEvent.OWN_ERROR): _OWN,
    (VfState.ONLINE, VfEvent.OVER_BUDGET): _TOO_OFTEN,
    (VfState.ONLINE, VfEvent.ADAPTER_FROZEN): _PROPAGATED,
    (VfState.ONLINE, VfEvent.GONE): _DROP,
    (VfState.FROZEN_OWN, VfEvent.ADAPTER_FROZEN): _PROPAGATED,
    (VfState.FROZEN_OWN, VfEvent.PERMIT): _PERMIT,
    (VfState.FROZEN_OWN, VfEvent.GONE): _DROP,
    (VfState.FROZEN_OWN, VfEvent.RESTARTED): _OWN,
    (VfState.FROZEN_PROPAGATED, VfEvent.LOCK): VfTransition(VfState.LOCKED_OUT, (_V.TELL,)),
    (VfState.FROZEN_PROPAGATED, VfEvent.GONE): _DROP,
    (VfState.LOCKED_OUT, VfEvent.PERMIT): _PERMIT,
    (VfState.LOCKED_OUT, VfEvent.GONE): _DROP,
    (VfState.PERMITTED, VfEvent.UNFREEZE): _RECOVER,
    (VfState.PERMITTED, VfEvent.OWN_ERROR): _OWN,
    (VfState.PERMITTED, VfEvent.OVER_BUDGET): _TOO_OFTEN,
    (VfState.PERMITTED, VfEvent.ADAPTER_FROZEN): _PROPAGATED,
    (VfState.PERMITTED, VfEvent.GONE): _DROP,
    (VfState.PERMITTED, VfEvent.RESTARTED): _PERMIT,
    (VfState.RECOVERING, VfEvent.RECOVERED): VfTransition(VfState.ONLINE, (_V.TELL,)),
    (VfState.RECOVERING, VfEvent.RECOVER_FAILED): _FAIL,
    (VfState.RECOVERING, VfEvent.OWN_ERROR): _OWN,
    (VfState.RECOVERING, VfEvent.OVER_BUDGET): _TOO_OFTEN,
    (VfState.RECOVERING, VfEvent.ADAPTER_FROZEN): _PROPAGATED,
    (VfState.RECOVERING, VfEvent.GONE): _DROP,
    (VfState.RECOVERING, VfEvent.RESTARTED): _RECOVER,
    (VfState.FAILED, VfEvent.LIFT): _RECOVER,
    (VfState.FAILED, VfEvent.GONE): _DROP,
}

_ALL_VF = tuple(VfState)


def _vf_but(*states: VfState) -> tuple[VfState, ...]:
    return tuple(state for state in _ALL_VF if state not in states)


# A VF that has failed stays so through its adapter's recoveries: what is stricter lasts.
VF_IGNORED: Mapping[VfEvent, tuple[VfState, ...]] = {
    VfEvent.OWN_ERROR: (
        VfState.FROZEN_OWN, VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT, VfState.FAILED, VfState.REMOVED,
    ),
    VfEvent.OVER_BUDGET: (
        VfState.FROZEN_OWN, VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT, VfState.FAILED, VfState.REMOVED,
    ),
    VfEvent.ADAPTER_FROZEN: (
        VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT, VfState.FAILED, VfState.REMOVED,
    ),
    VfEvent.LOCK: _vf_but(VfState.FROZEN_PROPAGATED),
    VfEvent.PERMIT: _vf_but(VfState.FROZEN_OWN, VfState.LOCKED_OUT),
    VfEvent.UNFREEZE: (VfState.ONLINE, VfState.RECOVERING, VfState.REMOVED),
    VfEvent.RECOVERED: _vf_but(VfState.RECOVERING),
    VfEvent.RECOVER_FAILED: _vf_but(VfState.RECOVERING),
    VfEvent.GONE: (VfState.REMOVED,),
    VfEvent.RESTARTED: (
        VfState.ONLINE, VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT, VfState.FAILED, VfState.REMOVED,
    ),
}  # fmt: skip

_FROZEN = _Refusal(Frozen, "is frozen by an error.", "WaitPermitted returns when it may be unfrozen.")
_LOCKED = _Refusal(LockedOut, "is locked out.", "WaitPermitted returns when its adapter has recovered.")
_FAILED = _Refusal(Quarantined, "has failed.", "An operator may call Lift.")
_VF_NOT_FAILED = _Refusal(InvalidArgument, "has not failed; there is nothing to lift.", "")

VF_REFUSED: Mapping[tuple[VfState, VfEvent], _Refusal] = {
    (VfState.FROZEN_OWN, VfEvent.UNFREEZE): _FROZEN,
    (VfState.FROZEN_PROPAGATED, VfEvent.UNFREEZE): _FROZEN,
    (VfState.LOCKED_OUT, VfEvent.UNFREEZE): _LOCKED,
    (VfState.FAILED, VfEvent.UNFREEZE): _FAILED,
    **{(state, VfEvent.LIFT): _VF_NOT_FAILED for state in _vf_but(VfState.FAILED)},
}


def advance_adapter(
    state: AdapterState, event: AdapterEvent, describe: Describe = lambda: ("The adapter", "")
) -> AdapterTransition | None:
    """What follows when `event` happens in `state`; None when it changes nothing and whatever is under way
    goes on. `describe`: for a refusal, the name of the PE and how it stands. Raises LockedOut, Quarantined,
    InvalidArgument."""
    if state in ADAPTER_IGNORED.get(event, ()):
        return None
    _refuse(ADAPTER_REFUSED.get((state, event)), describe)
    return ADAPTER_TABLE[state, event]


def advance_vf(
    state: VfState, event: VfEvent, describe: Describe = lambda: ("The VF", "")
) -> VfTransition | None:
    """As advance_adapter. Raises Frozen, LockedOut, Quarantined, InvalidArgument."""
    if state in VF_IGNORED.get(event, ()):
        return None
    _refuse(VF_REFUSED.get((state, event)), describe)
    return VF_TABLE[state, event]


def _refuse(refusal: _Refusal | None, describe: Describe) -> None:
    if refusal is not None:
        name, why = describe()
        raise refusal.error(f"{name} {refusal.sentence} {why}".rstrip(), refusal.hint)


def draw_adapter() -> str:
    """ADAPTER_TABLE as a Mermaid state diagram: event, then the effects in their order."""
    return _draw(AdapterState.ONLINE, ADAPTER_TABLE)


def draw_vf() -> str:
    """VF_TABLE likewise."""
    return _draw(VfState.ONLINE, VF_TABLE)


def _draw(first: StrEnum, table: Mapping[tuple[State, Event], Transition[State, Effect]]) -> str:
    rows: list[str] = [f"    [*] --> {first}"]
    for (state, event), (following, effects) in table.items():
        rows.append(
            f"    {state} --> {following}: {event}" + (f" / {', '.join(effects)}" if effects else "")
        )
    return "\n".join(["```mermaid", "stateDiagram-v2", *rows, "```", ""])


if __name__ == "__main__":
    sys.stdout.write(f"{draw_adapter()}\n{draw_vf()}")
