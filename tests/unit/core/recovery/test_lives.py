"""The automata at work: what is in force when, in which order effects are carried out, and whose answers
count."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any

import pytest

from sriovd.backend.steps import Chain, Script, Step, Verb
from sriovd.core.errors import Cancelled, Frozen, LockedOut, Quarantined, SriovdError
from sriovd.core.inventory import Inventory
from sriovd.core.recovery.automaton import (
    AdapterEffect,
    AdapterEvent,
    AdapterState,
    VfEffect,
    VfEvent,
    VfState,
)
from sriovd.core.recovery.gate import Gate
from sriovd.core.recovery.lives import Answer, Lives, VfAnswer
from sriovd.core.recovery.record import AdapterPe, Place, VfPe
from sriovd.core.recovery.snapshot import PfShot, VfShot
from sriovd.core.store import MEMORY, Store
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import PF, make_pf, make_vf

SLOT = str(PF.slot)
VFS = 3
PLACES: list[Place] = [(PF, index) for index in range(VFS)]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), 10))

    return run


class World:
    """Lives whose effects do what a test says. `done`: what was begun, in order. `answers`: what effects end
    with; `holds`: effects that do not end before they are let go."""

    def __init__(self) -> None:
        self.inventory = Inventory()
        self.inventory.put(make_pf())
        for index in range(VFS):
            self.inventory.put(make_vf(index, driver="vfio-pci"))
        self.store = Store(MEMORY, "boot", "kernel")
        self.lives = Lives(self.inventory, self.store)
        self.gate = Gate(self.inventory, self.lives)
        self.done: list[str] = []
        self.on_disk: list[str] = []
        self.answers: dict[AdapterEffect, Answer] = {}
        self.vf_answers: dict[VfEffect, VfEvent] = {}
        self.holds: dict[AdapterEffect, asyncio.Event] = {}
        self.inside: Callable[[], None] = lambda: None
        self.lives.do, self.lives.do_vfs = self._do, self._do_vfs

    async def _do(self, effect: AdapterEffect, slot: str) -> Answer | None:
        self.done.append(str(effect))
        self.on_disk.append(self.store.load().recoveries.get(SLOT, (True, {"state": "online"}))[1]["state"])
        if effect in self.holds:
            await self.holds[effect].wait()
            self.inside()
        return self.answers.get(effect)

    async def _do_vfs(self, effect: VfEffect, slot: str, places: Sequence[Place]) -> Sequence[VfAnswer]:
        self.done.append(f"{effect} {','.join(str(index) for _, index in places)}")
        event = self.vf_answers.get(effect)
        return [VfAnswer(event, places)] if event else []

    def states(self) -> list[str]:
        pe = self.lives.get(SLOT)
        return [str(pe.state), *(str(pe.vf(place).state) for place in PLACES)]

    async def rest(self) -> None:
        """Until nothing more happens."""
        for _ in range(100):
            await asyncio.sleep(0)


def write(index: int = 0, verb: Verb = Verb.RESET) -> Script:
    vf = make_vf(index).address
    return Script("a write", (Chain(vf, (Step(verb, vf),)),))


WRITE_TO_PF = Script("a write", (Chain(PF, (Step(Verb.SET_NUM_VFS, PF, "0"),)),))


@in_loop
async def test_a_freeze_is_in_force_at_once_and_for_every_vf() -> None:
    world = World()
    world.lives.fire(SLOT, AdapterEvent.ERROR, "bad")
    assert world.states() == ["frozen", *["frozen-propagated"] * VFS]
    assert world.done == []
    with pytest.raises(LockedOut) as refusal:
        world.gate.refuse(SLOT, WRITE_TO_PF)
    assert "bad" in refusal.value.inside
    told = [str(refusal.value), *(vf.reason for vf in world.lives.get(SLOT).vfs)]
    assert not any("bad" in each for each in told), "the adapter's error may be another tenant's"


@in_loop
async def test_a_state_is_on_disk_before_its_first_effect() -> None:
    world = World()
    world.answers[AdapterEffect.FENCE] = Answer(AdapterEvent.FENCED)
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    await world.rest()
    assert world.on_disk == ["frozen", "frozen", *["collecting"] * 3]


@in_loop
async def test_vfs_that_do_the_same_share_a_row() -> None:
    world = World()
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    await world.rest()
    assert "tell 0,1,2" in world.done


@in_loop
async def test_the_answer_of_an_outrun_row_counts_no_more() -> None:
    world = World()
    world.answers[AdapterEffect.FENCE] = Answer(AdapterEvent.FENCED)
    hold = world.holds[AdapterEffect.FENCE] = asyncio.Event()
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    await world.rest()
    world.lives.fire(SLOT, AdapterEvent.GONE)
    world.lives.fire(SLOT, AdapterEvent.BACK)
    world.lives.fire(SLOT, AdapterEvent.ERROR, "another")
    await world.rest()
    assert world.done.count("fence") == 1, "rows come one after the other"
    hold.set()
    del world.holds[AdapterEffect.FENCE]
    world.answers.clear()
    await world.rest()
    assert world.lives.get(SLOT).state is AdapterState.FROZEN, "by the first row's answer it would not be"
    assert world.done.count("fence") == 2


@in_loop
async def test_what_is_outrun_writes_no_more() -> None:
    world = World()
    refused: list[type[Exception]] = []

    def try_to_write() -> None:
        try:
            world.gate.refuse(SLOT, WRITE_TO_PF)
        except SriovdError as error:
            refused.append(type(error))

    world.inside = try_to_write
    hold = world.holds[AdapterEffect.FENCE] = asyncio.Event()
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    await world.rest()
    world.lives.fire(SLOT, AdapterEvent.GONE)
    world.lives.fire(SLOT, AdapterEvent.BACK)
    hold.set()
    await world.rest()
    assert refused == [Cancelled]


@in_loop
async def test_what_recovers_an_adapter_passes_and_what_it_starts_does_not() -> None:
    world = World()
    passed: list[str] = []

    async def other() -> None:
        with pytest.raises(LockedOut):
            world.gate.refuse(SLOT, WRITE_TO_PF)
        passed.append("a task that it has started was refused")

    def write_and_start() -> None:
        world.gate.refuse(SLOT, WRITE_TO_PF)
        passed.append("the row itself")
        tasks.append(asyncio.create_task(other()))

    tasks: list[asyncio.Task[None]] = []
    world.inside = write_and_start
    hold = world.holds[AdapterEffect.FENCE] = asyncio.Event()
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    hold.set()
    await world.rest()
    assert passed == ["the row itself", "a task that it has started was refused"]
    await asyncio.gather(*tasks)


@in_loop
async def test_a_quarantine_does_all_that_its_row_says() -> None:
    """Its fence's answer changes nothing, and must not end the row."""
    world = World()
    world.answers[AdapterEffect.FENCE] = Answer(AdapterEvent.FENCED)
    world.lives.fire(SLOT, AdapterEvent.OVER_BUDGET)
    await world.rest()
    assert [each for each in world.done if "tell" not in each] == ["fence", "lock-vfs", "give-up"]


@in_loop
async def test_vfs_of_a_card_that_is_gone_are_dropped_at_once() -> None:
    """It may be back before an effect that hangs has ended."""
    world = World()
    world.holds[AdapterEffect.FENCE] = asyncio.Event()
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    await world.rest()
    world.lives.fire(SLOT, AdapterEvent.GONE)
    assert world.lives.get(SLOT).vfs == ()
    world.lives.fire(SLOT, AdapterEvent.BACK)
    assert world.lives.get(SLOT).is_idle
    await world.lives.close()


@in_loop
async def test_errors_are_counted_and_wishes_of_operators_are_not() -> None:
    world = World()
    world.lives.fire(SLOT, AdapterEvent.ASKED)
    assert world.lives.get(SLOT).budget.count == 0
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    assert world.lives.get(SLOT).budget.count == 0, "under way: the same error"
    world = World()
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    assert world.lives.get(SLOT).budget.count == 1
    world = World()
    world.lives.fire(SLOT, AdapterEvent.OVER_BUDGET)
    assert world.lives.get(SLOT).budget.count == 1
    world.lives.fire(SLOT, AdapterEvent.LIFT)
    assert world.lives.get(SLOT).budget.count == 0


@in_loop
async def test_one_vfs_error_is_one_vfs() -> None:
    world = World()
    world.vf_answers = {
        VfEffect.COLLECT: VfEvent.PERMIT,
        VfEffect.AWAIT_OWNER: VfEvent.UNFREEZE,
        VfEffect.RECOVER: VfEvent.RECOVERED,
    }
    world.lives.fire_vfs(SLOT, [PLACES[1]], VfEvent.OWN_ERROR)
    assert world.states() == ["online", "online", "frozen-own", "online"]
    assert world.lives.get(SLOT).vf(PLACES[1]).own
    with pytest.raises(Frozen):
        world.gate.refuse(SLOT, write(1))
    world.gate.refuse(SLOT, write(0))
    world.gate.refuse(SLOT, WRITE_TO_PF)
    await world.rest()
    assert world.states() == ["online"] * (1 + VFS)
    assert [each for each in world.done if "tell" not in each] == [
        "fence 1", "collect 1", "await-owner 1", "recover 1",
    ]  # fmt: skip
    assert world.lives.get(SLOT).vf(PLACES[1]).budget.count == 1


REFUSED = [
    (VfState.FROZEN_OWN, Frozen),
    (VfState.FROZEN_PROPAGATED, LockedOut),
    (VfState.LOCKED_OUT, LockedOut),
    (VfState.PERMITTED, Frozen),
    (VfState.RECOVERING, None),
    (VfState.FAILED, Quarantined),
    (VfState.ONLINE, None),
]


@pytest.mark.parametrize(("state", "error"), REFUSED)
def test_what_the_gate_says_of_a_vf(state: VfState, error: type[SriovdError] | None) -> None:
    world = World()
    world.lives.put_vfs(SLOT, [VfPe(PF, 0, state, reason="so")])
    assert world.gate.is_held(PLACES[0]) == (error is not None)
    checks: list[Callable[[], None]] = [
        lambda: world.gate.refuse_place(PLACES[0]),
        lambda: world.gate.refuse_function(make_vf(0).address),
    ]
    for check in checks:
        if error is None:
            check()
        else:
            with pytest.raises(error):
                check()


@pytest.mark.parametrize("state", AdapterState)
def test_what_the_gate_says_of_an_adapter(state: AdapterState) -> None:
    world = World()
    world.lives.edit(SLOT, state=state, reason="so")
    if state in (AdapterState.ONLINE, AdapterState.PERMITTING, AdapterState.REMOVED):
        world.gate.refuse_function(PF)
        return
    error = Quarantined if state is AdapterState.QUARANTINED else LockedOut
    with pytest.raises(error, match=f"out of service: it is {state}") as refusal:
        world.gate.refuse_function(PF)
    assert re.fullmatch(f"It is {state} since .*: so.", refusal.value.inside)
    assert world.gate.is_held(PLACES[0])
    world.gate.refuse_function(PciAddress.parse("0000:02:00.0"))


def test_a_vf_that_is_away_is_known_by_the_shot_of_its_adapter() -> None:
    world = World()
    vf = make_vf(0).address
    world.lives.edit(SLOT, shots=(PfShot(PF, "igb", vfs=(VfShot(0, vf, 1, "vfio-pci"),)),))
    world.inventory.drop(vf)
    assert world.gate.place_of(vf) == PLACES[0]
    assert world.gate.place_of(PciAddress.parse("0000:09:00.0")) is None
    assert PLACES[0] in world.lives.places(SLOT)


@in_loop
async def test_a_restart_goes_on_with_what_is_on_disk() -> None:
    world = World()
    world.answers[AdapterEffect.FENCE] = Answer(AdapterEvent.FENCED)
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    await world.rest()
    await world.lives.close()
    world.lives.fire(SLOT, AdapterEvent.GONE)
    assert world.lives.get(SLOT).state is AdapterState.COLLECTING, "what is closed hears nothing"
    again = World()
    again.lives.recall(world.lives.get(SLOT))
    again.lives.resume([SLOT])
    assert again.states()[0] == "frozen"
    await again.rest()
    assert "fence" in again.done


@in_loop
async def test_the_picture_of_a_vf_that_leaves_service_is_thrown_away_with_its_new_state() -> None:
    """A daemon that is killed before it has taken another one must not find that of an older error."""
    world = World()
    pictures = tuple(VfShot(index, make_vf(index).address, 1, "igbvf") for index in range(VFS))
    world.lives.edit(SLOT, shots=(PfShot(PF, "igb", vfs=pictures),))
    world.lives.put_vfs(SLOT, [VfPe(PF, 1, VfState.PERMITTED)])
    world.lives.fire(SLOT, AdapterEvent.ERROR)
    shot = world.lives.get(SLOT).shot(PF)
    assert shot is not None
    assert [vf.index for vf in shot.vfs] == [1], "which was not in service"
    await world.rest()
    stored = AdapterPe.from_dict(world.store.load().recoveries[SLOT][1])
    assert stored.shots == (shot,)
