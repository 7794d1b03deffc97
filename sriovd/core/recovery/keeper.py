"""Recovery, for everybody who asks: how PEs stand, and what people and owners may do about it.

Rule: nothing is decided here but who is told; what may follow what is the automata's to say (automaton.py).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sriovd.backend.base import KernelEvent
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.errors import (
    LockedOut,
    NoSuchFunction,
    Quarantined,
    TimedOut,
)
from sriovd.core.inventory import AdapterChange, Change, Function, FunctionChange
from sriovd.core.jobs import Job
from sriovd.core.messages import Message, announce
from sriovd.core.recovery.automaton import (
    AdapterEffect,
    AdapterEvent,
    AdapterState,
    VfEffect,
    VfEvent,
    VfState,
)
from sriovd.core.recovery.detect import Sight
from sriovd.core.recovery.gate import Gate
from sriovd.core.recovery.lives import Answer, VfAnswer
from sriovd.core.recovery.record import AdapterPe, Place, VfPe
from sriovd.core.recovery.showing import Showing
from sriovd.core.recovery.site import Site, vf_at
from sriovd.core.recovery.snapshot import overlay
from sriovd.core.recovery.standing import BundleHead
from sriovd.core.recovery.storms import Storms
from sriovd.core.recovery.undertaking import Undertakings, now_usec
from sriovd.core.recovery.watch import Watch
from sriovd.pci import PciAddress, PciSlot

if TYPE_CHECKING:  # see _surgery
    from sriovd.core.recovery.surgery import Surgery

_log = logging.getLogger(__name__)

_FRESH_USEC = 2_000_000  # the age of an error, of before this start, that still counts: kill -9 and restart


class RecoveryKeeper(Showing):
    """Implements desk.RecoveryDesk. `saved`: what a former daemon has left, by slot: whether of this boot,
    and the record. `bundles`: those that are kept, by slot."""

    def __init__(
        self,
        site: Site,
        saved: Mapping[str, tuple[bool, dict[str, Any]]],
        bundles: Mapping[str, tuple[BundleHead, ...]],
    ) -> None:
        self.gate, storms = Gate(site.inventory, site.lives), Storms()
        super().__init__(site, self.gate, storms)
        self._site = site
        self._bundles = bundles
        self._loaded: Surgery | None = None
        self._undertakings = Undertakings(site.inventory, site.jobs, self._lives.get)
        self._changed = asyncio.Event()
        self._frozen = 0  # VFs, by the event that is being taken
        self._watch = Watch(site, self.gate, storms)
        self.on_adapter_state: Callable[[AdapterPe], None] = lambda _: None  # before anybody is shown it
        self.on_vf_state: Callable[[VfPe], None] = lambda _: None
        site.lives.do, site.lives.do_vfs = self._do, self._do_vfs
        site.lives.on_change = self._note_change
        self._recall(saved)

    @property
    def _surgery(self) -> Surgery:
        """Who does what has to be done, from the first time on."""
        if self._loaded is None:
            from sriovd.core.recovery.surgery import Surgery

            self._loaded = Surgery(self._site, self._undertakings, self._bundles)
        return self._loaded

    async def _do(self, effect: AdapterEffect, slot: str) -> Answer | None:
        return await self._surgery.adapters.do(effect, slot)

    async def _do_vfs(self, effect: VfEffect, slot: str, places: Sequence[Place]) -> Sequence[VfAnswer]:
        return await self._surgery.vfs.do_vfs(effect, slot, places)

    # Begin and end.

    def _recall(self, saved: Mapping[str, tuple[bool, dict[str, Any]]]) -> None:
        for slot, (same_boot, fields) in saved.items():
            try:
                pe = AdapterPe.from_dict(fields)
            except ValueError as error:
                _log.error("The record of the recovery of adapter %s makes no sense: %s", slot, error)
                continue
            self._lives.recall(pe if same_boot else _after_boot(pe))

    def is_under_way(self, slot: str) -> bool:
        """Whether the adapter is being recovered, or given up."""
        return self._lives.get(slot).state is not AdapterState.ONLINE

    async def start(self) -> None:
        """Go on with what a former daemon has begun, and look at every adapter once."""
        self._inventory.listen(self._take_change, first=True)  # what is gone is told before it is gone
        slots = [pe.slot for pe in self._lives.all()]
        for slot in slots:  # the kernel may be in the middle of its own recovery
            self._views.see(slot, Sight(opened_usec=now_usec()))
        self._lives.resume(slots)
        for slot in self._inventory.adapters:
            if slot not in slots:
                # what was told long ago, to nobody, is looked for by the check and not believed
                self._views.see(slot, Sight(settled_usec=now_usec() - _FRESH_USEC))
                self._note_well(slot)
            self._watch.check(slot)

    def take(self, event: KernelEvent) -> None:
        """An event of the host, in its order."""
        began_nsec, self._frozen = time.monotonic_ns(), 0  # what a check has frozen was no event's doing
        self._watch.take(event)
        if self._frozen:
            count = self._frozen
            usec = (self._lives.in_force_nsec - began_nsec) // 1000
            text = f"Froze {count} VFs within {usec} us of the event."
            announce(_log, Message.RECOVERY, text, freeze_usec=usec, vfs=count)

    def check(self, slot: str) -> None:
        """Look at the adapter: something may have happened to it of which nothing told."""
        self._watch.check(slot)

    def _note_well(self, slot: str) -> None:
        self._watch.note_well(slot)

    async def close(self) -> None:
        """Do nothing more, as if the daemon were killed: the next one goes on."""
        self._watch.close()
        await self._lives.close()

    # What changes.

    def _take_change(self, change: Change) -> None:
        match change:
            case AdapterChange(before=adapter, after=None) if adapter is not None:
                self._note_gone(adapter.slot)
            case AdapterChange(before=None, after=adapter) if adapter is not None:
                self._note_back(adapter.slot)
            case FunctionChange(before=Function() as vf, after=None) if vf.virtual is not None:
                self._note_vf_gone(vf)

    def _note_gone(self, slot: str) -> None:
        if self._views.of(slot).busy:  # a rung has taken it away
            return
        if not self._lives.get(slot).is_idle:
            self._lives.fire(slot, AdapterEvent.GONE, "the card was removed")
        self._views.forget(slot)

    def _note_back(self, slot: str) -> None:
        self._lives.fire(slot, AdapterEvent.BACK)
        if self._lives.get(slot).is_idle:
            self._note_well(slot)

    def _note_vf_gone(self, vf: Function) -> None:
        """One that goes while its adapter is in service is not coming back for its owner."""
        if vf.virtual is None:
            return
        slot, place = vf.adapter, (vf.virtual.parent, vf.virtual.index)
        pe = self._lives.get(slot)
        if pe.state is AdapterState.ONLINE and pe.vf(place).state is not VfState.ONLINE:
            self._lives.fire_vfs(slot, [place], VfEvent.GONE)

    def _note_change(self, before: AdapterPe, after: AdapterPe, vfs: Sequence[VfPe]) -> None:
        out = {vf.place for vf in before.vfs if vf.state is not VfState.ONLINE}
        self._frozen += sum(vf.place not in out and vf.state is not VfState.ONLINE for vf in vfs)
        if any(vf.state is VfState.ONLINE for vf in vfs):
            self._site.settled(after.slot)
        if after.state is AdapterState.FROZEN and before.state is not after.state:
            self._undertakings.begin(after.slot, "sriovd")
        if after.state is AdapterState.REMOVED:
            self._undertakings.end(after.slot)
        if before.state is not after.state:
            self.on_adapter_state(after)
        for vf in vfs:
            self.on_vf_state(vf)
            self._show_pe(after, vf)
        if before.state is not after.state or before.reason != after.reason or before == after:
            self.show_adapter(after.slot)
        self._changed.set()
        self._changed = asyncio.Event()

    # The desk.

    async def unfreeze(self, vf: PciAddress) -> str:
        """The owner takes his VF back to life: its state afterwards."""
        place = self.gate.require_place(vf)
        slot = str(place[0].slot)
        self._refuse_hopeless(slot, place)
        self._lives.fire_vfs(slot, [place], VfEvent.UNFREEZE)
        while (pe := self._lives.get(slot).vf(place)).state is VfState.RECOVERING:
            await self._changed.wait()
        if pe.state is VfState.FAILED:
            raise Quarantined(f"The {pe} has failed: {pe.reason}", "An operator may call Lift.")
        return pe.state.word

    async def wait_permitted(self, vf: PciAddress, timeout_usec: int) -> str:
        """Return when the VF is permitted or beyond: its state."""
        place = self.gate.require_place(vf)
        slot = str(place[0].slot)
        try:
            async with asyncio.timeout(timeout_usec / 1e6):
                while True:
                    self._refuse_hopeless(slot, place)
                    state = self._lives.get(slot).vf(place).state
                    if state in (VfState.ONLINE, VfState.PERMITTED, VfState.RECOVERING):
                        return state.word
                    await self._changed.wait()
        except TimeoutError:
            raise TimedOut(
                f"VF {vf} is {self._lives.get(slot).vf(place).state.word} still.", "Wait again."
            ) from None

    def _refuse_hopeless(self, slot: str, place: Place) -> None:
        """What only an operator can change is not worth waiting for; why is the adapter's to tell."""
        pe = self._lives.get(slot)
        vf = pe.vf(place)
        if vf.state is VfState.REMOVED or pe.state is AdapterState.REMOVED:
            raise NoSuchFunction(f"There is no {vf} any more.")
        if vf.state is VfState.FAILED:
            raise Quarantined(f"The {vf} has failed: {vf.reason}", "An operator may call Lift.")
        if pe.state is AdapterState.QUARANTINED:
            raise Quarantined(f"{pe} is quarantined.", "An operator may call Lift.", pe.reason)

    def recover(self, target: str | PciAddress, requester: str) -> Job:
        """Begin a recovery as if an error had come."""
        place = self.gate.place_of(target) if isinstance(target, PciAddress) else None
        slot = self._require_slot(target)
        reason = "an operator asked for it"  # who, the job tells: VFs' owners read the reason
        self._views.of(slot).since_usec = now_usec()
        if place is None:
            self._lives.fire(slot, AdapterEvent.ASKED, reason)
            return self._undertakings.begin(slot, requester)
        self.gate.refuse_place(place)
        vf = vf_at(self._inventory, place)
        if vf is None:
            raise NoSuchFunction(f"There is no VF {place[1]} of {place[0]} any more.")
        self._lives.fire_vfs(slot, [place], VfEvent.OWN_ERROR, reason)
        return self._undertakings.begin_vf(vf, requester, lambda: self._wait_vf(slot, place))

    async def _wait_vf(self, slot: str, place: Place) -> VfPe:
        """Until nothing more happens to the VF by itself."""
        moving = (VfState.FROZEN_OWN, VfState.RECOVERING)
        while (vf := self._lives.get(slot).vf(place)).state in moving:
            await self._changed.wait()
        return vf

    def lift(self, target: str | PciAddress) -> str:
        """End the quarantine of an adapter or VF: its state now."""
        place = self.gate.place_of(target) if isinstance(target, PciAddress) else None
        slot = self._require_slot(target)
        if place is None:
            self._lives.fire(slot, AdapterEvent.LIFT, "an operator lifted the quarantine")
            return str(self._lives.get(slot).state)
        if self._lives.get(slot).state is not AdapterState.ONLINE:
            raise LockedOut(f"Adapter {slot} is not online; its VFs cannot be lifted.", "Lift the adapter.")
        self._lives.fire_vfs(slot, [place], VfEvent.LIFT, "an operator lifted the quarantine")
        return self._lives.get(slot).vf(place).state.word

    def list_bundles(self, slot: str) -> Sequence[BundleHead]:
        """The bundles that are kept of that adapter."""
        return self._surgery.forensics.heads_of(slot)

    async def read_bundle(self, number: int, form: str) -> str:
        """A bundle as "text" for people, or "json"."""
        return await self._surgery.forensics.read(number, form)

    # Wishes that come meanwhile.

    async def keep_wish(self, address: PciAddress, wish: VfAttributes, job: Job) -> bool:
        """If the VF at that address cannot be configured now, remember `wish` for when it can, and wait for
        that; whether it was so. Raises what ends its recovery."""
        place = self.gate.place_of(address)
        if place is None or not self.gate.is_held(place):
            return False
        slot = str(place[0].slot)
        vf = self._lives.get(slot).vf(place)
        self._lives.put_vfs(slot, [_with_wish(vf, wish)])
        await self._lives.save(slot)
        job.queue("the recovery of its adapter")
        while self.gate.is_held(place) and self._lives.get(slot).vf(place).state is not VfState.PERMITTED:
            self._refuse_hopeless(slot, place)
            await self._changed.wait()
        return True

    def is_away(self, address: PciAddress) -> bool:
        """Whether there is no VF at that address because it is being made again."""
        return address not in self._inventory.functions and self.gate.place_of(address) is not None

    def note_unowned(self, place: Place) -> None:
        """Nobody is left who could unfreeze the VF at `place`."""
        slot = str(place[0].slot)
        if self._lives.get(slot).vf(place).state is VfState.PERMITTED:
            self._lives.fire_vfs(slot, [place], VfEvent.UNFREEZE)

    async def wait_in_service(self, place: Place) -> None:
        """Return when something may be done to the VF at `place`."""
        while self.gate.is_held(place):
            await self._changed.wait()

    def _require_slot(self, target: str | PciAddress) -> str:
        """The slot of an adapter that is there. Raises NoSuchFunction, InvalidArgument."""
        if isinstance(target, PciAddress):
            place = self.gate.place_of(target)
            slot = str((place[0] if place else target).slot)
        else:
            slot = str(PciSlot.parse(target))
        if slot not in self._inventory.adapters and self._lives.get(slot).is_idle:
            raise NoSuchFunction(f"There is no adapter in slot {slot}.", "See the adapters of busctl tree.")
        return slot


def _after_boot(pe: AdapterPe) -> AdapterPe:
    """A boot has reset everything, and destroyed the VFs; what was given up stays so."""
    if pe.state is AdapterState.QUARANTINED:
        return AdapterPe(pe.slot, pe.state, pe.reason, pe.since_usec, pe.budget)
    return AdapterPe(pe.slot, budget=pe.budget)


def _with_wish(vf: VfPe, wish: VfAttributes) -> VfPe:
    return replace(vf, wish=overlay(vf.wish, wish))
