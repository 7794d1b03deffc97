"""Every verb at its best: what it answers, and that the objects and the tree agree afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.simulated.client import (
    ADAPTER,
    DLB,
    FUNCTION,
    IGB0,
    IGB1,
    MANAGER,
    NVME,
    PFS,
    PHYSICAL_FUNCTION,
    ROOT,
    VF0,
    VF1,
    Client,
    adapter_path,
    function_path,
    make_options,
)
from tests.simulated.process import DaemonProcess, busctl
from tests.simulated.truth import expected_objects, link_name, shown_objects
from tests.unit.bus.support import in_loop


async def assert_truth(client: Client, host: DaemonProcess) -> None:
    """All objects show what the tree has."""
    assert shown_objects(await client.managed()) == expected_objects(host.root)


def device(host: DaemonProcess, address: str) -> Path:
    return Path(host.root) / "bus/pci/devices" / address


@in_loop
async def test_discovers_pfs(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        assert await client.functions() == PFS
        assert await client.ask("GetFunction", "s", NVME) == (function_path(NVME),)
        assert await client.ask("GetAdapter", "s", "0000:03:00") == (adapter_path("0000:03:00"),)
        manager = await client.get_all(ROOT, MANAGER)
        assert manager["Simulated"] is True
        assert manager["Host"] == "simulated"
        await assert_truth(client, host)


@pytest.mark.parametrize(("pf", "count"), [(IGB0, 7), (NVME, 120), (DLB, 256)])
def test_vfs_come_without_a_driver_and_go(host: DaemonProcess, pf: str, count: int) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            job, state = await client.set_num_vfs(pf, count)
            assert state == "done"
            assert (await client.job(job))["Outcome"] == f"Created {count} VFs of {pf}."
            assert list((await client.vfs(pf)).values()) == [""] * count
            assert await client.get(function_path(pf), PHYSICAL_FUNCTION, "NumVFs") == count
            await assert_truth(client, host)
            job, _ = await client.set_num_vfs(pf, 0)
            assert (await client.job(job))["Outcome"] == f"Destroyed the {count} VFs of {pf}."
            assert await client.functions() == PFS
            await assert_truth(client, host)

    test()


@in_loop
async def test_same_count_again_writes_nothing(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 3)
        generation = await client.get(function_path(VF0), FUNCTION, "Generation")
        await client.inject("set-num-vfs", IGB0, errno="EIO")
        job, state = await client.set_num_vfs(IGB0, 3)
        assert (state, (await client.job(job))["Outcome"]) == ("done", f"Unchanged: {IGB0} has 3 VFs.")
        assert await client.get(function_path(VF0), FUNCTION, "Generation") == generation


@in_loop
async def test_vfs_made_and_bound_in_one_call(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        job, _ = await client.set_num_vfs(NVME, 120, driver="vfio-pci")
        assert (await client.job(job))["Outcome"] == f"Created 120 VFs of {NVME} on vfio-pci."
        assert list((await client.vfs(NVME)).values()) == ["vfio-pci"] * 120
        await assert_truth(client, host)
        await client.set_num_vfs(NVME, 120, driver="pci-stub")  # as many already: only the driver changes
        assert set((await client.vfs(NVME)).values()) == {"pci-stub"}
        await assert_truth(client, host)


@in_loop
async def test_successor_at_an_address_has_the_next_generation(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        generations = []
        for count in (1, 0, 1):
            await client.set_num_vfs(IGB0, count)
            if count:
                generations.append(await client.get(function_path(VF0), FUNCTION, "Generation"))
        assert generations[1] == generations[0] + 1


@in_loop
async def test_batch_binds_to_every_kind_of_driver(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 7)
        for driver, bound in (
            ("vfio-pci", "vfio-pci"), ("default", "igbvf"), ("pci-stub", "pci-stub"), ("none", ""),
            ("igbvf", "igbvf"), ("none", ""), ("default", "igbvf"),
        ):  # fmt: skip
            _, state = await client.bind_vfs(IGB0, driver)
            assert (state, set((await client.vfs(IGB0)).values())) == ("done", {bound}), driver
            await assert_truth(client, host)
        assert await client.get(function_path(IGB0), PHYSICAL_FUNCTION, "DriversAutoprobe") is False


@in_loop
async def test_single_vf_through_its_object(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 2)
        path, nothing = function_path(VF0), make_options()
        job, _ = await client.call(path, FUNCTION, "Bind", "sa{sv}", "vfio-pci", nothing)
        assert (await client.job(job))["Outcome"] == f"Bound VF {VF0} to vfio-pci."
        assert await client.vfs(IGB0) == {VF0: "vfio-pci", VF1: ""}
        await client.call(path, FUNCTION, "Reset", "a{sv}", nothing)
        job, _ = await client.call(path, FUNCTION, "Unbind", "a{sv}", nothing)
        assert (await client.job(job))["Outcome"] == f"Unbound {VF0} from vfio-pci."
        assert (device(host, VF0) / "driver_override").read_text() == "vfio-pci\n"  # stays
        job, _ = await client.unbind(VF0)
        assert (await client.job(job))["Outcome"] == f"Unchanged: {VF0} has no driver."
        await assert_truth(client, host)


@in_loop
async def test_pf_through_its_object(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        path, nothing = function_path(IGB1), make_options()
        assert (await client.call(path, PHYSICAL_FUNCTION, "SetNumVFs", "ua{sv}", 2, nothing))[1] == "done"
        await client.call(path, PHYSICAL_FUNCTION, "BindVFs", "sa{sv}", "pci-stub", nothing)
        assert list((await client.vfs(IGB1)).values()) == ["pci-stub"] * 2
        job, _ = await client.call(path, PHYSICAL_FUNCTION, "Remove", "a{sv}", nothing)
        assert (await client.job(job))["Outcome"] == f"Removed {IGB1} and its 2 VFs."
        assert IGB1 not in await client.functions()
        assert adapter_path("0000:02:00") not in await client.managed()
        job, _ = await client.rescan()
        assert (await client.job(job))["Outcome"] == "Created 1 functions."
        assert await client.functions() == PFS
        await assert_truth(client, host)


@in_loop
async def test_pf_changes_its_driver(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        for driver, bound in (("vfio-pci", "vfio-pci"), ("none", ""), ("default", "igb")):
            await client.bind(IGB1, driver)
            assert await client.driver(IGB1) == bound
            await assert_truth(client, host)


@in_loop
async def test_reset_of_a_pf_takes_no_vf_unless_forced(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        job, _ = await client.reset(IGB0)
        assert (await client.job(job))["Outcome"] == f"Reset {IGB0}."
        await client.set_num_vfs(IGB0, 2)
        (await client.refused("Reset", "sa{sv}", IGB0, {})).check("InUse", "has 2 VFs", "force")
        assert (await client.reset(IGB0, force=True))[1] == "done"
        await assert_truth(client, host)


def test_as_typed_by_a_user(host: DaemonProcess) -> None:
    """The same through busctl: text in, text out, exit status."""
    call = ("call", "org.sriovd1", ROOT, MANAGER)
    done = busctl(host.address, *call, "SetNumVFs", "sua{sv}", IGB0, "4", "1", "driver", "s", "vfio-pci")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(' "done"\n')
    assert link_name(device(host, VF0) / "driver") == "vfio-pci"
    driver = busctl(host.address, "get-property", "org.sriovd1", function_path(VF0), FUNCTION, "Driver")
    assert driver.stdout == 's "vfio-pci"\n'
    tree = busctl(host.address, "tree", "--list", "org.sriovd1").stdout.split()
    assert {function_path(VF1), adapter_path("0000:01:00"), f"{ROOT}/simulator"} <= set(tree)
    table = busctl(host.address, "introspect", "org.sriovd1", adapter_path("0000:01:00"), ADAPTER).stdout
    assert ".StuckReason" in table
    refused = busctl(host.address, *call, "SetNumVFs", "sua{sv}", IGB0, "9", "0")
    assert refused.returncode != 0
    assert "org.sriovd1.Error.NumVfsRejected" in refused.stderr
    assert (
        "Call failed: 0000:01:00.0 cannot have 9 VFs: its driver allows 7. (Ask for 0 to 7.)"
        in refused.stderr
    )


@in_loop
async def test_a_vf_sends_its_pf_commands(host: DaemonProcess) -> None:
    """And the PF's driver says yes or no."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 2, driver="vfio-pci")
        await client.simulate("SetVFAttribute", "ss", IGB0, "0 mac 02:00:00:00:00:07")
        for command, argument, acked in (
            ("set-max-frame", "1518", False),
            ("reset", "", True),
            ("set-max-frame", "1518", True),
            ("set-mac", "02:00:00:00:00:99", False),
        ):
            answer = await client.simulate("SendMailbox", "sss", VF0, command, argument)
            assert answer == (acked,), command
