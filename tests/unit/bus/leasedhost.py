"""A simulated host with two VFs, of which one is leased: for tests of verbs that owners call."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from sriovd.backend.simulated import SimulatedBackend
from sriovd.core.engine import Engine
from sriovd.core.lease.choose import Wish
from sriovd.core.lifecycle import CountOptions
from sriovd.pci import PciAddress


class HasEngine(Protocol):
    """What a test has made of the host."""

    engine: Engine


Made = TypeVar("Made", bound=HasEngine)


@asynccontextmanager
async def leased_host(
    make: Callable[[SimulatedBackend], Made], pf: PciAddress, vf: PciAddress, uid: int, owner: str
) -> AsyncIterator[Made]:
    """`make` is given the host; then `pf` has two VFs, and `vf` is leased by `owner` of user `uid`."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        backend = SimulatedBackend(str(Path(directory) / "sys"), machine=(("igb", str(pf)),))
        await backend.start()
        made = make(backend)
        engine = made.engine
        await engine.look_around()
        engine.take_up_leases(frozenset())
        assert await engine.lifecycle.set_num_vfs(pf, 2, CountOptions(), "test").wait(10_000_000)
        lease = await engine.leases.lease(uid, owner, Wish(address=vf), "vfio-pci")
        await engine.leases.wait_begun(lease.number)
        yield made
        await engine.recovery.close()
        await engine.leases.close()
        await engine.close()
        await backend.stop()
