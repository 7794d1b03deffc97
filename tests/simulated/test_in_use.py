"""Nobody pulls a VF away from whoever holds it: every verb names the holder, unless it is told to go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.simulated.client import IGB0, VF0, VF1, Client, make_options
from tests.simulated.process import DaemonProcess
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import in_loop

HELD = [
    ("SetNumVFs", "sua{sv}", (IGB0, 0)),
    ("Bind", "ssa{sv}", (VF0, "pci-stub")),
    ("BindVFs", "ssa{sv}", (IGB0, "pci-stub")),
    ("Unbind", "sa{sv}", (VF0,)),
    ("Reset", "sa{sv}", (VF0,)),
    ("Remove", "sa{sv}", (IGB0,)),
]


async def hold(client: Client) -> None:
    """Two VFs on vfio-pci, the first in the hands of a virtual machine."""
    await client.set_num_vfs(IGB0, 2, driver="vfio-pci")
    await client.simulate("OpenDevice", "sus", VF0, 4711, "qemu")


@pytest.mark.parametrize(("member", "signature", "arguments"), HELD, ids=[row[0] for row in HELD])
def test_holder_is_named(
    host: DaemonProcess, member: str, signature: str, arguments: tuple[Any, ...]
) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            await hold(client)
            refusal = await client.refused(member, signature, *arguments, {})
            refusal.check("InUse", VF0, "qemu (pid 4711)", "force")
            assert VF1 not in refusal.text
            assert set((await client.vfs(IGB0)).values()) == {"vfio-pci"}
            assert shown_objects(await client.managed()) == expected_objects(host.root)
            await client.simulate("CloseDevice", "s", VF0)
            assert (await client.ask(member, signature, *arguments, {}))[1] == "done"

    test()


@in_loop
async def test_force_lets_the_kernel_wait_for_the_holder(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await hold(client)
        job, state = await client.ask("Unbind", "sa{sv}", VF0, make_options(force=True, wait_usec=0))
        assert state == "running"
        assert await client.wait_job(job, 50_000) == "running"
        await client.simulate("CloseDevice", "s", VF0)
        assert await client.wait_job(job) == "done"
        assert await client.vfs(IGB0) == {VF0: "", VF1: "vfio-pci"}


@in_loop
async def test_force_resets_what_is_held(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await hold(client)
        assert (await client.reset(VF0, force=True))[1] == "done"


@in_loop
async def test_others_are_not_concerned(host: DaemonProcess) -> None:
    """The neighbour of a held VF, and what is held already where it shall be."""
    async with Client.connected(host.address) as client:
        await hold(client)
        done = await asyncio.gather(client.bind(VF1, "pci-stub"), client.bind(VF0, "vfio-pci"))
        assert [state for _, state in done] == ["done", "done"]
