"""What may be written while PEs are not online: the one place where operations are refused.

Rule: it stands in front of the journal, so nothing passes, whoever began it and when. What recovers an
adapter passes for that adapter while nothing newer has happened to it; whatever is about a VF passes when
that VF is online or being brought back by its own recovery.
"""

from __future__ import annotations

from collections.abc import Collection

from sriovd.backend.steps import Script
from sriovd.core.errors import Frozen, InvalidArgument, LockedOut, Quarantined, SriovdError
from sriovd.core.inventory import Inventory
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.lives import Lives, describe, describe_vf
from sriovd.core.recovery.record import AdapterPe, Place, VfPe
from sriovd.pci import PciAddress

_OPEN = (AdapterState.ONLINE, AdapterState.PERMITTING, AdapterState.REMOVED)
_IN_SERVICE = (VfState.ONLINE, VfState.RECOVERING)


class Gate:
    """Knows who may pass."""

    def __init__(self, inventory: Inventory, lives: Lives) -> None:
        self._inventory = inventory
        self._lives = lives

    def refuse(self, slot: str, script: Script) -> None:
        """Raises Frozen, LockedOut or Quarantined for a script that may not run now, Cancelled for one of a
        recovery that has moved on."""
        places = self._written(script)
        if self._lives.may_write(slot, places):
            return
        pe = self._lives.get(slot)
        self._refuse_adapter(pe)
        for place in places:
            self._refuse_vf(pe, pe.vf(place))

    def _written(self, script: Script) -> Collection[Place]:
        """The VFs that `script` writes to."""
        steps = (step for chain in script.chains for step in chain.steps if step.writes)
        places = (self.place_of(each) for each in {step.address for step in steps if step.address})
        return [place for place in places if place is not None]

    def refuse_function(self, address: PciAddress) -> None:
        """As refuse, for a verb on the function at `address`, before its job begins."""
        place = self.place_of(address)
        if place is not None:
            self.refuse_place(place)
        else:
            self._refuse_adapter(self._lives.get(str(address.slot)))

    def refuse_place(self, place: Place) -> None:
        """As refuse, for what is about the VF at `place`."""
        pe = self._lives.get(str(place[0].slot))
        self._refuse_adapter(pe)
        self._refuse_vf(pe, pe.vf(place))

    def is_held(self, place: Place) -> bool:
        """Whether nobody may do anything with the VF at `place` now."""
        pe = self._lives.get(str(place[0].slot))
        return pe.state not in _OPEN or pe.vf(place).state not in _IN_SERVICE

    def is_out(self, place: Place) -> bool:
        """Whether the VF at `place` is not what it will be: it is held, or being brought back."""
        return (
            self.is_held(place) or self._lives.get(str(place[0].slot)).vf(place).state is not VfState.ONLINE
        )

    def place_of(self, address: PciAddress) -> Place | None:
        """The place of the VF that is at `address`, or was when its adapter froze; None for others."""
        function = self._inventory.functions.get(address)
        if function is not None:
            return (function.virtual.parent, function.virtual.index) if function.virtual else None
        shots = (shot for pe in self._lives.all() for shot in pe.shots)
        found = ((shot.address, vf.index) for shot in shots for vf in shot.vfs if vf.address == address)
        return next(found, None)

    def require_place(self, address: PciAddress) -> Place:
        """As place_of. Raises NoSuchFunction when nothing is there, InvalidArgument for a PF."""
        place = self.place_of(address)
        if place is None:
            self._inventory.get(address)
            raise InvalidArgument(f"{address} is a PF; its adapter recovers by itself.", "Name a VF.")
        return place

    def _refuse_adapter(self, pe: AdapterPe) -> None:
        """Why it is out is not for the owners of its VFs."""
        if pe.state in _OPEN:
            return
        error: type[SriovdError] = Quarantined if pe.state is AdapterState.QUARANTINED else LockedOut
        hint = "Look at its bundle, then call Lift." if error is Quarantined else "It goes on by itself."
        raise error(f"{pe} is out of service: it is {pe.state}.", hint, describe(pe))

    def _refuse_vf(self, pe: AdapterPe, vf: VfPe) -> None:
        if vf.state in _IN_SERVICE:
            return
        error: type[SriovdError] = Frozen
        if vf.state is VfState.FAILED:
            error = Quarantined
        elif vf.state in (VfState.LOCKED_OUT, VfState.FROZEN_PROPAGATED):
            error = LockedOut
        raise error(f"{vf} is {vf.state.word}. {describe_vf(vf, pe)}")
