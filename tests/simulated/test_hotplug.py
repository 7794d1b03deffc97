"""Adapters come and go: objects with them, VFs and jobs under way included."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from sriovd.backend.simulated.drivers import DRIVERS
from sriovd.bus.private import PrivateBus
from tests.simulated.client import (
    ADAPTER,
    FUNCTION,
    IGB0,
    PFS,
    PHYSICAL_FUNCTION,
    ROOT,
    Client,
    adapter_path,
    function_path,
    make_options,
)
from tests.simulated.inside import running_inside
from tests.simulated.process import DaemonProcess
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import Client as Listener
from tests.unit.bus.support import in_loop, until

NEW = "0000:41:00.0"
PROFILES = {"igb": "0000:41:00.0", "nvme": "0000:43:00.0", "dlb": "0000:45:00.0"}


async def until_functions(client: Client, wanted: set[str]) -> None:
    async with asyncio.timeout(10.0):
        while set(await client.functions()) != wanted:
            await asyncio.sleep(0.005)


@in_loop
async def test_every_profile_comes_and_goes_with_its_vfs(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client, Listener.connected(host.address) as listener:
        assert set((await client.simulate("ListProfiles"))[0]) == set(PROFILES)
        for profile, pf in PROFILES.items():
            listener.signals.clear()
            await client.simulate("Plug", "ss", profile, pf)
            await until_functions(client, {*PFS, pf})
            card = adapter_path(pf.removesuffix(".0"))
            assert await client.get(card, ADAPTER, "PhysicalFunctions") == [function_path(pf)]
            await until(lambda: len(listener.named("InterfacesAdded")) == 2)
            await client.set_num_vfs(pf, 7)
            assert shown_objects(await client.managed()) == expected_objects(host.root)
            vfs = await client.vfs(pf)

            await client.simulate("Unplug", "s", pf)
            await until_functions(client, set(PFS))
            assert card not in await client.managed()
            assert shown_objects(await client.managed()) == expected_objects(host.root)
            gone = {signal.body[0] for signal in listener.named("InterfacesRemoved")}
            assert {path for path in gone if "/job/" not in path} == {card, *map(function_path, (pf, *vfs))}
            refusal = await client.refused("SetNumVFs", "sua{sv}", pf, 1, {})
            refusal.check("NoSuchFunction", pf)
            path = function_path(pf)
            refusal = await client.refused("ListVFs", "", path=path, interface=PHYSICAL_FUNCTION)
            refusal.check("org.freedesktop.DBus.Error.UnknownObject", path)


@in_loop
async def test_successor_in_a_slot_is_another_function(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        generations = []
        for profile in ("igb", "nvme"):
            await client.simulate("Plug", "ss", profile, NEW)
            await until_functions(client, {*PFS, NEW})
            shown = await client.get_all(function_path(NEW), FUNCTION)
            generations.append(shown["Generation"])
            assert shown["Driver"] == profile
            await client.simulate("Unplug", "s", NEW)
            await until_functions(client, set(PFS))
        assert generations[1] == generations[0] + 1


@in_loop
async def test_unplugged_while_a_job_runs(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.simulate("Plug", "ss", "igb", NEW)
        await until_functions(client, {*PFS, NEW})
        await client.inject("bind", delay_usec=50_000)
        job, _ = await client.ask(
            "SetNumVFs", "sua{sv}", NEW, 7, make_options(driver="vfio-pci", wait_usec=0)
        )
        await client.simulate("Unplug", "s", NEW)
        assert await client.wait_job(job) == "failed"
        assert "Traceback" not in (await client.job(job))["Outcome"]
        assert "defect" not in (await client.job(job))["Outcome"]
        await until_functions(client, set(PFS))
        assert f"{ROOT}/adapter/_0000_41_00" not in await client.managed()
        assert shown_objects(await client.managed()) == expected_objects(host.root)


def test_driver_that_makes_fewer_vfs(bus: PrivateBus, root: str) -> None:
    """Three of seven: refused and taken back, or kept by who allows it."""
    stingy = [
        replace(driver, sriov=replace(driver.sriov, grants=3))
        if driver.name == "igb" and driver.sriov
        else driver
        for driver in DRIVERS
    ]

    @in_loop
    async def test() -> None:
        async with running_inside(bus.address, root, drivers=stingy) as inside:
            client = inside.client
            refusal = await client.refused("SetNumVFs", "sua{sv}", IGB0, 7, {})
            refusal.check("NumVfsRejected", "made 3 VFs of 7", "Ask for 3", "allow-short")
            assert await client.vfs(IGB0) == {}
            await inside.settle()
            job, state = await client.set_num_vfs(IGB0, 7, allow_short=True, driver="vfio-pci")
            assert (state, len(await client.vfs(IGB0))) == ("done", 3)
            assert "3 VFs" in (await client.job(job))["Outcome"]
            assert set((await client.vfs(IGB0)).values()) == {"vfio-pci"}
            await inside.settle()
            assert (await client.set_num_vfs(IGB0, 3))[1] == "done"
            await client.set_num_vfs(IGB0, 0)
            await inside.settle()

    test()


def test_vf_whose_resets_somebody_disabled(bus: PrivateBus, root: str) -> None:
    @in_loop
    async def test() -> None:
        async with running_inside(bus.address, root) as inside:
            inside.write(f"{IGB0}/reset_method", "\n")
            await inside.client.rescan()
            refusal = await inside.client.refused("Reset", "sa{sv}", IGB0, {})
            refusal.check("NotSupported", IGB0, "reset_method", "default")
            await inside.settle()

    test()
