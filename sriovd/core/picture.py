"""Keeps the inventory equal to the host: reads functions when there is a reason to.

Rule: an event is a reason to look, never a state (uevents come late, twice, in odd order or not at all, and
before their links exist). Events of an adapter on which a job runs wait for the job's end, because the job
reads everything it has touched anyway.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from sriovd.backend.base import Backend, EventsLost, HostReadError, KernelEvent, LinkChanged, Uevent
from sriovd.core.inventory import Inventory
from sriovd.core.messages import Message, announce
from sriovd.pci import PciAddress, vf_index

_log = logging.getLogger(__name__)

_SLICE = 16  # functions read between two turns of the event loop


class Picture:
    """The inventory's eyes."""

    def __init__(self, backend: Backend, inventory: Inventory) -> None:
        self._backend = backend
        self._inventory = inventory
        self._busy: dict[str, set[PciAddress]] = {}  # adapter -> functions to look at when its job ends
        self._dirty: set[PciAddress] = set()
        self._lost = False
        self._wake = asyncio.Event()
        self.on_link: Callable[[PciAddress], None] = lambda _: None
        self.on_event: Callable[[KernelEvent], None] = lambda _: None  # told before anything is looked at
        self.on_job_end: Callable[[str], None] = lambda _: None

    async def rescan(self) -> None:
        """Look at everything."""
        present = self._backend.list_functions()
        self._inventory.retain(present)
        await self.refresh(present)

    async def refresh(self, addresses: Iterable[PciAddress]) -> None:
        """Look at each of `addresses`, giving way to others in between."""
        for position, address in enumerate(addresses, start=1):
            self.look_at(address)
            if position % _SLICE == 0:
                await asyncio.sleep(0)

    def look_at(self, address: PciAddress) -> None:
        """Read one function and note what has changed. Contents that make no sense are reported and leave
        the last good picture in place."""
        try:
            facts = self._backend.read_function(address)
        except HostReadError as error:
            _log.error("Cannot read %s, its last known state stays: %s", address, error)
            return
        if facts is None:
            self._inventory.drop(address)
        else:
            self._inventory.put(facts)

    def begin_job(self, adapter: str) -> None:
        """Events of `adapter` wait until end_job."""
        self._busy[adapter] = set()
        self._backend.defer_events(True)

    def is_busy(self, adapter: str) -> bool:
        """Whether a job is working on `adapter`."""
        return adapter in self._busy

    async def look_after_job(self, adapter: str, addresses: Iterable[PciAddress]) -> None:
        """Look at what a job has touched; events of before then have nothing more to say."""
        touched = list(addresses)
        self._busy.get(adapter, set()).difference_update(touched)
        await self.refresh(touched)

    def end_job(self, adapter: str) -> None:
        """The job is over: what it has not looked at is looked at now."""
        self._note(self._busy.pop(adapter, set()))
        if not self._busy:
            self._backend.defer_events(False)
        self.on_job_end(adapter)

    def look_again(self, adapter: str) -> None:
        """Look at all functions of `adapter` soon."""
        known = self._inventory.adapters.get(adapter)
        for pf in known.physical_functions if known else ():
            self._note(set(self.family(pf)))

    def family(self, pf: PciAddress) -> list[PciAddress]:
        """`pf` with every VF that it had or has now; the departed first."""
        known, present = set(self._inventory.vfs_of(pf).values()), self.list_vfs(pf)
        return [*sorted(known.difference(present)), *present, pf]

    def list_vfs(self, pf: PciAddress) -> list[PciAddress]:
        """The VFs that `pf` has now, by index."""
        try:
            return list(self._backend.list_virtual_functions(pf).values())
        except HostReadError as error:
            _log.error("Cannot list the VFs of %s: %s", pf, error)
            return []

    async def follow(self) -> None:
        """Take in events until the host has no more. Raises what ended them."""
        reader = asyncio.create_task(self._read_events())
        reader.add_done_callback(lambda _: self._wake.set())
        try:
            while not reader.done():
                await self._wake.wait()
                self._wake.clear()
                await self._catch_up()
            reader.result()
        finally:
            reader.cancel()

    async def _read_events(self) -> None:
        async for event in self._backend.events():
            self._take(event)

    def _take(self, event: KernelEvent) -> None:
        self.on_event(event)
        if isinstance(event, EventsLost):
            announce(_log, Message.EVENTS_LOST, f"Events were lost, looking at everything: {event.reason}")
            self._lost = True
            self._wake.set()
        if isinstance(event, LinkChanged):
            self.on_link(event.address)
        if not isinstance(event, Uevent | LinkChanged):
            return  # what drivers say, and errors, are no reason to look
        waiting = self._busy.get(self._adapter_of(event.address))
        if waiting is None:
            self._note({event.address})
        else:
            waiting.add(event.address)

    def _adapter_of(self, address: PciAddress) -> str:
        """The adapter that an event is about; a VF that is being created is not in the inventory yet."""
        function = self._inventory.functions.get(address)
        if function is not None:
            return function.adapter
        return next((slot for slot in self._busy if self._may_hold(slot, address)), str(address.slot))

    def _may_hold(self, slot: str, address: PciAddress) -> bool:
        """Whether `address` is a place for one of the adapter's VFs."""
        adapter = self._inventory.adapters.get(slot)
        for pf in adapter.physical_functions if adapter else ():
            facts = self._inventory.functions[pf].physical
            index = vf_index(pf, facts.vf_offset, facts.vf_stride, address) if facts else None
            if facts and index is not None and index < facts.total_vfs:
                return True
        return False

    def _note(self, addresses: set[PciAddress]) -> None:
        if addresses:
            self._dirty |= addresses
            self._wake.set()

    async def _catch_up(self) -> None:
        if self._lost:
            self._lost = False
            self._dirty.clear()
            try:
                await self.rescan()
            except HostReadError as error:
                _log.error("Cannot look at the host, its last known state stays: %s", error)
            for pf in self._inventory.physical_functions():
                self.on_link(pf.address)
        dirty, self._dirty = self._dirty, set()
        await self.refresh(sorted(dirty))
