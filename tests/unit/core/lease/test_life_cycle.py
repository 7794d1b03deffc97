"""The life cycle in a small world: one VF, tenants who open it when they can, a host that destroys it, a
daemon that crashes. Whatever the order, the VF has one owner, and the next one finds it clean.

The world keeps the registry's part of the bargain (automaton.py) and nothing more.
"""

from __future__ import annotations

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sriovd.core.errors import SriovdError
from sriovd.core.lease.automaton import BEGIN, Effect, LeaseEvent, Transition, advance
from sriovd.core.lease.record import LeaseState

REQUESTS = [LeaseEvent.RELEASE_ASKED, LeaseEvent.FORCED, LeaseEvent.LIFT, LeaseEvent.OWNER_GONE]


class World(RuleBasedStateMachine):
    """`handed_to`: who may open the VF. `holder`: who holds it open. `traces_of`: who has used it since it
    was last cleaned. Owners are numbers; each lease has a new one."""

    def __init__(self) -> None:
        super().__init__()
        self.state: LeaseState | None = None  # None: no lease is in the store
        self.owner = 0
        self.exists = True
        self.quarantined = False
        self.handed_to: int | None = None
        self.holder: int | None = None
        self.traces_of: int | None = None
        self.pending: list[Effect] = []
        self.running: Effect | None = None
        self.answer_counts = False  # of what is running: no newer row has come

    # The registry.

    @precondition(lambda self: self.state is None and self.exists and not self.quarantined)
    @rule()
    def lease(self) -> None:
        assert self.handed_to is None
        assert self.holder is None
        self.owner += 1
        self.enter(BEGIN)

    def enter(self, row: Transition) -> None:
        self.state, self.pending = row.state, list(row.effects)
        self.answer_counts = False
        if self.running is Effect.WATCH_HOLDERS:
            self.running = None

    def say(self, event: LeaseEvent) -> None:
        if self.state is not None:
            with suppress(SriovdError):
                row = advance(self.state, event)
                if row is not None:
                    self.enter(row)

    @precondition(lambda self: self.running is None and self.pending)
    @rule()
    def begin_effect(self) -> None:
        self.running, self.answer_counts = self.pending.pop(0), True
        if self.running is Effect.CLEAN:
            assert self.holder is None, "cleaned while somebody holds it open"
            assert self.handed_to is None, "cleaned while somebody may open it"

    @precondition(lambda self: self.running not in (None, Effect.WATCH_HOLDERS))
    @rule(works=st.booleans())
    def end_effect(self, works: bool) -> None:
        assert self.running is not None
        effect, self.running = self.running, None
        answer = self.carry_out(effect, works)
        if answer is not None and self.answer_counts:
            self.say(answer)

    @rule(works=st.booleans())
    def crash(self, works: bool) -> None:
        if self.running is not None:
            self.carry_out(self.running, works)
        self.pending, self.running = [], None
        self.quarantined = False  # a mark in memory
        before = self.state
        self.say(LeaseEvent.RESTARTED)
        if before not in (LeaseState.ACTIVE, LeaseState.PREPARING):
            assert self.state not in (LeaseState.ACTIVE, LeaseState.PREPARING)

    def carry_out(self, effect: Effect, works: bool) -> LeaseEvent | None:
        """Do it; what there is to answer."""
        match effect:
            case Effect.PREPARE:
                return None if works else LeaseEvent.PREPARE_FAILED
            case Effect.HAND_OVER:
                self.handed_to = self.owner if works else self.handed_to
                return LeaseEvent.PREPARED if works else LeaseEvent.PREPARE_FAILED
            case Effect.TAKE_BACK:
                self.handed_to = None
            case Effect.CHECK_CLOSED:
                return LeaseEvent.STILL_OPEN if self.holder else LeaseEvent.CLOSED
            case Effect.CLEAN:
                self.traces_of = None if works else self.traces_of
                return LeaseEvent.CLEANED if works else LeaseEvent.CLEAN_FAILED
            case Effect.QUARANTINE:
                self.quarantined = True
            case Effect.FORGET:
                self.forget()
        return None

    def forget(self) -> None:
        assert self.handed_to is None, "the old owner may still open it"
        assert self.holder is None, "the old owner still holds it open"
        assert self.traces_of is None, "it goes to the next owner uncleaned"
        self.state, self.quarantined, self.pending = None, False, []

    # The others.

    @precondition(lambda self: self.state is not None)
    @rule(event=st.sampled_from(REQUESTS))
    def somebody_asks(self, event: LeaseEvent) -> None:
        self.say(event)

    @precondition(lambda self: self.exists and self.handed_to is not None)
    @rule()
    def tenant_opens(self) -> None:
        self.holder = self.traces_of = self.handed_to

    @precondition(lambda self: self.holder is not None)
    @rule()
    def tenant_closes(self) -> None:
        self.holder = None
        if self.running is Effect.WATCH_HOLDERS:
            self.running = None
            self.say(LeaseEvent.CLOSED)

    @precondition(lambda self: self.exists and self.holder is None)  # the kernel waits for holders
    @rule()
    def host_destroys_the_vf(self) -> None:
        self.exists, self.traces_of = False, None
        self.say(LeaseEvent.VF_GONE)

    @precondition(lambda self: not self.exists)
    @rule()
    def host_makes_the_vf_again(self) -> None:
        self.exists = True
        self.say(LeaseEvent.VF_BACK)

    @invariant()
    def one_owner(self) -> None:
        assert {self.handed_to, self.holder} <= {None, self.owner}
        if self.state is None or self.state is LeaseState.RELEASED:
            assert self.holder is None

    @invariant()
    def an_active_lease_can_be_used(self) -> None:
        assert self.state is not LeaseState.ACTIVE or self.handed_to == self.owner

    def teardown(self) -> None:
        """From wherever it has come to, the lease ends when its holder closes and the hardware works."""
        if self.holder is not None:
            self.tenant_closes()
        for event in (LeaseEvent.OWNER_GONE, LeaseEvent.LIFT, LeaseEvent.RESTARTED):
            self.say(event)
            while self.running or self.pending:
                self.begin_effect() if self.running is None else self.end_effect(works=True)
        assert self.state is None, f"stays {self.state} for ever"


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
