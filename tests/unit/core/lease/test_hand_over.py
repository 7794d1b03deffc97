"""The VFIO group: given to the owner, and taken back before anything else is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from sriovd.core.errors import (
    BackendFailed,
    IommuGroupNotViable,
)
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState

from .leasehost import ALICE, VF0, VF1, on_host, until, world

AT_VF0 = Wish(address=VF0)
FAILED = LeaseState.FAILED


@on_host
async def test_a_group_that_is_anothers_by_now_is_not_taken_from_him(tmp_path: Path) -> None:
    """The kernel gives the number of a group that is gone to the next."""
    async with world(tmp_path) as host:
        await host.lend(wish=AT_VF0)
        owners = {host.group(): ALICE}
        host.leases._lives._groups[4711] = host.group()
        host.inventory.drop(VF0)
        await until(lambda: not host.documents())
        assert host.backend.group_owners == owners
        del host.leases._lives._groups[4711]


@on_host
async def test_a_group_with_others_in_it_is_not_handed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as host:
        monkeypatch.setattr(host.backend, "list_group", lambda _: (str(VF0), str(VF1)))
        with pytest.raises(IommuGroupNotViable) as refusal:
            await host.lend(wish=AT_VF0)
        assert str(VF1) in refusal.value.inside
        assert str(VF1) not in str(refusal.value), "which may be another tenant's"
        assert (host.backend.group_owners, host.documents(), host.remembered()) == ({}, {}, {})


@on_host
async def test_what_is_not_taken_back_is_not_cleaned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)

        def fail_to_take_back(_: int) -> None:
            raise PermissionError("no")

        with monkeypatch.context() as broken:
            broken.setattr(host.backend, "take_back", fail_to_take_back)
            with pytest.raises(BackendFailed, match="taken back"):
                await host.leases.release(lease.number, force=False)
        assert host.state(lease.number) is FAILED
        await host.leases.release(lease.number, force=False)
        assert host.backend.group_owners == {}
