"""What the policies say about each PF, for everybody who has to know.

Rule: one PF, one wish; where policies contradict each other nobody may act on that PF. A verb that asks for
something else than a policy that repairs is refused: it would be undone at once. What is in force is kept in
the store, so that a file that is broken at start does not take its policy away either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core import attributes
from sriovd.core.converge.plan import Desired, wants_stable_macs, wished_attributes
from sriovd.core.errors import InvalidArgument, PolicyConflict
from sriovd.core.identities import Identities
from sriovd.core.inventory import Function
from sriovd.core.policy.match import decide
from sriovd.core.policy.policy_set import PolicySet
from sriovd.core.policy.schema import Repair
from sriovd.core.store import Store


class Rulebook:
    """The policies in force. `directories`: where their files are, the most important first."""

    def __init__(
        self, store: Store, identities: Identities, directories: Sequence[str], last_good: Mapping[str, str]
    ) -> None:
        self._store = store
        self._identities = identities
        self._directories = tuple(directories)
        self._set = PolicySet.recall(last_good) if directories else PolicySet()

    @property
    def problems(self) -> Sequence[str]:
        """Everything that is wrong with the files, one line each, with file and line."""
        return [str(problem) for problem in self._set.problems]

    @property
    def outdated(self) -> Sequence[str]:
        """The files of which an older text is in force."""
        return self._set.outdated

    @property
    def size(self) -> int:
        """How many policies there are."""
        return len(self._set.policies)

    async def load(self) -> None:
        """Read the files again. A file that is wrong stays in force as it was."""
        before = dict(self._set.good_texts)
        self._set = await asyncio.to_thread(PolicySet.load, self._directories, before)
        if dict(self._set.good_texts) != before:
            await self._store.put_policies(self._set.good_texts)

    def concerns(self, pf: Function) -> bool:
        """Whether any policy is about `pf`."""
        return bool(decide(self._set.policies, pf).sources)

    def name_sources(self, pf: Function) -> str:
        """The policies that are about `pf`, for people."""
        return ", ".join(decide(self._set.policies, pf).sources)

    def find(self, pf: Function) -> Desired | None:
        """What `pf` shall look like; None when no policy is about it. Raises PolicyConflict."""
        decision = decide(self._set.policies, pf)
        if decision.conflicts:
            raise PolicyConflict(
                f"Policies contradict each other: {decision.conflicts[0]}.",
                "Until that is mended, sriovd leaves the PF alone.",
            )
        if decision.wish is None:
            return None
        return Desired(", ".join(decision.sources), decision.wish)

    def require(self, pf: Function) -> Desired:
        """As find. Raises InvalidArgument when there is none."""
        desired = self.find(pf)
        if desired is None:
            raise InvalidArgument(f"No policy is about {pf.address}.", "Policies are in /etc/sriovd/*.toml.")
        return desired

    def repairs(self, pf: Function) -> bool:
        """Whether what differs from the policy of `pf` is put right."""
        desired = self.find(pf)
        return desired is not None and desired.wish.repair is Repair.ALWAYS

    # What verbs may not do.

    def refuse_count(self, pf: Function, count: int) -> None:
        """Raises PolicyConflict when the policy wants another number of VFs."""
        desired = self._binding(pf)
        if desired and desired.wish.num_vfs not in (None, count):
            raise _contradiction(pf, desired, f"{desired.wish.num_vfs} VFs")

    def refuse_driver(self, pf: Function, index: int, driver: str) -> None:
        """Raises PolicyConflict when the policy wants VF `index` on another driver."""
        desired = self._binding(pf)
        wanted = desired.wish.vf(index).driver if desired else None
        if desired and wanted not in (None, driver):
            raise _contradiction(pf, desired, f"VF {index} on {wanted}")

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

    # What leases ask.

    def driver_for(self, pf: Function, index: int) -> str:
        """The driver that the policy wants VF `index` on; empty when it says nothing."""
        desired = self.find(pf)
        return (desired.wish.vf(index).driver if desired else None) or ""

    async def attributes_for(self, pf: Function, index: int) -> VfAttributes:
        """What the policy wishes VF `index` to be."""
        desired = self.find(pf)
        if desired is None:
            return VfAttributes()
        macs = await self._identities.macs_of(pf.address, index + 1)
        return wished_attributes(pf, desired, index, macs)

    def _binding(self, pf: Function) -> Desired | None:
        """The policy of `pf`, if it is one that repairs."""
        desired = self.find(pf)
        return desired if desired and desired.wish.repair is Repair.ALWAYS else None


def _contradiction(pf: Function, desired: Desired, wants: str) -> PolicyConflict:
    return PolicyConflict(
        f"{desired.source} wants {wants} of {pf.address}.",
        "Change the policy and call Reload; what differs from it is put back.",
    )
