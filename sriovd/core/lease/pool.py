"""The VFs that can be lent: which are free, and the one that fits a wish.

Rule: a VF that is being asked about is nobody else's to have meanwhile; so whoever is told that a VF is free
can have it in the same turn of the event loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from sriovd.core.inventory import Function, Inventory
from sriovd.core.lease.choose import Candidate, Wish, choose
from sriovd.pci import PciAddress

Place = tuple[PciAddress, int]  # PF and index


class Pool:
    """All VFs. `leased`: the places that are lent, with the lease's number."""

    def __init__(self, inventory: Inventory, leased: Mapping[Place, int]) -> None:
        self._inventory = inventory
        self._leased = leased
        self._reserved: set[PciAddress] = set()
        self.is_held: Callable[[Place], bool] = lambda _: False  # by the recovery of its adapter, or its own

    def choose(self, wish: Wish, excluded: set[PciAddress], explain: bool = True) -> Function:
        """The free VF that fits `wish` best. Raises PoolExhausted; `explain`: which says why."""
        free: list[Candidate] = []
        taken: list[Candidate] = []
        for function in self._inventory.functions.values():
            candidate = self._describe(function)
            if candidate is not None:
                is_free = self.is_free(function) and function.address not in excluded
                (free if is_free else taken).append(candidate)
        load = Counter(pf for pf, _ in self._leased)
        return self._inventory.get(choose(free, wish, load, taken, explain))

    @contextmanager
    def reserved(self, vf: Function) -> Iterator[None]:
        """Nobody else gets `vf` meanwhile."""
        self._reserved.add(vf.address)
        try:
            yield
        finally:
            self._reserved.discard(vf.address)

    def is_free(self, vf: Function) -> bool:
        """Whether nobody has `vf` and nothing is wrong with it."""
        return vf.address not in self._reserved and self.is_lendable(vf)

    def is_lendable(self, vf: Function) -> bool:
        """As is_free, for whoever has reserved it."""
        adapter = self._inventory.adapters.get(vf.adapter)
        stuck = adapter.stuck if adapter else ""
        return not (place_of(vf) in self._leased or vf.quarantine or stuck or self.is_held(place_of(vf)))

    def _describe(self, vf: Function) -> Candidate | None:
        """`vf` as choose() knows it; None for a PF, and for a VF whose PF is not known yet."""
        place = vf.virtual
        pf = self._inventory.functions.get(place.parent) if place else None
        if place is None or pf is None:
            return None
        return Candidate(
            vf.address, place.parent, place.index, pf.facts.numa_node, vf.facts.driver, vf.facts.vendor_id,
            vf.facts.device_id, vf.facts.class_code, pf.facts.driver, pf.facts.net_interfaces,
        )  # fmt: skip


def place_of(vf: Function) -> Place:
    """Where `vf` is, which outlives it. Raises TypeError for a PF."""
    if vf.virtual is None:
        raise TypeError(f"{vf} is no VF")
    return vf.virtual.parent, vf.virtual.index
