"""The effects of the adapter's automaton: each ends with an event, whatever it meets.

Rule: how something is done stands elsewhere (fence, forensics, rungs, mending); here stands in which order,
and what an impossibility means. Every climb uses up a rung, so the ladder ends.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from sriovd.backend.base import HostReadError
from sriovd.backend.vf_attributes import Attribute, VfAttributes
from sriovd.core.errors import BackendFailed, InUse, NoSuchFunction, SriovdError, Stuck
from sriovd.core.inventory import Function
from sriovd.core.jobs import Job
from sriovd.core.messages import Message, announce
from sriovd.core.recovery import fence, mending, rungs
from sriovd.core.recovery.automaton import AdapterEffect, AdapterEvent, AdapterState, VfEvent, VfState
from sriovd.core.recovery.bundle import BundleKind
from sriovd.core.recovery.detect import settle
from sriovd.core.recovery.drivers import survives_reset
from sriovd.core.recovery.forensics import Forensics
from sriovd.core.recovery.ladder import DESTROYING, Choice, Condition, choose_rung
from sriovd.core.recovery.lives import Answer
from sriovd.core.recovery.probe import Signs
from sriovd.core.recovery.record import AdapterPe
from sriovd.core.recovery.shots import Photographer
from sriovd.core.recovery.site import Site, count_errors, count_uncorrected, vf_at
from sriovd.core.recovery.titles import title_frozen, title_given_up
from sriovd.core.recovery.undertaking import Undertakings, now_usec
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

_VF_ROWS_SEC = 30.0
_STUCK_SEC = 180.0  # a reset that cannot end gives up after 70 s

_WHEN_IMPOSSIBLE = {
    AdapterEffect.FENCE: AdapterEvent.FENCED,  # what is dead or stuck needs no fence
    AdapterEffect.COLLECT: AdapterEvent.COLLECTED,
    AdapterEffect.CLIMB: AdapterEvent.RESET_FAILED,
    AdapterEffect.RESTORE: AdapterEvent.RESTORE_FAILED,
    AdapterEffect.VERIFY: AdapterEvent.VERIFY_FAILED,
    AdapterEffect.PERMIT_VFS: AdapterEvent.PERMITTED,
}
# Without which it goes on: the reason of the freeze stays.
_NOT_VITAL = frozenset({AdapterEffect.FENCE, AdapterEffect.COLLECT, AdapterEffect.PERMIT_VFS})


class AdapterWork:
    """Carries them out."""

    def __init__(
        self, site: Site, forensics: Forensics, photographer: Photographer, undertakings: Undertakings
    ) -> None:
        self._site = site
        self._photographer = photographer
        self._forensics = forensics
        self._undertakings = undertakings
        self._effects: Mapping[AdapterEffect, Callable[[str], Awaitable[Answer | None]]] = {
            AdapterEffect.FENCE: self._fence,
            AdapterEffect.LOCK_VFS: self._lock_vfs,
            AdapterEffect.COLLECT: self._collect,
            AdapterEffect.CLIMB: self._climb,
            AdapterEffect.RESTORE: self._restore,
            AdapterEffect.VERIFY: self._verify,
            AdapterEffect.PERMIT_VFS: self._permit_vfs,
            AdapterEffect.SETTLE: self._settle,
            AdapterEffect.GIVE_UP: self._give_up,
            AdapterEffect.TELL: self._tell,
        }

    async def do(self, effect: AdapterEffect, slot: str) -> Answer | None:
        """Carry one out; what it ends with."""
        try:
            return await self._effects[effect](slot)
        except (SriovdError, HostReadError, ConnectionError, ValueError) as error:
            failure = error if isinstance(error, SriovdError) else BackendFailed(f"{error}.")
            _log.warning("%s of adapter %s: %s", effect, slot, failure)
        except Exception:
            _log.exception("%s of adapter %s met a defect of sriovd", effect, slot)
            failure = BackendFailed(f"{effect} of adapter {slot} failed for a defect of sriovd.")
        event = _WHEN_IMPOSSIBLE.get(effect)
        reason = "" if effect in _NOT_VITAL else str(failure)
        return Answer(event, reason) if event else None

    # Frozen.

    async def _fence(self, slot: str) -> Answer:
        """First the snapshot is on disk: a fence takes away what it tells of."""
        await self._site.lives.wait_vf_rows(slot, _VF_ROWS_SEC)
        await self._photographer.take(slot)
        vfs = self._list_unlocked(slot)
        async with self._site.hands.executor.lane(slot):
            await self._photographer.complete(slot, vfs)
            await self._site.lives.save(slot)
            await self._disable_links(slot)
            if vfs:
                await self._site.hands.executor.run(slot, fence.fence_script(slot, vfs))
                await self._site.hands.picture.refresh([vf.address for vf in vfs])
        return Answer(AdapterEvent.FENCED)

    def _list_unlocked(self, slot: str) -> list[Function]:
        """The VFs that may still be written to."""
        frozen = (vf for vf in self._site.lives.get(slot).vfs if vf.state is VfState.FROZEN_PROPAGATED)
        found = (vf_at(self._site.inventory, vf.place) for vf in frozen)
        return [vf for vf in found if vf is not None]

    async def _disable_links(self, slot: str) -> None:
        """Where the driver can."""
        pe = self._site.lives.get(slot)
        job = Job(0, "Fence", [], "sriovd")
        for shot in pe.shots:
            pf = self._site.inventory.functions.get(shot.address)
            if pf is None or Attribute.LINK_STATE in self._site.hands.capabilities.lacking_of(
                pf.facts.driver
            ):
                continue
            able = {
                vf.index: VfAttributes(link_state="disable")
                for vf in shot.vfs
                if vf.attributes.link_state is not None
                and pe.vf((shot.address, vf.index)).state is VfState.FROZEN_PROPAGATED
            }
            try:
                if able:
                    await self._site.hands.configurer.set_all(job, pf, able)
            except Stuck:
                raise
            except SriovdError as error:
                _log.info("The links of the VFs of %s stay as they are: %s", shot.address, error)

    async def _lock_vfs(self, slot: str) -> None:
        lives = self._site.lives
        for place in lives.places(slot):
            self._site.leases.withhold(place)
        lives.fire_vfs(slot, lives.places(slot), VfEvent.LOCK)

    # Collecting.

    async def _collect(self, slot: str) -> Answer:
        await self._site.views.await_verdict(slot)
        pe = self._site.lives.get(slot)
        if not pe.bundle:
            number = await self._forensics.take(pe, BundleKind.FREEZE, title_frozen([pe]))
            self._site.lives.edit(slot, bundle=number)
        return Answer(AdapterEvent.COLLECTED)

    # Resetting.

    async def _climb(self, slot: str) -> Answer:
        lives = self._site.lives
        wish, pe = self._site.wish_of(slot), lives.get(slot)
        try:
            await self._await_kernel(slot)
            await self._finish_picture(slot)
            pe = lives.get(slot)
            choice = Choice(pe.climbing, ()) if pe.climbing else await self._choose(pe)
        except Stuck as error:  # no rung is used up by that, so it must not be tried for ever
            return Answer(AdapterEvent.EXHAUSTED, f"{error.message} {error.inside} {pe.reason}")
        if choice.rung is None:
            return Answer(
                AdapterEvent.EXHAUSTED, f"No rung is left ({'; '.join(choice.left_out)}). {pe.reason}"
            )
        pe = lives.edit(slot, climbing=choice.rung)
        self._site.views.on_change(slot, ())
        await lives.save(slot)
        _log.info("Adapter %s: %s; left out: %s", slot, choice.rung, "; ".join(choice.left_out) or "nothing")
        self._undertakings.show(slot, f"{AdapterState.RESETTING}: {choice.rung}")
        return await self._climb_rung(pe, choice.rung, wish.close_sec)

    async def _climb_rung(self, pe: AdapterPe, rung: Rung, close_sec: float) -> Answer:
        """Who is not let near the VFs by one rung will not be by the next, which destroys more."""
        lives, slot = self._site.lives, pe.slot
        if rung in DESTROYING:
            try:
                await rungs.wait_closed(self._site, pe, close_sec)
            except InUse as error:
                lives.edit(slot, climbing=None)
                return Answer(AdapterEvent.EXHAUSTED, str(error))
        try:
            await rungs.climb(self._site, pe, rung)
        except NoSuchFunction as error:
            return Answer(AdapterEvent.GONE, error.message)
        finally:
            lives.edit(slot, climbing=None, tried=(*lives.get(slot).tried, rung))
        self._site.views.of(slot).counted = self._count(pe)
        return Answer(AdapterEvent.RESET)

    async def _await_kernel(self, slot: str) -> None:
        """Until no write hangs. Raises Stuck when one does for too long."""
        executor, views = self._site.hands.executor, self._site.views
        views.wait_for(slot, "a kernel write that has not returned" if executor.is_stuck(slot) else "")
        try:
            await executor.wait_unstuck(slot, _STUCK_SEC)
        finally:
            views.wait_for(slot, "")

    async def _finish_picture(self, slot: str) -> None:
        """What hung when the adapter froze let nobody ask; no rung has taken anything away yet."""
        pe = self._site.lives.get(slot)
        if pe.climbing or pe.tried or self._photographer.is_whole(slot):
            return
        found = (vf_at(self._site.inventory, vf.place) for vf in pe.vfs)
        async with self._site.hands.executor.lane(slot):
            await self._photographer.complete(slot, [vf for vf in found if vf is not None])
        await self._site.lives.save(slot)

    async def _choose(self, pe: AdapterPe) -> Choice:
        condition = await self._examine(pe)
        return choose_rung(condition, self._site.wish_of(pe.slot).rungs, pe.tried)

    async def _examine(self, pe: AdapterPe) -> Condition:
        signs = await self._look(pe)
        functions = self._site.inventory.functions
        pfs = [functions[shot.address] for shot in pe.shots if shot.address in functions]
        keeps = all(
            shot.address in signs
            and signs[shot.address].vf_enable is bool(shot.vfs)
            and (not shot.vfs or signs[shot.address].num_vfs == len(shot.vfs))
            for shot in pe.shots
        )
        return Condition(
            present=bool(pe.shots) and len(pfs) == len(pe.shots),
            verdict=self._site.views.of(pe.slot).sight.verdict,
            signs=tuple(signs.get(shot.address, Signs()) for shot in pe.shots),
            keeps_vfs=keeps,
            driver=all(pf.facts.driver for pf in pfs),
            survives_reset=all(survives_reset(pf.facts.driver) for pf in pfs),
            can_reset=all(pf.facts.reset_methods for pf in pfs),
            port=bool(pe.shots) and all(shot.port is not None for shot in pe.shots),
        )

    async def _look(self, pe: AdapterPe) -> Mapping[PciAddress, Signs]:
        """The signs of the PFs; who cannot be asked does not answer. Raises Stuck."""
        try:
            return await mending.look(self._site, pe)
        except SriovdError as error:
            _log.info("Adapter %s could not be looked at: %s", pe.slot, error)
            await self._await_kernel(pe.slot)
            return {}

    def _count(self, pe: AdapterPe) -> Mapping[PciAddress, int]:
        return count_uncorrected(self._site.backend, [shot.address for shot in pe.shots])

    # Restoring, verifying, permitting.

    async def _restore(self, slot: str) -> Answer:
        pe = self._site.lives.get(slot)
        self._site.views.of(slot).restored = pe
        await mending.restore(self._site, pe, self._undertakings.job_of(slot))
        return Answer(AdapterEvent.RESTORED)

    async def _verify(self, slot: str) -> Answer:
        pe = self._site.lives.get(slot)
        restored = self._site.views.of(slot).restored or pe  # wishes may have come since
        await mending.verify(self._site, restored)
        self._fulfil(slot, restored)
        return Answer(AdapterEvent.VERIFIED)

    def _fulfil(self, slot: str, done: AdapterPe) -> None:
        """The wishes that `done` has are no longer open."""
        vfs = self._site.lives.get(slot).vfs
        kept = (replace(vf, wish=VfAttributes()) for vf in vfs if vf.wish == done.vf(vf.place).wish)
        self._site.lives.put_vfs(slot, list(kept))

    async def _permit_vfs(self, slot: str) -> Answer:
        lives = self._site.lives
        late = lives.get(slot)
        if any(vf.wish != VfAttributes() for vf in late.vfs):
            await self._grant_late(late)
        lives.fire_vfs(slot, lives.places(slot), VfEvent.PERMIT)
        return Answer(AdapterEvent.PERMITTED)

    async def _grant_late(self, pe: AdapterPe) -> None:
        """Wishes that came after the attributes were restored; one that fails keeps no VF locked out."""
        try:
            await mending.restore(self._site, pe, self._undertakings.job_of(pe.slot))
        except SriovdError as error:
            _log.warning("What was asked for during the recovery of %s: %s", pe.slot, error)
        self._fulfil(pe.slot, pe)

    async def _settle(self, slot: str) -> None:
        view = self._site.views.of(slot)
        self._site.views.see(slot, settle(view.sight, now_usec()))
        view.counted = self._count(self._site.lives.get(slot))
        view.well = count_errors(self._site.backend, view.counted)
        self._undertakings.end(slot)
        self._site.settled(slot)

    # The ends.

    async def _give_up(self, slot: str) -> None:
        pe = self._site.lives.get(slot)
        await self._forensics.take(pe, BundleKind.GIVE_UP, title_given_up(pe))
        text = f"Adapter {slot} is quarantined: {pe.reason.rstrip('.')}."
        announce(_log, Message.QUARANTINED, text, address=slot)
        self._undertakings.end(slot)

    async def _tell(self, slot: str) -> None:
        pe = self._site.lives.get(slot)
        self._undertakings.show(slot, str(pe.state))
        text = f"Adapter {slot} is {pe.state}. {pe.reason}".rstrip()
        announce(_log, Message.RECOVERY, text, address=slot, state=str(pe.state))
