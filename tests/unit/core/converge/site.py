"""All rules on a simulated host, without a bus: policies in a directory, and every write noted.

Rule: what a host has become is read from the simulated kernel's own devices, never from what sriovd shows.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.device import Device
from sriovd.backend.simulated.kernel import Call
from sriovd.backend.steps import Access, Verb
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.converge.standing import Condition, Standing
from sriovd.core.engine import Engine, Places
from sriovd.core.jobs import Job
from sriovd.core.store import MEMORY
from sriovd.pci import PciAddress

A, B = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:02:00.0")
NICS = (("igb", str(A)), ("igb", str(B)))
DEADLINE_SEC = 20.0  # of a whole test: far more than any needs
FOR_EVER_USEC = 10**9

POLICY_OF_A = """
[match]
address = "0000:01:00.*"
[functions]
num-vfs = 2
driver = "vfio-pci"
"""


class Site:
    """A host with everything that sriovd knows of it. `writes`: what was written since clear(), as text;
    `reads`: how often the VFs' attributes were read."""

    def __init__(self, backend: SimulatedBackend, engine: Engine, policies: Path) -> None:
        self.backend = backend
        self.engine = engine
        self.policies = policies
        self.writes: list[str] = []
        self.reads = 0
        self._start = backend.kernel.start
        backend.kernel.start = self._note  # type: ignore[method-assign]

    def _note(self, access: Access, path: str, data: bytes = b"") -> Call:
        request = data.decode()
        if access is Access.WRITE or request.startswith(Verb.SET_VF_ATTRIBUTE):
            self.writes.append(f"{path.removeprefix('bus/pci/')} {request.strip()}")
        elif request.startswith(Verb.READ_LINK):
            self.reads += 1
        return self._start(access, path, data)

    def clear(self) -> None:
        """Forget what was written and read so far."""
        self.writes.clear()
        self.reads = 0

    def other(self, path: str, data: str) -> None:
        """Somebody else writes to a file of a device, if `path` begins with an address, or of the bus."""
        place = f"bus/pci/devices/{path}" if path.startswith("0000:") else f"bus/pci/{path}"
        before = list(self.writes)
        self.backend.kernel.write(place, data)
        self.writes[:] = before

    def other_binds(self, vf: Device, driver: str) -> None:
        """Somebody else takes `vf` to `driver`; empty for to none."""
        self.other(f"{vf}/driver_override", f"{driver}\n")
        if vf.driver is not None:
            self.other(f"{vf}/driver/unbind", str(vf))
        if driver:
            self.other(f"drivers/{driver}/bind", str(vf))

    def write_policy(self, text: str, name: str = "10-test.toml") -> None:
        """Make a policy file what `text` says."""
        (self.policies / name).write_text(text)

    def device(self, address: PciAddress) -> Device:
        return self.backend.host.devices[address]

    def vfs(self, pf: PciAddress = A) -> list[Device]:
        """The VFs of `pf`, by index."""
        return self.backend.host.list_vfs(self.device(pf))

    def drivers(self, pf: PciAddress = A) -> list[str]:
        return [vf.driver_name if vf.driver else "" for vf in self.vfs(pf)]

    def attributes(self, pf: PciAddress = A) -> list[VfAttributes]:
        return self.device(pf).vf_attributes

    def standing(self, pf: PciAddress = A) -> Standing:
        return self.engine.standings.of(pf)

    async def end(self, job: Job) -> Job:
        """Wait for the job's end."""
        assert await job.wait(FOR_EVER_USEC)
        return job

    async def apply(self, *pfs: PciAddress, force: bool = False, expected: str = "") -> Job:
        return await self.end(self.engine.campaign.apply(pfs or (A,), force, expected, "uid 0"))

    def jobs(self) -> Sequence[Job]:
        """Every job there was, the first ones first."""
        found = (self.engine.jobs.get(number) for number in range(1, 1000))
        return [job for job in found if job is not None]

    async def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Wait until `condition` holds; fails naming `what` if it never does."""
        try:
            async with asyncio.timeout(10.0):
                while not condition():
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise AssertionError(f"{what}: {self.standing()}, {self.writes}") from None

    async def until_look(self) -> None:
        """Until attributes have been read."""
        await self.until(lambda: self.reads, "a look")

    async def until_in_sync(self, pf: PciAddress = A) -> None:
        """Until `pf` is as its policy says."""
        await self.until(lambda: self.standing(pf).condition is Condition.IN_SYNC, f"{pf} in sync")

    async def until_idle(self) -> None:
        """Until nothing is looked at any more and all events are taken in."""
        await asyncio.sleep(0.05)
        await self.until(lambda: not self.engine.policy.busy and not self.engine.jobs.running, "idle")


@asynccontextmanager
async def made_site(
    *, watching: bool = False, policy: str = "", state: str = MEMORY, **host: Any
) -> AsyncIterator[Site]:
    """A site. `watching`: policies are in force from the start, and events are followed; `host`: as
    SimulatedBackend takes it."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sriovd-test-", dir=memory) as directory:
        policies = Path(directory) / "policies"
        policies.mkdir()
        backend = SimulatedBackend(f"{directory}/sys", **{"machine": NICS, **host})
        engine = Engine(backend, Places(state=state, policies=(str(policies),)))
        site = Site(backend, engine, policies)
        if policy:
            site.write_policy(policy)
        await backend.start()
        follower: asyncio.Task[None] | None = None
        try:
            await engine.look_around()
            if watching:
                await engine.start_policy()
                follower = asyncio.create_task(engine.picture.follow())
            yield site
        finally:
            backend.clear_faults()
            if follower is not None:
                follower.cancel()
            await backend.stop()
            await engine.close()


def run_async(test: Awaitable[None]) -> None:
    """Run a test that waits; a hang is a failure."""
    asyncio.run(_limit(test))


async def _limit(test: Awaitable[None]) -> None:
    async with asyncio.timeout(DEADLINE_SEC):
        await test


def descriptions(steps: Sequence[Any]) -> list[str]:
    return [step.description for step in steps]
