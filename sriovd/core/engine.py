"""All rules on one host: which part knows which, and the order in which they begin.

Rule: wiring only, and nothing of a bus. First the store is read, then the host is looked at and adopted as
it is, then what a killed daemon left half done is mended, and only then policy may act.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from sriovd.backend.base import Backend
from sriovd.core.binder import Binder
from sriovd.core.capabilities import Capabilities
from sriovd.core.configurer import Configurer
from sriovd.core.converge.apply import Applier, Hands
from sriovd.core.converge.keeper import PolicyKeeper
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.creator import Creator
from sriovd.core.errors import SriovdError
from sriovd.core.execute import Executor
from sriovd.core.identities import Identities
from sriovd.core.inventory import Change, FunctionChange, Inventory
from sriovd.core.jobs import JobRegistry
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lease.work import LeaseWork, Site
from sriovd.core.lifecycle import Lifecycle
from sriovd.core.mend import find_mending
from sriovd.core.messages import Message, announce
from sriovd.core.picture import Picture
from sriovd.core.store import MEMORY, Store
from sriovd.core.usage import Usage
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are kept. `state`: the database's file, or MEMORY. `policies`: directories of policy
    files, the most important first. `cdi`: where container runtimes look; empty for nowhere."""

    state: str = MEMORY
    policies: tuple[str, ...] = ()
    cdi: str = ""


class Engine:
    """The parts of core, put together."""

    def __init__(self, backend: Backend, places: Places) -> None:
        """Raises OSError when the database cannot be opened."""
        self.backend = backend
        self.store = Store(places.state, backend.boot_id(), backend.describe())
        self._saved = saved = self.store.load()
        self.inventory = Inventory(saved.generations)
        self.picture = Picture(backend, self.inventory)
        self.executor = Executor(backend, self.store)
        self.jobs = JobRegistry()
        self.usage = Usage(backend)
        self.binder = Binder(self.usage, self.inventory, self.picture, self.executor)
        self.creator = Creator(
            self.inventory, self.picture, self.executor, self.binder, self.store, saved.quieted
        )
        self.capabilities = Capabilities(self.store, saved.unsupported)
        self.configurer = Configurer(self.executor, self.capabilities)
        self.identities = Identities(self.store, saved.macs)
        self.workplace = Workplace(self.executor, self.picture)
        hands = Hands(
            self.inventory, self.picture, self.executor, self.usage, self.capabilities, self.identities,
            self.configurer, self.creator, self.binder,
        )  # fmt: skip
        self.rulebook = Rulebook(self.store, self.identities, places.policies, saved.policies)
        self.policy = PolicyKeeper(
            self.inventory, self.executor, self.jobs, Applier(hands), self.workplace, self.rulebook
        )
        self.work = LeaseWork(Site(backend, self.jobs, self.workplace, hands, self.rulebook, places.cdi))
        self.leases = LeaseKeeper(self.inventory, self.work, self.store, saved.last_lease)
        self.usage.lease_of = self.leases.describe_lease_of
        self.lifecycle = Lifecycle(backend, self.jobs, self.workplace, hands, self.rulebook)
        self._new: dict[PciAddress, tuple[int, int]] = {}  # identity and generation still to be stored
        self._tasks: set[asyncio.Task[None]] = set()
        self.inventory.listen(self._note_generation)

    async def look_around(self) -> None:
        """Adopt the host as it is, and mend what was left half done. Writes nothing where all is well."""
        await self.picture.rescan()
        for leftover in await self.backend.find_leftovers():
            self.executor.adopt(leftover)
        await self._mend()

    def take_up_leases(self, kept: frozenset[int]) -> None:
        """Carry on with the leases of former daemons. `kept`: those whose descriptor has outlived them."""
        self.leases.restore([record for _, record in self._saved.leases], kept)

    async def start_policy(self) -> None:
        """Bring the PFs to their policies, and keep them there. Before this call nothing does."""
        self.picture.on_link = self.policy.note_link
        self.policy.start()
        await self.policy.reload()

    async def close(self) -> None:
        """Put on disk what is still to be put there."""
        self.policy.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.store.close()

    async def _mend(self) -> None:
        functions = self.inventory.functions
        counts = {pf: len(self.inventory.vfs_of(pf)) for pf in self._saved.quieted}
        mending = find_mending(self._saved.intents, functions, counts, self._saved.quieted)
        for address, reason in mending.stranded.items():
            self.inventory.quarantine(address, reason)
            text = f"{address} is quarantined: {reason}"
            announce(_log, Message.QUARANTINED, text, address=str(address))
        for pf, script in mending.scripts:
            try:
                async with self.executor.lane(pf.adapter):
                    await self.executor.run(pf.adapter, script)
            except SriovdError as error:
                _log.warning("%s could not be done at start: %s", script.title, error)
                continue
            await self.creator.note_mended(pf.address, bool(counts[pf.address]))
        for intent in self._saved.intents:
            _log.warning("Interrupted when sriovd last ended: %s, for %s", intent.title, intent.requester)
            await self.store.finish(intent.number, "interrupted: sriovd ended meanwhile")

    def _note_generation(self, change: Change) -> None:
        match change:
            case FunctionChange(before=None, after=function) if function is not None:
                stored = self._saved.generations.get(function.address)
                if stored and stored.same_boot and stored.identity == function.facts.identity:
                    return
                if not self._new:
                    asyncio.get_running_loop().call_soon(self._store_generations)
                self._new[function.address] = (function.facts.identity, function.generation)

    def _store_generations(self) -> None:
        rows, self._new = self._new, {}
        task = asyncio.create_task(self.store.put_generations(rows))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
