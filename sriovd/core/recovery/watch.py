"""Watching adapters: what an event of the host means, and what is done about it.

Rule: what an event says is decided in detect.py, what follows in automaton.py; here the two meet, with what
policy says in between. A freeze is in force before the next event is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextvars import Context

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity, Uevent
from sriovd.core.errors import SriovdError
from sriovd.core.messages import Message, announce
from sriovd.core.recovery.automaton import AdapterEvent, AdapterState, VfEvent
from sriovd.core.recovery.detect import News, Verdict, Walk, judge_record, judge_walk, suspect
from sriovd.core.recovery.gate import Gate
from sriovd.core.recovery.looking import read_signs_of
from sriovd.core.recovery.record import Place
from sriovd.core.recovery.site import Site, count_errors, count_uncorrected
from sriovd.core.recovery.storms import Storms
from sriovd.core.recovery.undertaking import now_usec
from sriovd.core.recovery.vocabulary import Response, Storm
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

_RECORDS = 16  # errors that are remembered of an adapter
_WALKS = {walk.value: walk for walk in Walk}


class Watch:
    """Takes in what the sources say. `storms`: counts correctable errors."""

    def __init__(self, site: Site, gate: Gate, storms: Storms) -> None:
        self._site = site
        self._lives = site.lives
        self._views = site.views
        self._inventory = site.inventory
        self._gate = gate
        self._storms = storms
        self._checks: set[asyncio.Task[None]] = set()

    def note_well(self, slot: str) -> None:
        """What was counted of the adapter until now is dealt with."""
        pfs = self._inventory.adapters[slot].physical_functions
        view = self._views.of(slot)
        view.counted = count_uncorrected(self._site.backend, pfs)
        view.well = count_errors(self._site.backend, pfs)

    def close(self) -> None:
        """Look no more."""
        for task in self._checks:
            task.cancel()

    def take(self, event: KernelEvent) -> None:
        """An event of the host, in its order."""
        match event:
            case ErrorRecord():
                for slot in self._slots_below(event.address):
                    self._take_record(slot, event)
            case Uevent() if event.properties.get("ERROR_EVENT") in _WALKS:
                for slot in self._slots_below(event.address):
                    self._take_walk(slot, event, _WALKS[event.properties["ERROR_EVENT"]])
            case EventsLost():
                for slot in self._inventory.adapters:
                    self.check(slot)

    def _slots_below(self, address: PciAddress) -> Sequence[str]:
        """The adapter of that function, or those below that bridge."""
        place = self._gate.place_of(address)
        slot = str((place[0] if place else address).slot)
        if slot in self._inventory.adapters or not self._lives.get(slot).is_idle:
            return [slot]
        return [
            each
            for each, adapter in self._inventory.adapters.items()
            if address in self._site.backend.read_error_path(adapter.physical_functions[0]).ports
        ]

    def _take_record(self, slot: str, record: ErrorRecord) -> None:
        place = self._gate.place_of(record.address)
        view = self._views.of(slot)
        sight, news = judge_record(view.sight, record, place is not None, now_usec())
        if news is News.NOTHING:
            return
        view.records = (*view.records, record)[-_RECORDS:]
        self._views.see(slot, sight)
        if news is News.CORRECTED:
            self._count_corrected(slot, record, place)
        else:
            reason = f"{record.address} met a {record.severity} error"
            self._respond(slot, news, place, reason, record.severity)
        text = f"{record.address} signalled a {record.severity} error, status {record.status:#010x}."
        announce(_log, Message.PCI_ERROR, text, address=str(record.address), severity=record.severity)

    def _take_walk(self, slot: str, event: Uevent, walk: Walk) -> None:
        before = self._views.of(slot).sight
        sight, news = judge_walk(before, walk, now_usec())
        self._views.see(slot, sight)
        if news is News.ADAPTER_ERROR:
            self._respond(slot, news, None, f"the kernel says {walk} of {event.address}")
        elif news is News.VERDICT and sight.verdict is Verdict.FAILED:
            # of a VF's own error, or of one that looked like the echo of the last; else it is frozen by now
            reason = f"the kernel could not recover from the error of {sight.culprit or event.address}"
            self._respond(slot, News.ADAPTER_ERROR, None, reason, Severity.FATAL)

    def _count_corrected(self, slot: str, record: ErrorRecord, place: Place | None) -> None:
        wish = self._site.wish_of(slot)
        if self._storms.count(slot, record.address, now_usec(), wish.storm_threshold):
            text = (
                f"{record.address} had more than {wish.storm_threshold} correctable errors within a minute"
            )
            if wish.correctable_storm is not Storm.IGNORE:
                announce(_log, Message.PCI_ERROR, f"{text}.", address=str(record.address), severity="storm")
            if wish.correctable_storm is Storm.FREEZE:
                self._views.of(slot).since_usec = now_usec()
                self._freeze(slot, place, text)
        self._views.on_change(slot, ())

    def _respond(
        self, slot: str, news: News, place: Place | None, reason: str, severity: Severity | None = None
    ) -> None:
        """Do what policy says of such an error; of one whose severity nobody tells, the stricter."""
        wish = self._site.wish_of(slot)
        answers = {Severity.FATAL: wish.fatal, Severity.NONFATAL: wish.non_fatal}
        order = list(Response)
        response = answers[severity] if severity in answers else max(answers.values(), key=order.index)
        self._views.of(slot).since_usec = now_usec()
        if response is Response.REPORT:
            _log.warning("Adapter %s: %s; policy says to do nothing", slot, reason)
        else:
            own = place if news is News.VF_ERROR else None
            self._freeze(slot, own, reason, quarantine=response is Response.QUARANTINE)

    def _freeze(self, slot: str, place: Place | None, reason: str, *, quarantine: bool = False) -> None:
        """The VF at `place` alone, or the adapter."""
        if place is not None:
            self._freeze_vf(slot, place, reason, quarantine=quarantine)
        else:
            self._freeze_adapter(slot, reason, quarantine=quarantine)

    def _freeze_adapter(self, slot: str, reason: str, *, quarantine: bool = False) -> None:
        pe = self._lives.get(slot)
        over = pe.budget.spend(time.time_ns() // 1000).is_over
        if over:
            reason = f"{reason}; it was frozen {pe.budget.count + 1} times within the hour"
        if quarantine:
            reason = f"{reason}; policy quarantines it"
        event = AdapterEvent.OVER_BUDGET if over or quarantine else AdapterEvent.ERROR
        self._lives.fire(slot, event, reason)

    def _freeze_vf(self, slot: str, place: Place, reason: str, *, quarantine: bool) -> None:
        pe = self._lives.get(slot)
        if pe.state not in (AdapterState.ONLINE, AdapterState.PERMITTING):
            return  # it is frozen with its adapter
        over = pe.vf(place).budget.spend(time.time_ns() // 1000).is_over
        event = VfEvent.OVER_BUDGET if over or quarantine else VfEvent.OWN_ERROR
        self._lives.fire_vfs(slot, [place], event, reason)

    # Looking by itself.

    def check(self, slot: str) -> None:
        """Look at the adapter's registers and counters: nothing may have told of what has happened."""
        task = asyncio.get_running_loop().create_task(self._check(slot), context=Context())
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    async def _check(self, slot: str) -> None:
        try:
            reason = await self._find_trouble(slot)
        except SriovdError as error:
            _log.info("Adapter %s could not be looked at: %s", slot, error)
            return
        view = self._views.of(slot)
        if not reason or self._lives.get(slot).state is not AdapterState.ONLINE:
            return
        sight, news = suspect(view.sight, now_usec())
        if news is News.ADAPTER_ERROR:
            self._views.see(slot, sight)
            self._respond(slot, news, None, reason, Severity.FATAL)

    def _count_vfs(self, pfs: Sequence[PciAddress]) -> dict[PciAddress, int]:
        """As the kernel shows them now; what the inventory knows may be old."""
        return {pf: len(self._site.hands.picture.list_vfs(pf)) for pf in pfs}

    async def _find_trouble(self, slot: str) -> str:
        """What is wrong with an adapter that is online, in words; empty for nothing."""
        adapter = self._inventory.adapters.get(slot)
        if adapter is None or self._lives.get(slot).state is not AdapterState.ONLINE:
            return ""
        async with self._site.hands.executor.lane(slot):
            before = self._count_vfs(adapter.physical_functions)
            signs = await read_signs_of(self._site, slot, adapter.physical_functions)
            after = self._count_vfs(adapter.physical_functions)
        vfs = {pf: min(before[pf], after[pf]) for pf in signs}  # somebody may be making or destroying them
        for pf, seen in signs.items():
            if not seen.answers:
                return f"{pf} does not answer"
            if vfs[pf] and not seen.vf_enable:
                return f"{pf} has lost VF Enable, and with it its {vfs[pf]} VFs"
        counted = self._views.of(slot).counted
        for pf, count in count_uncorrected(self._site.backend, adapter.physical_functions).items():
            if count > counted.get(pf, count):
                return f"{pf} has counted {count - counted[pf]} uncorrectable errors of which nothing told"
        return ""
