"""What a recovery waits for, and what gets in its way: processes, hanging writes, releases, unplugs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from unittest.mock import patch

import pytest
from dbus_next.signature import Variant as DbusVariant

from sriovd.backend.steps import Verb
from sriovd.bus.private import PrivateBus
from sriovd.bus.signature import Variant
from tests.simulated.client import (
    ADAPTER,
    IGB0,
    IGB1,
    MANAGER,
    ROOT,
    adapter_path,
    function_path,
    make_options,
)
from tests.simulated.leases import until_leases
from tests.simulated.ward import MANUAL, SLOT, VFS, WHOLE, Ward, until, ward
from tests.unit.bus.support import in_loop

pytestmark = pytest.mark.usefixtures("no_pauses")

HASTY = MANUAL.replace('permission = "manual"', "close-sec = 0")
PATIENT = MANUAL.replace('permission = "manual"', "grace-sec = 3600")


@in_loop
async def test_a_vf_that_is_held_open_is_waited_for(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.hold_open(VFS[3])
        await here.err(severity="fatal")
        text = await here.until_waits(SLOT, VFS[3])
        assert text == f"VF {VFS[3]} to be closed by its user"  # who that is, is for the journal
        assert await here.get(SLOT, "State") == "resetting"
        assert await here.get(VFS[3], "State") == "locked-out"
        refusal = await here.refused("Unfreeze", VFS[3], "", signature="ssa{sv}")
        refusal.check("LockedOut", "for its adapter", "resetting")
        await here.close(VFS[3])
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        assert here.look() == before


@pytest.mark.parametrize("severity", ["nonfatal", "fatal"])
@in_loop
async def test_a_vf_that_nobody_closes(bus: PrivateBus, root: str, severity: str) -> None:
    async with ward(bus.address, root, HASTY) as here:
        await here.client.bind(VFS[6], "pci-stub")  # so that the kernel cannot recover it
        before = here.look()
        here.forget()
        await here.hold_open(VFS[3])
        await here.err(severity=severity)
        await here.until(SLOT, "quarantined")
        await here.until_announced(SLOT, "frozen", "collecting", "resetting", "quarantined")
        reason = await here.get(SLOT, "Reason")
        assert f"VF {VFS[3]} was not closed within 0 s" in reason, reason
        assert "call Lift" in reason, reason
        await here.until_bundles("freeze", "give-up")
        assert await here.get(SLOT, "WaitsFor") == ""
        refusal = await here.refused("Bind", VFS[1], "pci-stub", signature="ssa{sv}")
        refusal.check("Quarantined", SLOT, VFS[3], "Lift")
        await here.close(VFS[3])
        await here.lift(SLOT)
        await here.until_over()
        assert here.look() == before


@asynccontextmanager
async def hanging_reset(here: Ward) -> AsyncIterator[None]:
    """A reset of a VF that does not return, as one of a VF of a dead adapter does not for 70 s."""
    await here.client.inject("reset", VFS[0], hang=True)
    with patch.dict("sriovd.core.execute._STEP_DEADLINE_SEC", {Verb.RESET: 0.2}):
        _, state = await here.client.reset(VFS[0], wait_usec=0)
        assert state == "running"
        yield
        await here.client.simulate("ClearFaults")


async def until_stuck(here: Ward) -> None:
    async def read() -> bool:
        return bool(await here.client.get(adapter_path(SLOT), ADAPTER, "Stuck"))

    await until(read, bool, "a stuck adapter")


@pytest.mark.parametrize("severity", ["nonfatal", "fatal"])
@in_loop
async def test_a_reset_hangs_when_the_error_comes(bus: PrivateBus, root: str, severity: str) -> None:
    """The kernel's walk waits for the device that is being reset, and the recovery for the walk."""
    async with ward(bus.address, root) as here:
        await here.set_attributes(VFS[3], vlan=Variant("u", 33))
        before = here.look()
        async with hanging_reset(here):
            await here.err(severity=severity)
            await until_stuck(here)
            await here.until_waits(SLOT, "the kernel's own recovery")
            assert await here.get(SLOT, "State") == "collecting"
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        assert here.look() == before


@in_loop
async def test_a_reset_hangs_and_no_uevent_tells_of_the_walk(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.hide("uevents")
        async with hanging_reset(here):
            await here.err()
            await until_stuck(here)
            await here.until_waits(SLOT, "a kernel write that has not returned")
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        assert here.look() == before


async def until_queued(here: Ward, job: str, stage: str) -> None:
    await until(
        lambda: here.client.job(job),
        lambda shown: (shown["State"], shown["Stage"]) == ("queued", stage),
        stage,
    )


@pytest.mark.parametrize("severity", ["nonfatal", "fatal"])
@in_loop
async def test_a_vlan_that_is_wished_meanwhile(bus: PrivateBus, root: str, severity: str) -> None:
    async with ward(bus.address, root) as here:
        await here.set_attributes(VFS[2], vlan=Variant("u", 20), trust=Variant("b", True))
        before = here.look()
        async with here.kernel_held_up():
            await here.err(severity=severity)
            await here.until(SLOT, "collecting")
            job, state = await here.set_attributes(VFS[2], wait_usec=0, vlan=Variant("u", 99))
            assert state == "running"
            await until_queued(here, job, "waiting for the recovery of its adapter")
            with pytest.raises(Exception, match="vlan"):
                await here.set_attributes(VFS[2], vlan=Variant("u", 5000))
            assert here.look()[2].attributes == before[2].attributes
        await here.until_over()
        assert await here.client.wait_job(job) == "done"
        after = here.look()
        assert (after[2].attributes["vlan"], after[2].attributes["trust"]) == (99, True)
        assert {**after, 2: None} == {**before, 2: None}


@in_loop
async def test_attributes_are_set_while_the_owner_takes_his_time(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, MANUAL) as here:
        await here.client.lease("vm", address=VFS[2])
        await here.err()
        await here.until(VFS[2], "permitted")
        await here.until(SLOT, "online")
        _, state = await here.set_attributes(VFS[2], vlan=Variant("u", 77))
        assert state == "done"
        assert await here.get(VFS[2], "State") == "permitted"
        assert await here.unfreeze(VFS[2], "vm") == "online"
        assert here.look()[2].attributes["vlan"] == 77
        await here.set_attributes(VFS[2], vlan=Variant("u", 78))
        await here.err(severity="fatal")
        await here.until(VFS[2], "permitted")
        assert here.look()[2].attributes["vlan"] == 78, "a wish of then is not one of now"


async def acquire(here: Ward, vf: str) -> int:
    """The descriptor of a lease."""
    reply = await here.listener.call(
        "Acquire", "sa{sv}", "vm", {"address": DbusVariant("s", vf)}, path=ROOT, interface=MANAGER
    )
    return int(reply.unix_fds[0])


@in_loop
async def test_the_owner_dies_while_his_vf_is_locked_out(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, MANUAL) as here:
        before = here.look()
        fd = await acquire(here, VFS[2])
        await until_leases(here.client, State="active")
        async with here.kernel_held_up():
            await here.err()
            await here.until(VFS[2], "locked-out")
            here.written.clear()
            os.close(fd)
            await until_leases(here.client, State="cleaning")
            assert here.written == [], "nothing is done to it before it is permitted"
        await here.until_over()
        await until_leases(here.client)
        assert here.look() == before


@pytest.mark.parametrize("text", [MANUAL, PATIENT], ids=["manual", "grace"])
@in_loop
async def test_a_lease_is_released_instead_of_unfrozen(bus: PrivateBus, root: str, text: str) -> None:
    """Its VF has nobody left who would unfreeze it."""
    async with ward(bus.address, root, text) as here:
        before = here.look()
        lease, _ = await here.client.lease("vm", address=VFS[2])
        await here.err(severity="fatal")
        await here.until(VFS[2], "permitted")
        await here.until(SLOT, "online")
        await here.client.release(lease)
        await here.until(VFS[2], "online")
        assert here.look() == before


@in_loop
async def test_an_error_comes_before_the_owner_has_unfrozen_his_vf(bus: PrivateBus, root: str) -> None:
    """The VF was made anew by the first recovery, and is fenced for the first time by the second."""
    async with ward(bus.address, root, MANUAL) as here:
        await here.client.lease("vm", address=VFS[2])
        before = here.look()
        await here.err(severity="fatal")
        await here.until(VFS[2], "permitted")
        await here.until(SLOT, "online")
        await here.hide("uevents")  # else the VF, which has no driver yet, would be made anew once more
        await here.err()
        await here.until(SLOT, 2, "Freezes")
        await here.until(VFS[2], "permitted")
        await here.until(SLOT, "online")
        assert not here.look()[2].resets
        assert await here.unfreeze(VFS[2], "vm") == "online"
        assert here.look() == before


@in_loop
async def test_a_lease_is_released_while_its_vf_is_away(bus: PrivateBus, root: str) -> None:
    """Its successor has nothing of what the VF was to its owner: nobody has it to clean it."""
    async with ward(bus.address, root) as here:
        before = here.look()
        lease, _ = await here.client.lease("vm", address=VFS[2])
        await here.set_attributes(VFS[2], vlan=Variant("u", 33), trust=Variant("b", True))
        await here.hold_open(VFS[5])
        await here.err(severity="fatal")
        await here.until_waits(SLOT, VFS[5])
        releasing = asyncio.create_task(here.client.release(lease))
        await until_leases(here.client, State="cleaning")
        await here.close(VFS[5])
        await releasing
        await here.until_over()
        await until_leases(here.client)
        assert here.look() == before


@in_loop
async def test_vfs_of_a_recovering_adapter_are_not_lent(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        async with here.kernel_held_up():
            await here.err()
            await here.until(SLOT, "collecting")
            refusal = await here.client.refused("Lease", "sa{sv}", "vm", make_options(pf=IGB0))
            refusal.check("PoolExhausted")
        await here.until_over()
        await here.client.lease("vm", pf=IGB0)


@pytest.mark.parametrize("where", ["collecting", "resetting"])
@in_loop
async def test_the_card_is_pulled_out_meanwhile(
    bus: PrivateBus, root: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.client.lease("vm", address=VFS[2])
        if where == "resetting":
            await here.hold_open(VFS[5])
        await here.err(severity="fatal")
        waiting = asyncio.create_task(here.client.refused("WaitPermitted", "sst", VFS[1], "", 20_000_000))
        if where == "resetting":
            await here.until_waits(SLOT, VFS[5])
        await here.client.simulate("Unplug", "s", IGB0)
        if where == "resetting":  # until now the kernel waits for that
            await here.close(VFS[5])
        await here.until_log(caplog, f"Adapter {SLOT} is removed.")
        await here.until_said(SLOT, "removed")
        (await waiting).check("NoSuchFunction")
        assert IGB0 not in await here.client.functions()
        await here.client.set_num_vfs(IGB1, 2, driver="vfio-pci")
        await here.client.simulate("Plug", "ss", "igb", IGB0)
        await here.until(SLOT, "online")
        assert await here.get(SLOT, "Freezes") == 1, "the budget is the slot's"
        await here.client.set_num_vfs(IGB0, 7, driver="vfio-pci")
        for vf in VFS:
            assert await here.get(vf, "State") == "online"
        await until_leases(here.client, State="active", Function=function_path(VFS[2]))
        assert {index: vf.driver for index, vf in here.look().items()} == {
            index: vf.driver for index, vf in before.items()
        }
        await here.inside.settle()
