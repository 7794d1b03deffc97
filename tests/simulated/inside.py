"""The daemon in the test's own event loop: for tests that act on the simulated host behind its back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sriovd.backend.simulated import SimulatedBackend
from sriovd.core.engine import Places
from sriovd.daemon import Daemon, Settings
from tests.simulated.client import Client
from tests.simulated.truth import expected_objects, shown_objects

SETTLE_S = 15.0


@dataclass(frozen=True)
class Inside:
    """A running daemon with its host and a client of it."""

    backend: SimulatedBackend
    daemon: Daemon
    client: Client
    root: str

    def write(self, path: str, data: str) -> None:
        """Somebody else writes to a file of the tree: of a device, if the path begins with an address."""
        place = f"bus/pci/devices/{path}" if path.startswith("0000:") else f"bus/pci/{path}"
        self.backend.kernel.write(place, data)

    async def settle(self) -> None:
        """Until the objects equal the tree; fails showing the difference if they never do."""
        try:
            async with asyncio.timeout(SETTLE_S):
                while shown_objects(await self.client.managed()) != expected_objects(self.root):
                    await asyncio.sleep(0.01)
        except TimeoutError:
            assert shown_objects(await self.client.managed()) == expected_objects(self.root)


@asynccontextmanager
async def running_inside(
    address: str,
    root: str,
    prepare: Callable[[Daemon], None] = lambda _: None,
    places: Places | None = None,
    **options: Any,
) -> AsyncIterator[Inside]:
    """A daemon on the bus at `address`, on a simulated host of its own; `options`: SimulatedBackend's.
    `prepare`: is given the daemon before it serves."""
    backend = SimulatedBackend(root, **options)
    daemon = Daemon(backend, Settings(bus=address, private=True, places=places or Places()))
    prepare(daemon)
    ready = asyncio.Event()
    task = asyncio.create_task(daemon.run(ready.set))
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    try:
        async with Client.connected(address) as client:
            yield Inside(backend, daemon, client, root)
    finally:
        backend.clear_faults()
        daemon.stop()
        await task
