"""Uevents: what they say, and what can happen to them."""

from __future__ import annotations

import asyncio

from sriovd.backend.base import Fault, Uevent
from sriovd.backend.simulated.uevents import EventFault
from sriovd.backend.steps import Verb

from .support import IGB, VF, VF1, Sim, describe, ignore, run_async, script, step


def properties(sim: Sim, action: str) -> dict[str, str]:
    """Those of the first event with that action."""
    events = [event for event in sim.backend.host.uevents.drain() if isinstance(event, Uevent)]
    return dict(next(event.properties for event in events if event.action == action))


def test_properties_are_the_kernels(sim: Sim) -> None:
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "0")
    sim.must(f"{IGB}/sriov_numvfs", "1")
    assert properties(sim, "add") == {
        "ACTION": "add",
        "DEVPATH": "/devices/pci0000:00/0000:00:01.0/0000:01:10.0",
        "SUBSYSTEM": "pci",
        "PCI_CLASS": "20000",
        "PCI_ID": "8086:10CA",
        "PCI_SUBSYS_ID": "1AF4:1100",
        "PCI_SLOT_NAME": VF,
        "MODALIAS": "pci:v00008086d000010CAsv00001AF4sd00001100bc02sc00i00",
    }
    sim.must(f"{VF}/driver_override", "vfio-pci")
    sim.must("drivers_probe", VF)
    assert properties(sim, "bind")["DRIVER"] == "vfio-pci"
    sim.must("drivers/vfio-pci/unbind", VF)
    assert {"DRIVER", "MODALIAS"} & set(properties(sim, "unbind")) == set()


def test_at_add_the_links_are_not_there_yet(sim: Sim) -> None:
    async def main() -> None:
        seen = []
        await sim.backend.start()
        run = asyncio.create_task(write_numvfs(sim))
        async for event in sim.backend.events():
            assert isinstance(event, Uevent)
            facts = sim.backend.read_function(event.address)
            seen.append((describe(event), facts is not None))
            if event.address == sim.device(IGB).address:
                break
        await run
        assert seen == [(f"add {VF}", False), (f"change {VF}", True), (f"change {IGB}", True)]

    run_async(main)


async def write_numvfs(sim: Sim) -> None:
    """One VF, written by a script, so that the listener runs in between."""
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "0")
    await sim.backend.run("a", script((step(Verb.SET_NUM_VFS, IGB, "1"),)), ignore).finished


def test_lost_events_are_reported_once(sim: Sim) -> None:
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "0")
    sim.backend.lose_events(2)
    sim.must(f"{IGB}/sriov_numvfs", "2")
    assert sim.events() == ["lost", f"add {VF1}", f"change {VF1}", f"change {IGB}"]


def test_events_of_one_function_can_be_lost_or_late(sim: Sim) -> None:
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "0")
    sim.backend.inject_fault(Fault(EventFault.LOSE, sim.device(IGB).address, times=1))
    sim.must(f"{IGB}/sriov_numvfs", "1")
    assert sim.events() == [f"add {VF}", f"change {VF}", "lost"]
    sim.backend.inject_fault(Fault(EventFault.REORDER, sim.device(VF).address, times=1))
    sim.must(f"{IGB}/sriov_numvfs", "0")
    assert sim.events() == []
    sim.must(f"{IGB}/sriov_numvfs", "1")
    assert sim.events()[:3] == [f"add {VF}", f"remove {VF}", f"change {VF}"]


def test_delayed_events_are_overtaken(sim: Sim) -> None:
    async def main() -> None:
        await sim.backend.start()
        sim.must(f"{IGB}/sriov_drivers_autoprobe", "0")
        sim.backend.inject_fault(Fault(EventFault.DELAY, None, delay_usec=20_000, times=1))
        sim.must(f"{IGB}/sriov_numvfs", "1")
        seen = []
        async for event in sim.backend.events():
            if isinstance(event, Uevent):
                seen.append(describe(event))
            if len(seen) == 3:
                break
        assert seen == [f"change {VF}", f"change {IGB}", f"add {VF}"]

    run_async(main)


def test_nothing_is_kept_for_who_does_not_listen_and_stop_ends_the_iterator(sim: Sim) -> None:
    async def main() -> None:
        await sim.backend.stop()
        sim.must(f"{IGB}/uevent", "change")
        await sim.backend.start()
        listener = asyncio.create_task(collect(sim))
        await asyncio.sleep(0)
        sim.must(f"{IGB}/uevent", "change")
        await asyncio.sleep(0)
        await sim.backend.stop()
        assert await listener == [f"change {IGB}"]

    run_async(main)


async def collect(sim: Sim) -> list[str]:
    """Everything until the iterator ends."""
    return [describe(event) async for event in sim.backend.events()]
