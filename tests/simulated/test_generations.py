"""A handle to a function that was destroyed and made again reaches nobody."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulated.client import (
    BUS_NAME,
    FUNCTION,
    IGB0,
    PHYSICAL_FUNCTION,
    VF0,
    VIRTUAL_FUNCTION,
    Client,
    Refusal,
    function_path,
    make_options,
)
from tests.simulated.process import DaemonProcess
from tests.unit.bus.support import in_loop

GENERATION_VERBS: list[tuple[str, str, tuple[Any, ...], str, str, str]] = [
    ("Bind", "ssa{sv}", ("pci-stub",), function_path(VF0), FUNCTION, "sa{sv}"),
    ("Unbind", "sa{sv}", (), function_path(VF0), FUNCTION, "a{sv}"),
    ("Reset", "sa{sv}", (), function_path(VF0), FUNCTION, "a{sv}"),
]


@in_loop
async def test_a_handle_to_a_former_vf_is_refused(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1, driver="vfio-pci")
        old = await client.get(function_path(VF0), FUNCTION, "Generation")
        await client.set_num_vfs(IGB0, 0)
        await client.set_num_vfs(IGB0, 1, driver="vfio-pci")
        stale, fresh = make_options(generation=old), make_options(generation=old + 1)
        told = f"{VF0} is another VF now: generation {old + 1}"
        for member, signature, arguments, path, interface, short in GENERATION_VERBS:
            for refusal in (
                await client.refused(member, signature, VF0, *arguments, stale),
                await client.refused(member, short, *arguments, stale, path=path, interface=interface),
            ):
                refusal.check("NoSuchFunction", told)
        vlan = {"vlan": make_options(vendor=5)["vendor"]}
        for refusal in (
            await client.refused("SetVFAttributes", "sa{sv}a{sv}", VF0, vlan, stale),
            await client.refused(
                "SetAttributes", "a{sv}a{sv}", vlan, stale, path=function_path(VF0),
                interface=VIRTUAL_FUNCTION,
            ),
        ):  # fmt: skip
            refusal.check("NoSuchFunction", told)
        assert await client.driver(VF0) == "vfio-pci"
        assert (await client.ask("SetVFAttributes", "sa{sv}a{sv}", VF0, vlan, fresh))[1] == "done"
        for member, signature, arguments, *_ in GENERATION_VERBS:
            assert (await client.ask(member, signature, VF0, *arguments, fresh))[1] == "done"
        await client.lease(address=VF0, generation=old + 1)


@in_loop
async def test_a_generation_is_looked_at_again_when_its_turn_comes(host: DaemonProcess) -> None:
    """The VF was the right one when the call came, and is another when the adapter is free."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        generation = await client.get(function_path(VF0), FUNCTION, "Generation")
        await client.inject("set-num-vfs", IGB0, delay_usec=100_000, times=1)
        destroying = asyncio.create_task(client.set_num_vfs(IGB0, 0))
        creating = asyncio.create_task(_set_when_none(client))
        await until_jobs(client, "SetNumVFs")
        late = asyncio.create_task(
            client.refused("Bind", "ssa{sv}", VF0, "pci-stub", make_options(generation=generation))
        )
        await asyncio.gather(destroying, creating)
        refusal: Refusal = await late
        refusal.check("NoSuchFunction")
        assert await client.driver(VF0) == ""


async def until_jobs(client: Client, operation: str) -> None:
    async with asyncio.timeout(10):
        while True:
            jobs = [each.get(f"{BUS_NAME}.Job", {}) for each in (await client.managed()).values()]
            if any(job.get("Operation") == operation and job["State"] == "running" for job in jobs):
                return
            await asyncio.sleep(0.005)


async def _set_when_none(client: Client) -> None:
    while await client.get(function_path(IGB0), PHYSICAL_FUNCTION, "NumVFs"):
        await asyncio.sleep(0.005)
    await client.set_num_vfs(IGB0, 1)
