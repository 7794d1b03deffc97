"""Taking the snapshot of an adapter: from the inventory, and with questions to its functions.

Rule: what is in service is photographed; what is not keeps the picture of when it was. The picture of a
VF that leaves service is thrown away with its new state (lives.py), so that a daemon that is killed before
it has taken another one finds none, and takes it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from sriovd.backend.steps import ChainResult
from sriovd.backend.vf_attributes import LinkReport
from sriovd.core.errors import SriovdError, Stuck
from sriovd.core.inventory import Function
from sriovd.core.recovery import fence
from sriovd.core.recovery.automaton import VfState
from sriovd.core.recovery.record import Place
from sriovd.core.recovery.site import Site
from sriovd.core.recovery.snapshot import (
    NO_ATTRIBUTES,
    PfShot,
    VfShot,
    take_shot,
    with_attributes,
    with_bus_masters,
)
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)


class Photographer:
    """Takes them."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def shot_of(self, slot: str, place: Place) -> VfShot | None:
        """The last picture of that VF."""
        shot = self._site.lives.get(slot).shot(place[0])
        return shot.vf(place[1]) if shot is not None else None

    async def take(self, slot: str) -> None:
        """What the inventory knows."""
        inventory, pe = self._site.inventory, self._site.lives.get(slot)
        adapter = inventory.adapters.get(slot)
        shots, out = [], self._list_out(slot)
        for address in adapter.physical_functions if adapter else ():
            vfs = [inventory.functions[vf] for vf in inventory.vfs_of(address).values()]
            ports = self._site.backend.read_error_path(address).ports
            port = ports[0] if ports else None
            pf = inventory.functions[address]
            in_service, lease_of = partial(_is_missing, out, address), partial(self._lease_of, address)
            shots.append(take_shot(pf, vfs, port, pe.shot(address), in_service, lease_of))
        if shots:
            self._site.lives.edit(slot, shots=tuple(shots))

    async def complete(self, slot: str, vfs: Sequence[Function]) -> None:
        """What has to be asked for, of `vfs` and of the PFs' drivers; one that does not answer tells
        nothing. The caller has the lane. Raises Stuck."""
        results: tuple[ChainResult, ...] = ()
        if vfs:
            results = tuple(await self._site.hands.executor.run(slot, fence.look_script(slot, vfs)))
        reports = {shot.address: await self._ask(shot) for shot in self._site.lives.get(slot).shots}
        shots = []
        for shot in self._site.lives.get(slot).shots:  # others may have taken theirs meanwhile
            own = [
                (vf, result)
                for vf, result in zip(vfs, results, strict=False)
                if vf.virtual is not None and vf.virtual.parent == shot.address
            ]
            masters = fence.read_masters([vf for vf, _ in own], [result for _, result in own])
            shots.append(self._with_report(with_bus_masters(shot, masters), reports.get(shot.address)))
        self._site.lives.edit(slot, shots=tuple(shots))

    def is_whole(self, slot: str) -> bool:
        """Whether there is nothing left to be asked: of every VF that is out of service more is known than
        the inventory tells."""
        shots = {
            (shot.address, vf.index): vf for shot in self._site.lives.get(slot).shots for vf in shot.vfs
        }
        return all(self._is_known(place, shots.get(place)) for place in self._list_out(slot))

    def _lease_of(self, pf: PciAddress, index: int) -> int:
        lease = self._site.leases.find_at_place((pf, index))
        return lease.number if lease is not None else 0

    def _is_known(self, place: Place, vf: VfShot | None) -> bool:
        pf = self._site.inventory.functions.get(place[0])
        has_more = pf is not None and bool(pf.facts.net_interfaces)
        return vf is not None and (vf.attributes != NO_ATTRIBUTES or not has_more)

    def _list_out(self, slot: str) -> set[Place]:
        """The VFs whose older pictures count: what is found of the others is what they have to be again."""
        return {vf.place for vf in self._site.lives.get(slot).vfs if vf.state is not VfState.ONLINE}

    async def _ask(self, shot: PfShot) -> LinkReport | None:
        """What the PF's driver tells; None when it does not."""
        pf = self._site.inventory.functions.get(shot.address)
        if pf is None or not pf.facts.net_interfaces:
            return None
        try:
            return await self._site.hands.configurer.read(pf)
        except Stuck:
            raise
        except SriovdError as error:
            _log.warning("The attributes of the VFs of %s are not known: %s", shot.address, error)
            return None

    def _with_report(self, shot: PfShot, report: LinkReport | None) -> PfShot:
        if report is None:
            return shot
        out = self._list_out(str(shot.address.slot))
        told = {
            vf.index: report.vfs[vf.index]
            for vf in shot.vfs
            if vf.index in report.vfs
            and (vf.attributes == NO_ATTRIBUTES or (shot.address, vf.index) not in out)
        }
        return with_attributes(shot, told, bool(report.up))


def _is_missing(out: set[Place], pf: PciAddress, index: int) -> bool:
    return (pf, index) not in out
