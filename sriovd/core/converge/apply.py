"""Looks at a PF, plans, and carries exactly that plan out.

Rule: the caller has the adapter's lane from the look to the last step, so nothing of sriovd's changes in
between; a plan that was shown before is applied only if the same comes out again. The first step that cannot
be done ends it, with its typed error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from sriovd.backend.steps import Verb
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core import scripts
from sriovd.core.binder import Binder
from sriovd.core.capabilities import Capabilities
from sriovd.core.configurer import Configurer
from sriovd.core.converge.plan import (
    NETWORK_CLASS,
    Action,
    Desired,
    PfState,
    PlanStep,
    digest,
    plan_pf,
    wants_stable_macs,
)
from sriovd.core.creator import Creator
from sriovd.core.errors import PolicyConflict
from sriovd.core.execute import Executor
from sriovd.core.identities import Identities
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job
from sriovd.core.picture import Picture
from sriovd.core.results import Changed, Result, Unchanged
from sriovd.core.scripts import NONE
from sriovd.core.usage import Usage
from sriovd.pci import PciAddress

_TOUCHING = frozenset({Action.DESTROY, Action.BIND})  # what VFs in use must be asked for first


@dataclass(frozen=True, slots=True)
class Hands:
    """Who does what: the parts that a plan is carried out with."""

    inventory: Inventory
    picture: Picture
    executor: Executor
    usage: Usage
    capabilities: Capabilities
    identities: Identities
    configurer: Configurer
    creator: Creator
    binder: Binder


class Applier:
    """Plans for PFs and applies the plans."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands

    async def plan(self, pf: PciAddress, desired: Desired, force: bool) -> tuple[PlanStep, ...]:
        """The steps for `pf` now. Raises NoSuchFunction, Stuck, BackendFailed."""
        state = await self._survey(pf, desired)
        steps = plan_pf(state, desired, force)
        if force or not any(step.action in _TOUCHING and state.vfs for step in steps):
            return steps
        users = await self._hands.usage.users_of(list(state.vfs.values()))
        named = {index: users[vf.address] for index, vf in state.vfs.items() if vf.address in users}
        return plan_pf(replace(state, users=named), desired, force)

    async def apply(
        self, job: Job, pf: PciAddress, desired: Desired, force: bool, expected: str | None = None
    ) -> Result:
        """Plan and carry out. `expected`: the digest of the plan that was shown. Raises PolicyConflict when
        another comes out, and whatever refuses a step."""
        await self._hands.picture.refresh(self._hands.picture.family(pf))
        steps = await self.plan(pf, desired, force)
        if expected is not None and digest(steps) != expected:
            raise PolicyConflict(
                f"The plan for {pf} has changed since it was shown: {describe_steps(steps)}",
                "Ask for it again with Plan.",
            )
        if not steps:
            return Unchanged(f"{pf} is as {desired.source} says")
        for action, group in groupby(steps, key=lambda step: step.action):
            await self._carry_out(job, action, list(group), force)
        return Changed(f"{pf} is as {desired.source} says now, after {len(steps)} steps")

    async def _carry_out(self, job: Job, action: Action, steps: Sequence[PlanStep], force: bool) -> None:
        for step in steps:
            if step.refusal is not None:
                raise step.refusal
        first, pf = steps[0], self._hands.inventory.get_pf(steps[0].pf)
        match action:
            case Action.DESTROY:
                job.enter(first.description, 0.1)
                await self._hands.creator.destroy(pf, first.count)
            case Action.CREATE:
                await self._hands.creator.create(job, pf, first.count, first.driver, allow_short=False)
            case Action.CONFIGURE:
                wishes = {index: wish for step in steps for index, wish in step.wishes.items()}
                await self._hands.configurer.set_all(job, pf, wishes)
            case Action.BIND:
                for step in steps:
                    await self._bind(job, pf, step, force)

    async def _bind(self, job: Job, pf: Function, step: PlanStep, force: bool) -> None:
        vfs = self._hands.inventory.vfs_of(pf.address)
        addresses = [vfs[index] for index in step.indexes if index in vfs]
        await self._hands.binder.bind_all(job, pf.adapter, addresses, step.driver, force)

    async def _survey(self, address: PciAddress, desired: Desired) -> PfState:
        hands, places = self._hands, self._hands.inventory.vfs_of(address)
        pf = hands.inventory.get_pf(address)
        vfs = {index: hands.inventory.get(vf) for index, vf in sorted(places.items())}
        count = desired.wish.num_vfs if desired.wish.num_vfs is not None else len(vfs)
        stable = wants_stable_macs(pf, desired) or any(
            desired.wish.vf(index).stable_mac for index in range(count)
        )
        return PfState(
            pf=pf,
            vfs=vfs,
            attributes=await self._read_attributes(pf),
            macs=await hands.identities.macs_of(address, count) if stable else {},
            unsupported=frozenset(hands.capabilities.lacking_of(pf.facts.driver)),
            kept=frozenset(index for index, vf in vfs.items() if hands.usage.lease_of(vf.address)),
            loose=await self._find_loose(pf, vfs, desired),
        )

    async def _find_loose(
        self, pf: Function, vfs: Mapping[int, Function], desired: Desired
    ) -> frozenset[int]:
        """VFs that shall be without a driver and are, but only until one comes: a daemon that was killed had
        not come to them."""
        asked = [
            index
            for index, vf in vfs.items()
            if desired.wish.vf(index).driver == NONE and not vf.facts.driver
        ]
        if not asked:
            return frozenset()
        script = scripts.read_overrides_script([vfs[index].address for index in asked])
        results = await self._hands.executor.run(pf.adapter, script)
        return frozenset(
            index
            for index, result in zip(asked, results, strict=True)
            if result.ok and result.value(Verb.READ_DRIVER_OVERRIDE) != NONE
        )

    async def _read_attributes(self, pf: Function) -> dict[int, VfAttributes] | None:
        if pf.facts.class_code >> 16 != NETWORK_CLASS or not pf.facts.net_interfaces:
            return None
        return dict((await self._hands.configurer.read(pf)).vfs)


def describe_steps(steps: Sequence[PlanStep]) -> str:
    """Steps in one line, for messages."""
    return "; ".join(f"{step.description} ({step.reason})" for step in steps) or "nothing to do"
