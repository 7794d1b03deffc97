"""The verbs on a small kernel: asked again in their turn, refused at once if they could never work."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from sriovd.backend.base import DriverState
from sriovd.backend.steps import Verb
from sriovd.core.errors import (
    BackendFailed,
    BindFailed,
    InUse,
    InvalidArgument,
    NoSuchFunction,
    NotSupported,
    NumVfsRejected,
    ResetFailed,
    SriovdError,
)
from sriovd.core.jobs import Job, JobState
from sriovd.core.lifecycle import CountOptions
from sriovd.pci import PciAddress
from tests.unit.core.minihost import Rules, run_async
from tests.unit.core.minikernel import OTHER_PF, PF, make_pf
from tests.unit.core.verbs import (
    VFS,
    WHO,
    assert_failed,
    bind_vfs,
    make_rules,
    outcome,
    state,
)


def test_the_rules_are_asked_again_when_the_turn_comes() -> None:
    """Between the question and the turn, another job has made VFs."""

    async def test() -> None:
        rules = await make_rules()
        first = rules.lifecycle.set_num_vfs(PF, 7, CountOptions(), WHO)
        later = [
            rules.lifecycle.bind(PF, "vfio-pci", False, WHO),
            rules.lifecycle.unbind(PF, False, WHO),
            rules.lifecycle.reset(PF, False, WHO),
        ]
        for job in later:
            await rules.finish(job)
            assert_failed(job, InUse, str(PF), "7 VFs")
        assert first.state is JobState.DONE
        assert rules.kernel.driver(PF) == "igb"

    run_async(test())


def test_unbind_takes_the_driver_and_leaves_the_override() -> None:
    async def test() -> None:
        rules = await make_rules(1, "vfio-pci")
        rules.kernel.overrides[VFS[0]] = "vfio-pci"
        job = await rules.finish(rules.lifecycle.unbind(VFS[0], False, WHO))
        assert outcome(job) == (JobState.DONE, f"Unbound {VFS[0]} from vfio-pci.")
        assert state(rules)[VFS[0]] == ("", "vfio-pci")
        again = await rules.finish(rules.lifecycle.unbind(VFS[0], False, WHO))
        assert outcome(again) == (JobState.DONE, f"Unchanged: {VFS[0]} has no driver.")

    run_async(test())


def test_reset() -> None:
    async def test() -> None:
        rules = await make_rules(1)
        job = await rules.finish(rules.lifecycle.reset(VFS[0], False, WHO))
        assert outcome(job) == (JobState.DONE, f"Reset {VFS[0]}.")
        assert rules.kernel.writes == [f"reset {VFS[0]}"]
        rules.kernel.failures[Verb.RESET, VFS[0]] = errno.ENOTTY
        failed = await rules.finish(rules.lifecycle.reset(VFS[0], False, WHO))
        assert_failed(failed, ResetFailed, str(VFS[0]))

    run_async(test())


def test_a_pf_is_removed_after_its_vfs() -> None:
    async def test() -> None:
        rules = await make_rules(3)
        job = await rules.finish(rules.lifecycle.remove(PF, False, WHO))
        assert outcome(job) == (JobState.DONE, f"Removed {PF} and its 3 VFs.")
        assert rules.kernel.writes == [f"set-num-vfs {PF} 0", f"remove {PF}"]
        assert set(rules.inventory.functions) == {OTHER_PF}

    run_async(test())


def test_a_pf_whose_vfs_stay_is_not_removed() -> None:
    async def test() -> None:
        rules = await make_rules(3)
        rules.kernel.failures[Verb.SET_NUM_VFS, PF] = errno.EPERM
        assert_failed(await rules.finish(rules.lifecycle.remove(PF, False, WHO)), NumVfsRejected, str(PF))
        assert f"remove {PF}" not in rules.kernel.writes

    run_async(test())


def test_rescan_finds_what_is_new() -> None:
    async def test() -> None:
        rules = await make_rules()
        nothing = await rules.finish(rules.lifecycle.rescan(WHO))
        assert nothing.outcome == "Unchanged: the rescan found nothing new."
        rules.kernel.bus_finds = [make_pf(PciAddress.parse("0000:03:00.0"))]
        found = await rules.finish(rules.lifecycle.rescan(WHO))
        assert found.outcome == "Created 1 functions."

    run_async(test())


def test_a_host_that_cannot_be_read_is_a_failed_job_and_no_defect() -> None:
    async def test() -> None:
        rules = await make_rules()
        rules.host.listing_fails = True
        job = await rules.finish(rules.lifecycle.rescan(WHO))
        assert_failed(job, BackendFailed, "/sys/bus/pci/devices: Input/output error")

    run_async(test())


def test_progress_of_a_bind_is_told() -> None:
    async def test() -> None:
        rules = await make_rules(7)
        told: list[float] = []
        rules.jobs.on_changed = lambda job: told.append(job.progress)
        await bind_vfs(rules, "vfio-pci")
        assert told[0] == 0.5
        assert told == sorted(told)
        assert len(told) > 3

    run_async(test())


# What can never work is refused at once, and nothing is written.

GONE = PciAddress.parse("0000:09:00.0")
AT_ONCE: list[tuple[Callable[[Rules], Job], type[SriovdError], str]] = [
    (lambda r: r.lifecycle.set_num_vfs(GONE, 1, CountOptions(), WHO), NoSuchFunction, str(GONE)),
    (lambda r: r.lifecycle.set_num_vfs(PF, 8, CountOptions(), WHO), NumVfsRejected, str(PF)),
    (lambda r: r.lifecycle.set_num_vfs(PF, 4, CountOptions(), WHO), NumVfsRejected, str(PF)),
    (lambda r: r.lifecycle.set_num_vfs(VFS[0], 1, CountOptions(), WHO), InvalidArgument, str(PF)),
    (lambda r: r.lifecycle.set_num_vfs(PF, 3, CountOptions(driver="x/y"), WHO), InvalidArgument, "x/y"),
    (lambda r: r.lifecycle.bind(GONE, "vfio-pci", False, WHO), NoSuchFunction, str(GONE)),
    (lambda r: r.lifecycle.bind(VFS[0], "nonsense", False, WHO), InvalidArgument, "nonsense"),
    (lambda r: r.lifecycle.bind(VFS[0], "nvme", False, WHO), BindFailed, "modprobe nvme"),
    (lambda r: r.lifecycle.bind(PF, "vfio-pci", True, WHO), InUse, str(PF)),
    (lambda r: r.lifecycle.bind_vfs(OTHER_PF, "vfio-pci", False, WHO), InvalidArgument, str(OTHER_PF)),
    (lambda r: r.lifecycle.bind_vfs(VFS[0], "vfio-pci", False, WHO), InvalidArgument, str(PF)),
    (lambda r: r.lifecycle.unbind(GONE, False, WHO), NoSuchFunction, str(GONE)),
    (lambda r: r.lifecycle.unbind(PF, False, WHO), InUse, str(PF)),
    (lambda r: r.lifecycle.reset(PF, False, WHO), InUse, str(PF)),
    (lambda r: r.lifecycle.reset(GONE, False, WHO), NoSuchFunction, str(GONE)),
    (lambda r: r.lifecycle.reset(VFS[2], False, WHO), NotSupported, str(VFS[2])),
    (lambda r: r.lifecycle.remove(VFS[0], False, WHO), InvalidArgument, str(PF)),
    (lambda r: r.lifecycle.remove(GONE, False, WHO), NoSuchFunction, str(GONE)),
]


@pytest.mark.parametrize(("verb", "error", "part"), AT_ONCE)
def test_refused_at_once(verb: Callable[[Rules], Job], error: type[SriovdError], part: str) -> None:
    async def test() -> None:
        rules = await make_rules(3)
        rules.host.driver_states["nvme"] = DriverState.NOT_LOADED
        rules.kernel.functions[VFS[2]] = replace(rules.kernel.functions[VFS[2]], reset_methods=())
        await rules.look()
        with pytest.raises(SriovdError) as refusal:
            verb(rules)
        assert type(refusal.value) is error
        assert part in str(refusal.value)
        assert refusal.value.hint
        assert (rules.host.scripts, list(rules.jobs.running)) == ([], [])

    run_async(test())
