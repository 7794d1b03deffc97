"""A daemon killed at every moment of a recovery: the next one ends it as if nothing had been, with the same
VFs, drivers, attributes and leases."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sriovd.backend.base import Severity
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.engine import Engine
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState
from sriovd.core.lifecycle import CountOptions
from tests.simulated.crash import DEADLINE_SEC
from tests.simulated.crash_checks import check_common, is_same, play_at
from tests.simulated.crash_host import PF
from tests.simulated.crash_plays import Act, Plan, Play

pytestmark = pytest.mark.usefixtures("no_pauses")

OWN, LEASED, CONFIGURED = range(3)


async def prepare(engine: Engine) -> None:
    """Three VFs: one is the host's and does DMA, one is leased, one has attributes of its own."""
    job = engine.lifecycle.set_num_vfs(PF, 3, CountOptions("vfio-pci"), "test")
    assert await job.wait(10_000_000)
    vfs = engine.inventory.vfs_of(PF)
    assert await engine.lifecycle.bind(vfs[OWN], "igbvf", False, "test").wait(10_000_000)
    wish = VfAttributes(mac="02:00:00:00:00:22", vlan=22, trust=True)
    assert await engine.lifecycle.set_attributes(vfs[CONFIGURED], wish, "test").wait(10_000_000)
    lease = await engine.leases.lease(1000, "vm", Wish(address=vfs[LEASED]), "vfio-pci")
    await engine.leases.wait_begun(lease.number)


def meet(severity: Severity, index: int | None = None, status: int = 0) -> Act:
    """An error of the PF or a VF, and its end."""

    async def act(engine: Engine) -> None:
        address = PF if index is None else engine.inventory.vfs_of(PF)[index]
        seen = asyncio.Event()
        engine.recovery.on_adapter = lambda _slot, standing: seen.set() if standing.freezes else None
        engine.recovery.on_vf = lambda _address, _standing: seen.set()
        simulator = engine.backend.simulator
        assert simulator is not None
        simulator.inject_error(address, severity, status, ())
        async with asyncio.timeout(DEADLINE_SEC):
            await seen.wait()

    return act


PLANS = (
    Plan("fatal", prepare=prepare, act=meet(Severity.FATAL)),
    Plan("nonfatal", prepare=prepare, act=meet(Severity.NONFATAL)),
    Plan("vf", prepare=prepare, act=meet(Severity.NONFATAL, LEASED, 1 << 12)),
)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_killed_at_every_moment(plan: Plan, place: Path) -> None:
    model = play_at(plan, place, None)
    check(model)
    assert not model.rewritten
    assert not model.written_again
    assert len(model.moments) > 5
    print(f"{plan}: {len(model.moments)} moments")
    for moment, name in enumerate(model.moments):
        try:
            seen = play_at(plan, place, moment)
            check_common(seen)
            check(seen)
        except AssertionError as error:
            raise AssertionError(f"killed {name} (moment {moment} of {len(model.moments)})") from error


def check(seen: Play) -> None:
    """All is as at the beginning."""
    assert seen.end.vfs.keys() == seen.start.vfs.keys()
    for place, vf in seen.end.vfs.items():
        old = seen.start.vfs[place]
        assert (vf.driver, vf.override) == (old.driver, old.override), place
        assert is_same(vf.attributes, old.attributes), place
        assert vf.device.reset_methods == ("flr",), place
    assert seen.end.vfs[PF, OWN].device.model.config_bytes()[4] & 4, "it may do DMA again"
    assert [lease.state for lease in seen.leases] == [LeaseState.ACTIVE]
    (lease,) = seen.leases
    assert lease.generation == seen.functions[seen.end.vfs[PF, LEASED].device.address].generation
    assert seen.owners == {seen.end.vfs[PF, LEASED].device.address: 1000}
    assert seen.end.autoprobe == seen.start.autoprobe
    assert seen.left_over == 0
    assert not any(function.quarantine for function in seen.again.values())
