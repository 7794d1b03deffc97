"""The lives of all PEs: the automata at work.

Rule: a freeze is in force, for every VF of the adapter, when fire() returns. A new state is on disk
before the first effect of its row runs, as far as the disk takes it: a full disk must not keep an adapter
frozen. The rows of one adapter are carried out one after the other, VFs that do the same share one row,
and the answer of an older row counts no more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from sriovd.core.errors import BackendFailed, Cancelled, SriovdError
from sriovd.core.inventory import Inventory
from sriovd.core.recovery.automaton import (
    AdapterEffect,
    AdapterEvent,
    AdapterState,
    VfEffect,
    VfEvent,
    VfState,
    advance_adapter,
    advance_vf,
)
from sriovd.core.recovery.record import AdapterPe, Budget, Place, VfPe
from sriovd.core.recovery.snapshot import NO_ATTRIBUTES
from sriovd.core.store import Store

_log = logging.getLogger(__name__)

_FREEZING = frozenset({AdapterEvent.ERROR, AdapterEvent.ASKED, AdapterEvent.OVER_BUDGET, AdapterEvent.LIFT})
_COUNTED = frozenset({AdapterEvent.ERROR, AdapterEvent.OVER_BUDGET})
_VF_COUNTED = frozenset({VfEvent.OWN_ERROR, VfEvent.OVER_BUDGET})
# What happens to all VFs in the same turn as to their adapter, and not behind what is still under way. Its
# reason is the adapter's to tell: it may name another VF, and who uses that.
_AT_ONCE = {
    AdapterEffect.FREEZE_VFS: (VfEvent.ADAPTER_FROZEN, "its adapter met an error"),
    # a card may be back before anything else is over
    AdapterEffect.DROP_VFS: (VfEvent.GONE, "its adapter was removed"),
}


class Answer(NamedTuple):
    """What an effect on an adapter ends with."""

    event: AdapterEvent
    reason: str = ""


class VfAnswer(NamedTuple):
    """What an effect on VFs ends with, for some of them."""

    event: VfEvent
    places: Sequence[Place]
    reason: str = ""


# Who carries effects out. Whatever happens is an answer: no SriovdError comes out of these.
Do = Callable[[AdapterEffect, str], Awaitable[Answer | None]]
DoVfs = Callable[[VfEffect, str, Sequence[Place]], Awaitable[Sequence[VfAnswer]]]


class Lives:
    """`on_change` is told an adapter PE before and after each change, with the VF PEs that changed."""

    def __init__(self, inventory: Inventory, store: Store) -> None:
        self._inventory = inventory
        self._store = store
        self._pes: dict[str, AdapterPe] = {}
        self._stored: dict[str, AdapterPe] = {}
        self._rows: dict[str, int] = {}
        self._vf_rows: dict[Place, int] = {}
        self._runners: dict[str, asyncio.Task[None]] = {}
        self._vf_runners: dict[str, set[asyncio.Task[None]]] = {}
        self._carried: dict[asyncio.Task[None], tuple[str, int | Mapping[Place, int]]] = {}  # rows, by task
        self._closed = False
        self.in_force_nsec = 0  # when the last change of a state took effect; nobody was told yet
        self.do: Do
        self.do_vfs: DoVfs
        self.on_change: Callable[[AdapterPe, AdapterPe, Sequence[VfPe]], None] = lambda _a, _b, _c: None

    # What is.

    def get(self, slot: str) -> AdapterPe:
        """The PE of the adapter; online when nothing has ever happened to it."""
        return self._pes.get(slot) or AdapterPe(slot)

    def all(self) -> Sequence[AdapterPe]:
        """The PEs to which something has happened."""
        return list(self._pes.values())

    def places(self, slot: str) -> list[Place]:
        """Where the adapter has VFs, had them when it froze, or has PEs of VFs."""
        adapter, pe = self._inventory.adapters.get(slot), self.get(slot)
        pfs = adapter.physical_functions if adapter else ()
        present = [(pf, index) for pf in pfs for index in self._inventory.vfs_of(pf)]
        shot = [(pf.address, vf.index) for pf in pe.shots for vf in pf.vfs]
        return list(dict.fromkeys((*sorted(present), *shot, *(vf.place for vf in pe.vfs))))

    def edit(self, slot: str, **fields: object) -> AdapterPe:
        """Change what is remembered of an adapter beside its state."""
        after = replace(self.get(slot), **fields)  # type: ignore[arg-type]
        self._pes[slot] = after
        return after

    def put_vfs(self, slot: str, vfs: Iterable[VfPe]) -> None:
        """Change what is remembered of VFs beside their states."""
        self._pes[slot] = self.get(slot).with_vfs(vfs)

    # What happens.

    def fire(self, slot: str, event: AdapterEvent, reason: str = "") -> None:
        """`event` happens to the adapter, for that reason. Raises what the tables refuse with."""
        before = self.get(slot)
        transition = advance_adapter(before.state, event, lambda: (str(before), describe(before)))
        if transition is None or self._closed:
            return
        kept = before.reason if transition.state is not AdapterState.ONLINE else ""
        after = replace(before, state=transition.state, reason=reason or kept, since_usec=_now_usec())
        if event in _FREEZING:
            after = replace(after, tried=(), climbing=None, bundle=0, budget=_spend(before, event))
        self._pes[slot] = after
        changed: list[VfPe] = []
        for effect in transition.effects:
            if effect in _AT_ONCE:
                changed += self._turn(slot, self.places(slot), *_AT_ONCE[effect])
        self.in_force_nsec = time.monotonic_ns()
        self.on_change(before, self.get(slot), changed)
        self._begin_row(slot, tuple(each for each in transition.effects if each not in _AT_ONCE))

    def fire_vfs(self, slot: str, places: Iterable[Place], event: VfEvent, reason: str = "") -> None:
        """`event` happens to VFs of one adapter. Raises what the tables refuse with for the first."""
        if self._closed:
            return
        before = self.get(slot)
        changed = self._turn(slot, places, event, reason)
        self.in_force_nsec = time.monotonic_ns()
        if changed:
            self.on_change(before, self.get(slot), changed)

    def _turn(self, slot: str, places: Iterable[Place], event: VfEvent, reason: str) -> list[VfPe]:
        """The new states; rows of those that do the same are begun together."""
        pe, known = self.get(slot), {vf.place: vf for vf in self.get(slot).vfs}
        changed: list[VfPe] = []
        groups: dict[tuple[VfEffect, ...], list[Place]] = {}
        for place in places:
            vf = known.get(place) or VfPe(*place)
            transition = advance_vf(vf.state, event, partial(_name_vf, vf, pe))
            if transition is None:
                continue
            budget = vf.budget.spend(_now_usec()) if event in _VF_COUNTED else vf.budget
            if event is VfEvent.LIFT:
                budget = Budget()
            kept = vf.reason if transition.state is not VfState.ONLINE else ""
            vf = replace(
                vf, state=transition.state, own=_is_own(vf, event), reason=reason or kept,
                since_usec=_now_usec(), budget=budget,
            )  # fmt: skip
            if vf.state is VfState.ONLINE:  # whoever wished something does it himself now
                vf = replace(vf, wish=NO_ATTRIBUTES)
            changed.append(vf)
            self._vf_rows[place] = self._vf_rows.get(place, 0) + 1
            groups.setdefault(transition.effects, []).append(place)
        out = {vf.place for vf in pe.vfs if vf.state is not VfState.ONLINE}
        left = {vf.place for vf in changed if vf.place not in out}
        self._pes[slot] = pe.with_vfs(changed).without_pictures(left)
        for effects, members in groups.items():
            self._begin_vf_row(slot, members, effects)
        return changed

    # What is done about it.

    def _begin_row(self, slot: str, effects: Sequence[AdapterEffect]) -> None:
        self._rows[slot] = row = self._rows.get(slot, 0) + 1
        previous = self._runners.get(slot)
        self._runners[slot] = runner = asyncio.create_task(self._run_row(slot, row, effects, previous))
        self._carry(runner, slot, row)

    async def _run_row(
        self, slot: str, row: int, effects: Sequence[AdapterEffect], previous: asyncio.Task[None] | None
    ) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        await self.save(slot)
        for effect in effects:
            if self._rows[slot] != row:
                return
            answer = await self.do(effect, slot)
            if answer is not None and self._rows[slot] == row:
                self.fire(slot, *answer)  # which begins a newer row, or changes nothing

    def _begin_vf_row(self, slot: str, places: Sequence[Place], effects: Sequence[VfEffect]) -> None:
        rows = {place: self._vf_rows[place] for place in places}
        runner = asyncio.create_task(self._run_vf_row(slot, rows, effects))
        runners = self._vf_runners.setdefault(slot, set())
        runners.add(runner)
        runner.add_done_callback(runners.discard)
        self._carry(runner, slot, rows)

    async def _run_vf_row(self, slot: str, rows: Mapping[Place, int], effects: Sequence[VfEffect]) -> None:
        await self.save(slot)
        for effect in effects:
            places = self._newest(rows)
            if not places:
                return
            for answer in await self.do_vfs(effect, slot, places):
                current = set(self._newest(rows))
                self.fire_vfs(slot, [each for each in answer.places if each in current], *_rest(answer))

    def _carry(self, runner: asyncio.Task[None], slot: str, rows: int | Mapping[Place, int]) -> None:
        self._carried[runner] = slot, rows
        runner.add_done_callback(lambda task: self._carried.pop(task, None))
        runner.add_done_callback(_report_failure)

    def may_write(self, slot: str, places: Iterable[Place]) -> bool:
        """Whether the current task carries out the newest row of that adapter, or of those VFs of it. Tasks
        that it has started are not it. Raises Cancelled when it carries out an older one: something else has
        happened since."""
        task = asyncio.current_task()
        carried, rows = self._carried.get(task, ("", 0)) if task else ("", 0)
        if carried != slot:
            return False
        is_newest = (
            self._rows.get(slot) == rows
            if isinstance(rows, int)
            else all(self._vf_rows.get(place) == rows.get(place) for place in places)
        )
        if not is_newest:
            raise Cancelled(f"Something else has happened to adapter {slot} meanwhile.")
        return True

    def _newest(self, rows: Mapping[Place, int]) -> list[Place]:
        return [place for place, row in rows.items() if self._vf_rows.get(place) == row]

    async def wait_vf_rows(self, slot: str, timeout_sec: float) -> None:
        """Let what is being done to VFs of the adapter come to its end, at most so long."""
        running = {task for task in self._vf_runners.get(slot, ()) if task is not asyncio.current_task()}
        if running:
            await asyncio.wait(running, timeout=timeout_sec)

    # What lasts.

    async def save(self, slot: str) -> None:
        """Put the PE as it is now on disk."""
        pe = self.get(slot)
        if self._stored.get(slot) == pe:
            return
        try:
            if pe == AdapterPe(slot) or pe.state is AdapterState.REMOVED:
                await self._store.forget_recovery(slot)
            else:
                await self._store.put_recovery(slot, pe.to_dict())
            self._stored[slot] = pe
        except BackendFailed as error:
            _log.error("The recovery of adapter %s goes on without its record: %s", slot, error)

    def recall(self, pe: AdapterPe) -> None:
        """Take up a PE as it is on disk; nothing is done yet."""
        self._pes[pe.slot] = self._stored[pe.slot] = pe

    def resume(self, slots: Collection[str]) -> None:
        """Go on where a former daemon was ended."""
        for slot in slots:
            pe = self.get(slot)
            self.on_change(pe, pe, pe.vfs)
            self.fire_vfs(slot, [vf.place for vf in pe.vfs], VfEvent.RESTARTED)
            self.fire(slot, AdapterEvent.RESTARTED)

    async def close(self) -> None:
        """Do nothing more, as if the daemon were killed: the next one goes on."""
        self._closed = True
        runners = {*self._runners.values(), *(task for tasks in self._vf_runners.values() for task in tasks)}
        for runner in runners:
            runner.cancel()
        if runners:
            await asyncio.wait(runners)


def _rest(answer: VfAnswer) -> tuple[VfEvent, str]:
    return answer.event, answer.reason


def _name_vf(vf: VfPe, pe: AdapterPe) -> tuple[str, str]:
    return f"The {vf}", describe_vf(vf, pe)


def _is_own(vf: VfPe, event: VfEvent) -> bool:
    return event in _VF_COUNTED or (vf.own and event is not VfEvent.ADAPTER_FROZEN)


def _spend(pe: AdapterPe, event: AdapterEvent) -> Budget:
    if event is AdapterEvent.LIFT:
        return Budget()
    return pe.budget.spend(_now_usec()) if event in _COUNTED else pe.budget


def describe(pe: AdapterPe) -> str:
    """How the adapter stands, since when and why; empty while it is online."""
    if pe.state is AdapterState.ONLINE:
        return ""
    return f"It is {pe.state} since {_elapsed(pe.since_usec)}: {pe.reason.rstrip('.')}."


def describe_vf(vf: VfPe, adapter: AdapterPe) -> str:
    """For what it waits, and for how long by now."""
    if vf.state in (VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT):
        waits = f"It waits, since {_elapsed(vf.since_usec)}, for its adapter {adapter.slot}"
        return f"{waits}, which is {adapter.state}."
    return f"Since {_elapsed(vf.since_usec)}: {vf.reason.rstrip('.')}."


def _elapsed(since_usec: int) -> str:
    return f"{max(0, _now_usec() - since_usec) / 1e6:.1f} s"


def _now_usec() -> int:
    return time.time_ns() // 1000


def _report_failure(runner: asyncio.Task[None]) -> None:
    error = None if runner.cancelled() else runner.exception()
    if error is not None and not isinstance(error, SriovdError):
        _log.error("A recovery met a defect of sriovd", exc_info=error)
    elif error is not None:
        _log.error("A recovery could not be carried on: %s", error)
