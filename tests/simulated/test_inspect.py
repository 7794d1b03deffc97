"""Inspections of a VF for its owner: what each shows, what is refused while the VF is out of service, and
that none shows another VF."""

from __future__ import annotations

import pytest

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.bus.private import PrivateBus
from sriovd.bus.signature import Variant
from sriovd.core.inspect.table import INSPECTIONS
from sriovd.core.inspect.vocabulary import Inspection
from sriovd.pci import PciAddress
from tests.simulated.client import IGB0, PROPERTIES, TRACE, function_path
from tests.simulated.error_data import (
    OWNER,
    VF,
    inspect,
    inspect_refused,
    lease_two,
    note_accesses,
    refute_others,
)
from tests.simulated.ward import MANUAL, SLOT, VFS, ward
from tests.unit.bus.support import in_loop

pytestmark = pytest.mark.usefixtures("no_pauses")


@in_loop
async def test_what_each_shows(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        await lease_two(here)
        await here.set_attributes(VF, mac=Variant("s", "02:00:00:00:00:22"), vlan=Variant("u", 22))
        await here.set_attributes(VFS[3], mac=Variant("s", "02:00:00:00:00:33"), vlan=Variant("u", 33))
        shown = {name.value: await inspect(here, name) for name in Inspection}
        refute_others(repr(shown))
        assert "02:00:00:00:00:33" not in repr(shown)
        resources = shown["resources"]
        assert (resources["bar0-bytes"], resources["bar0-kind"]) == (16384, "64-bit prefetchable memory")
        assert (resources["msix-vectors"], resources["msix-bar"]) == (3, 3)
        assert (resources["iommu-group"], resources["iommu-group-alone"]) == (here.group_of(VF), True)
        attributes = shown["attributes"]
        assert (attributes["mac"], attributes["vlan"]) == ("02:00:00:00:00:22", 22)
        assert {name.replace("-", "_") for name in attributes} <= set(VfAttributes.__dataclass_fields__)
        dev = here.backend.host.devices[PciAddress.parse(VF)]
        assert bytes(shown["registers"]["config"]) == dev.model.config_bytes()
        assert any(line.startswith("capabilities: ") for line in shown["registers"]["decoded"])
        assert shown["driver"] == {
            "driver": "vfio-pci", "bound": True, "driver-override": "vfio-pci", "reset-methods": ["flr"],
            "quarantined": False, "quarantine-reason": "",
        }  # fmt: skip
        assert set(shown["counters"]) == {"aer-corrected", "aer-nonfatal", "aer-fatal", "driver"}
        assert (shown["recovery"]["state"], shown["recovery"]["bundles"]) == ("online", [])


@in_loop
async def test_what_errors_leave_behind(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        await lease_two(here)
        await here.err(VFS[3])
        await here.until_bundles("freeze")
        await here.until(VFS[3], "online")
        await here.err(VF, status=1 << 12)
        await here.until_bundles("freeze", "freeze")
        await here.until(VF, "online")
        recovery = await inspect(here, "recovery")
        (bundle,) = recovery["bundles"]
        assert bundle.split()[0::2] == ["2", "freeze"]
        assert bundle.endswith(" own")
        assert recovery["freezes"] == 1
        assert (await inspect(here, "counters"))["aer-nonfatal"] == {"TLP": 1, "total": 1}


@in_loop
async def test_nothing_reaches_a_vf_that_is_out_of_service(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root, MANUAL) as here:
        await lease_two(here)
        async with here.kernel_held_up():
            await here.err()
            await here.until(SLOT, "collecting")
            accesses = note_accesses(here)
            for name, row in INSPECTIONS.items():
                if row.reaches_device:
                    refusal = await inspect_refused(here, name)
                    refusal.check("LockedOut", f"VF {VF} is locked-out", "CollectErrorData")
                    assert "met a nonfatal error" not in refusal.text
                else:
                    await inspect(here, name)
            assert accesses == []
            assert (await inspect(here, "recovery"))["state"] == "locked-out"
        await here.until(VF, "permitted")
        (await inspect_refused(here, "registers")).check("Frozen", "is permitted")
        await here.unfreeze(VF, OWNER)
        assert await inspect(here, "registers")


def test_what_hangs_is_not_named(bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's reset that does not return is nobody's business."""

    @in_loop
    async def test() -> None:
        async with ward(bus.address, root) as here:
            await lease_two(here)
            await here.client.inject("reset", VFS[4], hang=True)
            monkeypatch.setattr("sriovd.core.execute._STEP_DEADLINE_SEC", {})
            monkeypatch.setattr("sriovd.core.execute._OTHER_STEP_DEADLINE_SEC", 0.1)
            (await here.client.refused("Reset", "sa{sv}", VFS[4], {})).check("Stuck", f"reset {VFS[4]}")
            refusal = await inspect_refused(here, "registers")
            refusal.check("Stuck", VF)
            refute_others(refusal.text)
            assert "reset" not in refusal.text
            await here.client.simulate("ClearFaults")

    test()


@in_loop
async def test_names(bus: PrivateBus, root: str) -> None:
    async with ward(bus.address, root) as here:
        await lease_two(here)
        names = await here.client.get(function_path(VF), TRACE, "Inspections")
        assert names == [*Inspection] == [*INSPECTIONS]
        refusal = await inspect_refused(here, "memory")
        refusal.check("InvalidArgument", "'memory' is no inspection", "resources, attributes, registers")
        refusal = await here.client.refused(
            "Get", "ss", TRACE, "Inspections", path=function_path(IGB0), interface=PROPERTIES
        )
        assert refusal.name.endswith("UnknownInterface")
