"""Who gets a VF, and which; and who is told that he may not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sriovd.core.errors import (
    BindFailed,
    InvalidArgument,
    NoSuchFunction,
    NotOwner,
    PoolExhausted,
    SriovdError,
)
from sriovd.core.lease import keeper
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState
from sriovd.pci import PciAddress

from .leasehost import ALICE, BOB, IGB, QEMU, VF0, VF1, on_host, world

AT_VF0 = Wish(address=VF0)


@pytest.mark.parametrize("driver", ["nosuchdriver", "no such", "", "uio_pci_generic"])
@on_host
async def test_a_driver_that_is_none_takes_no_vf(tmp_path: Path, driver: str) -> None:
    async with world(tmp_path) as host:
        with pytest.raises((InvalidArgument, BindFailed)):
            await host.lend(driver=driver)
        assert (host.seen, host.remembered()) == ({}, {})


@pytest.mark.parametrize("name", ["", "x" * 65, "a\nb", "ä"])
@on_host
async def test_a_name_that_is_none_takes_no_vf(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as host:
        with pytest.raises(InvalidArgument):
            await host.lend(name=name)
        assert host.seen == {}


@on_host
async def test_not_yours_and_not_there_are_the_same_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(ALICE, "vm")
        assert host.leases.require_own(lease.number, ALICE, "vm") == lease
        assert host.leases.require_own(lease.number, 0, "vm", trusted=True) == lease
        others = [(lease.number, BOB, "vm"), (lease.number, ALICE, "other"), (lease.number + 1, ALICE, "vm")]
        texts = set()
        for number, uid, name in others:
            with pytest.raises(NotOwner) as refused:
                host.leases.require_own(number, uid, name)
            texts.add(str(refused.value).replace(f"lease {number}", "").replace(f"'{name}'", ""))
        assert len(texts) == 1


@on_host
async def test_at_an_address_another_none_and_no_vf_are_the_same_answer(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(ALICE, "vm", AT_VF0)
        assert host.leases.require_own_at(VF0, ALICE, "vm") == lease
        assert host.leases.require_own_at(VF0, 0, "vm", trusted=True) == lease
        others = [(VF0, BOB), (VF1, ALICE), (IGB, ALICE), (PciAddress(9, 9, 9, 7), ALICE)]
        texts = set()
        for address, uid in others:
            with pytest.raises(NotOwner) as refused:
                host.leases.require_own_at(address, uid, "vm")
            texts.add(str(refused.value).replace(str(address), ""))
        assert len(texts) == 1


@on_host
async def test_a_lease_is_found_where_its_vf_was_until_it_is_elsewhere(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        assert [host.leases.find_at(each) for each in (VF0, VF1, IGB)] == [lease, None, None]
        await host.set_num_vfs(0, force=True)
        await host.until_state(lease.number, LeaseState.ABSENT)
        assert [host.leases.find_at(each) for each in (VF0, VF1)] == [host.leases.get(lease.number), None]
        assert host.leases.describe_lease_of(VF0) == "'vm' (uid 1000, lease 1)"
        await host.set_num_vfs(2)
        await host.until_state(lease.number, LeaseState.ACTIVE)
        elsewhere = replace(host.vf(VF0).facts, address=(there := PciAddress(0, 1, 0x11, 0)), identity=99)
        host.inventory.drop(VF0)
        host.inventory.put(elsewhere)
        assert [bool(host.leases.find_at(each)) for each in (VF0, there)] == [False, True]
        host.inventory.drop(there)
        await host.leases.release(lease.number, force=True)
        assert [host.leases.find_at(each) for each in (VF0, there)] == [None, None]


@on_host
async def test_a_user_has_so_many_leases_and_root_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LEASES_PER_USER", 2)
    async with world(tmp_path, vfs=7) as host:
        await host.lend(ALICE)
        await host.lend(ALICE, "other")
        with pytest.raises(PoolExhausted, match="User 1000 has 2 leases"):
            await host.lend(ALICE)
        await host.lend(BOB)
        for _ in range(3):
            await host.lend(0)
        await host.leases.release(1, force=False)
        await host.lend(ALICE)


@on_host
async def test_a_generation_that_is_over_is_refused(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        old = host.vf().generation
        await host.set_num_vfs(0)
        await host.set_num_vfs(2)
        with pytest.raises(NoSuchFunction, match=f"is another VF now: generation {old + 1}"):
            await host.lend(wish=AT_VF0, generation=old)
        with pytest.raises(InvalidArgument):
            await host.lend(generation=old)
        assert (await host.lend(wish=AT_VF0, generation=old + 1)).generation == old + 1


@on_host
async def test_a_vf_in_use_is_passed_over_and_one_that_goes_meanwhile_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path, vfs=3) as host:
        await (await_bind := host.engine.lifecycle.bind(VF0, "vfio-pci", False, "test")).wait(10_000_000)
        assert await_bind.error is None
        host.backend.open_device(VF0, QEMU)
        find = host.backend.find_holders

        async def find_and_lose(addresses: list[PciAddress]) -> object:
            found = await find(addresses)
            if addresses == [VF1]:
                host.inventory.drop(VF1)
            return found

        monkeypatch.setattr(host.backend, "find_holders", find_and_lose)
        lease = await host.lend(wish=Wish(pf=IGB))
        assert lease.index == 2
        assert not isinstance(lease, SriovdError)
