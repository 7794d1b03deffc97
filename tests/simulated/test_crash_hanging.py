"""A daemon killed while its helper is in the kernel: the next one waits with its judgement until the chain
has ended, because what is half done then is not left, but under way."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from sriovd.backend.base import Fault
from sriovd.backend.steps import Verb
from sriovd.core.engine import Places
from sriovd.core.lifecycle import CountOptions
from sriovd.core.recovery.automaton import VfState
from sriovd.core.recovery.record import VfPe
from sriovd.pci import PciAddress
from tests.simulated.crash import Life, until
from tests.simulated.crash_host import PF, CrashHost
from tests.simulated.crash_plays import settle

pytestmark = pytest.mark.usefixtures("no_pauses")

VF = PciAddress.parse("0000:01:10.0")


async def kill_in(life: Life, host: CrashHost, step: str) -> None:
    """Kill the daemon while `step` hangs. Its helper stays in the kernel."""
    await until(
        lambda: any(run.describe().step == step and run.describe().wchan for run in host.backend._runs)
    )
    life.die()
    await life.bury(helpers_end=False)


def count_open(places: Places) -> int:
    database = sqlite3.connect(f"file:{places.state}?mode=ro", uri=True)
    [(count,)] = database.execute("SELECT count(*) FROM intents WHERE outcome IS NULL").fetchall()
    database.close()
    return int(count)


def run(place: Path, test: Callable[[CrashHost, Places], object]) -> None:
    host = CrashHost(str(place / "sys"))
    asyncio.run(test(host, Places(str(place / "db"))))  # type: ignore[arg-type]


def test_a_bind_that_is_still_under_way_is_not_stranded(place: Path) -> None:
    async def test(host: CrashHost, places: Places) -> None:
        life = Life(host.backend, places)
        await life.start()
        job = life.engine.lifecycle.set_num_vfs(PF, 2, CountOptions("vfio-pci"), "test")
        assert await job.wait(10_000_000)
        host.backend.inject_fault(Fault(Verb.BIND, VF, hang=True))
        life.engine.lifecycle.bind_vfs(PF, "pci-stub", False, "test")
        await kill_in(life, host, f"bind {VF} pci-stub")

        last = Life(host.backend, places)
        await last.start()
        functions = last.engine.inventory.functions
        assert last.engine.inventory.adapters[str(PF.slot)].stuck
        assert not functions[VF].facts.driver
        assert not functions[VF].quarantine, "it is not lost, it is on its way"
        host.backend.clear_faults()
        await until(lambda: functions[VF].facts.driver == "pci-stub")
        await settle(last)
        await until(lambda: all(task.done() for task in last.engine._menders))
        assert not any(each.quarantine for each in functions.values())
        assert [vf.driver for vf in host.look().vfs.values()] == ["pci-stub", "vfio-pci"]
        await last.end()
        assert count_open(places) == 0

    run(place, test)


def test_vfs_that_are_still_being_made_are_judged_when_they_are_there(place: Path) -> None:
    async def test(host: CrashHost, places: Places) -> None:
        host.backend.inject_fault(Fault(Verb.SET_NUM_VFS, PF, hang=True))
        life = Life(host.backend, places)
        await life.start()
        life.engine.lifecycle.set_num_vfs(PF, 2, CountOptions("vfio-pci"), "test")
        await kill_in(life, host, f"set-num-vfs {PF} 2")

        last = Life(host.backend, places)
        await last.start()
        host.backend.clear_faults()
        await until(lambda: len(host.look().vfs) == 2)
        await until(lambda: all(task.done() for task in last.engine._menders))
        functions = last.engine.inventory.functions
        vfs = [functions[vf] for vf in last.engine.inventory.vfs_of(PF).values()]
        assert len(vfs) == 2
        assert all(vf.quarantine for vf in vfs), "they were to get a driver, and nobody gives them one"
        assert not host.look().autoprobe[PF]
        await last.end()
        assert count_open(places) == 0

    run(place, test)


@pytest.mark.parametrize(
    ("state", "methods", "fences"),
    [(VfState.FROZEN_OWN, "", 2), (VfState.RECOVERING, " flr", 1)],
    ids=["up", "down"],
)
def test_a_fence_that_is_still_under_way_comes_down(
    place: Path, state: VfState, methods: str, fences: int
) -> None:
    async def test(host: CrashHost, places: Places) -> None:
        def note(vf: VfPe) -> None:
            if vf.state is state:
                host.backend.inject_fault(Fault(Verb.SET_RESET_METHOD, VF, hang=True))

        life = Life(host.backend, places)
        await life.start()
        job = life.engine.lifecycle.set_num_vfs(PF, 2, CountOptions("vfio-pci"), "test")
        assert await job.wait(10_000_000)
        life.engine.recovery.on_vf_state = note
        life.engine.recovery.recover(VF, "test")
        await kill_in(life, host, f"set-reset-method {VF}{methods}")

        last = Life(host.backend, places)
        await last.start()
        pe = last.engine.recovery._lives.get
        assert pe(str(PF.slot)).vf((PF, 0)).state is state
        host.backend.clear_faults()
        await until(lambda: pe(str(PF.slot)).vf((PF, 0)).state is VfState.ONLINE)
        await settle(last)
        assert [vf.device.reset_methods for vf in host.look().vfs.values()] == [("flr",)] * 2
        titles = [title for title, _, _ in await last.engine.store.read_recent_intents(str(PF.slot), 20)]
        assert titles.count(f"fencing the VFs of {PF.slot}") == fences
        await last.end()
        assert count_open(places) == 0

    run(place, test)


def test_a_daemon_that_ends_meanwhile_leaves_it_to_the_next(place: Path) -> None:
    async def test(host: CrashHost, places: Places) -> None:
        host.backend.inject_fault(Fault(Verb.SET_NUM_VFS, PF, hang=True))
        life = Life(host.backend, places)
        await life.start()
        life.engine.lifecycle.set_num_vfs(PF, 2, CountOptions("vfio-pci"), "test")
        await kill_in(life, host, f"set-num-vfs {PF} 2")
        second = Life(host.backend, places)
        await second.start()
        await second.end()
        assert count_open(places) == 1
        host.backend.clear_faults()

    run(place, test)
