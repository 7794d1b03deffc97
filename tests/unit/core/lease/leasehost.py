"""All of core on a simulated host, as daemon.py wires it: leases as they are lived."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from sriovd.backend.base import Holder
from sriovd.backend.simulated import SimulatedBackend
from sriovd.core.engine import Engine, Places
from sriovd.core.inventory import Function
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import Lease, LeaseState
from sriovd.core.lifecycle import CountOptions
from sriovd.pci import PciAddress

IGB, IGB2, NVME = (PciAddress.parse(f"0000:0{bus}:00.0") for bus in (1, 2, 3))
VF0, VF1 = (PciAddress.parse(text) for text in ("0000:01:10.0", "0000:01:10.2"))
MACHINE = (("igb", str(IGB)), ("igb", str(IGB2)))
QEMU = Holder(4711, "qemu")
DEADLINE_SEC = 30.0  # of a whole test
ALICE, BOB = 1000, 1001


def on_host(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that waits; a hang is a failure."""

    @wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*arguments, **named), DEADLINE_SEC))

    return run


async def until(condition: Callable[[], object]) -> None:
    """Let others run until `condition` holds; the test's deadline ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.001)


class World:
    """A host, and one daemon's rules after another's. `seen`: the states that each lease was told in."""

    def __init__(self, directory: Path, machine: tuple[tuple[str, str], ...] = MACHINE) -> None:
        self.backend = SimulatedBackend(str(directory / "sys"), machine=machine)
        self.places = Places(state=str(directory / "db"), cdi=str(directory / "cdi"))
        self.seen: dict[int, list[LeaseState]] = {}
        self.reasons: dict[int, list[str]] = {}
        self.ended: list[int] = []
        self._follower: asyncio.Task[None] | None = None
        self._others: set[asyncio.Task[Any]] = set()

    async def begin(self, kept: frozenset[int] = frozenset()) -> None:
        """Start a daemon's rules."""
        self._others = asyncio.all_tasks()
        await self.backend.start()
        self.engine = Engine(self.backend, self.places)
        self.leases = self.engine.leases
        self.inventory = self.engine.inventory
        self.leases.listen(self._note, lambda lease: self.ended.append(lease.number))
        await self.engine.look_around()
        self.engine.take_up_leases(kept)
        self._follower = asyncio.create_task(self.engine.picture.follow())

    async def crash(self) -> None:
        """What kill -9 does: nothing of the daemon goes on; the kernel and its helpers do."""
        helpers = {run.task for run in self.backend._runs}
        spared = self._others | self.backend._tasks | helpers | {asyncio.current_task()}
        doomed = asyncio.all_tasks() - spared
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        await self.engine.store.close()
        await self.backend.stop()

    async def restart(self, kept: frozenset[int] = frozenset()) -> None:
        """kill -9, and another daemon."""
        await self.crash()
        await self.begin(kept)

    async def end(self) -> None:
        self.backend.clear_faults()
        await self.crash()

    def _note(self, lease: Lease) -> None:
        self.seen.setdefault(lease.number, []).append(lease.state)
        self.reasons.setdefault(lease.number, []).append(lease.reason)

    async def set_num_vfs(self, count: int, pf: PciAddress = IGB, *, force: bool = False) -> None:
        job = self.engine.lifecycle.set_num_vfs(pf, count, CountOptions(force=force), "test")
        await job.wait(20_000_000)
        assert job.error is None, job.error

    async def lend(
        self, uid: int = ALICE, name: str = "vm", wish: Wish | None = None, **named: Any
    ) -> Lease:
        """A lease that is active."""
        driver = named.pop("driver", "vfio-pci")
        lease = await self.leases.lease(uid, name, wish or Wish(), driver, **named)
        return await self.leases.wait_begun(lease.number)

    def vf(self, address: PciAddress = VF0) -> Function:
        return self.inventory.get(address)

    def group(self, address: PciAddress = VF0) -> int:
        group = self.vf(address).facts.iommu_group
        assert group is not None
        return group

    def state(self, number: int) -> LeaseState | None:
        lease = self.leases.get(number)
        return lease.state if lease else None

    async def until_state(self, number: int, state: LeaseState | None) -> None:
        await until(lambda: self.state(number) is state)

    def documents(self) -> dict[str, bytes]:
        """What container runtimes find."""
        directory = Path(self.places.cdi)
        return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}

    async def stored(self) -> list[int]:
        """The leases in the database."""
        return [int(record["number"]) for _, record in self.engine.store.load().leases]

    def remembered(self) -> dict[str, Any]:
        """All that is kept of leases, where there is anything."""
        lives = self.leases._lives
        kept = {**vars(lives), **vars(self.leases._pool)}
        return {
            name: value
            for name, value in kept.items()
            if (isinstance(value, dict | set) and value) or (name == "waiters" and len(value))
        }


@asynccontextmanager
async def world(directory: Path, vfs: int = 2, **named: Any) -> AsyncIterator[World]:
    """A host whose first PF has VFs, and a daemon on it."""
    made = World(directory, **named)
    await made.begin()
    if vfs:
        await made.set_num_vfs(vfs)
    try:
        yield made
    finally:
        await made.end()
