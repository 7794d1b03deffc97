"""Who watches a recovering engine: every change of a PE and every script that reaches the host, held against
what recovery promises.

Rule: it knows the promises and not the code; what it believes of the past it has seen itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.runner import SimulatedRun
from sriovd.backend.steps import Chain, ChainResult, Script, Step, Verb
from sriovd.core.engine import Engine
from sriovd.core.recovery.automaton import AdapterEvent, AdapterState, VfEvent, VfState
from sriovd.core.recovery.record import FREEZES, SPAN_USEC, AdapterPe, Place, VfPe

UNDER_WAY = (
    AdapterState.FROZEN, AdapterState.COLLECTING, AdapterState.RESETTING, AdapterState.RESTORING,
    AdapterState.VERIFYING,
)  # fmt: skip
IN_SERVICE = (AdapterState.ONLINE, AdapterState.PERMITTING, AdapterState.REMOVED)
# The more, the less may be done. What is gone is neither.
STRICTNESS = {
    state: rank
    for rank, state in enumerate(
        (AdapterState.REMOVED, AdapterState.ONLINE, AdapterState.PERMITTING, *reversed(UNDER_WAY),
         AdapterState.QUARANTINED)
    )
}  # fmt: skip
VF_STRICTNESS = {
    VfState.REMOVED: 0, VfState.ONLINE: 0, VfState.RECOVERING: 1, VfState.PERMITTED: 2,
    VfState.FROZEN_OWN: 3, VfState.FROZEN_PROPAGATED: 4, VfState.LOCKED_OUT: 4, VfState.FAILED: 5,
}  # fmt: skip
_DISTURBING = {  # what an adapter's data would not survive
    Verb.RESET, Verb.REMOVE, Verb.UNBIND, Verb.BIND, Verb.PROBE, Verb.SET_NUM_VFS, Verb.RESCAN_PORT,
}  # fmt: skip


class Broken(AssertionError):
    """A promise was."""


class Witness:
    """Of one host and the engines that live on it one after the other. `steps`: events that the automata
    have followed. `seen`: how often each adapter state was come to. `changed`: the states that each PE came
    to, by slot and by place."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self.broken: list[str] = []
        self.trail: list[str] = []
        self.changed: dict[str | Place, list[str]] = {}
        self._engine: Engine
        self._known: dict[str, AdapterPe] = {}
        self._froze_usec: dict[str, int] = {}
        self._freezes: dict[str, list[int]] = {}  # that count, since the first of the hour
        self._event: AdapterEvent | VfEvent | None = None
        self._run, backend.run = backend.run, self._take_script  # type: ignore[method-assign]

    # Engines.

    def attach(self, engine: Engine) -> None:
        """Watch that engine, which has not begun."""
        self._engine = engine
        lives = engine.recovery._lives
        tell, fire, fire_vfs = lives.on_change, lives.fire, lives.fire_vfs

        def note(before: AdapterPe, after: AdapterPe, vfs: Sequence[VfPe]) -> None:
            self._take_change(before, after, vfs)
            tell(before, after, vfs)

        def note_fire(slot: str, event: AdapterEvent, reason: str = "") -> None:
            self._event = event
            fire(slot, event, reason)

        def note_fire_vfs(slot: str, places: Any, event: VfEvent, reason: str = "") -> None:
            self._event = event
            fire_vfs(slot, places, event, reason)

        lives.on_change = note
        lives.fire, lives.fire_vfs = note_fire, note_fire_vfs  # type: ignore[method-assign]
        self._known = {pe.slot: pe for pe in lives.all()}

    def check_restart(self, stored: dict[str, AdapterPe]) -> None:
        """An engine has just taken up what the one before had on disk."""
        lives = self._engine.recovery._lives
        for slot, before in stored.items():
            after = lives.get(slot)
            if STRICTNESS[after.state] < STRICTNESS[before.state]:
                self._break(f"{slot} was {before.state} on disk and is {after.state} after a restart")
            for vf in before.vfs:
                now = after.vf(vf.place)
                if VF_STRICTNESS[now.state] < VF_STRICTNESS[vf.state]:
                    self._break(f"{vf} was {vf.state} on disk and is {now.state} after a restart")

    # Changes.

    def _take_change(self, before: AdapterPe, after: AdapterPe, vfs: Sequence[VfPe]) -> None:
        slot, known = after.slot, self._known.get(after.slot, AdapterPe(after.slot))
        self._known[slot] = after
        if before is after:  # a restart: nothing has happened
            return
        of_adapter = isinstance(self._event, AdapterEvent)
        self.steps += of_adapter + len(vfs)
        if of_adapter:
            self.seen[str(after.state)] += 1
            self.changed.setdefault(slot, []).append(str(after.state))
        for vf in vfs:
            self.changed.setdefault(vf.place, []).append(str(vf.state))
        self.trail.append(
            f"{slot} {self._event}: {before.state} -> {after.state}; "
            + ", ".join(f"{vf.index}@{vf.pf.bus:x} {known.vf(vf.place).state}>{vf.state}" for vf in vfs)
        )
        self._check_left_out(known, after, vfs)
        for vf in vfs:
            self._check_vf(known.vf(vf.place), vf, after)
        if self._event in (VfEvent.OWN_ERROR, VfEvent.OVER_BUDGET) or not of_adapter:
            self._check_own(before, after, vfs)
        if of_adapter:
            self._check_adapter(known, after)

    def _check_left_out(self, known: AdapterPe, after: AdapterPe, vfs: Sequence[VfPe]) -> None:
        """Nothing changes without being told."""
        told = {vf.place for vf in vfs}
        for place in {vf.place for vf in (*known.vfs, *after.vfs)} - told:
            if known.vf(place).state is not after.vf(place).state:
                self._break(f"{place} went from {known.vf(place).state} to {after.vf(place).state} untold")

    def _check_vf(self, known: VfPe, vf: VfPe, adapter: AdapterPe) -> None:
        if known.state is not VfState.LOCKED_OUT or vf.state is VfState.LOCKED_OUT:
            return
        if adapter.state in UNDER_WAY or adapter.state is AdapterState.QUARANTINED:
            self._break(f"{vf} left locked-out for {vf.state} while its adapter is {adapter.state}")

    def _check_own(self, before: AdapterPe, after: AdapterPe, vfs: Sequence[VfPe]) -> None:
        if self._event is VfEvent.OWN_ERROR and (len(vfs) > 1 or before.state is not after.state):
            self._break(f"one VF's own error changed {len(vfs)} PEs")

    def _check_adapter(self, known: AdapterPe, after: AdapterPe) -> None:
        slot, now = after.slot, time.time_ns() // 1000
        if self._event in (AdapterEvent.ERROR, AdapterEvent.ASKED, AdapterEvent.LIFT):
            self._froze_usec[slot] = now
        if self._event is AdapterEvent.LIFT:
            self._freezes[slot] = []
        if self._event is AdapterEvent.ERROR:
            counted = self._freezes.get(slot, [])
            if counted and now - counted[0] > SPAN_USEC:
                counted = []
            self._freezes[slot] = [*counted, now]
            if len(counted) >= FREEZES:
                self._break(f"{slot} was frozen {len(counted) + 1} times within the hour and goes on")
        if self._event is AdapterEvent.OVER_BUDGET and after.state is not AdapterState.QUARANTINED:
            self._break(f"{slot} is over its budget and {after.state}")
        in_service = [vf for vf in after.vfs if vf.state in (VfState.ONLINE, VfState.RECOVERING)]
        if after.state is AdapterState.FROZEN and known.state in IN_SERVICE:
            places = self._engine.recovery._lives.places(slot)
            loose = [p for p in places if VF_STRICTNESS[after.vf(p).state] < 4]
            if in_service or loose:
                self._break(f"{slot} froze without {loose}")

    # Scripts.

    def _take_script(
        self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]
    ) -> SimulatedRun:
        if script.writes:
            self._check_script(adapter, script)
        run = self._run(adapter, script, on_result)
        execute = run._run_chain

        async def run_chain(chain: Chain) -> ChainResult:
            self._check_chain(script, chain)
            return await execute(chain)

        run._run_chain = run_chain  # type: ignore[method-assign]
        return run

    def _check_chain(self, script: Script, chain: Chain) -> None:
        gate, lives = self._engine.recovery.gate, self._engine.recovery._lives
        for step in chain.steps:
            place = gate.place_of(step.address) if step.writes and step.address else None
            if place is None:
                continue
            pe = lives.get(str(place[0].slot))
            if pe.vf(place).state is VfState.LOCKED_OUT:
                self._break(f"{script.title}: {step} is given for a VF that is locked out ({pe.state})")

    def _check_script(self, adapter: str, script: Script) -> None:
        lives = self._engine.recovery._lives
        pe = lives.get(adapter)
        self.trail.append(f"{adapter} ({pe.state}) runs {script.title}")
        for chain in script.chains:
            self._check_chain(script, chain)
        if pe.state in IN_SERVICE:
            return
        if asyncio.current_task() not in lives._carried:
            self._break(f"{script.title}: somebody writes to {adapter}, which is {pe.state}")
        stored = lives._stored.get(adapter, AdapterPe(adapter))
        if STRICTNESS[stored.state] < STRICTNESS[AdapterState.VERIFYING]:
            self._break(f"{script.title}: {adapter} is {pe.state}, and on disk {stored.state}")
        for step in (step for chain in script.chains for step in chain.steps if step.verb in _DISTURBING):
            self._check_disturbance(pe, script, step)

    def _check_disturbance(self, pe: AdapterPe, script: Script, step: Step) -> None:
        heads = {head.number: head for head in self._engine.recovery.list_bundles(pe.slot)}
        if pe.state not in (AdapterState.RESETTING, AdapterState.RESTORING):
            self._break(f"{script.title}: {step} while {pe.slot} is {pe.state}")
        elif pe.bundle not in heads:
            self._break(f"{script.title}: {step} and no bundle of {pe.slot} was taken")
        elif heads[pe.bundle].taken_usec < self._froze_usec.get(pe.slot, 0):
            self._break(f"{script.title}: {step}, and the bundle of {pe.slot} is of an older freeze")

    def _break(self, text: str) -> None:
        self.broken.append(text)
        self.trail.append(f"BROKEN: {text}")

    def raise_broken(self, what: str) -> None:
        """Raises Broken with the way that led there."""
        if self.broken:
            trail = "\n".join(self.trail[-60:])
            raise Broken(f"{what}: {self.broken[0]}\n{trail}")
