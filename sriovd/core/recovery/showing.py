"""How PEs stand, for everybody who looks.

Rule: reads only. What is shown of a VF names nobody but its own user, and of an adapter nobody at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.gate import Gate
from sriovd.core.recovery.record import AdapterPe, Place, VfPe
from sriovd.core.recovery.site import Site
from sriovd.core.recovery.standing import PeStanding
from sriovd.core.recovery.storms import Storms
from sriovd.pci import PciAddress


class Showing:
    """Tells how PEs stand: to who asks, and `on_adapter` and `on_vf` of every change. `audit_of`,
    `audit_of_vf`: what would make a recovery fail."""

    def __init__(self, site: Site, gate: Gate, storms: Storms) -> None:
        self._inventory = site.inventory
        self._lives = site.lives
        self._views = site.views
        self._gate = gate
        self._storms = storms
        self.audit_of: Callable[[str], tuple[str, ...]] = lambda _: ()
        self.audit_of_vf: Callable[[PciAddress], tuple[str, ...]] = lambda _: ()
        self.on_adapter: Callable[[str, PeStanding], None] = lambda _slot, _standing: None
        self.on_vf: Callable[[PciAddress, PeStanding], None] = lambda _address, _standing: None
        site.views.on_change = self._show_news

    def show_adapter(self, slot: str) -> None:
        """Tell how the adapter stands."""
        self.on_adapter(slot, self.adapter_standing(slot))

    def _show_news(self, slot: str, vfs: Collection[PciAddress]) -> None:
        self.show_adapter(slot)
        for address in vfs:
            self.on_vf(address, self.vf_standing(address))

    def _show_pe(self, pe: AdapterPe, vf: VfPe) -> None:
        address = self._inventory.vfs_of(vf.pf).get(vf.index)
        if address is None:
            shot = pe.shot(vf.pf)
            picture = shot.vf(vf.index) if shot else None
            address = picture.address if picture else None
        if address is not None:
            self.on_vf(address, self._standing_of(pe, vf, address))

    def show_vf(self, address: PciAddress) -> None:
        """Tell how the VF at that address stands."""
        self.on_vf(address, self.vf_standing(address))

    def adapter_standing(self, slot: str) -> PeStanding:
        """How the adapter stands."""
        pe, view = self._lives.get(slot), self._views.of(slot)
        rung = pe.climbing or (pe.tried[-1] if pe.tried else None)
        return PeStanding(
            state=str(pe.state),
            cause="" if pe.state is AdapterState.ONLINE else "adapter",
            reason=pe.reason,
            since_usec=pe.since_usec,
            freezes=pe.budget.counted(time.time_ns() // 1000),
            waits_for=view.waits_for,
            rung=str(rung or ""),
            audit=self.audit_of(slot),
            corrected=self._storms.total(slot),
        )

    def vf_standing(self, address: PciAddress) -> PeStanding:
        """How the VF at that address stands."""
        place = self._gate.place_of(address)
        if place is None:
            return PeStanding(str(VfState.ONLINE))
        pe = self._lives.get(str(place[0].slot))
        return self._standing_of(pe, pe.vf(place), address)

    def pes_at(self, place: Place) -> tuple[AdapterPe, VfPe]:
        """The PEs of the adapter and of the VF at `place`, whether there is a VF at the moment or not."""
        pe = self._lives.get(str(place[0].slot))
        return pe, pe.vf(place)

    def _standing_of(self, pe: AdapterPe, vf: VfPe, address: PciAddress) -> PeStanding:
        waits = f"its adapter {pe.slot}, which is {pe.state}"
        if address in self._views.of(pe.slot).held:
            waits = "its user to close it"
        return PeStanding(
            state=vf.state.word,
            cause="" if vf.state is VfState.ONLINE else ("own" if vf.own else "propagated"),
            reason=vf.reason,
            since_usec=vf.since_usec,
            freezes=vf.budget.counted(time.time_ns() // 1000),
            waits_for=waits if vf.state in (VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT) else "",
            audit=self.audit_of_vf(address),
        )
