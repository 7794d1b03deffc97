"""The record of an adapter's recovery and of its VF PEs: what must outlive the daemon.

Rule: records are values, by slot and by place (PF and VF index), because rungs of the ladder destroy VFs
and make others. What comes back from the store is believed no more than what a stranger wrote: a record
that does not make sense is refused, never repaired.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.snapshot import NO_ATTRIBUTES, PfShot
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress

Place = tuple[PciAddress, int]  # a PF and the index of one of its VFs

FREEZES = 5  # eeh_max_freezes (arch/powerpc/kernel/eeh.c)
SPAN_USEC = 3600 * 1_000_000


@dataclass(frozen=True, slots=True)
class Budget:
    """How often a PE was frozen in the hour that began with its first freeze (eeh_pe_update_time_stamp), in
    CLOCK_REALTIME, which a reboot does not set back; a clock that was set back counts as no time."""

    first_usec: int = 0
    count: int = 0

    def spend(self, now_usec: int) -> Budget:
        """With one more freeze."""
        if self.counted(now_usec):
            return Budget(self.first_usec, self.count + 1)
        return Budget(now_usec, 1)

    def counted(self, now_usec: int) -> int:
        """How many count now."""
        return self.count if self.count and now_usec - self.first_usec <= SPAN_USEC else 0

    @property
    def is_over(self) -> bool:
        """Whether the last freeze was one too many."""
        return self.count > FREEZES


@dataclass(frozen=True, slots=True)
class VfPe:
    """A VF PE. `own`: its last error was its own. `reason`: of its state, in words. `since_usec`:
    CLOCK_REALTIME of its last change. `wish`: what was asked for while it could not be done."""

    pf: PciAddress
    index: int
    state: VfState = VfState.ONLINE
    own: bool = False
    reason: str = ""
    since_usec: int = 0
    budget: Budget = Budget()
    wish: VfAttributes = NO_ATTRIBUTES

    @property
    def place(self) -> Place:
        return self.pf, self.index

    def __str__(self) -> str:
        return f"VF {self.index} of {self.pf}"


@dataclass(frozen=True, slots=True)
class AdapterPe:
    """An adapter PE with its VF PEs, of which those are left out that are online and have no freeze.

    `tried`: rungs of this recovery that were climbed; `climbing`: the one that was begun. `bundle`: the
    number of the freeze's bundle, 0 before it is taken. `shots`: the PFs as they have to be again.
    """

    slot: str
    state: AdapterState = AdapterState.ONLINE
    reason: str = ""
    since_usec: int = 0
    budget: Budget = Budget()
    tried: tuple[Rung, ...] = ()
    climbing: Rung | None = None
    bundle: int = 0
    shots: tuple[PfShot, ...] = ()
    vfs: tuple[VfPe, ...] = ()

    def __str__(self) -> str:
        return f"Adapter {self.slot}"

    def vf(self, place: Place) -> VfPe:
        """The VF PE at `place`."""
        return next((vf for vf in self.vfs if vf.place == place), VfPe(*place))

    def shot(self, pf: PciAddress) -> PfShot | None:
        """How `pf` has to be again."""
        return next((shot for shot in self.shots if shot.address == pf), None)

    def without_pictures(self, places: Collection[Place]) -> AdapterPe:
        """Without those of the VFs at `places`: they were in service since, and are to be taken anew."""
        shots = (
            replace(shot, vfs=tuple(vf for vf in shot.vfs if (shot.address, vf.index) not in places))
            for shot in self.shots
        )
        return replace(self, shots=tuple(shots))

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way and everything is online."""
        return self.state is AdapterState.ONLINE and all(vf.state is VfState.ONLINE for vf in self.vfs)

    def with_vfs(self, vfs: Iterable[VfPe]) -> AdapterPe:
        """With `vfs` in place of those at the same places."""
        known = {vf.place: vf for vf in self.vfs}
        known.update((vf.place, vf) for vf in vfs)
        kept = (vf for vf in known.values() if vf.state is not VfState.REMOVED and vf != VfPe(*vf.place))
        return replace(self, vfs=tuple(kept))

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON has it."""
        import msgspec  # a host on which nothing ever fails need not load it

        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> AdapterPe:
        """The inverse. Raises ValueError naming what is wrong."""
        import msgspec

        return msgspec.convert(dict(fields), cls)
