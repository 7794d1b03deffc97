"""SetNumVFs on a small kernel: exactly so many VFs, or what there was."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import replace

import pytest

from sriovd.backend.base import Holder
from sriovd.backend.steps import Chain, ChainResult, Step, Verb
from sriovd.core.errors import (
    BindFailed,
    InUse,
    NumVfsRejected,
    Stuck,
)
from sriovd.core.jobs import JobState
from sriovd.core.lifecycle import CountOptions
from tests.unit.core.minihost import Rules, run_async, settle, until
from tests.unit.core.minikernel import OTHER_PF, PF, make_pf, make_vf
from tests.unit.core.verbs import (
    SLOT,
    VFS,
    WHO,
    assert_failed,
    autoprobe,
    make_rules,
    outcome,
    set_num_vfs,
)


def test_drivers_are_kept_away_from_vfs_as_long_as_they_live() -> None:
    async def test() -> None:
        rules = await make_rules()
        job = await set_num_vfs(rules, 7)
        assert outcome(job) == (JobState.DONE, f"Created 7 VFs of {PF}.")
        assert [rules.kernel.driver(vf) for vf in VFS] == [""] * 7
        assert not autoprobe(rules)
        assert rules.kernel.writes == [f"set-autoprobe {PF} 0", f"set-num-vfs {PF} 7"]
        await set_num_vfs(rules, 0)
        assert rules.kernel.writes[2:] == [f"set-num-vfs {PF} 0", f"set-autoprobe {PF} 1"]
        assert autoprobe(rules)

    run_async(test())


def test_a_flag_that_somebody_turned_on_without_an_event_is_turned_off() -> None:
    async def test() -> None:
        rules = await make_rules(autoprobe=0)
        pf = rules.kernel.functions[PF]
        assert pf.physical is not None
        rules.kernel.functions[PF] = replace(pf, physical=replace(pf.physical, drivers_autoprobe=True))
        await set_num_vfs(rules, 7)
        assert rules.kernel.writes == [f"set-autoprobe {PF} 0", f"set-num-vfs {PF} 7"]

    run_async(test())


def test_a_flag_that_was_off_stays_off() -> None:
    async def test() -> None:
        rules = await make_rules(autoprobe=0)
        await set_num_vfs(rules, 7)
        await set_num_vfs(rules, 0)
        assert rules.kernel.writes == [f"set-num-vfs {PF} 7", f"set-num-vfs {PF} 0"]

    run_async(test())


def test_vfs_are_bound_on_the_way_if_asked_for() -> None:
    async def test() -> None:
        rules = await make_rules()
        job = await set_num_vfs(rules, 7, driver="vfio-pci")
        assert outcome(job) == (JobState.DONE, f"Created 7 VFs of {PF} on vfio-pci.")
        assert {rules.kernel.driver(vf) for vf in VFS} == {"vfio-pci"}

    run_async(test())


@pytest.mark.parametrize("driver", ["vfio-pci", "none"])
@pytest.mark.parametrize("stale", [{"vf_stride": 1}, {"vf_stride": 0}, {"vf_offset": 2}, {"vf_offset": 0}])
def test_vfs_that_are_elsewhere_than_computed_are_bound_where_they_are(
    stale: dict[str, int], driver: str
) -> None:
    async def test() -> None:
        rules = Rules(make_pf(PF, 1, "igb", **stale))
        await rules.look()
        assert (await set_num_vfs(rules, 7, driver=driver)).state is JobState.DONE
        assert [rules.kernel.overrides[vf] for vf in VFS] == [driver] * 7
        assert {write.split()[1] for write in rules.kernel.writes} == {str(PF), *map(str, VFS)}

    run_async(test())


def test_a_vf_that_somebody_takes_off_its_driver_meanwhile_is_bound_again() -> None:
    async def test() -> None:
        rules = await make_rules()
        really_run_chain, taken = rules.kernel.run_chain, [VFS[3]]

        def run_chain(chain: Chain) -> ChainResult:
            result = really_run_chain(chain)
            if chain.subject in taken:
                taken.clear()
                rules.kernel.do(Step(Verb.UNBIND, VFS[3], "vfio-pci"))
            return result

        rules.kernel.run_chain = run_chain  # type: ignore[method-assign]
        assert (await set_num_vfs(rules, 7, driver="vfio-pci")).state is JobState.DONE
        assert [rules.kernel.driver(vf) for vf in VFS] == ["vfio-pci"] * 7

    run_async(test())


def test_a_converged_count_writes_nothing() -> None:
    async def test() -> None:
        rules = await make_rules(7, "vfio-pci")
        for job in (await set_num_vfs(rules, 7), await set_num_vfs(rules, 7, driver="vfio-pci")):
            assert outcome(job)[1].startswith("Unchanged: ")
        assert outcome(await set_num_vfs(rules, 0, OTHER_PF))[1].startswith("Unchanged: ")
        assert rules.host.scripts == []

    run_async(test())


def test_the_same_count_with_another_driver_binds_what_is_there() -> None:
    async def test() -> None:
        rules = await make_rules(7, "pci-stub")
        job = await set_num_vfs(rules, 7, driver="vfio-pci")
        assert outcome(job) == (JobState.DONE, "Bound 7 functions to vfio-pci.")
        assert not any("set-num-vfs" in write for write in rules.kernel.writes)

    run_async(test())


def test_vfs_are_destroyed() -> None:
    async def test() -> None:
        rules = await make_rules(7, "vfio-pci")
        job = await set_num_vfs(rules, 0)
        assert outcome(job) == (JobState.DONE, f"Destroyed the 7 VFs of {PF}.")
        assert rules.kernel.writes == [f"set-num-vfs {PF} 0"]

    run_async(test())


def test_too_few_vfs_are_none_at_all() -> None:
    async def test() -> None:
        rules = await make_rules()
        rules.kernel.short = 3
        job = await set_num_vfs(rules, 7)
        assert_failed(job, NumVfsRejected, str(PF), "made 3 VFs of 7", "Ask for 3", "allow-short")
        assert rules.kernel.vfs_of(PF) == {}
        assert autoprobe(rules)

    run_async(test())


def test_fewer_vfs_are_kept_if_that_is_allowed() -> None:
    async def test() -> None:
        rules = await make_rules()
        rules.kernel.short = 3
        job = await set_num_vfs(rules, 7, allow_short=True, driver="vfio-pci")
        assert outcome(job) == (JobState.DONE, f"Created 3 VFs of {PF} on vfio-pci.")

    run_async(test())


def test_a_bind_that_fails_destroys_the_vfs_made_for_it() -> None:
    async def test() -> None:
        rules = await make_rules()
        rules.kernel.failures[Verb.BIND, VFS[4]] = errno.ENODEV
        job = await set_num_vfs(rules, 7, driver="vfio-pci")
        assert_failed(job, BindFailed, str(VFS[4]), "vfio-pci")
        assert rules.kernel.vfs_of(PF) == {}

    run_async(test())


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EPERM])
def test_a_count_that_the_kernel_refuses_leaves_everything_as_it_was(number: int) -> None:
    async def test() -> None:
        rules = await make_rules()
        before = dict(rules.kernel.functions)
        rules.kernel.failures[Verb.SET_NUM_VFS, PF] = number
        assert_failed(await set_num_vfs(rules, 7), NumVfsRejected, str(PF), "7 VFs")
        assert rules.kernel.functions == before

    run_async(test())


def test_vfs_that_were_made_go_again_when_something_after_them_fails() -> None:
    async def test() -> None:
        rules = await make_rules()
        rules.kernel.failures[Verb.BIND, VFS[5]] = errno.EIO
        assert_failed(await set_num_vfs(rules, 7, driver="vfio-pci"), BindFailed, "EIO")
        assert rules.kernel.vfs_of(PF) == {}
        assert autoprobe(rules)

    run_async(test())


def test_vfs_that_cannot_be_taken_back_are_told() -> None:
    async def test() -> None:
        rules = await make_rules()
        rules.kernel.short = 3
        job = rules.lifecycle.set_num_vfs(PF, 7, CountOptions(), WHO)
        await until(lambda: len(rules.kernel.vfs_of(PF)) == 3)
        rules.kernel.failures[Verb.SET_NUM_VFS, PF] = errno.EPERM
        await rules.finish(job)
        assert_failed(job, NumVfsRejected, "made 3 VFs of 7", "The 3 VFs made could not be destroyed")
        assert len(rules.kernel.vfs_of(PF)) == 3

    run_async(test())


def test_vfs_in_use_are_not_destroyed_unless_forced() -> None:
    async def test() -> None:
        rules = await make_rules(7, "vfio-pci")
        rules.host.holders[VFS[3]] = (Holder(1234, "qemu"),)
        assert_failed(await set_num_vfs(rules, 0), InUse, str(VFS[3]), "qemu (pid 1234)")
        assert rules.host.scripts == []
        assert (await set_num_vfs(rules, 0, force=True)).state is JobState.DONE

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_vfs_that_come_late_are_seen_and_kept_from_drivers() -> None:
    async def test() -> None:
        rules = await make_rules()
        gate = rules.host.hangs[Verb.SET_NUM_VFS, PF] = asyncio.Event()
        assert_failed(await set_num_vfs(rules, 7), Stuck, SLOT)
        gate.set()
        await until(lambda: not rules.inventory.adapters[SLOT].stuck)
        await rules.picture.rescan()
        assert len(rules.inventory.vfs_of(PF)) == 7
        assert not autoprobe(rules)
        await set_num_vfs(rules, 0)
        assert autoprobe(rules)

    run_async(test())


def test_cancelled_while_its_vfs_are_bound_a_count_ends_with_none() -> None:
    async def test() -> None:
        rules = await make_rules()
        job = rules.lifecycle.set_num_vfs(PF, 7, CountOptions(driver="vfio-pci"), WHO)
        await until(lambda: rules.kernel.functions.get(VFS[2], make_vf(2)).driver == "vfio-pci")
        job.cancel()
        assert (await rules.finish(job)).state is JobState.CANCELLED
        assert rules.kernel.vfs_of(PF) == {}

    run_async(test())


@pytest.mark.parametrize("driver", ["", "vfio-pci"])
def test_cancelled_before_its_script_has_begun_a_count_writes_nothing_lasting(driver: str) -> None:
    async def test() -> None:
        rules = await make_rules()
        job = rules.lifecycle.set_num_vfs(PF, 7, CountOptions(driver=driver), WHO)
        await until(lambda: rules.host.scripts != [])
        job.cancel()
        assert (await rules.finish(job)).state is JobState.CANCELLED
        assert not any("set-num-vfs" in write for write in rules.kernel.writes)
        assert autoprobe(rules)

    run_async(test())


@pytest.mark.parametrize(
    ("driver", "state", "left"), [("", JobState.DONE, 7), ("vfio-pci", JobState.CANCELLED, 0)]
)
def test_cancelled_while_its_vfs_are_made_a_count_ends_if_there_is_more_to_do(
    driver: str, state: JobState, left: int
) -> None:
    async def test() -> None:
        rules = await make_rules()
        gate = rules.host.hangs[Verb.SET_NUM_VFS, PF] = asyncio.Event()
        job = rules.lifecycle.set_num_vfs(PF, 7, CountOptions(driver=driver), WHO)
        await until(lambda: job.stage == "making 7 VFs")
        await settle()
        job.cancel()
        gate.set()
        assert (await rules.finish(job)).state is state
        assert len(rules.kernel.vfs_of(PF)) == left

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_stuck_while_its_vfs_are_bound_nothing_more_is_written() -> None:
    async def test() -> None:
        rules = await make_rules()
        rules.host.hangs[Verb.BIND, VFS[3]] = asyncio.Event()
        assert_failed(await set_num_vfs(rules, 7, driver="vfio-pci"), Stuck, SLOT)
        assert f"set-num-vfs {PF} 0" not in rules.kernel.writes
        assert len(rules.host.scripts) == 1

    run_async(test())


def test_a_count_is_judged_again_when_its_turn_comes() -> None:
    """Asked for when there were no VFs; honoured now, it would destroy those that somebody else made."""

    async def test() -> None:
        rules = await make_rules()
        first = rules.lifecycle.set_num_vfs(PF, 7, CountOptions(), WHO)
        second = rules.lifecycle.set_num_vfs(PF, 3, CountOptions(), WHO)
        await rules.finish(second)
        assert_failed(second, NumVfsRejected, str(PF), "from 7 to 3")
        assert (first.state, len(rules.kernel.vfs_of(PF))) == (JobState.DONE, 7)

    run_async(test())
