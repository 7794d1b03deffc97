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
from collections.abc import Callable, Sequence
from contextvars import Context

from sriovd.backend.base import HostReadError
from sriovd.core.converge.apply import Applier, describe_steps
from sriovd.core.converge.campaign import Campaign
from sriovd.core.converge.plan import PlanStep, digest
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.converge.standing import Condition, Standings
from sriovd.core.errors import BackendFailed, NoSuchFunction, PolicyConflict, SriovdError
from sriovd.core.execute import Executor
from sriovd.core.inventory import Change, Function, FunctionChange, Inventory
from sriovd.core.messages import Message, announce
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

READS = 5  # that must agree before it is drift; number and pause are those of sriov-network-operator
READS_AT_MOST = 25  # then what was seen last is believed: somebody changes it all the time
PAUSE_SEC = 0.2
REPAIRS = 5  # within REPAIR_SPAN_SEC, then it is given up
REPAIR_SPAN_SEC = 600.0
REQUESTER = "policy"
_FOR_EVER_USEC = 10**12


class PolicyKeeper:
    """Watches the PFs that policies are about. `on_loaded` is told that the files were read."""

    def __init__(
        self,
        inventory: Inventory,
        executor: Executor,
        applier: Applier,
        rulebook: Rulebook,
        standings: Standings,
        campaign: Campaign,
    ) -> None:
        self._inventory = inventory
        self._executor = executor
        self._applier = applier
        self._rulebook = rulebook
        self._standings = standings
        self._campaign = campaign
        self._suspects: dict[PciAddress, int] = {}  # PF -> looks that must agree
        self._repairs: dict[PciAddress, deque[float]] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}  # by adapter
        self._live = False
        self.on_loaded: Callable[[], None] = lambda: None
        self.is_held: Callable[[str], bool] = lambda _: False  # an adapter, by its recovery
        campaign.on_asked = self._forgive

    def start(self) -> None:
        """Watch from now on."""
        self._live = True
        self._inventory.listen(self._take_change)

    def stop(self) -> None:
        """Look no more; jobs under way go on."""
        self._live = False
        for task in self._checks.values():
            task.cancel()

    @property
    def busy(self) -> bool:
        """Whether anything is being looked at or repaired."""
        return bool(self._checks)

    async def reload(self) -> None:
        """Read the policy files again, and bring every PF to what they say now."""
        await self._rulebook.load()
        self._repairs.clear()
        self.on_loaded()
        for problem in self._rulebook.problems:
            announce(_log, Message.POLICY_BROKEN, f"Policy file: {problem}")
        self._review()
        for pf in self._rulebook.order_by_size(self._inventory.physical_functions()):
            self._suspect(pf.address, looks=1)

    # What happens.

    def note_pf(self, address: PciAddress) -> None:
        """Something about `address`, its network interface or the use of its VFs may have changed."""
        self._suspect(address)

    def note_adapter(self, adapter: str) -> None:
        """The adapter takes requests again."""
        known = self._inventory.adapters.get(adapter)
        for pf in known.physical_functions if known else ():
            self._suspect(pf, looks=1)

    def _take_change(self, change: Change) -> None:
        function = (change.after or change.before) if isinstance(change, FunctionChange) else None
        if not isinstance(change, FunctionChange) or function is None:
            return
        if function.virtual is not None:
            self._suspect(function.virtual.parent)
            return
        if change.after is None:
            self._standings.forget(function.address)
            self._suspects.pop(function.address, None)
            self._forgive(function.address)
        self._review()
        self._suspect(function.address)

    def _review(self) -> None:
        """What policies are about may depend on each PF that there is."""
        for pf in self._rulebook.order_by_size(self._inventory.physical_functions()):
            if self._standings.judge(pf):
                self._suspect(pf.address, looks=1)

    def _suspect(self, address: PciAddress, looks: int = READS) -> None:
        """Look at that PF soon."""
        pf = self._inventory.functions.get(address)
        if self._live and pf is not None and self._rulebook.concerns(pf):
            self._suspects[address] = min(looks, self._suspects.get(address, looks))
            if pf.adapter not in self._checks:
                self._begin_checks(pf.adapter)

    def _begin_checks(self, adapter: str) -> None:
        # In nobody's name: the task looks at all of the adapter's suspects, whoever woke it for the first.
        task = asyncio.create_task(self._check_adapter(adapter), context=Context())
        self._checks[adapter] = task
        task.add_done_callback(lambda done: self._end_checks(adapter, done))

    def _end_checks(self, adapter: str, task: asyncio.Task[None]) -> None:
        del self._checks[adapter]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("The look at adapter %s failed", adapter, exc_info=error)
        if self._live and self._next_suspect(adapter) is not None:  # who has come since the last was taken
            self._begin_checks(adapter)

    def _next_suspect(self, adapter: str) -> Function | None:
        found = (self._inventory.functions.get(pf) for pf in sorted(self._suspects))
        return next((pf for pf in found if pf is not None and pf.adapter == adapter), None)

    # A look.

    async def _check_adapter(self, adapter: str) -> None:
        while (pf := self._next_suspect(adapter)) is not None:
            looks = self._suspects.pop(pf.address)
            if self.is_held(adapter):  # told by note_adapter when it is over
                self._standings.note(pf.address, Condition.UNKNOWN, "its adapter is being recovered")
                continue
            try:
                await self._check(pf.address, looks)
            except NoSuchFunction:
                continue
            except SriovdError as error:
                self._standings.note_error(pf.address, error)
            except (HostReadError, ConnectionError) as error:
                self._standings.note_error(pf.address, BackendFailed(f"{pf.address}: {error}."))

    async def _check(self, pf: PciAddress, looks: int) -> None:
        steps = await self._look_until_sure(pf, looks)
        if not steps:
            self._standings.note(pf, Condition.IN_SYNC)
            return
        todo, desired = describe_steps(steps), self._rulebook.require(self._inventory.get_pf(pf))
        if not desired.repairs:
            reason = f"only reported, as the policy says: {todo}"
            self._standings.note(pf, Condition.DRIFTED, reason)
        elif steps[0].refusal is not None:
            self._standings.note(pf, Condition.REFUSED, f"{todo}: {steps[0].refusal}")
        elif not self._may_repair(pf):
            reason = f"tried {REPAIRS} times, and it does not last: {todo}. Apply or Reload tries again."
            self._standings.note(pf, Condition.REFUSED, reason)
        else:
            self._standings.note(pf, Condition.DRIFTED, f"being repaired: {todo}")
            await self._repair(pf, steps)

    async def _look_until_sure(self, pf: PciAddress, looks: int) -> Sequence[PlanStep]:
        """What has to be done, seen alike `looks` times one after the other; to see nothing once is
        enough."""
        steps: Sequence[PlanStep] = ()
        alike = 0
        for look in range(READS_AT_MOST):
            if look:
                await asyncio.sleep(PAUSE_SEC)
            async with self._executor.lane(self._inventory.get_pf(pf).adapter):
                desired = self._rulebook.require(self._inventory.get_pf(pf))
                before, steps = steps, await self._applier.plan(pf, desired, force=False)
            alike = alike + 1 if digest(steps) == digest(before) else 1
            if not steps or alike >= looks:
                break
        return steps

    async def _repair(self, pf: PciAddress, steps: Sequence[PlanStep]) -> None:
        """Do exactly what the looks agree on; what is different by then is looked at once more."""
        function = self._inventory.get_pf(pf)
        job = self._campaign.start([function], False, REQUESTER, {pf: digest(steps)})
        await job.wait(_FOR_EVER_USEC)
        if isinstance(job.error, PolicyConflict):
            self._suspect(pf)

    def _may_repair(self, pf: PciAddress) -> bool:
        """Whether `pf` has not been repaired too often; counts this time."""
        now, times = time.monotonic(), self._repairs.setdefault(pf, deque(maxlen=REPAIRS))
        if len(times) == REPAIRS and now - times[0] < REPAIR_SPAN_SEC:
            return False
        times.append(now)
        return True

    def _forgive(self, pf: PciAddress) -> None:
        """Repairs of `pf` that did not last count no more."""
        self._repairs.pop(pf, None)
