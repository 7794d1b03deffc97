"""How the functions of an adapter have to be when it has recovered: as they were when it froze.

Rule: taken before anything is written to them, and never taken anew from what a recovery has in its hands: a
function that is not in service keeps the picture of the time when it was. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.inventory import Function
from sriovd.pci import PciAddress

NO_ATTRIBUTES = VfAttributes()


@dataclass(frozen=True, slots=True)
class VfShot:
    """A VF: where it was and which it was there (core.inventory.Function), its driver (empty: none), its
    reset methods, and, as far as they could be read, its attributes and whether it might do DMA (Bus
    Master Enable). `lease`: the number of that which had it, 0 for none."""

    index: int
    address: PciAddress
    generation: int
    driver: str
    reset_methods: tuple[str, ...] = ()
    bus_master: bool = False
    attributes: VfAttributes = NO_ATTRIBUTES
    lease: int = 0


@dataclass(frozen=True, slots=True)
class PfShot:
    """A PF: its driver, the bridge above it (None: a root bus), whether its network interface was up, and
    its VFs by index."""

    address: PciAddress
    driver: str
    port: PciAddress | None = None
    up: bool = False
    vfs: tuple[VfShot, ...] = ()

    def vf(self, index: int) -> VfShot | None:
        """The VF of that index."""
        return next((vf for vf in self.vfs if vf.index == index), None)


def take_shot(
    pf: Function,
    vfs: Iterable[Function],
    port: PciAddress | None,
    before: PfShot | None,
    in_service: Callable[[int], bool],
    lease_of: Callable[[int], int] = lambda _: 0,
) -> PfShot:
    """`pf` with its `vfs` as they are now. `before`: an earlier shot, which goes on to count for the VFs
    that are not in service. `lease_of`: the number of the lease that has the VF of that index."""
    found = {
        vf.virtual.index: VfShot(
            vf.virtual.index,
            vf.address,
            vf.generation,
            vf.facts.driver,
            vf.facts.reset_methods,
            lease=lease_of(vf.virtual.index),
        )
        for vf in vfs
        if vf.virtual is not None
    }
    if before is not None:
        kept = (vf for vf in before.vfs if not in_service(vf.index))
        found.update((vf.index, _move(vf, found.get(vf.index))) for vf in kept)
    idle = before if before is not None and not pf.facts.driver else None
    shots = tuple(found[index] for index in sorted(found))
    return PfShot(pf.address, idle.driver if idle else pf.facts.driver, port, bool(idle and idle.up), shots)


def _move(kept: VfShot, found: VfShot | None) -> VfShot:
    """An earlier picture of a VF that is another by now: what a fence takes from that one is its own."""
    if found is None or found.generation == kept.generation:
        return kept
    methods = found.reset_methods or kept.reset_methods
    return replace(
        kept,
        address=found.address,
        generation=found.generation,
        reset_methods=methods,
        bus_master=False,
    )


def with_bus_masters(shot: PfShot, masters: Mapping[int, bool]) -> PfShot:
    """With what was read of Bus Master Enable, by VF index; whoever had it once keeps it: a fence may have
    taken it since."""
    vfs = (replace(vf, bus_master=vf.bus_master or masters.get(vf.index, False)) for vf in shot.vfs)
    return replace(shot, vfs=tuple(vfs))


def with_attributes(shot: PfShot, told: Mapping[int, VfAttributes], up: bool) -> PfShot:
    """With what the PF's driver told of its VFs, by index, and of its interface."""
    vfs = (replace(vf, attributes=told.get(vf.index, vf.attributes)) for vf in shot.vfs)
    return replace(shot, up=up, vfs=tuple(vfs))


def overlay(base: VfAttributes, wish: VfAttributes) -> VfAttributes:
    """`base` where nothing is wished."""
    wished = {name.replace("-", "_"): value for name, value in wish.items()}
    return replace(base, **wished)  # type: ignore[arg-type]


def list_ports(shots: Sequence[PfShot]) -> tuple[PciAddress, ...]:
    """The bridges above, each once."""
    return tuple(dict.fromkeys(shot.port for shot in shots if shot.port is not None))
