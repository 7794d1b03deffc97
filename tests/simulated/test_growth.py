"""From 16 to 16,384 VFs: what a VF costs when the daemon starts, and what one event costs, must not depend
on how many there are.

Measured, in CPU time of this process (user and system), the best of several rounds each:
- start: from the first listing of the tree until every PF and VF has been read, has its object, and its
  InterfacesAdded has been handed to the bus; divided by the number of VFs, with nothing subtracted.
- event: 16 VFs have changed their driver and their uevents wait in the queue; from there until their objects
  show it and PropertiesChanged has been handed to the bus; divided by 16.
The parts are wired as daemon.py does it. What the simulated kernel needs to make VFs is not sriovd's cost.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.sysfs import SysfsReader
from sriovd.bus.connection import Connection
from sriovd.bus.contract import load_contract
from sriovd.bus.objects import FUNCTION, Objects, function_path
from sriovd.bus.private import PrivateBus
from sriovd.bus.recovery_objects import RecoveryObjects
from sriovd.bus.tree import Tree
from sriovd.bus.visibility import Shares
from sriovd.core.inventory import Inventory
from sriovd.core.jobs import JobRegistry
from sriovd.core.picture import Picture
from sriovd.pci import PciAddress
from tests.unit.bus.fakedesk import FakeDesk
from tests.unit.bus.support import in_loop, until

SIZES = (16, 256, 4096, 16384)
VFS_PER_CARD = 256
ROUNDS = {16: 20, 256: 8, 4096: 2, 16384: 1}
EVENT_ROUNDS = 16
EVENTS = 16
FACTOR = 1.5
CONTRACT = Path(__file__).parents[2] / "sriovd/bus/org.sriovd1.xml"
CARDS = [f"0000:{2 * number + 2:02x}:00.0" for number in range(SIZES[-1] // VFS_PER_CARD)]


class Parts:
    """What a daemon is made of, new for each start."""

    def __init__(self, backend: SimulatedBackend, connection: Connection) -> None:
        self.inventory = Inventory()
        self.picture = Picture(backend, self.inventory)
        self.tree = Tree(load_contract(CONTRACT), connection.send_signal)
        recovery = RecoveryObjects(self.tree, self.inventory, FakeDesk(JobRegistry()))
        self.objects = Objects(
            self.tree, self.inventory, JobRegistry(), Shares(), recovery_of=recovery.interfaces_of
        )  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Microseconds of CPU time: of a start, for each VF; of one event."""

    start_usec: float
    event_usec: float


@contextmanager
def only_ours_collected() -> Iterator[None]:
    """Garbage collection as in a daemon, which does not have the simulated host's objects in its heap."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


async def sent(connection: Connection) -> None:
    """Until the kernel has taken everything."""
    while connection.queued_bytes:
        await asyncio.sleep(0)


async def measure_start(
    backend: SimulatedBackend, connection: Connection, count: int
) -> tuple[Parts, float]:
    best = float("inf")
    for _ in range(ROUNDS[count]):
        parts = Parts(backend, connection)
        backend._reader = SysfsReader(backend.host.tree.root)  # remembers nothing of the round before
        with only_ours_collected():
            began = time.process_time()
            await parts.picture.rescan()
            parts.tree.flush()
            await sent(connection)
            best = min(best, time.process_time() - began)
    return parts, best / count * 1e6


async def measure_events(
    backend: SimulatedBackend, connection: Connection, parts: Parts, vfs: list[PciAddress]
) -> float:
    following = asyncio.create_task(parts.picture.follow())
    best = float("inf")
    with only_ours_collected():
        for number in range(EVENT_ROUNDS):
            driver = "pci-stub" if number % 2 == 0 else ""
            for vf in vfs:
                change_driver(backend, vf, driver)
            began = time.process_time()
            while any(parts.tree.get(function_path(vf), FUNCTION, "Driver") != driver for vf in vfs):
                await asyncio.sleep(0)
            parts.tree.flush()
            await sent(connection)
            best = min(best, time.process_time() - began)
    following.cancel()
    return best / len(vfs) * 1e6


def change_driver(backend: SimulatedBackend, vf: PciAddress, driver: str) -> None:
    """Somebody binds `vf` to pci-stub, or unbinds it."""
    if driver:
        backend.kernel.write(f"bus/pci/devices/{vf}/driver_override", driver)
        backend.kernel.write("bus/pci/drivers_probe", str(vf))
    else:
        backend.kernel.write("bus/pci/drivers/pci-stub/unbind", str(vf))


def has_driver(backend: SimulatedBackend, address: PciAddress) -> bool:
    """Whether the kernel has found what was plugged in, and its driver has taken it."""
    device = backend.host.devices.get(address)
    return device is not None and device.driver is not None


async def grow(backend: SimulatedBackend, count: int) -> None:
    """Until there are `count` VFs, on as few adapters as can have them."""
    per_card = min(count, VFS_PER_CARD)
    for card in CARDS[: count // per_card]:
        address = PciAddress.parse(card)
        if address not in backend.host.devices:
            backend.plug("dlb", address)
            await until(partial(has_driver, backend, address))
            backend.kernel.write(f"bus/pci/devices/{card}/sriov_drivers_autoprobe", "0")
        if len(backend.list_virtual_functions(address)) != per_card:
            backend.kernel.write(f"bus/pci/devices/{card}/sriov_numvfs", "0")
            backend.kernel.write(f"bus/pci/devices/{card}/sriov_numvfs", str(per_card))
    backend.host.uevents.drain()


@pytest.mark.alone
@in_loop
async def test_cost_does_not_grow(bus: PrivateBus, root: str) -> None:
    backend = SimulatedBackend(root, machine=())
    await backend.start()
    connection = await Connection.open(bus.address)
    costs: dict[int, Cost] = {}
    print(f"\n{'VFs':>6} {'start, us per VF':>17} {'event, us':>10}")
    for count in SIZES:
        await grow(backend, count)
        parts, start_usec = await measure_start(backend, connection, count)
        vfs = [each for each in backend.list_functions() if parts.inventory.get(each).virtual]
        assert len(vfs) == count
        event_usec = await measure_events(backend, connection, parts, vfs[-EVENTS:])
        costs[count] = Cost(start_usec, event_usec)
        print(f"{count:>6} {start_usec:>17.0f} {event_usec:>10.0f}")
    await connection.close()
    starts, events = zip(*((cost.start_usec, cost.event_usec) for cost in costs.values()), strict=True)
    print(f"factor {starts[-1] / starts[0]:>16.2f} {events[-1] / events[0]:>10.2f}")
    assert starts[-1] < FACTOR * starts[0]
    assert events[-1] < FACTOR * events[0]
