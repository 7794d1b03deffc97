"""What the policies say about each PF, for everybody who has to know.

Rule: one PF, one wish; where policies contradict each other, or give one address to VFs of several PFs,
nobody may act on those PFs. A verb that asks for something else than a policy that repairs is refused: it
would be undone at once. What is in force is kept in the store, so that a file that is broken at start does
not take its policy away either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core import attributes
from sriovd.core.converge.plan import Desired, wants_stable_macs, wished_attributes
from sriovd.core.errors import BackendFailed, InvalidArgument, PolicyConflict
from sriovd.core.identities import Identities
from sriovd.core.inventory import Function, Inventory
from sriovd.core.recovery.wish import RecoveryWish, combine_recovery
from sriovd.core.scripts import DEFAULT, NONE
from sriovd.core.store import Store

if TYPE_CHECKING:  # a host without policies is ready before what reads them is imported
    from sriovd.core.policy.match import Decision
    from sriovd.core.policy.model import PfWish
    from sriovd.core.policy.policy_set import PolicySet
    from sriovd.core.policy.problems import Problem

_log = logging.getLogger(__name__)

_OUT_OF_THE_WAY = frozenset({NONE, "vfio-pci", "pci-stub"})  # drivers that the kernel would never choose


class Rulebook:
    """The policies in force. `directories`: where their files are, the most important first."""

    def __init__(
        self,
        inventory: Inventory,
        store: Store,
        identities: Identities,
        directories: Sequence[str],
        last_good: Mapping[str, str],
    ) -> None:
        self._inventory = inventory
        self._store = store
        self._identities = identities
        self._directories = tuple(directories)
        self._set = _recall(last_good) if directories and last_good else None
        self._loaded = asyncio.Event()
        if not directories:
            self._loaded.set()
        self.on_loaded: Callable[[], None] = lambda: None
        self._loading = asyncio.Lock()  # who asks last must not be answered with what was read first

    @property
    def problems(self) -> Sequence[str]:
        """Everything that is wrong with the files, one line each, with file and line."""
        return [str(problem) for problem in self._set.problems] if self._set else []

    @property
    def outdated(self) -> Sequence[str]:
        """The files of which an older text is in force."""
        return self._set.outdated if self._set else ()

    @property
    def size(self) -> int:
        """How many policies there are."""
        return len(self._set.policies) if self._set else 0

    async def load(self) -> None:
        """Read the files again. A file that is wrong stays in force as it was."""
        async with self._loading:
            before = dict(self._set.good_texts) if self._set else {}
            self._set = await asyncio.to_thread(_load, self._directories, before)
            self._loaded.set()
            if dict(self._set.good_texts) != before:
                await self._remember(self._set.good_texts)
        self.on_loaded()

    async def _remember(self, texts: Mapping[str, str]) -> None:
        """What cannot be stored is in force all the same."""
        try:
            await self._store.put_policies(texts)
        except BackendFailed as error:
            _log.error("The next start will not know the last good policies: %s", error)

    async def wait_loaded(self) -> None:
        """Until the files have been read once: that is after the daemon is ready."""
        await self._loaded.wait()

    def concerns(self, pf: Function) -> bool:
        """Whether any policy is about `pf`."""
        decision = self._decide(pf)
        return decision is not None and bool(decision.sources)

    def order_by_size(self, pfs: Iterable[Function]) -> list[Function]:
        """Those with the most VFs to be made first. Kernels make VFs under one lock for the whole host, so
        whoever has the most to do afterwards must have it first."""

        def size(pf: Function) -> int:
            decision = self._decide(pf)
            return (decision.wish.num_vfs or 0) if decision and decision.wish else 0

        return sorted(pfs, key=size, reverse=True)

    def name_sources(self, pf: Function) -> str:
        """The policies that are about `pf`, for people."""
        decision = self._decide(pf)
        return ", ".join(decision.sources) if decision else ""

    def find(self, pf: Function) -> Desired | None:
        """What `pf` shall look like; None when no policy is about it. Raises PolicyConflict."""
        decision = self._decide(pf)
        if decision is None:
            return None
        conflict = next(iter(decision.conflicts), None) or self._find_shared(pf, decision.wish)
        if conflict is not None:
            raise PolicyConflict(
                f"Policies contradict each other: {conflict}.",
                "Until that is mended, sriovd leaves the PF alone.",
            )
        if decision.wish is None:
            return None
        return Desired(", ".join(decision.sources), decision.wish)

    def _find_shared(self, pf: Function, wish: PfWish | None) -> Problem | None:
        """An address that a VF of `pf` shall have and a VF of another PF, too."""
        mine = wish.fixed_addresses() if wish is not None else {}
        if not mine:
            return None
        others = (each for each in self._inventory.physical_functions() if each.address != pf.address)
        for other in others:
            decision = self._decide(other)
            theirs = decision.wish if decision else None
            both = mine.keys() & theirs.fixed_addresses().keys() if theirs is not None else ()
            for key in sorted(both):
                return mine[key].problem(
                    f"a VF of {pf.address} and one of {other.address} would both have {key[1]}",
                    "give each VF its own, in policies that match one PF each",
                )
        return None

    def require(self, pf: Function) -> Desired:
        """As find. Raises InvalidArgument when there is none."""
        desired = self.find(pf)
        if desired is None:
            raise InvalidArgument(f"No policy is about {pf.address}.", "Policies are in /etc/sriovd/*.toml.")
        return desired

    # What verbs may not do.

    def refuse_count(self, pf: Function, count: int, driver: str = "") -> None:
        """Raises PolicyConflict when the policy wants another number of VFs, or one of them on another
        `driver` (empty: on none yet)."""
        desired = self._binding(pf)
        if desired and desired.wish.num_vfs not in (None, count):
            raise _contradiction(pf, desired, f"{desired.wish.num_vfs} VFs")
        for index in range(count if desired and driver else 0):
            _refuse_driver(pf, desired, index, driver)

    def refuse_driver(self, pf: Function, index: int, driver: str) -> None:
        """Raises PolicyConflict when the policy wants VF `index` on another driver."""
        _refuse_driver(pf, self._binding(pf), index, driver)

    def refuse_attributes(self, pf: Function, index: int, wish: VfAttributes) -> None:
        """Raises PolicyConflict when the policy wants one of these attributes otherwise."""
        desired = self._binding(pf)
        if desired is None:
            return
        says = desired.wish.vf(index)
        clashes = attributes.describe(attributes.clash(says.attributes, wish))
        if wish.mac and (says.stable_mac or (not says.attributes.mac and wants_stable_macs(pf, desired))):
            clashes = "the address that sriovd keeps for it"
        if clashes:
            raise _contradiction(pf, desired, f"VF {index} with {clashes}")

    # What leases ask. Policies that contradict each other say nothing to them: a VF that comes back has to
    # be cleaned all the same.

    def driver_for(self, pf: Function, index: int) -> str:
        """The driver that the policy wants VF `index` on; empty when it says nothing."""
        desired = self._find_if_clear(pf)
        return (desired.wish.vf(index).driver if desired else None) or ""

    async def attributes_for(self, pf: Function, index: int) -> VfAttributes:
        """What the policy wishes VF `index` to be."""
        desired = self._find_if_clear(pf)
        if desired is None:
            return VfAttributes()
        stable = desired.wish.vf(index).stable_mac or wants_stable_macs(pf, desired)
        macs = await self._identities.macs_of(pf.address, index + 1) if stable else {}
        return wished_attributes(pf, desired, index, macs)

    # What recovery asks. An adapter that fails cannot wait until policies agree.

    def recovery_for(self, pf: Function) -> RecoveryWish:
        """What shall be done about errors of `pf`; the defaults when no policy says, or when the policies
        contradict each other."""
        desired = self._find_if_clear(pf)
        return desired.wish.recovery if desired else RecoveryWish()

    def recovery_for_adapter(self, slot: str) -> RecoveryWish:
        """The strictest of what shall be done about the errors of its PFs."""
        adapter = self._inventory.adapters.get(slot)
        pfs = [self._inventory.get(each) for each in adapter.physical_functions] if adapter else []
        return combine_recovery([self.recovery_for(pf) for pf in pfs])

    def _find_if_clear(self, pf: Function) -> Desired | None:
        try:
            return self.find(pf)
        except PolicyConflict:
            return None

    def _binding(self, pf: Function) -> Desired | None:
        """The policy of `pf`, if it is one that repairs."""
        desired = self.find(pf)
        return desired if desired and desired.repairs else None

    def _decide(self, pf: Function) -> Decision | None:
        if self._set is None:
            return None
        from sriovd.core.policy.match import decide

        return decide(self._set.policies, pf)


def _recall(last_good: Mapping[str, str]) -> PolicySet:
    from sriovd.core.policy.policy_set import PolicySet

    return PolicySet.recall(last_good)


def _load(directories: Sequence[str], last_good: Mapping[str, str]) -> PolicySet:
    from sriovd.core.policy.policy_set import PolicySet

    return PolicySet.load(directories, last_good)


def _refuse_driver(pf: Function, desired: Desired | None, index: int, driver: str) -> None:
    wanted = desired.wish.vf(index).driver if desired else None
    if desired is None or wanted in (None, driver):
        return
    if wanted == DEFAULT and driver not in _OUT_OF_THE_WAY:  # as scripts.is_satisfied
        return
    raise _contradiction(pf, desired, f"VF {index} on {wanted}")


def _contradiction(pf: Function, desired: Desired, wants: str) -> PolicyConflict:
    return PolicyConflict(
        f"{desired.source} wants {wants} of {pf.address}.",
        "Change the policy and call Reload; what differs from it is put back.",
    )
