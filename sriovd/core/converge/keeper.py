"""Keeps PFs as their policies say: at start, after a reload, and when something has drifted.

Rule: PFs without a policy are left alone, for ever. Drift is noticed from events, believed only when several
looks agree (a VF is driverless for a moment during any rebind), and then repaired or only reported, as the
policy says. A repair that does not last is given up after a few times: two managers of one PF must not fight
for ever. Looking never writes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sriovd.core.converge.apply import Applier, describe_steps
from sriovd.core.converge.plan import Desired, PlanStep, digest
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.errors import NoSuchFunction, PolicyConflict, SriovdError, Stuck
from sriovd.core.execute import Executor
from sriovd.core.inventory import Change, Function, FunctionChange, Inventory
from sriovd.core.jobs import Job, JobRegistry, JobState
from sriovd.core.messages import Message, announce
from sriovd.core.policy.schema import Repair
from sriovd.core.results import Changed, Result, Unchanged
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

READS = 5  # that must agree before it is drift; number and pause are those of sriov-network-operator
PAUSE_SEC = 0.2
REPAIRS = 5  # within _REPAIR_SPAN_SEC, then it is given up
_REPAIR_SPAN_SEC = 600.0
_FOR_EVER_USEC = 10**12
REQUESTER = "policy"

Plans = dict[PciAddress, tuple[PlanStep, ...]]


class Condition(StrEnum):
    """How a PF stands to its policy."""

    NONE = "none"  # no policy is about it
    UNKNOWN = "unknown"  # not looked at yet
    IN_SYNC = "in-sync"
    DRIFTED = "drifted"  # to be repaired, or only to be reported
    REFUSED = "refused"  # what has to be done cannot be done
    CONFLICT = "conflict"  # policies contradict each other


@dataclass(frozen=True, slots=True)
class Standing:
    """A PF's condition, the policy's source, and the reason in words."""

    condition: Condition = Condition.NONE
    source: str = ""
    reason: str = ""


class PolicyKeeper:
    """Watches the PFs that policies are about. `on_standing` is told every change of a standing,
    `on_loaded` that the files were read."""

    def __init__(
        self,
        inventory: Inventory,
        executor: Executor,
        jobs: JobRegistry,
        applier: Applier,
        workplace: Workplace,
        rulebook: Rulebook,
    ) -> None:
        self._inventory = inventory
        self._executor = executor
        self._jobs = jobs
        self._applier = applier
        self._workplace = workplace
        self._rulebook = rulebook
        self._standings: dict[PciAddress, Standing] = {}
        self._suspects: dict[PciAddress, int] = {}  # PF -> looks that must agree
        self._repairs: dict[PciAddress, deque[float]] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}  # by adapter
        self._live = False
        self.on_standing: Callable[[PciAddress, Standing], None] = lambda _pf, _standing: None
        self.on_loaded: Callable[[], None] = lambda: None

    def standing_of(self, pf: PciAddress) -> Standing:
        """How `pf` stands to its policy."""
        return self._standings.get(pf, Standing())

    # What people ask for.

    async def plan(self, pfs: Sequence[PciAddress], force: bool) -> Plans:
        """The steps for each of `pfs`, or for every PF with a policy. Raises Stuck, BackendFailed,
        NoSuchFunction, PolicyConflict, InvalidArgument."""
        plans: Plans = {}
        for pf in self._named_or_all(pfs):
            desired = self._rulebook.require(pf)
            async with self._executor.lane(pf.adapter):
                plans[pf.address] = await self._applier.plan(pf.address, desired, force)
        return plans

    def apply(self, pfs: Sequence[PciAddress], force: bool, expected: str, requester: str) -> Job:
        """Apply the policies of `pfs`, or of all, adapters side by side. `expected`: the digest of all the
        plans as they were shown, empty for whatever they are now. Raises as plan does."""
        functions = self._named_or_all(pfs)
        for pf in functions:
            self._rulebook.require(pf)
            self._executor.refuse_stuck(pf.adapter)
            self._repairs.pop(pf.address, None)

        async def work(_job: Job) -> Result:
            if expected:
                await self._refuse_other_plan(functions, force, expected)
            groups = _by_adapter(functions).values()
            return await _await_all([self._start_adapter(each, force, requester) for each in groups])

        return self._jobs.start("Apply", functions, requester, work)

    async def reload(self) -> None:
        """Read the policy files again, and bring every PF to what they say now."""
        await self._rulebook.load()
        self._repairs.clear()
        self.on_loaded()
        for problem in self._rulebook.problems:
            announce(_log, Message.POLICY_BROKEN, f"Policy file: {problem}")
        for pf in self._physical_functions():
            self._judge(pf)
        self.converge()

    # What happens.

    def start(self) -> None:
        """Watch from now on."""
        self._live = True
        self._inventory.listen(self._take_change)

    def stop(self) -> None:
        """Look no more; jobs under way go on."""
        self._live = False
        for task in self._checks.values():
            task.cancel()

    def converge(self) -> None:
        """Look at every PF with a policy, and do what is missing."""
        for pf in self._physical_functions():
            self._suspect(pf.address, looks=1)

    def note_link(self, address: PciAddress) -> None:
        """Something about the network interface of `address` may have changed."""
        self._suspect(address)

    def note_adapter(self, adapter: str) -> None:
        """The adapter takes requests again."""
        known = self._inventory.adapters.get(adapter)
        for pf in known.physical_functions if known else ():
            self._suspect(pf, looks=1)

    def _take_change(self, change: Change) -> None:
        function = (change.after or change.before) if isinstance(change, FunctionChange) else None
        if not isinstance(change, FunctionChange) or not isinstance(function, Function):
            return
        if function.virtual is not None:
            self._suspect(function.virtual.parent)
        elif change.after is None:
            self._standings.pop(function.address, None)
        elif change.before is None or change.before.facts != change.after.facts:
            self._judge(function)
            self._suspect(function.address, looks=1 if change.before is None else READS)

    def _suspect(self, address: PciAddress, looks: int = READS) -> None:
        """Look at that PF soon."""
        pf = self._inventory.functions.get(address)
        if not self._live or pf is None or pf.physical is None or not self._rulebook.concerns(pf):
            return
        self._suspects[address] = min(looks, self._suspects.get(address, looks))
        if pf.adapter not in self._checks:
            task = asyncio.create_task(self._check_adapter(pf.adapter))
            self._checks[pf.adapter] = task
            task.add_done_callback(lambda done: self._end_check(pf.adapter, done))

    def _end_check(self, adapter: str, task: asyncio.Task[None]) -> None:
        del self._checks[adapter]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("The look at adapter %s failed", adapter, exc_info=error)

    async def _check_adapter(self, adapter: str) -> None:
        while (pf := self._next_suspect(adapter)) is not None:
            looks = self._suspects.pop(pf.address)
            try:
                await self._check(pf, looks)
            except Stuck as error:  # looked at again when the adapter is back
                self._stand(pf.address, Condition.UNKNOWN, error.message)
            except PolicyConflict as error:
                self._stand(pf.address, Condition.CONFLICT, error.message)
            except NoSuchFunction:
                continue
            except SriovdError as error:
                self._stand(pf.address, Condition.REFUSED, str(error))

    def _next_suspect(self, adapter: str) -> Function | None:
        found = (self._inventory.functions.get(pf) for pf in sorted(self._suspects))
        return next((pf for pf in found if pf is not None and pf.adapter == adapter), None)

    async def _check(self, pf: Function, looks: int) -> None:
        """Look until there is nothing to do, or several looks agree that there is."""
        desired = self._rulebook.require(pf)
        steps: tuple[PlanStep, ...] = ()
        for look in range(looks):
            if look:
                await asyncio.sleep(PAUSE_SEC)
            async with self._executor.lane(pf.adapter):
                steps = await self._applier.plan(pf.address, desired, force=False)
            if not steps:
                self._stand(pf.address, Condition.IN_SYNC)
                return
        await self._answer_drift(pf, desired, steps)

    async def _answer_drift(self, pf: Function, desired: Desired, steps: Sequence[PlanStep]) -> None:
        todo = describe_steps(steps)
        if steps[0].refusal is not None:
            self._stand(pf.address, Condition.REFUSED, f"{todo}: {steps[0].refusal}")
        elif desired.wish.repair is Repair.REPORT:
            self._stand(pf.address, Condition.DRIFTED, f"only reported, as the policy says: {todo}")
        elif not self._may_repair(pf.address):
            text = f"repaired {REPAIRS} times, and it does not last: {todo}. Apply or Reload tries again."
            self._stand(pf.address, Condition.REFUSED, text)
        else:
            self._stand(pf.address, Condition.DRIFTED, f"being repaired: {todo}")
            await self._start_adapter([pf], False, REQUESTER).wait(_FOR_EVER_USEC)

    def _may_repair(self, pf: PciAddress) -> bool:
        """Whether `pf` has not been repaired too often; counts this time."""
        now, times = time.monotonic(), self._repairs.setdefault(pf, deque(maxlen=REPAIRS))
        if len(times) == REPAIRS and now - times[0] < _REPAIR_SPAN_SEC:
            return False
        times.append(now)
        return True

    def _start_adapter(self, pfs: Sequence[Function], force: bool, requester: str) -> Job:
        """One job for the PFs of one adapter."""

        async def work(job: Job) -> Result:
            async with self._workplace.working_on(job, pfs[0].adapter):
                results = [await self._apply_one(job, pf.address, force) for pf in pfs]
            return next((each for each in results if isinstance(each, Changed)), results[0])

        return self._jobs.start("ApplyPolicy", pfs, requester, work)

    async def _apply_one(self, job: Job, address: PciAddress, force: bool) -> Result:
        desired = self._rulebook.require(self._inventory.get_pf(address))
        try:
            result = await self._applier.apply(job, address, desired, force)
        except SriovdError as error:
            self._stand(address, Condition.REFUSED, str(error))
            raise
        self._stand(address, Condition.IN_SYNC)
        return result

    async def _refuse_other_plan(self, pfs: Sequence[Function], force: bool, expected: str) -> None:
        if digest_all(await self.plan([pf.address for pf in pfs], force)) != expected:
            raise PolicyConflict(
                "The host or its policies have changed since that plan was shown.",
                "Ask for it again with Plan.",
            )

    # What is known.

    def _stand(self, address: PciAddress, condition: Condition, reason: str = "") -> None:
        pf = self._inventory.functions.get(address)
        if pf is None:
            return
        source = self._rulebook.name_sources(pf)
        after = Standing(condition, source, reason)
        if self.standing_of(address) == after:
            return
        self._standings[address] = after
        self.on_standing(address, after)
        if condition is Condition.IN_SYNC:
            text = f"{address} is as {source} says."
            announce(_log, Message.POLICY_IN_SYNC, text, address=str(address), policy=source)
        elif condition not in (Condition.UNKNOWN, Condition.NONE):
            text = f"{address} is not as {source} says ({condition}): {reason}."
            state = str(condition)
            announce(_log, Message.POLICY_DRIFT, text, address=str(address), policy=source, state=state)

    def _judge(self, pf: Function) -> None:
        """What can be said of `pf` without looking at it."""
        try:
            desired = self._rulebook.find(pf)
        except PolicyConflict as error:
            self._stand(pf.address, Condition.CONFLICT, error.message)
            return
        known = self.standing_of(pf.address).condition
        if desired is None:
            self._stand(pf.address, Condition.NONE)
        elif known in (Condition.NONE, Condition.CONFLICT):
            self._stand(pf.address, Condition.UNKNOWN)

    def _named_or_all(self, pfs: Sequence[PciAddress]) -> list[Function]:
        if pfs:
            return [self._inventory.get_pf(pf) for pf in pfs]
        return [pf for pf in self._physical_functions() if self._rulebook.concerns(pf)]

    def _physical_functions(self) -> list[Function]:
        found = (each for each in self._inventory.functions.values() if each.physical is not None)
        return sorted(found, key=lambda each: each.address)


def digest_all(plans: Mapping[PciAddress, Sequence[PlanStep]]) -> str:
    """A name for exactly these plans."""
    return digest([step for _, steps in sorted(plans.items()) for step in steps])


def _by_adapter(functions: Iterable[Function]) -> dict[str, list[Function]]:
    groups: dict[str, list[Function]] = {}
    for function in functions:
        groups.setdefault(function.adapter, []).append(function)
    return groups


async def _await_all(jobs: Sequence[Job]) -> Result:
    """Wait for all; the first error is the error of them together."""
    for job in jobs:
        await job.wait(_FOR_EVER_USEC)
    for job in jobs:
        if job.error is not None:
            raise job.error
    changed = [job for job in jobs if job.state is JobState.DONE and isinstance(job.result, Changed)]
    if not changed:
        return Unchanged(f"{len(jobs)} adapters are as their policies say")
    return Changed(f"{len(changed)} of {len(jobs)} adapters changed: they are as their policies say")
