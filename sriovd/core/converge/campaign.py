"""Plans for several PFs, and the jobs that carry them out.

Rule: one job for each adapter, adapters side by side. What cannot be done on one PF stops no other: who
named PFs is told at once what cannot be, who asked for all has it among the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from sriovd.core.converge.apply import Applier
from sriovd.core.converge.plan import Action, PlanStep, digest
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.converge.standing import Condition, Standings
from sriovd.core.errors import Cancelled, PolicyConflict, SriovdError, Stuck
from sriovd.core.execute import Executor
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.results import Changed, Result, Unchanged
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

_FOR_EVER_USEC = 10**12

Plans = Mapping[PciAddress, tuple[PlanStep, ...]]
Digests = Mapping[PciAddress, str]


class Campaign:
    """What people ask for: Plan and Apply."""

    def __init__(
        self,
        inventory: Inventory,
        executor: Executor,
        jobs: JobRegistry,
        applier: Applier,
        workplace: Workplace,
        rulebook: Rulebook,
        standings: Standings,
    ) -> None:
        self._inventory = inventory
        self._executor = executor
        self._jobs = jobs
        self._applier = applier
        self._workplace = workplace
        self._rulebook = rulebook
        self._standings = standings
        self.on_asked: Callable[[PciAddress], None] = lambda _: (
            None
        )  # somebody wants that PF's policy applied

    async def plan(self, pfs: Sequence[PciAddress], force: bool) -> Plans:
        """The steps for each of `pfs`, or for every PF with a policy. Raises, for those that were named,
        Stuck, BackendFailed, NoSuchFunction, PolicyConflict, InvalidArgument."""
        if pfs:
            return {pf: await self._plan_one(self._inventory.get_pf(pf), force) for pf in pfs}
        return {pf.address: await self._plan_or_tell(pf, force) for pf in self._all()}

    def apply(self, pfs: Sequence[PciAddress], force: bool, expected: str, requester: str) -> Job:
        """Apply the policies of `pfs`, or of all. `expected`: the digest of all the plans that were shown,
        empty for whatever they are now. Raises as plan does."""
        named = [self._inventory.get_pf(pf) for pf in dict.fromkeys(pfs)]
        for pf in named:
            self._rulebook.require(pf)
            self._executor.refuse_stuck(pf.adapter)
        functions = named or self._all()
        for pf in functions:
            self.on_asked(pf.address)

        async def work(job: Job) -> Result:
            shown = await self._require_same(pfs, force, expected) if expected else {}
            job.enter(f"applying the policies of {len(functions)} PFs", 0.0)
            groups = _by_adapter(self._rulebook.order_by_size(functions)).values()
            children = [self.start(group, force, requester, shown) for group in groups]
            job.stop_by(lambda: _cancel_all(children))
            return await _await_all(children)

        return self._jobs.start("Apply", functions, requester, work)

    def start(self, pfs: Sequence[Function], force: bool, requester: str, shown: Digests) -> Job:
        """One job for PFs of one adapter. `shown`: what their plans must be, where that matters."""

        async def work(job: Job) -> Result:
            try:
                async with self._workplace.working_on(job, pfs[0].adapter):
                    return await self._apply_each(job, pfs, force, shown)
            except (Stuck, Cancelled) as error:
                for pf in pfs:
                    self._standings.note_error(pf.address, error)
                raise

        return self._jobs.start("ApplyPolicy", pfs, requester, work)

    async def _apply_each(self, job: Job, pfs: Sequence[Function], force: bool, shown: Digests) -> Result:
        """The first error is the error of all, when all have had their turn."""
        results: list[Result] = []
        errors: list[SriovdError] = []
        for pf in pfs:
            try:
                results.append(await self._apply_one(job, pf.address, force, shown.get(pf.address)))
            except (Stuck, Cancelled):
                raise
            except SriovdError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return next((each for each in results if isinstance(each, Changed)), results[0])

    async def _apply_one(self, job: Job, address: PciAddress, force: bool, shown: str | None) -> Result:
        desired = self._rulebook.require(self._inventory.get_pf(address))
        try:
            result = await self._applier.apply(job, address, desired, force, shown)
        except (PolicyConflict, Stuck, Cancelled):  # nothing was done, or it is noted for all
            raise
        except SriovdError as error:
            self._standings.note_error(address, error)
            raise
        self._standings.note(address, Condition.IN_SYNC)
        return result

    async def _require_same(self, pfs: Sequence[PciAddress], force: bool, expected: str) -> Digests:
        """The digest of each plan. Raises PolicyConflict when they are not those that were shown."""
        plans = await self.plan(pfs, force)
        if digest_all(plans) != expected:
            raise PolicyConflict(
                "The host or its policies have changed since that plan was shown.",
                "Ask for it again with Plan.",
            )
        return {pf: digest(steps) for pf, steps in plans.items() if not _is_left_alone(steps)}

    async def _plan_one(self, pf: Function, force: bool) -> tuple[PlanStep, ...]:
        desired = self._rulebook.require(pf)
        async with self._executor.lane(pf.adapter):
            return await self._applier.look_and_plan(pf.address, desired, force)

    async def _plan_or_tell(self, pf: Function, force: bool) -> tuple[PlanStep, ...]:
        try:
            return await self._plan_one(pf, force)
        except SriovdError as error:
            source = self._rulebook.name_sources(pf)
            return (PlanStep(pf.address, Action.LEAVE, "leave it alone", f"{source} is about it", error),)

    def _all(self) -> list[Function]:
        return [pf for pf in self._inventory.physical_functions() if self._rulebook.concerns(pf)]


def digest_all(plans: Plans) -> str:
    """A name for exactly these plans."""
    return digest(step for _, steps in sorted(plans.items()) for step in steps)


def _is_left_alone(steps: Sequence[PlanStep]) -> bool:
    return any(step.action is Action.LEAVE for step in steps)


def _by_adapter(functions: Iterable[Function]) -> dict[str, list[Function]]:
    groups: dict[str, list[Function]] = {}
    for function in functions:
        groups.setdefault(function.adapter, []).append(function)
    return groups


def _cancel_all(jobs: Iterable[Job]) -> None:
    for job in jobs:
        job.cancel()


async def _await_all(jobs: Sequence[Job]) -> Result:
    """Wait for all; the first error is the error of them together."""
    for job in jobs:
        await job.wait(_FOR_EVER_USEC)
    for job in jobs:
        if job.error is not None:
            raise job.error
    changed = [job for job in jobs if isinstance(job.result, Changed)]
    if not changed:
        return Unchanged(f"{len(jobs)} adapters are as their policies say")
    return Changed(f"{len(changed)} of {len(jobs)} adapters changed: they are as their policies say")
