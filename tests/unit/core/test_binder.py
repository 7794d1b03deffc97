"""Binding on a small kernel: all functions, or none of them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from dataclasses import replace

import pytest

from sriovd.backend.base import Holder
from sriovd.backend.steps import Verb
from sriovd.core.errors import (
    BackendFailed,
    BindFailed,
    InUse,
    Quarantined,
    Stuck,
)
from sriovd.core.jobs import Job, JobState
from sriovd.core.lifecycle import CountOptions
from sriovd.core.messages import FIELDS_ATTRIBUTE, Message
from sriovd.pci import PciAddress
from tests.unit.core.minihost import Rules, run_async, settle, until
from tests.unit.core.minikernel import OTHER_PF, PF
from tests.unit.core.verbs import (
    SLOT,
    VFS,
    WHO,
    assert_failed,
    autoprobe,
    bind,
    bind_vfs,
    make_rules,
    outcome,
    state,
)


def test_a_named_driver_the_default_and_none() -> None:
    async def test() -> None:
        rules = await make_rules(1)
        for driver, after in [
            ("vfio-pci", ("vfio-pci", "vfio-pci")), ("default", ("igbvf", "")), ("none", ("", "none")),
        ]:  # fmt: skip
            job = await bind(rules, VFS[0], driver)
            assert outcome(job) == (JobState.DONE, f"Bound VF {VFS[0]} to {driver}.")
            assert state(rules)[VFS[0]] == after

    run_async(test())


@pytest.mark.parametrize("driver", ["igbvf", "default"])
def test_a_driver_that_gives_up_after_its_probe_has_failed_to_bind(driver: str) -> None:
    async def test() -> None:
        rules = await make_rules(2, "vfio-pci")
        job = rules.lifecycle.bind_vfs(PF, driver, False, WHO)
        await until(lambda: rules.kernel.driver(VFS[1]) == "igbvf")
        rules.kernel.functions[VFS[1]] = replace(rules.kernel.functions[VFS[1]], driver="")
        assert_failed(await rules.finish(job), BindFailed, str(VFS[1]))
        assert {rules.kernel.driver(vf) for vf in VFS[:2]} == {"vfio-pci"}
        assert rules.inventory.get(VFS[1]).facts.driver == "vfio-pci"

    run_async(test())


def test_a_bound_function_writes_nothing() -> None:
    async def test() -> None:
        rules = await make_rules(7, "vfio-pci")
        assert (
            outcome(await bind(rules, VFS[0], "vfio-pci"))[1]
            == f"Unchanged: VF {VFS[0]} already on vfio-pci."
        )
        assert outcome(await bind_vfs(rules, "vfio-pci"))[1] == "Unchanged: 7 functions already on vfio-pci."
        assert outcome(await bind(rules, PF, "default"))[1] == f"Unchanged: PF {PF} already on default."
        assert rules.host.scripts == []

    run_async(test())


def test_only_those_that_are_not_bound_yet_are_written_to() -> None:
    async def test() -> None:
        rules = await make_rules(7, "vfio-pci")
        await bind(rules, VFS[2], "pci-stub")
        rules.kernel.writes.clear()
        job = await bind_vfs(rules, "vfio-pci")
        assert outcome(job) == (JobState.DONE, f"Bound VF {VFS[2]} to vfio-pci.")
        assert all(str(VFS[2]) in write for write in rules.kernel.writes)

    run_async(test())


@pytest.mark.parametrize("verb", [Verb.SET_DRIVER_OVERRIDE, Verb.UNBIND, Verb.BIND])
@pytest.mark.parametrize("position", [0, 3, 6])
def test_one_bind_that_fails_puts_all_back(verb: Verb, position: int) -> None:
    async def test() -> None:
        rules = await make_rules(7, "igbvf")
        rules.kernel.overrides[VFS[1]] = "igbvf"
        before = state(rules)
        rules.kernel.failures[verb, VFS[position]] = errno.EIO
        job = rules.lifecycle.bind_vfs(PF, "vfio-pci", False, WHO)
        await until(lambda: any(f"{verb} {VFS[position]}" in write for write in rules.kernel.writes))
        del rules.kernel.failures[verb, VFS[position]]  # one failure is enough; undoing must work
        assert_failed(await rules.finish(job), BindFailed, "EIO", "All 7 functions are as they were.")
        assert state(rules) == before
        assert not any(each.quarantine for each in rules.inventory.functions.values())

    run_async(test())


def test_a_driver_that_takes_nobody_leaves_the_original_one_and_the_override() -> None:
    async def test() -> None:
        rules = await make_rules(1, "vfio-pci")
        rules.kernel.overrides[VFS[0]] = "vfio-pci"
        before = state(rules)
        rules.kernel.drivers.remove("igbvf")
        assert_failed(await bind(rules, VFS[0], "default"), BindFailed, str(VFS[0]), "No loaded driver took")
        assert state(rules) == before

    run_async(test())


def test_what_cannot_be_put_back_is_quarantined_and_told(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        rules = await make_rules(7, "igbvf")
        before = state(rules)
        rules.kernel.failures[Verb.BIND, VFS[3]] = errno.ENODEV
        job = await bind_vfs(rules, "vfio-pci")
        assert_failed(job, BindFailed, str(VFS[3]), f"Could not be put back and is quarantined: {VFS[3]}.")
        assert "as they were" not in job.outcome
        quarantined = {each.address: each.quarantine for each in rules.inventory.functions.values()}
        assert [address for address, reason in quarantined.items() if reason] == [VFS[3]]
        assert "igbvf did not take" in quarantined[VFS[3]]
        rest = [PF, OTHER_PF, *VFS[:3], *VFS[4:]]
        assert {each: state(rules)[each] for each in rest} == {each: before[each] for each in rest}
        await check_out_of_service_until_bound(rules, VFS[3])

    run_async(test())
    fields = [getattr(record, FIELDS_ATTRIBUTE, {}) for record in caplog.records]
    assert {"MESSAGE_ID": Message.QUARANTINED.value, "SRIOVD_ADDRESS": str(VFS[3])} in fields


async def check_out_of_service_until_bound(rules: Rules, address: PciAddress) -> None:
    with pytest.raises(Quarantined, match=str(address)):
        rules.lifecycle.reset(address, False, WHO)
    rules.kernel.failures.clear()
    assert (await bind(rules, address, "igbvf")).state is JobState.DONE
    assert rules.inventory.get(address).quarantine == ""


def test_an_override_that_cannot_be_put_back_is_reason_enough() -> None:
    async def test() -> None:
        rules = await make_rules(1)
        rules.kernel.overrides[VFS[0]] = "none"
        rules.kernel.failures[Verb.BIND, VFS[0]] = errno.ENODEV
        job = rules.lifecycle.bind(VFS[0], "vfio-pci", False, WHO)
        await until(lambda: rules.kernel.overrides[VFS[0]] == "vfio-pci")
        rules.kernel.failures[Verb.SET_DRIVER_OVERRIDE, VFS[0]] = errno.EIO
        assert_failed(await rules.finish(job), BindFailed, f"is quarantined: {VFS[0]}.")
        assert "EIO" in rules.inventory.get(VFS[0]).quarantine

    run_async(test())


def test_default_opens_a_quiet_pf_and_closes_it_again() -> None:
    async def test() -> None:
        rules = await make_rules(3, autoprobe=0)
        assert (await bind_vfs(rules, "default")).state is JobState.DONE
        assert {rules.kernel.driver(vf) for vf in VFS[:3]} == {"igbvf"}
        assert not autoprobe(rules)
        assert rules.kernel.writes[0] == f"set-autoprobe {PF} 1"

    run_async(test())


@pytest.mark.parametrize("misfortune", ["cancel", "cancel at the last", "failure", "death"])
def test_a_quiet_pf_is_closed_again_whatever_happens(misfortune: str) -> None:
    async def test() -> None:
        rules = await make_rules(7, autoprobe=0)
        before = state(rules)
        if misfortune == "failure":
            rules.kernel.failures[Verb.PROBE, VFS[3]] = errno.EIO
        if misfortune == "death":
            rules.host.deaths.add((Verb.PROBE, VFS[3]))
        job = rules.lifecycle.bind_vfs(PF, "default", False, WHO)
        await until(lambda: rules.kernel.driver(VFS[6 if "last" in misfortune else 1]) == "igbvf")
        if "cancel" in misfortune:
            job.cancel()
        await rules.finish(job)
        assert job.state is (JobState.CANCELLED if "cancel" in misfortune else JobState.FAILED)
        assert not autoprobe(rules)
        assert state(rules) == before

    run_async(test())


def test_cancelled_in_the_middle_all_is_put_back() -> None:
    async def test() -> None:
        rules = await make_rules(7, "igbvf")
        before = state(rules)
        job = rules.lifecycle.bind_vfs(PF, "vfio-pci", False, WHO)
        await until(lambda: rules.kernel.driver(VFS[3]) == "vfio-pci")
        job.cancel()
        await rules.finish(job)
        assert outcome(job)[0] is JobState.CANCELLED
        assert "what was bound is unbound again" in job.outcome
        assert state(rules) == before
        assert not any("vfio-pci" in write for write in rules.kernel.writes if str(VFS[6]) in write)
        undone = [
            write for write in rules.kernel.writes if write.startswith("unbind") and "vfio-pci" in write
        ]
        assert undone == [f"unbind {vf} vfio-pci" for vf in reversed(VFS[: len(undone)])]

    run_async(test())


def test_cancelled_in_the_queue_nothing_is_written() -> None:
    async def test() -> None:
        rules = await make_rules(1)
        rules.host.hangs[Verb.RESET, PF] = asyncio.Event()
        first = rules.lifecycle.reset(PF, True, WHO)
        second = rules.lifecycle.bind(VFS[0], "vfio-pci", False, WHO)
        await until(lambda: first.state is JobState.RUNNING)
        assert second.state is JobState.QUEUED
        second.cancel()
        rules.host.hangs.pop((Verb.RESET, PF)).set()
        await rules.finish(second)
        assert (first.state, second.state) == (JobState.DONE, JobState.CANCELLED)
        assert rules.kernel.driver(VFS[0]) == ""

    run_async(test())


def test_a_helper_that_dies_leaves_what_can_be_known_as_it_was() -> None:
    async def test() -> None:
        rules = await make_rules(7, "igbvf")
        before = state(rules)
        rules.host.deaths.add((Verb.UNBIND, VFS[3]))
        assert_failed(await bind_vfs(rules, "vfio-pci"), BackendFailed, "the helper was killed")
        assert state(rules) == before

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_stuck_in_the_middle_nothing_more_is_written_and_what_is_bound_is_quarantined() -> None:
    async def test() -> None:
        rules = await make_rules(7, "igbvf")
        gate = rules.host.hangs[Verb.BIND, VFS[3]] = asyncio.Event()
        job = await bind_vfs(rules, "vfio-pci")
        assert_failed(job, Stuck, SLOT, "pci_dev_wait", str(VFS[0]))
        assert rules.inventory.adapters[SLOT].stuck
        assert len(rules.host.scripts) == 1
        quarantined = [each.address for each in rules.inventory.functions.values() if each.quarantine]
        assert sorted(quarantined) == VFS[:3]
        await check_only_that_adapter_refuses(rules)
        gate.set()
        await until(lambda: not rules.inventory.adapters[SLOT].stuck)
        await settle()
        assert [rules.kernel.driver(vf) for vf in VFS[4:]] == ["igbvf"] * 3, "it went on behind our back"

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_stuck_before_anything_was_changed_quarantines_nobody_and_promises_nothing() -> None:
    async def test() -> None:
        rules = await make_rules(7, "igbvf")
        rules.host.hangs[Verb.UNBIND, VFS[0]] = asyncio.Event()
        job = await bind_vfs(rules, "vfio-pci")
        assert_failed(job, Stuck, SLOT)
        assert "as they were" not in job.outcome
        assert not any(each.quarantine for each in rules.inventory.functions.values())

    run_async(test())


async def check_only_that_adapter_refuses(rules: Rules) -> None:
    verbs: list[Callable[[], Job]] = [
        lambda: rules.lifecycle.reset(PF, True, WHO),
        lambda: rules.lifecycle.bind(VFS[5], "pci-stub", False, WHO),
        lambda: rules.lifecycle.set_num_vfs(PF, 0, CountOptions(), WHO),
    ]
    for verb in verbs:
        with pytest.raises(Stuck, match=SLOT):
            verb()
    other = rules.lifecycle.set_num_vfs(OTHER_PF, 3, CountOptions(), WHO)
    assert await other.wait(5_000_000)
    assert other.state is JobState.DONE


def test_a_vf_in_use_is_not_bound_to_another_driver_unless_forced() -> None:
    async def test() -> None:
        rules = await make_rules(7, "vfio-pci")
        rules.host.holders[VFS[3]] = (Holder(1234, "qemu"),)
        for job in (await bind(rules, VFS[3], "none"), await bind_vfs(rules, "pci-stub")):
            assert_failed(job, InUse, "qemu (pid 1234)")
        unbound = await rules.finish(rules.lifecycle.unbind(VFS[3], False, WHO))
        assert_failed(unbound, InUse, "qemu (pid 1234)")
        assert rules.host.scripts == []
        assert (await bind(rules, VFS[3], "none", force=True)).state is JobState.DONE

    run_async(test())
