"""What fails leaves nothing half done: drivers and overrides as they were, all VFs or none; and what cannot
be put back is taken out of service and says so."""

from __future__ import annotations

from pathlib import Path

from tests.simulated.client import (
    FUNCTION,
    IGB0,
    NVME,
    PHYSICAL_FUNCTION,
    VF0,
    Client,
    function_path,
    make_options,
)
from tests.simulated.process import DaemonProcess, wait_until
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import in_loop

VF3 = "0000:01:10.6"


def override(host: DaemonProcess, address: str) -> str:
    return (Path(host.root) / "bus/pci/devices" / address / "driver_override").read_text()


@in_loop
async def test_failing_bind_leaves_driver_and_override(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 2, driver="vfio-pci")
        assert override(host, VF0) == "vfio-pci\n"
        await client.inject("bind", VF0, errno="ENODEV", times=1)
        refusal = await client.refused("Bind", "ssa{sv}", VF0, "pci-stub", {})
        refusal.check("BindFailed", "pci-stub did not take", VF0, "kernel log")
        assert set((await client.vfs(IGB0)).values()) == {"vfio-pci"}
        assert override(host, VF0) == "vfio-pci\n"
        assert shown_objects(await client.managed()) == expected_objects(host.root)


@in_loop
async def test_failing_default_bind_leaves_driver_and_override(host: DaemonProcess) -> None:
    """An NVMe VF without resources refuses its own driver."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(NVME, 2, driver="pci-stub")
        vf = next(iter(await client.vfs(NVME)))
        (await client.refused("Bind", "ssa{sv}", vf, "default", {})).check("BindFailed", vf)
        assert set((await client.vfs(NVME)).values()) == {"pci-stub"}
        assert override(host, vf) == "pci-stub\n"
        (await client.refused("Bind", "ssa{sv}", vf, "nvme", {})).check("BindFailed", vf, "nvme")
        assert override(host, vf) == "pci-stub\n"
        assert shown_objects(await client.managed()) == expected_objects(host.root)


@in_loop
async def test_first_bind_that_fails_leaves_no_override(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        await client.inject("bind", VF0, errno="EINVAL", times=1)
        (await client.refused("Bind", "ssa{sv}", VF0, "pci-stub", {})).check(
            "BindFailed", "pci-stub refused"
        )
        assert override(host, VF0) == "(null)\n"
        assert await client.vfs(IGB0) == {VF0: ""}


@in_loop
async def test_batch_is_all_or_nothing(host: DaemonProcess) -> None:
    """The fourth of seven fails; one of those before it was on another driver than the rest."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 7, driver="vfio-pci")
        await client.bind(VF0, "igbvf")
        before = await client.vfs(IGB0)
        await client.inject("bind", VF3, errno="ENODEV", times=1)
        refusal = await client.refused("BindVFs", "ssa{sv}", IGB0, "pci-stub", {})
        refusal.check("BindFailed", VF3, "All 7 functions are as they were")
        assert await client.vfs(IGB0) == before
        assert override(host, VF0) == "igbvf\n"
        assert override(host, VF3) == "vfio-pci\n"
        assert shown_objects(await client.managed()) == expected_objects(host.root)


@in_loop
async def test_vfs_that_cannot_be_bound_are_not_made(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.inject("bind", VF3, errno="ENODEV", times=1)
        refusal = await client.refused(
            "SetNumVFs", "sua{sv}", IGB0, 7, make_options(driver="vfio-pci")
        )  # fmt: skip
        refusal.check("BindFailed", VF3, "vfio-pci")
        assert await client.vfs(IGB0) == {}
        assert await client.get(function_path(IGB0), PHYSICAL_FUNCTION, "DriversAutoprobe") is True
        assert shown_objects(await client.managed()) == expected_objects(host.root)


@in_loop
async def test_what_cannot_be_put_back_is_quarantined(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 2, driver="vfio-pci")
        await client.inject("bind", VF0, errno="EIO")  # neither the new driver nor the old one takes it
        refusal = await client.refused("BindVFs", "ssa{sv}", IGB0, "pci-stub", {})
        assert "Could not be put back and is quarantined: " + VF0 in refusal.text
        assert (await client.vfs(IGB0))[VF0] == ""
        reason = await client.get(function_path(VF0), FUNCTION, "Quarantined")
        assert "could not be put back" in reason
        assert "EIO" in reason
        wait_until(lambda: f"{VF0} is quarantined: " in host.said(), "the report")
        (await client.refused("Reset", "sa{sv}", VF0, {})).check("Quarantined", VF0, "Bind it")

        await client.simulate("ClearFaults")
        assert (await client.bind(VF0, "vfio-pci"))[1] == "done"
        assert await client.get(function_path(VF0), FUNCTION, "Quarantined") == ""
        assert (await client.reset(VF0))[1] == "done"
        assert shown_objects(await client.managed()) == expected_objects(host.root)


@in_loop
async def test_failing_bind_leaves_no_override_where_none_was(host: DaemonProcess) -> None:
    """The kernel had chosen the driver: it is back, and the override that brought it back is not left."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        await client.bind(VF0, "default")
        assert override(host, VF0) == "(null)\n"
        await client.inject("bind", VF0, errno="ENODEV", times=1)
        refusal = await client.refused("Bind", "ssa{sv}", VF0, "pci-stub", {})
        refusal.check("BindFailed", VF0)
        assert await client.vfs(IGB0) == {VF0: "igbvf"}
        assert override(host, VF0) == "(null)\n"
        assert shown_objects(await client.managed()) == expected_objects(host.root)
