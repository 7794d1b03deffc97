"""The effects of the VF's automaton, for as many VFs at once as are in the same position.

Rule: one VF's failure is its own: what cannot be done for all is tried for each. Nothing here runs for a VF
that is locked out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence

from sriovd.backend.base import HostReadError
from sriovd.backend.steps import Chain
from sriovd.core.errors import BackendFailed, NoSuchFunction, SriovdError
from sriovd.core.inventory import Function
from sriovd.core.jobs import Job
from sriovd.core.kernel_errors import raise_first_failure
from sriovd.core.lease.record import Lease
from sriovd.core.messages import Message, announce
from sriovd.core.recovery import fence
from sriovd.core.recovery.automaton import VfEffect, VfEvent, VfState
from sriovd.core.recovery.bundle import BundleKind
from sriovd.core.recovery.forensics import Forensics
from sriovd.core.recovery.lives import VfAnswer
from sriovd.core.recovery.record import Place
from sriovd.core.recovery.shots import Photographer
from sriovd.core.recovery.site import Site, vf_at
from sriovd.core.recovery.titles import title_frozen
from sriovd.core.recovery.vocabulary import Permission
from sriovd.core.scripts import is_satisfied

_log = logging.getLogger(__name__)

_LEASE_SEC = 30.0  # that a lease may take to be active again
_NAMED_AT_MOST = 5


class VfWork:
    """Carries them out."""

    def __init__(self, site: Site, forensics: Forensics, photographer: Photographer) -> None:
        self._site = site
        self._forensics = forensics
        self._photographer = photographer

    async def do_vfs(self, effect: VfEffect, slot: str, places: Sequence[Place]) -> Sequence[VfAnswer]:
        """Carry one out; what it ends with."""
        match effect:
            case VfEffect.FENCE:
                await self._try("fencing", self._fence(slot, places))
            case VfEffect.COLLECT:
                return await self._collect(slot, places)
            case VfEffect.AWAIT_OWNER:
                return self._await_owner(slot, places)
            case VfEffect.RECOVER:
                return await self._recover(slot, places)
            case VfEffect.TELL:
                self._tell(slot, places)
            case VfEffect.DROP:
                pass
        return ()

    async def _try(self, what: str, work: object) -> SriovdError | None:
        """Why it could not be done, if it could not."""
        try:
            await work  # type: ignore[misc]
        except (SriovdError, HostReadError, ConnectionError, ValueError) as error:
            _log.warning("%s: %s", what, error)
            return error if isinstance(error, SriovdError) else BackendFailed(f"{error}.")
        except Exception:
            _log.exception("%s met a defect of sriovd", what)
            return BackendFailed(f"{what} failed for a defect of sriovd.")
        return None

    # An error of its own.

    async def _fence(self, slot: str, places: Sequence[Place]) -> None:
        await self._photographer.take(slot)
        for place in places:
            self._site.leases.withhold(place)
        vfs = self._present(places)
        await self._site.hands.executor.wait_inherited(slot)  # it may be this very fence
        async with self._site.hands.executor.lane(slot):
            await self._photographer.complete(slot, vfs)
            await self._site.lives.save(slot)
            await self._site.hands.executor.run(slot, fence.fence_script(slot, vfs))
            await self._site.hands.picture.refresh([vf.address for vf in vfs])

    async def _collect(self, slot: str, places: Sequence[Place]) -> Sequence[VfAnswer]:
        """The bundle, and the end of the kernel's walk: when that fails, the adapter is frozen (watch.py),
        and what is answered here counts no more."""
        title = title_frozen(self._site.lives.get(slot).vf(place) for place in places)
        await self._site.views.await_verdict(slot)
        self._site.views.close_walk(slot)
        pe = self._site.lives.get(slot)
        await self._try("taking a bundle", self._forensics.take(pe, BundleKind.FREEZE, title))
        return (VfAnswer(VfEvent.PERMIT, places),)

    # Permission and recovery.

    def _await_owner(self, slot: str, places: Sequence[Place]) -> Sequence[VfAnswer]:
        """Who has no owner, or whose policy does not wait for him, goes on at once."""
        wish = self._site.wish_of(slot)
        owned = [place for place in places if self._lease_of(place) is not None]
        free = [place for place in places if place not in owned]
        if wish.permission is Permission.AUTOMATIC and not wish.grace_sec:
            free, owned = list(places), []
        elif wish.permission is Permission.AUTOMATIC:
            loop = asyncio.get_running_loop()
            since = {place: self._site.lives.get(slot).vf(place).since_usec for place in owned}
            loop.call_later(wish.grace_sec, self._end_grace, slot, since)
        return (VfAnswer(VfEvent.UNFREEZE, free),) if free else ()

    def _end_grace(self, slot: str, since: dict[Place, int]) -> None:
        """Owners have had their time: those VFs that are still where they were go on."""
        pe = self._site.lives.get(slot)
        waiting = [
            place
            for place, usec in since.items()
            if pe.vf(place).state is VfState.PERMITTED and pe.vf(place).since_usec == usec
        ]
        self._site.lives.fire_vfs(slot, waiting, VfEvent.UNFREEZE)

    async def _recover(self, slot: str, places: Sequence[Place]) -> Sequence[VfAnswer]:
        """One that is not there any more is nobody's to recover: somebody has destroyed it."""
        there = [place for place in places if vf_at(self._site.inventory, place) is not None]
        gone = [place for place in places if place not in there]
        answers = await self._recover_present(slot, there) if there else ()
        return (*answers, VfAnswer(VfEvent.GONE, gone)) if gone else answers

    async def _recover_present(self, slot: str, places: Sequence[Place]) -> Sequence[VfAnswer]:
        error = await self._try("recovering VFs", self._bring_back(slot, places))
        if error is None:
            return (VfAnswer(VfEvent.RECOVERED, places),)
        if len(places) == 1:
            return (VfAnswer(VfEvent.RECOVER_FAILED, places, str(error)),)
        answers: list[VfAnswer] = []
        for place in places:
            answers += await self._recover_present(slot, [place])
        return answers

    async def _bring_back(self, slot: str, places: Sequence[Place]) -> None:
        """Driver, fence, lease. Raises SriovdError."""
        lives, executor = self._site.lives, self._site.hands.executor
        missing = [place for place in places if vf_at(self._site.inventory, place) is None]
        if missing:
            raise NoSuchFunction(f"There is no {lives.get(slot).vf(missing[0])} any more.")
        job = Job(0, "RecoverVF", [], "sriovd")
        await executor.wait_inherited(slot)  # what a former daemon was at ends before VFs fail for it
        async with self._site.workplace.working_on(job, slot):
            # no event tells of reset methods, and a fence that was cut short was not looked at
            await self._site.hands.picture.refresh([vf.address for vf in self._present(places)])
            for driver, vfs in self._group_by_driver(slot, places).items():
                await self._site.hands.binder.bind_all(
                    job, slot, [vf.address for vf in vfs], driver, force=True
                )
            chains = [chain for place in places if (chain := self._unfence_chain(slot, place))]
            if chains:
                results = await executor.run(slot, fence.unfence_script(slot, chains))
                subjects = [chain.subject for chain in chains if chain.subject is not None]
                await self._site.hands.picture.refresh(subjects)
                raise_first_failure(results)
        await self._resume_leases(places)

    def _group_by_driver(self, slot: str, places: Sequence[Place]) -> dict[str, list[Function]]:
        """The VFs that are not on the driver that they were on, or that they are leased for."""
        groups: dict[str, list[Function]] = {}
        for place in places:
            vf, lease = vf_at(self._site.inventory, place), self._lease_of(place)
            shot = self._photographer.shot_of(slot, place)
            wanted = lease.driver if lease is not None else (shot.driver if shot else "")
            if vf is not None and wanted and not is_satisfied(vf.facts, wanted):
                groups.setdefault(wanted, []).append(vf)
        return groups

    def _unfence_chain(self, slot: str, place: Place) -> Chain | None:
        vf, shot = vf_at(self._site.inventory, place), self._photographer.shot_of(slot, place)
        return fence.unfence_chain(vf, shot) if vf is not None and shot is not None else None

    async def _resume_leases(self, places: Iterable[Place]) -> None:
        """Raises what a lease fails with."""
        leased = [place for place in places if self._lease_of(place) is not None]
        for place in leased:
            self._site.leases.resume(place)
        for place in leased:
            await self._site.leases.wait_resumed(place, _LEASE_SEC)

    def _lease_of(self, place: Place) -> Lease | None:
        """The lease that has the VF, unless it is on its way out."""
        lease = self._site.leases.find_at_place(place)
        return None if lease is None or lease.is_over else lease

    # What they share.

    def _present(self, places: Iterable[Place]) -> list[Function]:
        found = (vf_at(self._site.inventory, place) for place in places)
        return [vf for vf in found if vf is not None]

    def _tell(self, slot: str, places: Sequence[Place]) -> None:
        """One message for all: they are in the same state for the same reason."""
        pe = self._site.lives.get(slot)
        vf = pe.vf(places[0])
        names = ", ".join(str(index) for _, index in places[:_NAMED_AT_MOST])
        more = f" and {len(places) - _NAMED_AT_MOST} more" if len(places) > _NAMED_AT_MOST else ""
        text = f"VF {names}{more} of {vf.pf} is {vf.state.word}. {vf.reason}".rstrip()
        announce(_log, Message.RECOVERY, text, address=str(vf.pf), state=str(vf.state))
