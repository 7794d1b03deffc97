"""A VF is lent while something is being done to its adapter: nobody gets it before that is over."""

from __future__ import annotations

import asyncio
from pathlib import Path

from sriovd.core.jobs import Job
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState

from .leasehost import ALICE, IGB, VF0, World, on_host, until, world


async def work(host: World, begun: asyncio.Event, goes_on: asyncio.Event) -> None:
    """What a job does that found nobody on the VFs, and is about to destroy or rebind them."""
    job = Job(77, "SetNumVFs", [], "test")
    async with host.engine.workplace.working_on(job, str(IGB.slot)):
        begun.set()
        await goes_on.wait()


@on_host
async def test_its_owner_gets_it_when_the_job_is_over(tmp_path: Path) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()
    async with world(tmp_path) as host:
        await host.lend(wish=Wish(address=VF0))  # so that it is on vfio-pci, and stays there
        (first,) = host.leases.all()
        await host.leases.release(first.number, force=False)
        job = host.engine.lifecycle.bind(VF0, "vfio-pci", False, "test")
        await job.wait(10_000_000)
        busy = asyncio.create_task(work(host, begun, goes_on))
        await begun.wait()
        lease = await host.leases.lease(ALICE, "vm", Wish(address=VF0), "vfio-pci")
        for _ in range(50):
            await asyncio.sleep(0.001)
        assert host.state(lease.number) is LeaseState.PREPARING
        assert host.backend.group_owners == {}
        goes_on.set()
        await busy
        await until(lambda: host.state(lease.number) is LeaseState.ACTIVE)
        assert host.backend.group_owners == {host.group(): ALICE}
