"""All rules on one host: which part knows which, and the order in which they begin.

Rule: wiring only, and nothing of a bus. First the store is read, then the host is looked at and adopted as
it is, then what a killed daemon left half done is mended, and only then policy may act.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from sriovd.backend.base import Backend
from sriovd.core.binder import Binder
from sriovd.core.capabilities import Capabilities
from sriovd.core.configurer import Configurer
from sriovd.core.converge.apply import Applier, Hands
from sriovd.core.converge.campaign import Campaign
from sriovd.core.converge.keeper import PolicyKeeper
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.converge.standing import Standings
from sriovd.core.creator import Creator
from sriovd.core.errors import SriovdError
from sriovd.core.execute import Executor
from sriovd.core.identities import Identities
from sriovd.core.inventory import Change, FunctionChange, Inventory
from sriovd.core.jobs import JobRegistry
from sriovd.core.kernel_errors import raise_first_failure
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lease.work import LeaseWork, Site
from sriovd.core.lifecycle import Lifecycle
from sriovd.core.mend import find_mending
from sriovd.core.messages import Message, announce
from sriovd.core.picture import Picture
from sriovd.core.recovery.auditor import Auditor
from sriovd.core.recovery.keeper import RecoveryKeeper
from sriovd.core.recovery.lives import Lives
from sriovd.core.recovery.site import Site as RecoverySite
from sriovd.core.recovery.site import Views
from sriovd.core.store import MEMORY, Intent, Store
from sriovd.core.trace.attention import Attention
from sriovd.core.trace.recorder import Recorder
from sriovd.core.trace.witness import Witness
from sriovd.core.usage import Usage
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

if TYPE_CHECKING:  # loaded when an owner asks
    from sriovd.core.error_data.error_data import ErrorData
    from sriovd.core.inspect.inspector import Inspector
    from sriovd.core.inspect.site import Site as InspectionSite

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
        self.recorder = Recorder(self.inventory)
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
        self.rulebook = Rulebook(
            self.inventory, self.store, self.identities, places.policies, saved.policies
        )
        self.standings = Standings(self.inventory, self.rulebook)
        applier = Applier(hands)
        self.campaign = Campaign(
            self.inventory, self.executor, self.jobs, applier, self.workplace, self.rulebook, self.standings
        )
        self.policy = PolicyKeeper(
            self.inventory, self.executor, applier, self.rulebook, self.standings, self.campaign
        )
        self.work = LeaseWork(Site(backend, self.jobs, self.workplace, hands, self.rulebook, places.cdi))
        self.leases = LeaseKeeper(self.inventory, self.work, self.store, saved.last_lease)
        self.usage.lease_of = self.leases.describe_lease_of
        self.recovery = self._make_recovery(hands)
        self.witness = Witness(self.recorder, self.inventory)
        self.recorder.on_wanted = Attention(backend.listen_to_drivers).want
        self.witness.watch(self.executor, self.leases, self.work, self.recovery, self.picture)
        self.auditor = self._make_auditor()
        self.lifecycle = Lifecycle(backend, self.jobs, self.workplace, hands, self.rulebook, self.recovery)
        self._new: dict[PciAddress, tuple[int, int]] = {}  # identity and generation still to be stored
        self._tasks: set[asyncio.Future[None]] = set()  # writes to the store
        self._menders: list[asyncio.Task[None]] = []
        self.inventory.listen(self._note_generation)
        self.inventory.listen(self._note_quarantine)

    def _make_recovery(self, hands: Hands) -> RecoveryKeeper:
        """Recovery, and what it stands in the way of."""
        site = RecoverySite(
            self.backend, self.store, self.jobs, self.workplace, hands, self.leases,
            Lives(self.inventory, self.store), Views(), self.rulebook.recovery_for_adapter,
            self._note_settled,
        )  # fmt: skip
        recovery = RecoveryKeeper(site, self._saved.recoveries, self._saved.bundles)
        self.executor.refuse, self.executor.on_failed = recovery.gate.refuse, recovery.check
        self.leases.hold_by(recovery.gate.is_held, recovery.note_unowned)
        self.work.wait_in_service = recovery.wait_in_service
        self.policy.is_held = recovery.is_under_way
        self.picture.on_event = recovery.take
        return recovery

    def _make_auditor(self) -> Auditor:
        """What is wrong before any error happens, and who shows it."""
        recovery = self.recovery
        auditor = Auditor(
            self.backend, self.inventory, lambda slot: self.rulebook.recovery_for_adapter(slot).rungs,
            lambda slot: self.picture.is_busy(slot) or recovery.is_under_way(slot), recovery.gate.is_out,
        )  # fmt: skip
        recovery.audit_of, recovery.audit_of_vf = auditor.findings_of, auditor.findings_of_vf
        auditor.on_adapter, auditor.on_vf = recovery.show_adapter, recovery.show_vf
        self.rulebook.on_loaded, self.picture.on_job_end = auditor.note_all, auditor.note
        return auditor

    @cached_property
    def _inspection_site(self) -> InspectionSite:
        from sriovd.core.inspect.site import Site as InspectionSite

        return InspectionSite(
            self.backend, self.inventory, self.executor, self.configurer, self.recovery.gate, self.recovery,
            self.recorder.tail, self.backend.read_counters,
        )  # fmt: skip

    @cached_property
    def inspector(self) -> Inspector:
        """Who looks up what owners ask for."""
        from sriovd.core.inspect.inspector import Inspector

        return Inspector(self._inspection_site)

    @cached_property
    def error_data(self) -> ErrorData:
        """Who tells owners of errors."""
        from sriovd.core.error_data.error_data import ErrorData

        return ErrorData(self._inspection_site, self.inspector)

    def _note_settled(self, slot: str) -> None:
        """The adapter, or a VF of it, is in service again."""
        self.policy.note_adapter(slot)
        self.auditor.note(slot)

    async def look_around(self) -> None:
        """Adopt the host as it is, and mend what was left half done. Writes nothing where all is well."""
        await self.picture.rescan()
        for address, (identity, reason) in self._saved.quarantines.items():
            function = self.inventory.functions.get(address)
            if function is not None and function.facts.identity == identity:
                self._quarantine(address, reason)
        leftovers = await self.backend.find_leftovers()
        for leftover in leftovers:
            self.executor.adopt(leftover)
        for adapter in sorted(self._list_unmended()):
            hanging = [each.finished for each in leftovers if each.adapter == adapter]
            if self.recovery.is_under_way(adapter):
                await self._close_intents(adapter)  # it knows what it has left half done
            elif hanging:
                self._menders.append(asyncio.create_task(self._mend_later(adapter, hanging)))
            else:
                await self._mend(adapter)

    async def take_up_recovery(self) -> None:
        """Carry on with the recoveries of former daemons, and look whether all is well."""
        await self.recovery.start()
        self.auditor.start()

    def take_up_leases(self, kept: frozenset[int]) -> None:
        """Carry on with the leases of former daemons. `kept`: those whose descriptor has outlived them."""
        self.leases.restore([record for _, record in self._saved.leases], kept)

    async def start_policy(self) -> None:
        """Bring the PFs to their policies, and keep them there. Before this call nothing does."""
        self.picture.on_link = self.policy.note_pf
        self.policy.start()
        await self.policy.reload()

    async def close(self) -> None:
        """Put on disk what is still to be put there."""
        self.policy.stop()
        self.auditor.stop()
        self.recorder.flush()
        for task in self._menders:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self.store.close()

    def _list_unmended(self) -> set[str]:
        """The adapters on which a former daemon has left something open; some may be away."""
        return {intent.adapter for intent in self._saved.intents} | {
            str(pf.slot) for pf in self._saved.quieted
        }

    async def _mend_later(self, adapter: str, hanging: Sequence[asyncio.Future[None]]) -> None:
        """What still hangs is in the middle of it; how far it came is known when it has returned."""
        await asyncio.wait(hanging)
        await self._mend(adapter)

    async def _mend(self, adapter: str) -> None:
        intents = [each for each in self._saved.intents if each.adapter == adapter]
        try:
            async with self.executor.lane(adapter):
                await self._mend_in_lane(adapter, intents)
            await self._close_intents(adapter)
        except SriovdError as error:
            _log.error("Adapter %s was not mended, the next start will try again: %s", adapter, error)

    async def _close_intents(self, adapter: str) -> None:
        for intent in (each for each in self._saved.intents if each.adapter == adapter):
            _log.warning("Interrupted when sriovd last ended: %s, for %s", intent.title, intent.requester)
            await self.store.finish(intent.number, "interrupted: sriovd ended meanwhile")

    async def _mend_in_lane(self, adapter: str, intents: Sequence[Intent]) -> None:
        known = self.inventory.adapters.get(adapter)
        pfs = known.physical_functions if known else ()
        for pf in pfs:
            await self.picture.refresh(self.picture.family(pf))
        counts = {pf: len(self.inventory.vfs_of(pf)) for pf in pfs}
        quieted = self._saved.quieted.intersection(pfs)
        mending = find_mending(intents, self.inventory.functions, counts, quieted)
        for address, reason in mending.stranded.items():
            self._quarantine(address, reason)
        for function, script in mending.scripts:
            raise_first_failure(await self.executor.run(adapter, script))
            self.picture.look_at(function.address)
        for pf in mending.settled:
            await self.creator.note_mended(pf)

    def _quarantine(self, address: PciAddress, reason: str) -> None:
        self.inventory.quarantine(address, reason)
        text = f"{address} is quarantined: {reason}"
        announce(_log, Message.QUARANTINED, text, address=str(address))

    def _note_quarantine(self, change: Change) -> None:
        """Kept while the function lives. On its way to the disk before the intent behind it is closed."""
        if not isinstance(change, FunctionChange) or change.before is None:
            return
        before, after = change.before, change.after
        reason = after.quarantine if after is not None else ""
        if reason != before.quarantine:
            identity = before.facts.identity
            self._await_kept(self.store.put_quarantine(before.address, identity, reason))

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
        self._await_kept(self.store.put_generations(rows))

    def _await_kept(self, work: Awaitable[None]) -> None:
        """See `work` through, for which nobody waits."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Future[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("Not everything that must outlive this process was stored: %s", error)
