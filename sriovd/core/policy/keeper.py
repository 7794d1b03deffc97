"""Keeps PFs as their policies say: at start, after a reload, and when something has drifted.

Rule: PFs without a policy are left alone, for ever. Drift is noticed from events, believed only when several
reads agree (a VF is driverless for a moment during any rebind), and then repaired or only reported, as the
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

from sriovd.core.errors import InvalidArgument, NoSuchFunction, PolicyConflict, SriovdError, Stuck
from sriovd.core.execute import Executor
from sriovd.core.inventory import Change, Function, FunctionChange, Inventory
from sriovd.core.jobs import Job, JobRegistry, JobState
from sriovd.core.messages import Message, announce
from sriovd.core.policy.apply import Applier, describe_steps
from sriovd.core.policy.files import PolicySet
from sriovd.core.policy.model import Policy, Repair
from sriovd.core.policy.plan import PlanStep, digest
from sriovd.core.results import Changed, Result, Unchanged
from sriovd.core.workplace import Workplace
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

READS = 5  # that must agree before it is drift; the number and the pause are sriov-network-operator's
PAUSE_SEC = 0.2
REPAIRS = 5  # within _REPAIR_SPAN_SEC, then it is given up
_REPAIR_SPAN_SEC = 600.0
REQUESTER = "policy"


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
    """All policies and the PFs that they are about. `on_standing` is told every change of a standing."""

    def __init__(
        self,
        inventory: Inventory,
        executor: Executor,
        jobs: JobRegistry,
        applier: Applier,
        workplace: Workplace,
    ) -> None:
        self._inventory = inventory
        self._executor = executor
        self._jobs = jobs
        self._applier = applier
        self._workplace = workplace
        self._set: PolicySet = PolicySet.empty()
        self._standings: dict[PciAddress, Standing] = {}
        self._suspects: set[PciAddress] = set()
        self._repairs: dict[PciAddress, deque[float]] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}  # by adapter
        self._live = False
        self.on_standing: Callable[[PciAddress, Standing], None] = lambda _pf, _standing: None

    # What is wished.

    def set_policies(self, policies: PolicySet) -> None:
        """From now on these count. Standings are unknown until the next look."""
        self._set = policies
        self._repairs.clear()
        for pf in self._physical_functions():
            self._judge_conflicts(pf)

    def policy_for(self, pf: Function) -> Policy | None:
        """What is wished of `pf`; None when nothing is. Raises PolicyConflict."""
        return self._set.policy_for(pf)

    def standing_of(self, pf: PciAddress) -> Standing:
        """How `pf` stands to its policy."""
        return self._standings.get(pf, Standing())

    # What people ask for.

    async def plan(self, pfs: Sequence[PciAddress], force: bool) -> dict[PciAddress, tuple[PlanStep, ...]]:
        """The steps for each of `pfs`, or for every PF with a policy. Raises Stuck, BackendFailed,
        NoSuchFunction, PolicyConflict."""
        plans = {}
        for pf in self._named_or_all(pfs):
            policy = self._require_policy(pf)
            async with self._executor.lane(pf.adapter):
                plans[pf.address] = await self._applier.plan(pf.address, policy, force)
        return plans

    def apply(self, pfs: Sequence[PciAddress], force: bool, expected: str, requester: str) -> Job:
        """Apply the policies of `pfs`, or of all, adapters side by side. `expected`: the digest of all the
        plans as they were shown, empty for whatever they are now. Raises as plan does."""
        functions = self._named_or_all(pfs)
        for pf in functions:
            self._repairs.pop(pf.address, None)
            self._executor.refuse_stuck(pf.adapter)

        async def work(_job: Job) -> Result:
            if expected:
                await self._check_expected(functions, force, expected)
            jobs = [
                self._start_adapter(group, force, requester) for group in _by_adapter(functions).values()
            ]
            return await _await_all(jobs)

        return self._jobs.start("Apply", functions, requester, work)

    # What happens.

    def start(self) -> None:
        """Bring every PF to its policy, and watch from now on."""
        self._live = True
        self._inventory.listen(self._take_change)
        self.converge()

    def converge(self) -> None:
        """Look at every PF with a policy, and do what is missing."""
        for pf in self._physical_functions():
            self._suspect(pf.address, reads=1)

    def note_link(self, address: PciAddress) -> None:
        """Something about the network interface of `address` may have changed."""
        self._suspect(address)

    def note_adapter(self, adapter: str) -> None:
        """The adapter takes requests again."""
        known = self._inventory.adapters.get(adapter)
        for pf in known.physical_functions if known else ():
            self._suspect(pf, reads=1)

    def _take_change(self, change: Change) -> None:
        if not isinstance(change, FunctionChange):
            return
        function = change.after or change.before
        if function is None:
            return
        if function.virtual is not None:
            self._suspect(function.virtual.parent)
        elif change.after is None:
            self._standings.pop(function.address, None)
        elif change.before is None or change.before.facts.driver != change.after.facts.driver:
            self._judge_conflicts(change.after)
            self._suspect(function.address, reads=1)

    def _suspect(self, address: PciAddress, reads: int = READS) -> None:
        """Look at that PF soon."""
        pf = self._inventory.functions.get(address)
        if not self._live or pf is None or pf.physical is None or not self._set.concerns(pf):
            return
        self._suspects.add(address)
        if pf.adapter not in self._checks:
            task = asyncio.create_task(self._check_adapter(pf.adapter, reads))
            self._checks[pf.adapter] = task
            task.add_done_callback(lambda done: self._end_check(pf.adapter, done))

    def _end_check(self, adapter: str, task: asyncio.Task[None]) -> None:
        del self._checks[adapter]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("The look at adapter %s failed", adapter, exc_info=error)
        for pf in self._suspects.copy():  # what has come meanwhile
            function = self._inventory.functions.get(pf)
            if function is None:
                self._suspects.discard(pf)
            elif function.adapter == adapter:
                self._suspect(pf)

    async def _check_adapter(self, adapter: str, reads: int) -> None:
        for pf in sorted(self._suspects):
            function = self._inventory.functions.get(pf)
            if function is None or function.adapter != adapter:
                continue
            self._suspects.discard(pf)
            try:
                await self._check(function, reads)
            except Stuck as error:  # looked at again when the adapter is back
                self._stand(pf, Condition.UNKNOWN, error.message)
            except NoSuchFunction:
                continue
            except SriovdError as error:
                self._stand(pf, Condition.REFUSED, error.message)

    async def _check(self, pf: Function, reads: int) -> None:
        """Look until there is nothing to do, or several looks agree that there is."""
        policy = self._require_policy(pf)
        steps: tuple[PlanStep, ...] = ()
        for read in range(reads):
            if read:
                await asyncio.sleep(PAUSE_SEC)
            async with self._executor.lane(pf.adapter):
                steps = await self._applier.plan(pf.address, policy, force=False)
            if not steps:
                self._stand(pf.address, Condition.IN_SYNC, "")
                return
        await self._answer_drift(pf, policy, steps)

    async def _answer_drift(self, pf: Function, policy: Policy, steps: Sequence[PlanStep]) -> None:
        todo = describe_steps(steps)
        if steps[0].refusal is not None:
            self._stand(pf.address, Condition.REFUSED, f"{todo}: {steps[0].refusal}")
        elif policy.repair is Repair.REPORT:
            self._stand(pf.address, Condition.DRIFTED, f"only reported, as the policy says: {todo}")
        elif not self._may_repair(pf.address):
            text = f"repaired {REPAIRS} times, and it does not last: {todo}. Apply or Reload tries again."
            self._stand(pf.address, Condition.REFUSED, text)
        else:
            self._stand(pf.address, Condition.DRIFTED, f"being repaired: {todo}")
            job = self._start_adapter([pf], False, REQUESTER)
            await job.wait(10**12)

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
            changed = [each for each in results if isinstance(each, Changed)]
            return changed[0] if changed else results[0]

        return self._jobs.start("ApplyPolicy", pfs, requester, work)

    async def _apply_one(self, job: Job, pf: PciAddress, force: bool) -> Result:
        policy = self._require_policy(self._inventory.get_pf(pf))
        try:
            result = await self._applier.apply(job, pf, policy, force)
        except SriovdError as error:
            self._stand(pf, Condition.REFUSED, str(error))
            raise
        self._stand(pf, Condition.IN_SYNC, "")
        return result

    async def _check_expected(self, pfs: Sequence[Function], force: bool, expected: str) -> None:
        plans = await self.plan([pf.address for pf in pfs], force)
        if digest_all(plans) != expected:
            raise PolicyConflict(
                "The host or its policies have changed since that plan was shown.",
                "Ask for it again with Plan.",
            )

    # What is known.

    def _stand(self, pf: PciAddress, condition: Condition, reason: str) -> None:
        function = self._inventory.functions.get(pf)
        if function is None:
            return
        source = self._set.source_for(function)
        before, after = self.standing_of(pf), Standing(condition, source, reason)
        if before == after:
            return
        self._standings[pf] = after
        self.on_standing(pf, after)
        if condition is Condition.IN_SYNC:
            text = f"{pf} is as {source} says."
            announce(_log, Message.POLICY_IN_SYNC, text, address=str(pf), policy=source)
        elif condition is not Condition.UNKNOWN:
            text = f"{pf} is not as {source} says ({condition}): {reason}"
            announce(_log, Message.POLICY_DRIFT, text, address=str(pf), policy=source, state=str(condition))

    def _judge_conflicts(self, pf: Function) -> None:
        try:
            policy = self.policy_for(pf)
        except PolicyConflict as error:
            self._stand(pf.address, Condition.CONFLICT, error.message)
            return
        if policy is None:
            self._standings.pop(pf.address, None)
            self.on_standing(pf.address, Standing())
        else:
            self._stand(pf.address, Condition.UNKNOWN, "")

    def _require_policy(self, pf: Function) -> Policy:
        policy = self.policy_for(pf)
        if policy is None:
            raise InvalidArgument(f"No policy is about {pf.address}.", "See /etc/sriovd/*.toml.")
        return policy

    def _named_or_all(self, pfs: Sequence[PciAddress]) -> list[Function]:
        if pfs:
            return [self._inventory.get_pf(pf) for pf in pfs]
        return [pf for pf in self._physical_functions() if self._set.concerns(pf)]

    def _physical_functions(self) -> list[Function]:
        return sorted(
            (each for each in self._inventory.functions.values() if each.physical is not None),
            key=lambda each: each.address,
        )


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
        await job.wait(10**12)
    for job in jobs:
        if job.error is not None:
            raise job.error
    changed = [job for job in jobs if job.state is JobState.DONE and isinstance(job.result, Changed)]
    if not changed:
        return Unchanged(f"{len(jobs)} adapters are as their policies say")
    return Changed(f"{len(changed)} of {len(jobs)} adapters changed: they are as their policies say")
