"""The picture: which PFs, VFs and adapters exist and how they are. One dictionary, and who wants to know of
changes.

Rule: only what a backend has read goes in; nobody predicts. A change costs the same whatever the number of
VFs, so nothing here walks all functions except on a full rescan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sriovd.backend.base import FunctionFacts, PhysicalFacts, VirtualFacts
from sriovd.core.errors import InvalidArgument, NoSuchFunction
from sriovd.core.store import Generation
from sriovd.pci import PciAddress


@dataclass(frozen=True, slots=True)
class Function:
    """A PF or VF. `generation` counts the functions that have lived at this address: a handle of an older
    one must not reach its successor. `quarantine`: why it was taken out of service, empty if it was not."""

    facts: FunctionFacts
    generation: int
    quarantine: str = ""

    @property
    def address(self) -> PciAddress:
        return self.facts.address

    @property
    def physical(self) -> PhysicalFacts | None:
        return self.facts.physical

    @property
    def virtual(self) -> VirtualFacts | None:
        return self.facts.virtual

    @property
    def adapter(self) -> str:
        """The slot of its card, in text: the unit that is busy, stuck or recovered as one."""
        return str((self.virtual.parent if self.virtual else self.address).slot)

    @property
    def kind(self) -> str:
        return "VF" if self.virtual else "PF"

    def __str__(self) -> str:
        return f"{self.kind} {self.address}"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A card: its PFs, and whether a write on it hangs. `stuck`: the evidence in words, empty if none
    does."""

    slot: str
    physical_functions: tuple[PciAddress, ...]
    stuck: str = ""


@dataclass(frozen=True, slots=True)
class FunctionChange:
    """`before` None: it appeared. `after` None: it is gone."""

    before: Function | None
    after: Function | None


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """As FunctionChange, for an adapter."""

    before: Adapter | None
    after: Adapter | None


Change = FunctionChange | AdapterChange


class Inventory:
    """All functions and adapters, by address and slot."""

    def __init__(self, generations: Mapping[PciAddress, Generation] | None = None) -> None:
        """`generations`: what former daemons have counted."""
        self._functions: dict[PciAddress, Function] = {}
        self._adapters: dict[str, Adapter] = {}
        self._vfs: dict[PciAddress, dict[int, PciAddress]] = {}
        self._stuck: dict[str, str] = {}  # also of adapters that are away for the moment
        self._generations = dict(generations or {})
        self._listeners: list[Callable[[Change], None]] = []

    def listen(self, listener: Callable[[Change], None], *, first: bool = False) -> None:
        """Call `listener` with every change, after it has happened; `first`: before those that listen
        already."""
        self._listeners.insert(0 if first else len(self._listeners), listener)

    @property
    def functions(self) -> Mapping[PciAddress, Function]:
        return self._functions

    @property
    def adapters(self) -> Mapping[str, Adapter]:
        return self._adapters

    def physical_functions(self) -> Sequence[Function]:
        """The PFs, by address."""
        places = [pf for _, adapter in sorted(self._adapters.items()) for pf in adapter.physical_functions]
        return [self._functions[pf] for pf in places if pf in self._functions]

    def vfs_of(self, pf: PciAddress) -> Mapping[int, PciAddress]:
        """The VFs of `pf` by index, in no particular order."""
        return self._vfs.get(pf, {})

    def get(self, address: PciAddress, generation: int = 0) -> Function:
        """The function at `address`, which must be of that generation unless it is 0. Raises
        NoSuchFunction."""
        function = self._functions.get(address)
        if function is None:
            raise NoSuchFunction(
                f"No SR-IOV function has the address {address}.",
                "List them with ListFunctions; a PCI function without the SR-IOV capability is not listed.",
            )
        if generation and generation != function.generation:
            raise NoSuchFunction(
                f"{address} is another {function.kind} now: generation {function.generation}, and not"
                f" {generation}.",
                "Look at it again, and give the generation that it has now.",
            )
        return function

    def get_pf(self, address: PciAddress) -> Function:
        """The PF at `address`. Raises NoSuchFunction, and InvalidArgument if a VF is there."""
        function = self.get(address)
        if function.virtual is not None:
            raise InvalidArgument(
                f"{address} is a VF and has no VFs of its own.", f"Ask its PF {function.virtual.parent}."
            )
        return function

    def put(self, facts: FunctionFacts) -> None:
        """Take in what was read of a function. A different identity means a successor: the old one leaves
        first."""
        before = self._functions.get(facts.address)
        if before is not None and before.facts.identity != facts.identity:
            self.drop(facts.address)
            before = None
        if before is not None and before.facts == facts:
            return
        self._store(before, self._succeed(before, facts))

    def drop(self, address: PciAddress) -> None:
        """The function at `address` is gone; its VFs, if it is a PF, go first. Unknown addresses are
        fine."""
        function = self._functions.get(address)
        if function is None:
            return
        for vf in sorted(self._vfs.pop(address, {}).values()):
            self.drop(vf)
        del self._functions[address]
        if function.virtual is not None:
            self._vfs.get(function.virtual.parent, {}).pop(function.virtual.index, None)
        self._announce(FunctionChange(function, None))
        if function.physical is not None:
            self._leave_adapter(function)

    def quarantine(self, address: PciAddress, reason: str) -> None:
        """Mark the function as out of service because of `reason`; an empty reason lifts it."""
        before = self._functions.get(address)
        if before is not None and before.quarantine != reason:
            self._store(before, replace(before, quarantine=reason))

    def set_stuck(self, slot: str, evidence: str) -> None:
        """Note that a write on the adapter hangs, with the evidence; empty when it has come back."""
        self._stuck[slot] = evidence
        before = self._adapters.get(slot)
        if before is not None and before.stuck != evidence:
            self._adapters[slot] = after = replace(before, stuck=evidence)
            self._announce(AdapterChange(before, after))

    def retain(self, present: Iterable[PciAddress]) -> None:
        """Drop every function that is not among `present`."""
        for address in self._functions.keys() - set(present):
            self.drop(address)

    def _succeed(self, before: Function | None, facts: FunctionFacts) -> Function:
        if before is not None:
            return replace(before, facts=facts)
        known = self._generations.get(facts.address, Generation(False, 0, 0))
        same = known.same_boot and known.identity == facts.identity
        generation = known.generation if same else known.generation + 1
        self._generations[facts.address] = Generation(True, facts.identity, generation)
        return Function(facts, generation)

    def _store(self, before: Function | None, after: Function) -> None:
        self._functions[after.address] = after
        if before is None and after.physical is not None:
            self._join_adapter(after)
        if after.virtual is not None:
            self._vfs.setdefault(after.virtual.parent, {})[after.virtual.index] = after.address
        self._announce(FunctionChange(before, after))

    def _join_adapter(self, pf: Function) -> None:
        before = self._adapters.get(pf.adapter)
        known = before.physical_functions if before else ()
        after = Adapter(pf.adapter, tuple(sorted({*known, pf.address})), self._stuck.get(pf.adapter, ""))
        self._adapters[pf.adapter] = after
        self._announce(AdapterChange(before, after))

    def _leave_adapter(self, pf: Function) -> None:
        before = self._adapters[pf.adapter]
        rest = tuple(address for address in before.physical_functions if address != pf.address)
        after = replace(before, physical_functions=rest) if rest else None
        if after is None:
            del self._adapters[pf.adapter]
        else:
            self._adapters[pf.adapter] = after
        self._announce(AdapterChange(before, after))

    def _announce(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)
