"""What the parts of recovery work with, and what they know of an adapter at the moment.

Rule: nothing here outlives the daemon; what must is in record.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sriovd.backend.base import Backend, ErrorRecord, Severity
from sriovd.core.converge.apply import Hands
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import JobRegistry
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.recovery.detect import Sight, settle
from sriovd.core.recovery.lives import Lives
from sriovd.core.recovery.record import AdapterPe, Place
from sriovd.core.recovery.standing import Counters
from sriovd.core.recovery.wish import RecoveryWish
from sriovd.core.store import Store
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

_BEGIN_SEC = 1.0  # the kernel's walk begins within milliseconds, if at all
_VERDICT_SEC = 90.0  # a port's link may need 60 s (drivers/pci/pci.c PCIE_RESET_READY_POLL_MS)


@dataclass(frozen=True, slots=True)
class Site:
    """`wish_of`: what policy says of an adapter's errors. `settled`: told that policy may act on the
    adapter, or on VFs of it, again."""

    backend: Backend
    store: Store
    jobs: JobRegistry
    workplace: Workplace
    hands: Hands
    leases: LeaseKeeper
    lives: Lives
    views: Views
    wish_of: Callable[[str], RecoveryWish]
    settled: Callable[[str], None]

    @property
    def inventory(self) -> Inventory:
        return self.hands.inventory


@dataclass(slots=True)
class View:
    """`sight`: what the sources have said. `counted`: uncorrectable errors of its PFs that are dealt
    with, by PF. `well`: all counters of its PFs when it was last known to be well. `waits_for`: what the
    recovery waits for, in words. `records`: the last errors. `since_usec`: CLOCK_MONOTONIC of the error.
    `held`: VFs that have to be closed. `restored`: the record by which it was restored. `busy`: a rung is
    taking the adapter away. `changed`: set at every change."""

    sight: Sight = field(default_factory=Sight)
    counted: Mapping[PciAddress, int] = field(default_factory=dict)
    well: Counters = field(default_factory=dict)
    waits_for: str = ""
    records: tuple[ErrorRecord, ...] = ()
    since_usec: int = 0
    held: frozenset[PciAddress] = frozenset()
    restored: AdapterPe | None = None
    busy: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Views:
    """The views of all adapters. `on_change` is told of adapters of which there is something new to show,
    with the VFs that it is about."""

    def __init__(self) -> None:
        self._views: dict[str, View] = {}
        self.on_change: Callable[[str, Collection[PciAddress]], None] = lambda _slot, _vfs: None

    def of(self, slot: str) -> View:
        """The view of that adapter."""
        return self._views.setdefault(slot, View())

    def see(self, slot: str, sight: Sight) -> None:
        """The sources have said something."""
        view = self.of(slot)
        view.sight = sight
        self.wake(slot)

    def wake(self, slot: str) -> None:
        """Whoever waits for something of the adapter looks again."""
        view = self.of(slot)
        view.changed.set()
        view.changed = asyncio.Event()

    def wait_for(self, slot: str, what: str, held: Collection[PciAddress] = ()) -> None:
        """Say what the recovery waits for, empty: nothing; and which VFs have to be closed."""
        view, before = self.of(slot), self.of(slot).held
        if view.waits_for != what or before != frozenset(held):
            view.waits_for, view.held = what, frozenset(held)
            self.on_change(slot, before.symmetric_difference(held))

    async def until(self, slot: str, condition: Callable[[View], bool], timeout_sec: float) -> bool:
        """Wait until the view fulfils `condition`; whether it did in time."""
        try:
            async with asyncio.timeout(timeout_sec):
                while not condition(self.of(slot)):
                    await self.of(slot).changed.wait()
        except TimeoutError:
            return False
        return True

    async def await_verdict(self, slot: str) -> None:
        """Until the kernel has ended its own recovery, if it has begun one: nothing is done beside it."""
        if not self.of(slot).sight.opened_usec or not await self.until(slot, _has_begun, _BEGIN_SEC):
            return
        self.wait_for(slot, "the kernel's own recovery")
        await self.until(slot, lambda view: view.sight.verdict is not None, _VERDICT_SEC)
        self.wait_for(slot, "")

    def close_walk(self, slot: str) -> None:
        """Wait no longer for the end of a walk of which nothing tells: the next one is another."""
        if self.of(slot).sight.verdict is None:
            self.see(slot, settle(self.of(slot).sight, self.of(slot).sight.settled_usec))

    def forget(self, slot: str) -> None:
        """The adapter is gone."""
        self._views.pop(slot, None)


def _has_begun(view: View) -> bool:
    return view.sight.begun or view.sight.verdict is not None


def functions_of(inventory: Inventory, slot: str) -> list[Function]:
    """The PFs of an adapter and their VFs, the PFs first."""
    adapter = inventory.adapters.get(slot)
    pfs = [inventory.functions[pf] for pf in (adapter.physical_functions if adapter else ())]
    vfs = [inventory.functions[vf] for pf in pfs for _, vf in sorted(inventory.vfs_of(pf.address).items())]
    return [*pfs, *vfs]


def vf_at(inventory: Inventory, place: Place) -> Function | None:
    """The VF at `place`, if there is one."""
    address = inventory.vfs_of(place[0]).get(place[1])
    return None if address is None else inventory.functions.get(address)


def count_errors(backend: Backend, functions: Iterable[PciAddress]) -> Counters:
    """What the kernel has counted of each function; without those of which it counts nothing."""
    read = ((each, backend.read_error_counters(each)) for each in functions)
    return {address: counts for address, counts in read if counts}


def count_uncorrected(backend: Backend, pfs: Sequence[PciAddress]) -> dict[PciAddress, int]:
    """How many uncorrectable errors the kernel has counted of each PF."""
    return {
        pf: sum(
            counts.get("total", 0)
            for severity, counts in backend.read_error_counters(pf).items()
            if severity is not Severity.CORRECTED
        )
        for pf in pfs
    }
