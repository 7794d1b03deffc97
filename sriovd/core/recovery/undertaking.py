"""Recoveries as people see them: a job for each.

Rule: a recovery's job ends when its adapter is online, given up or gone; whether VFs are unfrozen is their
owners' matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from sriovd.core.errors import Cancelled, NoSuchFunction, Quarantined, SriovdError
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.record import AdapterPe, VfPe
from sriovd.core.results import Changed, Result

_STAGES = tuple(AdapterState)
OPERATION = "Recover"


class Undertakings:
    """The recoveries that are under way. `pe_of`: the PE of a slot."""

    def __init__(self, inventory: Inventory, jobs: JobRegistry, pe_of: Callable[[str], AdapterPe]) -> None:
        self._inventory = inventory
        self._jobs = jobs
        self._pe_of = pe_of
        self._running: dict[str, tuple[Job, asyncio.Event]] = {}

    # Jobs.

    def begin(self, slot: str, requester: str) -> Job:
        """The job of the recovery of that adapter, which begins now unless it is under way."""
        if slot in self._running:
            return self._running[slot][0]
        adapter, over = self._inventory.adapters.get(slot), asyncio.Event()
        pfs = [self._inventory.functions[pf] for pf in (adapter.physical_functions if adapter else ())]

        async def work(_job: Job) -> Result:
            await over.wait()
            return _conclude(self._pe_of(slot))

        job = self._jobs.start(OPERATION, pfs, requester, work)
        self._running[slot] = job, over
        return job

    def begin_vf(self, vf: Function, requester: str, wait: Callable[[], Awaitable[VfPe]]) -> Job:
        """A job for the recovery of one VF, which is under way. `wait`: until nothing more happens to it by
        itself."""

        async def work(_job: Job) -> Result:
            pe = await wait()
            if pe.state is VfState.FAILED:
                raise Quarantined(f"{pe} has failed: {pe.reason}")
            return Changed(f"{pe} is {pe.state.word}")

        return self._jobs.start(OPERATION, [vf], requester, work)

    def job_of(self, slot: str) -> Job:
        """The job under way; after a restart it is begun anew."""
        return self.begin(slot, "sriovd")

    def show(self, slot: str, stage: str) -> None:
        """A stage of the recovery has begun."""
        if slot in self._running:
            job, _ = self._running[slot]
            state = self._pe_of(slot).state
            job.show(stage, _STAGES.index(state) / len(_STAGES))

    def end(self, slot: str) -> None:
        """The recovery is over, one way or the other."""
        if slot in self._running:
            self._running.pop(slot)[1].set()


def _conclude(pe: AdapterPe) -> Result:
    error: SriovdError
    if pe.state in (AdapterState.ONLINE, AdapterState.PERMITTING):
        return Changed(f"Recovered adapter {pe.slot}")
    if pe.state is AdapterState.QUARANTINED:
        error = Quarantined(f"Adapter {pe.slot} is quarantined: {pe.reason}")
    elif pe.state is AdapterState.REMOVED:
        error = NoSuchFunction(f"Adapter {pe.slot} is gone.")
    else:
        error = Cancelled(f"The recovery of adapter {pe.slot} has ended before its time.")
    raise error


def now_usec() -> int:
    """CLOCK_MONOTONIC in microseconds."""
    return time.monotonic_ns() // 1000
