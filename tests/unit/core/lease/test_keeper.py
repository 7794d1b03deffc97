"""Leases from the first to the last state, on a host that works and on one that does not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sriovd.backend.base import Fault
from sriovd.core import execute
from sriovd.core.errors import (
    BackendFailed,
    BindFailed,
    Cancelled,
    InUse,
    LockedOut,
    NotSupported,
    PoolExhausted,
    ResetFailed,
    Stuck,
)
from sriovd.core.lease import life
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState
from sriovd.pci import PciAddress
from tests.unit.core.disk import taking_nothing

from .leasehost import ALICE, BOB, IGB, QEMU, VF0, on_host, until, world

PREPARING, ACTIVE, ABSENT, RELEASING, CLEANING, RELEASED, FAILED = LeaseState
AT_VF0 = Wish(address=VF0)
LIFE = [PREPARING, ACTIVE, RELEASING, CLEANING, RELEASED]


def fail(verb: str, address: PciAddress | None = VF0, errno: int = 5, times: int = 0) -> Fault:
    return Fault(verb=verb, address=address, errno=errno, times=times)


@on_host
async def test_a_lease_is_prepared_handed_over_and_taken_back(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        home = host.vf().facts.driver
        lease = await host.lend(wish=AT_VF0)
        assert (lease.state, host.vf().facts.driver) == (ACTIVE, "vfio-pci")
        assert host.backend.group_owners == {host.group(): ALICE}
        assert len(host.documents()) == 1
        assert await host.stored() == [lease.number]
        await host.leases.release(lease.number, force=False)
        assert host.seen[lease.number] == LIFE
        assert (host.vf().facts.driver, host.backend.group_owners, host.documents()) == (home, {}, {})
        assert (host.ended, await host.stored(), host.remembered()) == ([lease.number], [], {})


@on_host
async def test_the_next_lease_may_follow_at_once(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        for number in (1, 2, 3):
            assert (await host.lend(wish=AT_VF0)).number == number
            with pytest.raises(PoolExhausted):
                await host.lend(wish=AT_VF0)
            await host.leases.release(number, force=False)


@on_host
async def test_release_is_refused_while_somebody_holds_it_open(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.open_device(VF0, QEMU)
        with pytest.raises(InUse, match=r"Lease 1.*held open.*qemu \(pid 4711\)\.") as refused:
            await host.leases.release(lease.number, force=False)
        assert "force" in refused.value.hint
        assert (host.state(lease.number), host.backend.group_owners) == (ACTIVE, {host.group(): ALICE})
        host.backend.close_device(VF0)
        await host.leases.release(lease.number, force=False)


@on_host
async def test_whoever_asks_twice_is_answered_twice(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.open_device(VF0, QEMU)
        asked = [host.leases.release(lease.number, force=False) for _ in range(3)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [InUse] * 3
        host.backend.close_device(VF0)
        await asyncio.gather(*(host.leases.release(lease.number, force=False) for _ in range(3)))
        assert host.remembered() == {}


@on_host
async def test_forced_it_is_taken_back_and_cleaned_when_they_close_it(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.open_device(VF0, QEMU)
        release = asyncio.create_task(host.leases.release(lease.number, force=True))
        await until(lambda: "qemu" in host.reasons[lease.number][-1])
        assert (host.state(lease.number), host.backend.group_owners) == (RELEASING, {})
        assert host.documents() == {}
        with pytest.raises(LockedOut, match="releasing"):
            await host.leases.open_group(host.leases.all()[0])
        assert not release.done()
        host.backend.close_device(VF0)
        await release
        assert host.vf().facts.driver != "vfio-pci"


@on_host
async def test_an_owner_that_dies_while_it_is_open_is_waited_for(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0, held_by_descriptor=True)
        host.backend.open_device(VF0, QEMU)
        host.leases.owner_gone(lease.number)
        await until(lambda: "qemu" in host.reasons[lease.number][-1])
        with pytest.raises(PoolExhausted):
            await host.lend(BOB, wish=AT_VF0)
        host.backend.close_device(VF0)
        await host.until_state(lease.number, None)
        assert (await host.lend(BOB, wish=AT_VF0)).uid == BOB


@on_host
async def test_a_descriptor_ends_only_what_it_holds(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend()
        host.leases.owner_gone(lease.number)
        host.leases.owner_gone(4711)
        assert host.seen[lease.number] == [PREPARING, ACTIVE]


@on_host
async def test_a_vf_that_is_made_again_is_prepared_again(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        generation = host.vf().generation
        await host.set_num_vfs(0, force=True)
        await host.until_state(lease.number, ABSENT)
        await until(lambda: not host.documents())
        assert host.backend.group_owners == {}
        with pytest.raises(LockedOut, match="absent"):
            await host.leases.open_group(host.leases.all()[0])
        await host.set_num_vfs(2)
        await host.until_state(lease.number, ACTIVE)
        assert host.vf().generation == generation + 1 == host.leases.all()[0].generation
        assert (host.vf().facts.driver, host.backend.group_owners) == ("vfio-pci", {host.group(): ALICE})
        await host.leases.release(lease.number, force=False)
        assert host.remembered() == {}


@on_host
async def test_a_lease_on_nothing_ends_at_once(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        await host.set_num_vfs(0, force=True)
        await host.leases.release(lease.number, force=False)
        assert host.remembered() == {}


@on_host
async def test_a_vf_that_vanishes_under_a_release_ends_it(tmp_path: Path) -> None:
    """The request was about to be looked at when the VF went: it is not forgotten."""
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        release = asyncio.create_task(host.leases.release(lease.number, force=False))
        await asyncio.sleep(0)
        host.inventory.drop(VF0)
        await release
        assert host.remembered() == {}


@on_host
async def test_a_vf_that_vanishes_while_it_is_held_open_is_waited_for_no_more(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.open_device(VF0, QEMU)
        release = asyncio.create_task(host.leases.release(lease.number, force=True))
        await until(lambda: lease.number in host.leases._lives._watches)
        host.inventory.drop(VF0)
        await release
        assert host.remembered() == {}


@on_host
async def test_what_cannot_be_prepared_is_free_again_and_says_why(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        host.backend.inject_fault(fail("bind", errno=19))
        with pytest.raises(BindFailed):
            await host.lend(wish=AT_VF0)
        host.backend.clear_faults()
        assert (host.remembered(), host.vf().quarantine) == ({}, "")
        assert host.seen[1] == [PREPARING, FAILED, *LIFE[2:]]
        assert (await host.lend(wish=AT_VF0)).state is ACTIVE


@on_host
async def test_what_can_be_neither_prepared_nor_cleaned_is_quarantined(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        host.backend.inject_fault(fail("bind", errno=19))
        host.backend.inject_fault(fail("reset"))
        with pytest.raises(BindFailed) as failed:
            await host.lend(wish=AT_VF0)
        assert "quarantined" in failed.value.hint
        assert (host.state(1), "lease 1" in host.vf().quarantine) == (FAILED, True)
        host.backend.clear_faults()
        await host.leases.release(1, force=False)
        assert (host.vf().quarantine, host.remembered()) == ("", {})


@on_host
async def test_what_cannot_be_cleaned_is_nobodys_and_release_says_so(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.inject_fault(fail("reset"))
        asked = [host.leases.release(lease.number, force=False) for _ in range(2)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(answer) for answer in answers} == {ResetFailed}
        assert (host.state(lease.number), host.backend.group_owners) == (FAILED, {})
        assert host.reasons[lease.number][-1] in host.vf().quarantine
        with pytest.raises(PoolExhausted):
            await host.lend(BOB, wish=AT_VF0)
        host.backend.clear_faults()
        await host.leases.release(lease.number, force=False)
        assert host.vf().quarantine == ""


@on_host
async def test_another_reason_for_quarantine_is_not_lifted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease ends while its VF is away, and the next VF at the place has a trouble of its own."""
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        await host.set_num_vfs(0, force=True)
        forget, gate = host.engine.store.forget_lease, asyncio.Event()

        async def forget_later(number: int) -> None:
            await gate.wait()
            await forget(number)

        monkeypatch.setattr(host.engine.store, "forget_lease", forget_later)
        release = asyncio.create_task(host.leases.release(lease.number, force=False))
        await host.set_num_vfs(2)
        host.inventory.quarantine(VF0, "somebody's reason")
        gate.set()
        await release
        assert host.vf().quarantine == "somebody's reason"


@on_host
async def test_a_vf_without_a_reset_is_not_given_to_the_next(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.kernel.write(f"bus/pci/devices/{VF0}/reset_method", "\n")
        host.engine.picture.look_at(VF0)
        with pytest.raises(NotSupported, match="no reset method"):
            await host.leases.release(lease.number, force=False)
        assert host.state(lease.number) is FAILED


@pytest.mark.parametrize("verb", ["prepare", "clean"])
@on_host
async def test_a_stuck_adapter_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr(execute, "_STEP_DEADLINE_SEC", {})
    monkeypatch.setattr(execute, "_OTHER_STEP_DEADLINE_SEC", 0.1)
    async with world(tmp_path) as host:
        host.engine.executor.on_stuck = host.inventory.set_stuck
        if verb == "clean":
            await host.lend(wish=AT_VF0)
        host.backend.inject_fault(Fault(verb="reset" if verb == "clean" else "bind", address=VF0, hang=True))
        with pytest.raises(Stuck):
            await (host.leases.release(1, force=False) if verb == "clean" else host.lend(wish=AT_VF0))
        assert host.state(1) is FAILED
        with pytest.raises(PoolExhausted):
            await host.lend(BOB, wish=Wish(pf=IGB))


@on_host
async def test_released_while_it_is_prepared(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.leases.lease(ALICE, "vm", AT_VF0, "vfio-pci")
        begun = asyncio.create_task(host.leases.wait_begun(lease.number))
        await host.leases.release(lease.number, force=False)
        with pytest.raises(Cancelled):
            await begun
        assert (host.vf().facts.driver, host.remembered()) == ("", {})


@on_host
async def test_a_caller_who_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.leases.lease(ALICE, "vm", AT_VF0, "vfio-pci")
        waiting = [asyncio.create_task(host.leases.wait_begun(lease.number)) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        await host.until_state(lease.number, ACTIVE)
        await host.leases.release(lease.number, force=False)
        assert host.remembered() == {}


@on_host
async def test_a_defect_fails_the_lease_and_nothing_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as host:

        async def break_down(*_: object) -> None:
            raise RuntimeError("a defect")

        with monkeypatch.context() as broken:
            broken.setattr(host.engine.work, "prepare", break_down)
            broken.setattr(host.engine.work, "clean", break_down)
            with pytest.raises(BackendFailed, match="a defect of sriovd"):
                await host.lend(wish=AT_VF0)
        await host.leases.release(1, force=False)
        lease = await host.lend(wish=AT_VF0)
        with monkeypatch.context() as broken:
            broken.setattr(host.engine.work, "find_user", break_down)
            with pytest.raises(BackendFailed, match="a defect of sriovd"):
                await host.leases.release(lease.number, force=False)
            assert host.state(lease.number) is ACTIVE
            release = asyncio.create_task(host.leases.release(lease.number, force=True))
            await host.until_state(lease.number, RELEASING)
        await release
        assert host.remembered() == {}


@on_host
async def test_holders_that_cannot_be_asked_are_taken_for_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)

        async def fail_to_ask(*_: object) -> None:
            raise ConnectionError("the helper was killed")

        with monkeypatch.context() as broken:
            broken.setattr(host.backend, "find_holders", fail_to_ask)
            with pytest.raises(BackendFailed, match="helper was killed"):
                await host.leases.release(lease.number, force=False)
            assert host.state(lease.number) is ACTIVE
            release = asyncio.create_task(host.leases.release(lease.number, force=True))
            await until(lambda: "helper was killed" in host.reasons[lease.number][-1])
        await release


@on_host
async def test_a_disk_that_takes_nothing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is done for a lease that is not on disk; the end of one waits, too."""
    monkeypatch.setattr(life, "_STORE_AGAIN_SEC", 0.001)

    def refused_often() -> bool:
        return caplog.text.count("waits for the disk") >= 3

    async with world(tmp_path) as host:
        with taking_nothing(host.engine.store):
            lending = asyncio.create_task(host.lend(wish=AT_VF0))
            await until(refused_often)
            assert (host.vf().facts.driver, host.documents()) == ("", {})
        lease = await lending
        assert (lease.state, await host.stored()) == (ACTIVE, [lease.number])
        caplog.clear()
        with taking_nothing(host.engine.store):
            release = asyncio.create_task(host.leases.release(lease.number, force=False))
            await until(refused_often)
        await release
        assert await host.stored() == []
