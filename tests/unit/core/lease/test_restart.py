"""A daemon is killed in every state of a lease, and the next one goes on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from sriovd.backend.base import Fault
from sriovd.core.errors import BackendFailed, NoSuchFunction, PoolExhausted, ResetFailed, Stuck
from sriovd.core.lease.cdi import cdi_filename
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState

from .leasehost import ALICE, BOB, IGB, QEMU, VF0, VF1, World, on_host, until, world

PREPARING, ACTIVE, ABSENT, RELEASING, CLEANING, RELEASED, FAILED = LeaseState
AT_VF0 = Wish(address=VF0)


async def never(*_: object) -> None:
    await asyncio.get_running_loop().create_future()


def writes(host: World) -> int:
    with sqlite3.connect(host.places.state) as database:
        return int(database.execute("SELECT count(*) FROM intents").fetchone()[0])


@on_host
async def test_while_it_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as host:
        monkeypatch.setattr(host.engine.work, "prepare", never)
        lease = await host.leases.lease(ALICE, "vm", AT_VF0, "vfio-pci")
        await host.restart()
        assert (await host.leases.wait_begun(lease.number)).state is ACTIVE
        assert host.backend.group_owners == {host.group(): ALICE}
        assert (await host.lend(BOB)).number == lease.number + 1


@on_host
async def test_an_active_one_is_left_as_it_is(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        before, documents, owners = writes(host), host.documents(), dict(host.backend.group_owners)
        host.seen.clear()
        await host.restart()
        assert host.seen == {lease.number: [ACTIVE]}
        assert (writes(host), host.documents(), host.backend.group_owners) == (before, documents, owners)
        with pytest.raises(PoolExhausted):
            await host.lend(BOB, wish=AT_VF0)
        await host.leases.release(lease.number, force=False)
        assert (host.backend.group_owners, host.documents(), host.remembered()) == ({}, {}, {})


@on_host
async def test_what_an_active_one_has_lost_is_handed_over_again(tmp_path: Path) -> None:
    """A daemon was killed while it opened the group, somebody has emptied the directory of CDI documents."""
    async with world(tmp_path) as host:
        await host.lend(wish=AT_VF0)
        documents = host.documents()
        host.backend.take_back(host.group())
        for name in documents:
            (Path(host.places.cdi) / name).unlink()
        await host.restart()
        await until(lambda: host.backend.group_owners == {host.group(): ALICE})
        await until(lambda: host.documents() == documents)


@pytest.mark.parametrize("kept", [True, False])
@on_host
async def test_one_whose_owner_died_meanwhile_ends(tmp_path: Path, kept: bool) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0, held_by_descriptor=True)
        other = await host.lend(wish=Wish(address=VF1))
        await host.restart(frozenset({lease.number}) if kept else frozenset())
        if kept:
            assert host.state(lease.number) is ACTIVE
        else:
            await host.until_state(lease.number, None)
        assert host.state(other.number) is ACTIVE


@on_host
async def test_while_the_vf_is_not_there(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        await host.set_num_vfs(0, force=True)
        await host.until_state(lease.number, ABSENT)
        await until(lambda: not host.documents())
        await host.restart()
        assert host.state(lease.number) is ABSENT
        await host.set_num_vfs(2)
        await host.until_state(lease.number, ACTIVE)


@pytest.mark.parametrize("there", [True, False])
@on_host
async def test_a_vf_that_went_while_nobody_looked(tmp_path: Path, there: bool) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        await host.crash()
        host.backend.kernel.write(f"bus/pci/devices/{IGB}/sriov_numvfs", "0")
        if there:
            host.backend.kernel.write(f"bus/pci/devices/{IGB}/sriov_numvfs", "2")
        await host.begin()
        await host.until_state(lease.number, ACTIVE if there else ABSENT)
        if there:
            assert host.vf().generation == lease.generation + 1 == host.leases.all()[0].generation
            assert host.vf().facts.driver == "vfio-pci"
        else:
            await until(lambda: not host.documents())


@on_host
async def test_an_absent_one_whose_vf_is_the_same_after_all(tmp_path: Path) -> None:
    """It could not be read for a moment, and that was when the daemon died."""
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.inventory.drop(VF0)
        await until(lambda: not host.documents())
        await host.restart()
        await host.until_state(lease.number, ACTIVE)
        assert host.vf().generation == lease.generation
        assert len(host.documents()) == 1


@on_host
async def test_a_lease_of_a_former_boot_is_prepared_again(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        held = await host.lend(wish=Wish(address=VF1), held_by_descriptor=True)
        await host.crash()
        again = World(tmp_path / "boot")
        again.places = host.places
        await again.begin()
        assert (again.state(lease.number), again.documents()) == (ABSENT, host.documents())
        await again.until_state(held.number, None)
        await again.set_num_vfs(2)
        await again.until_state(lease.number, ACTIVE)
        assert again.vf().generation == lease.generation + 1
        assert list(again.documents()) == [cdi_filename(lease.number)]
        await again.end()
        await host.begin()


@on_host
async def test_while_it_is_waited_for_whoever_holds_it_open(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.open_device(VF0, QEMU)
        release = asyncio.create_task(host.leases.release(lease.number, force=True))
        await until(lambda: "qemu" in host.reasons[lease.number][-1])
        await host.restart()
        assert release.cancelled()
        await until(lambda: "qemu" in host.reasons[lease.number][-1])
        assert (host.state(lease.number), host.backend.group_owners) == (RELEASING, {})
        host.backend.close_device(VF0)
        await host.until_state(lease.number, None)
        assert host.vf().facts.driver != "vfio-pci"


@pytest.mark.parametrize("opened", [True, False])
@on_host
async def test_while_it_is_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: bool) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        monkeypatch.setattr(host.engine.work, "clean", never)
        release = asyncio.create_task(host.leases.release(lease.number, force=False))
        await host.until_state(lease.number, CLEANING)
        await until(lambda: json.loads(_record(host))["state"] == "cleaning")
        if opened:
            host.backend.open_device(VF0, QEMU)
        await host.restart()
        assert release.cancelled()
        if opened:
            await until(lambda: "qemu" in host.reasons[lease.number][-1])
            assert host.vf().facts.driver == "vfio-pci"
            host.backend.close_device(VF0)
        await host.until_state(lease.number, None)
        assert host.vf().facts.driver != "vfio-pci"


def _record(host: World) -> str:
    with sqlite3.connect(host.places.state) as database:
        return str(database.execute("SELECT record FROM leases").fetchone()[0])


@on_host
async def test_when_it_is_over_but_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        monkeypatch.setattr(host.engine.store, "forget_lease", never)
        release = asyncio.create_task(host.leases.release(lease.number, force=False))
        await host.until_state(lease.number, RELEASED)
        await until(lambda: json.loads(_record(host))["state"] == "released")
        assert not release.done()
        await host.restart()
        await host.until_state(lease.number, None)
        assert (await host.stored(), host.remembered()) == ([], {})
        assert (await host.lend()).number == lease.number + 1


@on_host
async def test_a_failed_one_stays_quarantined_and_says_why_for_ever(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        host.backend.inject_fault(Fault(verb="reset", address=VF0, errno=5))
        with pytest.raises(ResetFailed):
            await host.leases.release(lease.number, force=False)
        failed = host.leases.get(lease.number)
        quarantine = host.vf().quarantine
        for _ in range(3):
            await host.restart()
            await until(lambda: host.vf().quarantine)
            assert (host.leases.get(lease.number), host.vf().quarantine) == (failed, quarantine)
            with pytest.raises(PoolExhausted):
                await host.lend(BOB, wish=AT_VF0)
        host.backend.clear_faults()
        await host.leases.release(lease.number, force=False)
        assert host.vf().quarantine == ""


@on_host
async def test_documents_of_leases_that_are_over_are_swept(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        await host.crash()
        directory = Path(host.places.cdi)
        strangers = {"nvidia.json", "sriovd.org-vf_lease-0.json", "sriovd.org-vf_lease-x.json"}
        ours = {cdi_filename(4711), cdi_filename(2**62), f"{cdi_filename(lease.number)}.half"}
        for name in strangers | ours:
            (directory / name).write_text("{}")
        await host.begin()
        assert set(host.documents()) == {*strangers, cdi_filename(lease.number)}


@on_host
async def test_a_record_that_makes_no_sense_stops_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        await host.engine.store.put_lease(99, {"number": 99})
        await host.restart()
        assert [each.number for each in host.leases.all()] == [lease.number]
        assert await host.stored() == [lease.number, 99]
        assert (await host.lend()).number == 100


@on_host
async def test_a_generation_is_counted_over_restarts(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        first = host.vf().generation
        await host.restart()
        assert host.vf().generation == first
        await host.set_num_vfs(0)
        await host.set_num_vfs(2)
        await host.restart()
        assert host.vf().generation == first + 1
        with pytest.raises(NoSuchFunction, match=f"another VF now: generation {first + 1}"):
            host.inventory.get(VF0, first)
        assert host.inventory.get(VF0, first + 1) == host.inventory.get(VF0)


@on_host
async def test_a_kill_at_any_moment_loses_no_vf(tmp_path: Path) -> None:
    """However far it came: afterwards the lease is there and can be ended, or it never was."""
    for turns in range(0, 120, 7):
        directory = tmp_path / str(turns)
        directory.mkdir()
        async with world(directory) as host:
            task = asyncio.create_task(_live(host))
            for _ in range(turns):
                await asyncio.sleep(0)
            await host.restart()
            await asyncio.wait({task})
            for lease in host.leases.all():
                await host.leases.release(lease.number, force=False)
            assert (host.remembered(), host.backend.group_owners, host.documents()) == ({}, {}, {})
            assert (host.vf().quarantine, host.vf().facts.driver) == ("", "")
            assert await host.stored() == []


async def _live(host: World) -> None:
    lease = await host.lend(wish=AT_VF0)
    await host.leases.release(lease.number, force=False)


@on_host
async def test_what_cannot_be_swept_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as host:
        await host.crash()
        Path(host.places.cdi).write_text("a file where the directory should be")
        await host.begin()
        with pytest.raises(BackendFailed, match="could not be handed over"):
            await host.lend(wish=AT_VF0)


@on_host
async def test_while_its_write_hangs(tmp_path: Path) -> None:
    """The killed daemon's helper is still in the kernel: the lease waits for it, and has not failed."""
    async with world(tmp_path) as host:
        host.backend.inject_fault(Fault("bind", VF0, hang=True, times=1))
        lease = await host.leases.lease(ALICE, "vm", AT_VF0, "pci-stub")
        await until(lambda: bool(host.engine.jobs.running))
        await until(lambda: any("bind" in run.describe().step for run in host.backend._runs))
        await host.restart()
        with pytest.raises(Stuck):
            host.engine.executor.refuse_stuck(str(IGB.slot))
        assert [each.state for each in host.leases.all()] == [PREPARING]
        host.backend.clear_faults()
        assert (await host.leases.wait_begun(lease.number)).state is ACTIVE
        assert host.engine.inventory.get(VF0).facts.driver == "pci-stub"
