"""Jobs as their callers see them: waiting, going on without, cancelling, and being forgotten in the end."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sriovd.bus.private import PrivateBus
from sriovd.core.jobs import KEPT_COUNT
from tests.simulated.client import (
    BUS_NAME,
    FUNCTION,
    IGB0,
    JOB,
    MANAGER,
    NVME,
    PHYSICAL_FUNCTION,
    RECOVERY,
    ROOT,
    TRACE,
    VF0,
    VIRTUAL_FUNCTION,
    Client,
    function_path,
    make_options,
)
from tests.simulated.inside import running_inside
from tests.simulated.process import DaemonProcess
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import Client as Listener
from tests.unit.bus.support import in_loop, until

SLOW_USEC = 1_000_000  # the quick tests share the CPUs: what is not yet over must not be over by then


@in_loop
async def test_properties_of_a_job_that_is_done(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        job, state = await client.set_num_vfs(IGB0, 2)
        assert state == "done"
        assert await client.job(job) == {
            "Operation": "SetNumVFs",
            "Objects": [function_path(IGB0)],
            "Requester": f"uid 0 ({client.connection.unique_name})",
            "State": "done",
            "Stage": "",
            "Progress": 1.0,
            "Outcome": f"Created 2 VFs of {IGB0}.",
            "Error": "",
        }
        assert await client.wait_job(job) == "done"


@in_loop
async def test_caller_who_does_not_wait(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.inject("set-num-vfs", IGB0, delay_usec=SLOW_USEC)
        began = time.monotonic()
        job, state = await client.set_num_vfs(IGB0, 2, wait_usec=0)
        assert state == "running"
        assert time.monotonic() - began < SLOW_USEC / 1e6
        assert await client.wait_job(job, 0) == "running"
        shown = await client.job(job)
        assert (shown["State"], shown["Stage"], shown["Outcome"]) == ("running", "making 2 VFs", "")
        assert 0.0 < shown["Progress"] < 1.0
        assert await client.wait_job(job) == "done"
        assert len(await client.vfs(IGB0)) == 2


@in_loop
async def test_caller_who_waits_a_little(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.inject("set-num-vfs", IGB0, delay_usec=SLOW_USEC)
        job, state = await client.set_num_vfs(IGB0, 2, wait_usec=SLOW_USEC // 3)
        assert state == "running"
        assert await client.wait_job(job, SLOW_USEC // 10) == "running"
        assert await client.wait_job(job) == "done"


@in_loop
async def test_failure_of_a_job_nobody_waits_for(host: DaemonProcess) -> None:
    """The error is in the job and in JobEnded."""
    async with Client.connected(host.address) as client, Listener.connected(host.address) as listener:
        await client.inject("set-num-vfs", IGB0, delay_usec=SLOW_USEC, errno="ENOMEM", times=1)
        job, state = await client.set_num_vfs(IGB0, 2, wait_usec=0)
        assert state == "running"
        assert await client.wait_job(job) == "failed"
        shown = await client.job(job)
        assert shown["Error"] == f"{BUS_NAME}.Error.NumVfsRejected"
        assert "no room in PCI memory" in shown["Outcome"]
        await until(lambda: listener.named("JobEnded"))
        (ended,) = listener.named("JobEnded")
        assert (ended.path, ended.interface) == (ROOT, MANAGER)
        assert ended.body == [job, "SetNumVFs", "failed", shown["Outcome"]]


@in_loop
async def test_second_job_on_an_adapter_waits_and_can_be_cancelled(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.inject("set-num-vfs", IGB0, delay_usec=SLOW_USEC, times=1)
        first, _ = await client.set_num_vfs(IGB0, 2, wait_usec=0)
        second, _ = await client.ask("Reset", "sa{sv}", IGB0, make_options(wait_usec=0))
        assert (await client.job(second))["State"] == "queued"
        await client.call(second, JOB, "Cancel")
        assert await client.wait_job(second) == "cancelled"
        assert await client.wait_job(first) == "done"
        assert (await client.job(second))["Error"] == f"{BUS_NAME}.Error.Cancelled"


@in_loop
async def test_cancelling_takes_back_what_was_done(host: DaemonProcess) -> None:
    """Half of the VFs are bound when it is cancelled; the caller who waits is told."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 7, driver="vfio-pci")
        await client.inject("bind", errno="", delay_usec=100_000, times=6)
        waiting = asyncio.create_task(client.refused("BindVFs", "ssa{sv}", IGB0, "pci-stub", {}))
        await until_bound(client, "pci-stub", at_least=2)
        (job,) = [path for path, each in (await client.managed()).items() if _is_running(each)]
        await client.call(job, JOB, "Cancel")
        (await waiting).check("Cancelled", "BindVFs was cancelled")
        assert set((await client.vfs(IGB0)).values()) == {"vfio-pci"}
        assert (await client.job(job))["State"] == "cancelled"
        assert shown_objects(await client.managed()) == expected_objects(host.root)
        await client.call(job, JOB, "Cancel")  # of one that has ended: harmless


async def until_bound(client: Client, driver: str, at_least: int) -> None:
    """Until so many VFs of IGB0 are on `driver`: the job shows them while it goes on."""
    async with asyncio.timeout(10.0):
        while list((await client.vfs(IGB0)).values()).count(driver) < at_least:
            await asyncio.sleep(0.005)


def _is_running(interfaces: dict[str, dict[str, Any]]) -> bool:
    return JOB in interfaces and interfaces[JOB]["State"] == "running"


@in_loop
async def test_adapters_do_not_wait_for_each_other(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.inject("set-num-vfs", IGB0, delay_usec=2 * SLOW_USEC, times=1)
        slow, _ = await client.set_num_vfs(IGB0, 2, wait_usec=0)
        assert (await client.set_num_vfs(NVME, 20, driver="pci-stub"))[1] == "done"
        assert (await client.job(slow))["State"] == "running"
        assert await client.wait_job(slow) == "done"


@in_loop
async def test_objects_come_before_the_reply(host: DaemonProcess) -> None:
    """One InterfacesAdded for each VF, from the root, whole; then the PF's count; then the reply."""
    async with Listener.connected(host.address) as listener:
        reply = await listener.call(
            "SetNumVFs", "sua{sv}", IGB0, 7, {}, path=ROOT, interface=MANAGER
        )  # fmt: skip
        assert reply.body[1] == "done"
        assert listener.order.index("reply", 1) == len(listener.order) - 1  # 0 is AddMatch's
        added = [signal for signal in listener.named("InterfacesAdded") if "/function/" in signal.body[0]]
        assert {signal.path for signal in added} == {ROOT}
        assert [signal.body[0] for signal in added] == [
            function_path(f"0000:01:1{number // 4}.{number % 4 * 2}") for number in range(7)
        ]
        for signal in added:
            assert set(signal.body[1]) == {FUNCTION, VIRTUAL_FUNCTION, RECOVERY, TRACE}
        counts = [
            signal.body[1]["NumVFs"].value
            for signal in listener.named("PropertiesChanged")
            if signal.body[0] == PHYSICAL_FUNCTION and "NumVFs" in signal.body[1]
        ]
        assert counts[-1] == 7


@in_loop
async def test_changes_come_before_the_reply(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client, Listener.connected(host.address) as listener:
        await client.set_num_vfs(IGB0, 7)
        await until(lambda: len(listener.named("JobEnded")) == 1)
        listener.signals.clear()
        await listener.call("BindVFs", "ssa{sv}", IGB0, "vfio-pci", {}, path=ROOT, interface=MANAGER)
        drivers = [
            (signal.path, signal.body[1]["Driver"].value)
            for signal in listener.named("PropertiesChanged")
            if "Driver" in signal.body[1]
        ]
        vfs = await client.vfs(IGB0)
        assert sorted(drivers) == sorted((function_path(vf), "vfio-pci") for vf in vfs)
        listener.signals.clear()
        await listener.call("SetNumVFs", "sua{sv}", IGB0, 0, {}, path=ROOT, interface=MANAGER)
        signals = listener.named("InterfacesRemoved")
        removed = [signal.body[0] for signal in signals if "/function/" in signal.body[0]]
        assert sorted(removed) == sorted(function_path(vf) for vf in vfs)
        assert {signal.path for signal in signals} == {ROOT}


@in_loop
async def test_ended_jobs_are_bounded(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        jobs = [(await client.unbind(VF0))[0] for _ in range(KEPT_COUNT + 10)]
        kept = {path for path in await client.managed() if path.startswith(f"{ROOT}/job/")}
        assert kept == set(jobs[-KEPT_COUNT:])


def test_ended_jobs_vanish(bus: PrivateBus, root: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("sriovd.core.jobs.KEPT_SEC", 0.2)

    @in_loop
    async def test() -> None:
        async with running_inside(bus.address, root) as inside, Listener.connected(bus.address) as listener:
            job, _ = await inside.client.set_num_vfs(IGB0, 1)
            assert (await inside.client.job(job))["State"] == "done"
            await until(lambda: [s for s in listener.named("InterfacesRemoved") if s.body[0] == job])
            assert job not in await inside.client.managed()

    test()
