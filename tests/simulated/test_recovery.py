"""Errors of a PF and of a VF, and how adapters come back: the whole daemon as its clients see it."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from sriovd.bus.private import PrivateBus
from sriovd.bus.signature import Variant
from sriovd.pci import PciAddress
from tests.simulated.client import IGB0, IGB1, JOB, function_path
from tests.simulated.ward import MANUAL, OF_VF, SLOT, VFS, WHOLE, Ward, ward
from tests.unit.bus.support import in_loop

pytestmark = pytest.mark.usefixtures("no_pauses")


@in_loop
async def test_a_nonfatal_error_of_the_pf(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.err()
        await here.until(SLOT, "kernel", "Rung")
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        await here.until_announced(IGB0, *WHOLE)
        for vf in VFS:
            await here.until_announced(vf, *OF_VF)
            assert {cause for _, cause, _ in here.said(vf)[:-1]} == {"propagated"}
        assert here.said(SLOT)[0] == ("frozen", "adapter", f"{IGB0} met a nonfatal error")
        assert here.said(SLOT)[-1] == ("online", "", "")
        assert here.look() == before
        assert await here.get(SLOT, "Freezes") == 1
        assert [await here.get(vf, "Freezes") for vf in VFS] == [0] * 7


@in_loop
async def test_owners_unfreeze_by_hand_when_they_are_permitted(bus: PrivateBus, root: str) -> None:
    """The kernel's own recovery goes on as long as the test wants it to."""
    async with ward(bus.address, root, MANUAL) as here:
        lease, _ = await here.client.lease("vm", address=VFS[2])
        number = int(lease.rpartition("/")[2])
        before = here.look()
        here.forget()
        async with here.kernel_held_up():
            await here.err()
            await here.until(SLOT, "collecting")
            waiting = asyncio.create_task(here.wait_permitted(VFS[2], "vm"))
            refusal = await here.refused("Unfreeze", VFS[2], "vm", signature="ssa{sv}")
            refusal.check("LockedOut", f"VF 2 of {IGB0}", "waits, since 0.", f"adapter {SLOT}", "collecting")
            refusal = await here.client.refused("WaitPermitted", "sst", VFS[2], "vm", 0)
            refusal.check("TimedOut", "locked-out")
            refusal = await here.client.refused("OpenGroup", "ts", number, "vm")
            refusal.check("LockedOut", "is being recovered", "WaitPermitted")
            await check_refusals(here)
            assert not waiting.done()
        assert await waiting == "permitted"
        await here.until(SLOT, "online")
        assert await here.unfreeze(VFS[2], "vm") == "online"
        await here.until_announced(VFS[2], *OF_VF)
        assert await here.get(VFS[3], "State") == "online"  # it has no owner to wait for
        assert here.look() == before
        assert await here.leases() == {function_path(VFS[2]): "active"}


@pytest.mark.parametrize("met_by", [IGB0, VFS[2]])
@in_loop
async def test_nobody_opens_what_is_out_of_service(bus: PrivateBus, root: str, met_by: str) -> None:
    """Of an error of the PF and of one of the VF's own; the neighbour's group stays his in the second."""
    async with ward(bus.address, root, MANUAL) as here:
        owned = set()
        for vf in VFS[2:4]:
            await here.client.lease("vm", address=vf)
            owned.add(here.group_of(vf))
        assert here.backend.group_owners.keys() >= owned
        await here.err(met_by)
        await here.until(VFS[2], "permitted")
        left = {here.group_of(VFS[3])} if met_by == VFS[2] else set()
        assert here.backend.group_owners.keys() & owned == left
        for vf in VFS[2:4]:
            await here.unfreeze(vf, "vm")
        assert here.backend.group_owners.keys() >= owned


async def check_refusals(here: Ward) -> None:
    """What is asked of a locked-out VF, and of its adapter."""
    written = list(here.written)
    for member, signature, arguments in (
        ("Reset", "sa{sv}", (VFS[2],)),
        ("Bind", "ssa{sv}", (VFS[2], "pci-stub")),
        ("Unbind", "sa{sv}", (VFS[2],)),
        ("BindVFs", "ssa{sv}", (IGB0, "pci-stub")),
        ("SetNumVFs", "sua{sv}", (IGB0, 0)),
        ("Reset", "sa{sv}", (IGB0,)),
        ("Remove", "sa{sv}", (IGB0,)),
    ):
        refusal = await here.refused(member, *arguments, signature=signature)
        refusal.check("LockedOut", SLOT, "collecting since 0.", "met a nonfatal error")
    refusal = await here.refused("Recover", SLOT)
    refusal.check("LockedOut", "is being recovered already")
    assert here.written == written


@in_loop
async def test_a_nonfatal_error_of_one_vf(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.err(VFS[2], status=1 << 12)
        await here.until(VFS[2], 1, "Freezes")
        await here.until(VFS[2], "online")
        await here.until_announced(VFS[2], "frozen", "permitted", "recovering", "online")
        assert {cause for _, cause, _ in here.said(VFS[2])[:-1]} == {"own"}
        assert not any(here.states(each) for each in (SLOT, IGB0, *VFS[:2], *VFS[3:]))
        assert here.look() == before
        assert {str(each) for each in here.written} <= {VFS[2]}
        assert [(kind, title) for _, _, kind, title in await here.bundles()] == [
            ("freeze", f"VF 2 of {IGB0} was frozen")
        ]


@in_loop
async def test_a_fatal_error_of_the_pf(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        await here.set_attributes(
            VFS[3], mac=Variant("s", "02:00:00:00:00:33"), vlan=Variant("u", 33), trust=Variant("b", True)
        )
        await here.client.lease("vm", address=VFS[2])
        await here.client.bind(VFS[5], "igbvf")
        before = here.look()
        assert before[3].attributes["vlan"] == 33
        assert [before[index].driver for index in (2, 5)] == ["vfio-pci", "igbvf"]
        here.forget()
        await here.err(severity="fatal")
        await here.until(SLOT, "remove-rescan", "Rung")
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        assert here.look() == before
        await here.inside.settle()
        assert await here.leases() == {function_path(VFS[2]): "active"}
        await here.until(SLOT, "", "WaitsFor")
        ((_, values),) = await jobs(here)
        assert (values["Operation"], values["Outcome"]) == ("Recover", f"Recovered adapter {SLOT}.")
        await check_bundle(here)


async def jobs(here: Ward) -> list[tuple[str, dict[str, object]]]:
    """The recoveries."""
    found = [(path, each[JOB]) for path, each in (await here.client.managed()).items() if JOB in each]
    return [(path, each) for path, each in found if each["Operation"] == "Recover"]


async def check_bundle(here: Ward) -> None:
    ((number, _, kind, title),) = await here.bundles()
    assert (kind, title) == ("freeze", f"Adapter {SLOT} was frozen")
    text = await here.read_bundle(number, "text")
    for part in (f"Bundle {number}", IGB0, VFS[6], "fatal", "device recovery failed"):
        assert part in text, text
    record = json.loads(await here.read_bundle(number, "json"))
    assert (record["slot"], record["kind"]) == (SLOT, "freeze")
    clocks_usec = (time.time_ns() - time.monotonic_ns()) // 1000
    assert abs(record["taken_usec"] - record["taken_monotonic_usec"] - clocks_usec) < 1_000_000
    assert len(record["functions"]) == 1 + 7 + 1
    (await here.client.refused("ReadBundle", "ts", number + 1, "text")).check("NoSuchFunction")


@in_loop
async def test_an_operator_asks_for_it(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        _, state = await here.client.ask("Recover", "sa{sv}", SLOT, {})
        assert state == "done"
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        _, state = await here.client.ask("Recover", "sa{sv}", VFS[1], {})
        assert state == "done"
        await here.until_announced(VFS[1], *OF_VF, "frozen", "permitted", "recovering", "online")
        assert here.look() == before
        assert await here.get(SLOT, "Freezes") == 0, "what is asked for is not held against it"


DEFEATED: list[tuple[str, str]] = [("none", ""), ("pci-stub", "pci-stub")]


@pytest.mark.parametrize(("driver", "shown"), DEFEATED)
@in_loop
async def test_vfs_that_defeat_the_kernels_recovery(
    bus: PrivateBus, root: str, driver: str, shown: str
) -> None:
    async with ward(bus.address, root, driver=driver) as here:
        before = here.look()
        assert {each.driver for each in before.values()} == {shown}
        await here.until_audit(SLOT, "blocker: 7 of 7 VFs have no driver with error handlers")
        await here.err()
        await here.until(SLOT, "driver-rebind", "Rung")
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        assert here.look() == before


@in_loop
async def test_two_adapters_at_once(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        here.backend.switch_interface(PciAddress.parse(IGB1), on=True)
        await here.client.set_num_vfs(IGB1, 7, driver="vfio-pci")
        before = here.look(), here.look(IGB1)
        here.forget()
        await here.err(IGB0, "fatal")
        await here.err(IGB1, "fatal")
        other = SLOT.replace("01", "02")
        await here.until(other, "remove-rescan", "Rung")
        await here.until(SLOT, "remove-rescan", "Rung")
        await here.until_over()
        await here.until_over(other, IGB1)
        await here.until_announced(SLOT, *WHOLE)
        await here.until_announced(other, *WHOLE)
        assert (here.look(), here.look(IGB1)) == before
