"""A kernel write that hangs: everybody else is served, the adapter says why it is not, and all is well when
the kernel returns."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from sriovd.bus.calls import RemoteError
from sriovd.bus.private import PrivateBus
from tests.simulated.client import (
    ADAPTER,
    FUNCTION,
    IGB0,
    IGB1,
    NVME,
    PFS,
    PHYSICAL_FUNCTION,
    VF0,
    Client,
    adapter_path,
    function_path,
    make_options,
)
from tests.simulated.inside import Inside, running_inside
from tests.simulated.process import DaemonProcess, running_daemon
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import in_loop

CARD = adapter_path("0000:01:00")
READ_LIMIT_S = 0.1
STOP_LIMIT_S = 5.0


async def measure_reads(address: str, until_done: asyncio.Future[Any]) -> list[float]:
    """Seconds that each of many property reads took, by a client of its own, until `until_done` is."""
    times: list[float] = []
    reads = (
        (CARD, ADAPTER, "Stuck"),
        (function_path(IGB0), PHYSICAL_FUNCTION, "NumVFs"),
        (function_path(VF0), FUNCTION, "Driver"),
        (function_path(NVME), FUNCTION, "ResetMethods"),
    )
    async with Client.connected(address) as client:
        while not until_done.done():
            began = time.monotonic()
            await client.get(*reads[len(times) % len(reads)])
            times.append(time.monotonic() - began)
    return times


@pytest.mark.alone
@in_loop
async def test_everybody_else_is_served(host: DaemonProcess) -> None:
    """From the write that hangs, through its deadline of 5 s, to its return."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 3, driver="vfio-pci")
        await client.inject("set-autoprobe", IGB0, hang=True)
        bind = asyncio.create_task(client.refused("Bind", "ssa{sv}", VF0, "default", {}))
        reading = asyncio.create_task(measure_reads(host.address, bind))
        assert (await client.set_num_vfs(NVME, 60, driver="pci-stub"))[1] == "done"
        assert (await client.set_num_vfs(IGB1, 7))[1] == "done"
        assert not bind.done()
        (await bind).check("Stuck", "0000:01:00", f"set-autoprobe {IGB0}", "when the kernel returns")

        times = sorted(await reading)
        assert len(times) > 1000
        p99 = times[len(times) * 99 // 100]
        print(
            f"{len(times)} reads while a write hung: p99 {p99 * 1e3:.1f} ms, worst {times[-1] * 1e3:.1f} ms"
        )
        assert p99 < READ_LIMIT_S

        shown = await client.get_all(CARD, ADAPTER)
        assert shown["Stuck"] is True
        assert f"set-autoprobe {IGB0} 1 has not returned from the kernel" in shown["StuckReason"]
        assert "Adapter 0000:01:00 is stuck: " in host.said()
        for member, signature, arguments in (
            ("SetNumVFs", "sua{sv}", (IGB0, 0)),
            ("Bind", "ssa{sv}", (VF0, "none")),
            ("BindVFs", "ssa{sv}", (IGB0, "none")),
            ("Unbind", "sa{sv}", (VF0,)),
            ("Reset", "sa{sv}", (VF0,)),
            ("Remove", "sa{sv}", (IGB0,)),
        ):
            refusal = await client.refused(member, signature, *arguments, {})
            refusal.check("Stuck", shown["StuckReason"])

        await client.simulate("ClearFaults")
        await until_unstuck(client)
        assert set((await client.vfs(IGB0)).values()) == {"vfio-pci"}
        assert shown_objects(await client.managed()) == expected_objects(host.root)
        assert (await client.bind_vfs(IGB0, "pci-stub"))[1] == "done"


async def until_unstuck(client: Client) -> None:
    async with asyncio.timeout(10.0):
        while await client.get(CARD, ADAPTER, "Stuck"):
            await asyncio.sleep(0.005)
    assert await client.get(CARD, ADAPTER, "StuckReason") == ""


@pytest.mark.alone
def test_daemon_ends_at_once_while_a_write_hangs(tmp_path: Path, root: str) -> None:
    with running_daemon(tmp_path, root) as daemon:

        @in_loop
        async def hang() -> None:
            async with Client.connected(daemon.address) as client:
                await client.inject("reset", IGB0, hang=True)
                job, state = await client.reset(IGB0, wait_usec=0)
                assert state == "running"
                assert await client.wait_job(job, 50_000) == "running"

        hang()
        ended = daemon.terminate()
        assert (ended.status, "Traceback" in ended.output) == (0, False), ended.output
        assert ended.seconds < STOP_LIMIT_S


@pytest.mark.alone
def test_caller_who_waits_is_told_when_the_daemon_ends(bus: PrivateBus, tmp_path: Path, root: str) -> None:
    with running_daemon(tmp_path, root, bus=bus.address) as daemon:

        @in_loop
        async def test() -> None:
            async with Client.connected(daemon.address) as client:
                await client.inject("reset", IGB0, hang=True)
                waiting = asyncio.create_task(client.refused("Reset", "sa{sv}", IGB0, {}))
                await until_running(client)
                daemon.process.terminate()
                (await waiting).check("Cancelled", "Reset")

        test()
        assert daemon.process.wait(STOP_LIMIT_S) == 0


async def until_running(client: Client) -> None:
    """Until there is a job."""
    async with asyncio.timeout(10.0):
        while not any("/job/" in path for path in await client.managed()):
            await asyncio.sleep(0.005)


HANGS = [
    ("set-num-vfs", IGB0, "SetNumVFs", "sua{sv}", (IGB0, 0)),
    ("set-autoprobe", IGB0, "SetNumVFs", "sua{sv}", (IGB0, 0)),
    ("unbind", VF0, "BindVFs", "ssa{sv}", (IGB0, "pci-stub")),
    ("bind", VF0, "BindVFs", "ssa{sv}", (IGB0, "pci-stub")),
    ("probe", VF0, "BindVFs", "ssa{sv}", (IGB0, "default")),
    ("read-driver", VF0, "BindVFs", "ssa{sv}", (IGB0, "none")),
    ("unbind", VF0, "Unbind", "sa{sv}", (VF0,)),
    ("reset", VF0, "Reset", "sa{sv}", (VF0,)),
    ("remove", IGB0, "Remove", "sa{sv}", (IGB0,)),
]


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes are called stuck after a moment, so that every kind can be tried."""
    monkeypatch.setattr("sriovd.core.execute._STEP_DEADLINE_SEC", {})
    monkeypatch.setattr("sriovd.core.execute._OTHER_STEP_DEADLINE_SEC", 0.1)
    monkeypatch.setattr("sriovd.core.execute._PER_VF_DEADLINE_SEC", 0.0)


@pytest.mark.usefixtures("short_deadlines")
@pytest.mark.parametrize(
    ("verb", "address", "member", "signature", "arguments"),
    HANGS,
    ids=[f"{row[0]}-{row[2]}" for row in HANGS],
)
def test_picture_is_right_after_any_hang(
    bus: PrivateBus,
    root: str,
    verb: str,
    address: str,
    member: str,
    signature: str,
    arguments: tuple[Any, ...],
) -> None:
    """Whichever write hangs, wherever in a verb: the adapter is stuck, and right when it is not any more."""

    @in_loop
    async def test() -> None:
        async with running_inside(bus.address, root) as inside:
            client = inside.client
            await client.set_num_vfs(IGB0, 3, driver="vfio-pci")
            await client.inject(verb, address, hang=True)
            refusal = await client.refused(member, signature, *arguments, {})
            refusal.check("Stuck", "0000:01:00", verb, address)
            assert verb in await client.get(CARD, ADAPTER, "StuckReason")
            assert (await client.set_num_vfs(NVME, 5))[1] == "done"
            await client.simulate("ClearFaults")
            await recover(inside)

    test()


async def recover(inside: Inside) -> None:
    """The objects equal the tree, and the adapter works: it gives up all VFs and makes some."""
    await inside.settle()
    client = inside.client
    if IGB0 not in await client.functions():
        await client.rescan()
    for vf in await client.vfs(IGB0):
        reason = await client.get(function_path(vf), FUNCTION, "Quarantined")
        assert reason == "" or "driver could not be put back" in reason, vf
    assert (await client.set_num_vfs(IGB0, 0))[1] == "done"
    assert (await client.set_num_vfs(IGB0, 2, driver="vfio-pci"))[1] == "done"
    assert (await client.reset(VF0))[1] == "done"
    await inside.settle()


@pytest.mark.usefixtures("short_deadlines")
def test_rescan_that_hangs_stops_only_rescans(bus: PrivateBus, root: str) -> None:
    @in_loop
    async def test() -> None:
        async with running_inside(bus.address, root) as inside:
            client = inside.client
            await client.inject("rescan-bus", hang=True)
            (await client.refused("Rescan", "a{sv}", {})).check("Stuck", "rescan-bus")
            (await client.refused("Rescan", "a{sv}", {})).check("Stuck", "rescan-bus")
            assert (await client.set_num_vfs(NVME, 5, driver="vfio-pci"))[1] == "done"
            await client.simulate("ClearFaults")
            async with asyncio.timeout(5.0):
                while not await rescans(client):
                    await asyncio.sleep(0.01)
            await inside.settle()

    test()


async def rescans(client: Client) -> bool:
    """Whether a rescan is not refused any more."""
    try:
        return bool((await client.rescan())[1] == "done")
    except RemoteError as error:
        assert error.name.endswith(".Stuck"), error
        return False


@in_loop
async def test_lanes_of_many_callers(host: DaemonProcess) -> None:
    """Everybody wants something of one adapter at once; each gets an answer, and the end is the truth."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 7)
        vfs = list(await client.vfs(IGB0))
        calls = [
            client.ask("Bind", "ssa{sv}", vf, driver, make_options())
            for driver in ("vfio-pci", "pci-stub", "none")
            for vf in vfs
        ]
        assert [state for _, state in await asyncio.gather(*calls)] == ["done"] * len(calls)
        assert set((await client.vfs(IGB0)).values()) == {""}
        assert shown_objects(await client.managed()) == expected_objects(host.root)
        assert set(await client.functions()) == {*PFS, *vfs}
