"""A desk of recovery that says what a test wants, and keeps what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from sriovd.bus.connection import Connection, Watch
from sriovd.core.errors import InvalidArgument, NoSuchFunction, TimedOut
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.recovery.standing import BundleHead, PeStanding
from sriovd.core.results import Changed, Result
from sriovd.pci import PciAddress

ONLINE = PeStanding("online")


class FakeDesk:
    """A RecoveryDesk. `adapters`, `vfs`: who is not online. `unfreezing`: what a VF's recovery is; `gate`:
    lets those go on who wait to be permitted."""

    def __init__(self, jobs: JobRegistry) -> None:
        self.on_adapter: Callable[[str, PeStanding], None] = lambda _slot, _standing: None
        self.on_vf: Callable[[PciAddress, PeStanding], None] = lambda _vf, _standing: None
        self.adapters: dict[str, PeStanding] = {}
        self.vfs: dict[PciAddress, PeStanding] = {}
        self.asked: list[tuple[object, ...]] = []
        self.bundles: dict[str, list[BundleHead]] = {}
        self.unfreezing: Callable[[PciAddress], Awaitable[str]] = _recover_at_once
        self.gate = asyncio.Event()
        self.waiting = 0
        self._jobs = jobs

    async def start(self) -> None:
        """As the daemon starts the recoveries of the one before."""

    async def close(self) -> None:
        """As it ends."""

    def set_vf(self, vf: PciAddress, standing: PeStanding) -> None:
        self.vfs[vf] = standing
        self.on_vf(vf, standing)

    def set_adapter(self, slot: str, standing: PeStanding) -> None:
        self.adapters[slot] = standing
        self.on_adapter(slot, standing)

    def adapter_standing(self, slot: str) -> PeStanding:
        return self.adapters.get(slot, ONLINE)

    def vf_standing(self, address: PciAddress) -> PeStanding:
        return self.vfs.get(address, ONLINE)

    async def unfreeze(self, vf: PciAddress) -> str:
        self.asked.append(("unfreeze", vf))
        return await self.unfreezing(vf)

    async def wait_permitted(self, vf: PciAddress, timeout_usec: int) -> str:
        self.asked.append(("wait", vf, timeout_usec))
        self.waiting += 1
        try:
            async with asyncio.timeout(timeout_usec / 1e6):
                await self.gate.wait()
        except TimeoutError:
            raise TimedOut(f"{vf} is not permitted yet.", "Wait again.") from None
        finally:
            self.waiting -= 1
        return "permitted"

    def recover(self, target: str | PciAddress, requester: str) -> Job:
        self.asked.append(("recover", target, requester))

        async def work(_job: Job) -> Result:
            return Changed(f"Recovered {target}.")

        return self._jobs.start("Recover", (), requester, work)

    def lift(self, target: str | PciAddress) -> str:
        self.asked.append(("lift", target))
        return "frozen"

    def list_bundles(self, slot: str) -> Sequence[BundleHead]:
        return self.bundles.get(slot, [])

    async def read_bundle(self, number: int, form: str) -> str:
        if form not in ("text", "json"):
            raise InvalidArgument(f"{form!r} is no format.", "Give 'text' or 'json'.")
        if all(head.number != number for heads in self.bundles.values() for head in heads):
            raise NoSuchFunction(f"No bundle {number} is kept.", "ListBundles lists them.")
        return f"bundle {number} as {form}"


async def _recover_at_once(_vf: PciAddress) -> str:
    return "online"


class Everybody(Connection):
    """A bus that callers leave when a test says so."""

    def __init__(self) -> None:
        self.watched: dict[str, Callable[[], object]] = {}

    async def watch_name(self, name: str, on_gone: Callable[[], object]) -> Watch:
        self.watched[name] = on_gone
        return Watch(self, name, on_gone)

    async def _unwatch(self, watch: Watch) -> None:
        del self.watched[watch.name]
