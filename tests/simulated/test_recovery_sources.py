"""What is told of errors, what is not, and what policies make of it."""

from __future__ import annotations

import asyncio

import pytest

from sriovd.bus.private import PrivateBus
from sriovd.bus.signature import Variant
from sriovd.pci import PciAddress
from tests.simulated.client import IGB0, NVME
from tests.simulated.ward import OF_VF, SLOT, VFS, WHOLE, Ward, until, ward
from tests.unit.bus.support import in_loop

pytestmark = pytest.mark.usefixtures("no_pauses")

OWN = ("frozen", "permitted", "recovering", "online")


def policy(*lines: str) -> str:
    return "\n".join(["[match]", 'driver = "igb"', "[recovery]", *lines, ""])


async def until_recovered(here: Ward) -> None:
    """The adapter was recovered once since the listener has begun."""
    await here.until(SLOT, 1, "Freezes")
    await here.until_over()
    await here.until_announced(SLOT, *WHOLE)
    for vf in VFS:
        await here.until_announced(vf, *OF_VF)


@pytest.mark.parametrize("severity", ["nonfatal", "fatal"])
@pytest.mark.parametrize("hidden", ["records", "uevents", "counters"])
@in_loop
async def test_one_source_is_missing(bus: PrivateBus, root: str, hidden: str, severity: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.hide(hidden)
        await here.err(severity=severity)
        await until_recovered(here)
        assert here.look() == before


@in_loop
async def test_whose_error_it_is_nobody_says(bus: PrivateBus, root: str) -> None:
    """Without records a VF's error looks like the adapter's, which is the stricter answer."""
    async with ward(bus.address, root) as here:
        await here.hide("records")
        await here.err(VFS[2], status=1 << 12)
        await until_recovered(here)


@in_loop
async def test_nothing_is_told_but_the_registers(bus: PrivateBus, root: str) -> None:
    """As when all events are lost: the look that follows EventsLost finds it."""
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.hide("records", "uevents", "counters")
        await here.err(severity="fatal")
        await here.client.simulate("LoseEvents", "u", 1)
        await until_dead(here)
        await here.client.set_num_vfs(NVME, 1)
        await until_recovered(here)
        assert here.look() == before


@in_loop
async def test_a_verb_fails_on_an_adapter_of_whose_death_nothing_told(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.hide("records", "uevents", "counters")
        await here.err(severity="fatal")
        await until_dead(here)
        (await here.refused("Reset", VFS[3])).check("ResetFailed")
        await until_recovered(here)
        assert here.look() == before


async def until_dead(here: Ward) -> None:
    """Until the PF decodes nothing."""

    async def read() -> int:
        return here.backend.host.devices[PciAddress.parse(IGB0)].model.config_bytes()[4] & 2

    await until(read, lambda decodes: not decodes, "a dead adapter")


@in_loop
async def test_an_error_that_looks_like_the_echo_of_the_last(bus: PrivateBus, root: str) -> None:
    """Its uevents come so soon after those of the last walk that only their end tells it apart."""
    async with ward(bus.address, root) as here:
        before = here.look()
        await here.err()
        await until_recovered(here)
        await here.hide("records")
        await here.err(severity="fatal")
        await here.until(SLOT, 2, "Freezes")
        await here.until_over()
        assert here.look() == before


@in_loop
async def test_a_storm_of_correctable_errors_freezes(bus: PrivateBus, root: str) -> None:
    text = policy('correctable-storm = "freeze"', "storm-threshold = 3")
    async with ward(bus.address, root, text) as here:
        for _ in range(3):
            await here.err(severity="corrected")
        await here.until(SLOT, 3, "Corrected")
        assert here.states(SLOT) == []
        await here.err(severity="corrected")
        await until_recovered(here)
        assert "more than 3 correctable errors" in here.said(SLOT)[0][2]
        assert await here.get(IGB0, "Corrected") == 4


@in_loop
async def test_a_storm_of_one_vf_freezes_that_one(bus: PrivateBus, root: str) -> None:
    text = policy('correctable-storm = "freeze"', "storm-threshold = 1")
    async with ward(bus.address, root, text) as here:
        for _ in range(2):
            await here.err(VFS[4], "corrected")
        await here.until_announced(VFS[4], *OWN)
        assert not any(here.states(each) for each in (SLOT, *VFS[:4], *VFS[5:]))


@in_loop
async def test_a_storm_is_reported(bus: PrivateBus, root: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ward(bus.address, root, policy("storm-threshold = 2")) as here:
        for _ in range(5):
            await here.err(severity="corrected")
        await here.until(SLOT, 5, "Corrected")
        told = [each.getMessage() for each in caplog.records if "more than 2" in each.getMessage()]
        assert told == [f"{IGB0} had more than 2 correctable errors within a minute."]
        assert here.states(SLOT) == []


@in_loop
async def test_policy_says_to_do_nothing(
    bus: PrivateBus, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ward(bus.address, root, policy('non-fatal = "report"')) as here:
        before = here.look()
        await here.err()
        await here.err(VFS[1], status=1 << 12)
        await here.until_log(caplog, f"{IGB0} met a nonfatal error; policy says to do nothing")
        await here.until_log(caplog, f"{VFS[1]} met a nonfatal error; policy says to do nothing")
        assert not any(here.states(each) for each in (SLOT, *VFS))
        assert here.look() == before
        await here.err(severity="fatal")
        await until_recovered(here)


@in_loop
async def test_policy_quarantines(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, policy('non-fatal = "quarantine"')) as here:
        before = here.look()
        await here.err(VFS[1], status=1 << 12)
        await here.until(VFS[1], "failed")
        await here.until_bundles("freeze")
        assert await here.get(SLOT, "State") == "online"
        assert not here.look()[1].dma
        (await here.refused("Reset", VFS[1])).check("Quarantined", "VF 1 of", "failed")
        assert await here.lift(VFS[1]) in ("recovering", "online")
        await here.until(VFS[1], "online")
        assert here.look() == before

        here.forget()
        await here.err()
        await here.until_announced(SLOT, "quarantined")
        await here.until_bundles("freeze", "give-up")
        for vf in VFS:
            await here.until_announced(vf, "frozen", "locked-out")
        assert not any(vf.dma or vf.resets for vf in here.look().values())
        (await here.refused("SetNumVFs", IGB0, 0, signature="sua{sv}")).check("Quarantined", SLOT)
        refusal = await here.client.refused("WaitPermitted", "sst", VFS[0], "", 1_000_000)
        refusal.check("Quarantined", SLOT)
        await here.lift(SLOT)
        await here.until_over()
        assert here.look() == before


@in_loop
async def test_the_sixth_freeze_within_the_hour(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        before = here.look()
        for number in range(1, 6):
            await here.err()
            await here.until(SLOT, number, "Freezes")
            await here.until_over()
        here.forget()
        await here.err()
        await here.until_announced(SLOT, "quarantined")
        await here.until_bundles(*["freeze"] * 5, "give-up")
        ((_, _, reason),) = here.said(SLOT)
        assert "it was frozen 6 times within the hour" in reason
        assert await here.get(SLOT, "Freezes") == 6
        assert set(map(str, here.written)) <= set(VFS), "the PF is not touched, and VFs are only fenced"
        (await here.refused("Recover", SLOT)).check("Quarantined", "call Lift")
        here.forget()
        await here.lift(IGB0)
        await here.until_over()
        await here.until_announced(SLOT, *WHOLE)
        assert await here.get(SLOT, "Freezes") == 0
        assert here.look() == before


@in_loop
async def test_the_sixth_freeze_of_a_vf(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        for number in range(1, 6):
            await here.err(VFS[2], status=1 << 12)
            await here.until(VFS[2], number, "Freezes")
            await here.until(VFS[2], "online")
        here.forget()
        await here.err(VFS[2], status=1 << 12)
        await here.until_announced(VFS[2], "failed")
        assert await here.get(VFS[2], "Freezes") == 6
        assert not any(here.states(each) for each in (SLOT, *VFS[:2], *VFS[3:]))
        await here.until_bundles(*["freeze"] * 6)
        await here.lift(VFS[2])
        await here.until(VFS[2], "online")
        assert await here.get(VFS[2], "Freezes") == 0


@in_loop
async def test_rungs_that_policy_forbids(bus: PrivateBus, root: str) -> None:
    text = policy('rungs = ["kernel", "driver-rebind"]')
    async with ward(bus.address, root, text) as here:
        await here.until_audit(SLOT, "warning: The policy of adapter 0000:01:00 forbids remove-rescan")
        await here.err(severity="fatal")
        await here.until(SLOT, "quarantined")
        reason = await here.get(SLOT, "Reason")
        for part in ("remove-rescan: policy does not allow it", "driver-rebind: the registers are lost"):
            assert part in reason
        await here.until_bundles("freeze", "give-up")


@in_loop
async def test_the_audit_follows_what_changes(
    bus: PrivateBus, root: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with ward(bus.address, root, vfs=3) as here:
        await here.until_audit(VFS[0], "")
        await here.client.bind(VFS[0], "pci-stub")
        await here.until_audit(SLOT, "blocker: 1 of 3 VFs has no driver with error handlers")
        await here.until_audit(IGB0, f": {VFS[0]} (pci-stub). Bind it to vfio-pci")
        await here.until_audit(VFS[0], f"blocker: VF {VFS[0]} (pci-stub) has no driver")
        assert await here.get(VFS[1], "Audit") == []
        await here.client.unbind(VFS[1])
        await here.until_audit(SLOT, "blocker: 2 of 3 VFs have no driver with error handlers")
        announced = [each.getMessage() for each in caplog.records if "If adapter" in each.getMessage()]
        assert len(announced) == 1, announced
        await here.client.bind_vfs(IGB0, "vfio-pci")
        await here.until_audit(VFS[0], "")
        async with asyncio.timeout(10):
            while any("blocker" in each for each in await here.get(SLOT, "Audit")):
                await asyncio.sleep(0.01)
        await here.set_attributes(VFS[0], vlan=Variant("u", 3))
        assert not any(here.states(each) for each in (SLOT, *VFS[:3])), "nobody is told of a state"
