"""The open group that an owner asks for: once, in time, and for nobody whose lease has ended."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from sriovd.core.errors import InUse, LockedOut, Stuck
from sriovd.core.lease.choose import Wish

from .leasehost import ALICE, VF0, on_host, world

AT_VF0 = Wish(address=VF0)


@on_host
async def test_after_its_group_was_opened_the_owner_has_the_node_again(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        os.close(await host.leases.open_group(lease))
        assert host.backend.group_owners == {host.group(): ALICE}


@on_host
async def test_a_group_that_does_not_open_is_told_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(group: int, timeout_sec: float) -> int:
        host.backend.take_back(group)
        raise TimeoutError(f"not within {timeout_sec} s")

    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        monkeypatch.setattr(host.backend, "open_group", hang)
        with pytest.raises(Stuck, match="resetting"):
            await host.leases.open_group(lease)
        assert host.backend.group_owners == {host.group(): ALICE}


@on_host
async def test_a_group_is_opened_once_and_for_nobody_who_has_released_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def wait(group: int, _timeout_sec: float) -> int:
        host.backend.take_back(group)
        return await opened

    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        monkeypatch.setattr(host.backend, "open_group", wait)
        first = asyncio.create_task(host.leases.open_group(lease))
        await asyncio.sleep(0)
        with pytest.raises(InUse, match="already"):
            await host.leases.open_group(lease)
        await host.leases.release(lease.number, force=False)
        reader, writer = os.pipe()
        opened.set_result(writer)
        with pytest.raises(LockedOut, match="ended"):
            await first
        assert os.read(reader, 1) == b"", "the descriptor was closed"
        os.close(reader)
        assert host.backend.group_owners == {}


@on_host
async def test_a_group_of_a_vf_that_has_frozen_meanwhile_goes_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had it could open the VF while its recovery destroys it."""
    reader, writer = os.pipe()

    async def freeze(_group: int, _timeout_sec: float) -> int:
        host.leases.is_held = lambda _place: True
        return writer

    async with world(tmp_path) as host:
        lease = await host.lend(wish=AT_VF0)
        monkeypatch.setattr(host.backend, "open_group", freeze)
        with pytest.raises(LockedOut, match="recovered"):
            await host.leases.open_group(lease)
        assert os.read(reader, 1) == b"", "the descriptor was closed"
        os.close(reader)
