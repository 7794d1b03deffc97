"""The pool of helper processes: warm ones in reserve, one job each, hanging ones left behind.

Rule: the daemon never waits here. A job is given to an idle helper; without one, a helper is started, up to
`cap` at work at once; beyond that, jobs queue. An abandoned helper no longer counts: it may sleep in the
kernel for ever, and other adapters must not pay for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sriovd.backend.base import Evidence, Leftover
from sriovd.backend.linux.process import HelperProcess
from sriovd.backend.linux.registry import LeftoverWatch
from sriovd.backend.linux.runs import HolderScan, Job, NodeOpening, ScriptRun
from sriovd.backend.steps import ChainResult, Script

if TYPE_CHECKING:  # helper.py defines no types at run time
    from sriovd.backend.linux.helper import HolderReply, Order

AnyJob = Job[Any]
_log = logging.getLogger(__name__)
WARM = 2  # helpers started in advance, and again after one is lost
MAX_IDLE = 4  # helpers kept after work
ORDERS_AT_ONCE = 2  # a script's beginning and its first chain
CAP = 32  # at work at once, the abandoned not counted


class HelperPool:
    """The helpers of one daemon."""

    def __init__(self, root: str, run_directory: str, *, cap: int = CAP) -> None:
        self._root = os.path.abspath(root)
        self._status_directory = os.path.join(os.path.abspath(run_directory), "helpers")
        self._cap = cap
        self._idle: list[HelperProcess] = []
        self._leaving: set[HelperProcess] = set()  # told to end, not yet gone
        self._busy: dict[AnyJob, HelperProcess] = {}
        self._abandoned: dict[AnyJob, HelperProcess] = {}
        self._waiting: deque[AnyJob] = deque()
        self._opening: set[str] = set()  # device nodes
        self._leftovers = LeftoverWatch()
        self._running = False

    def start(self) -> None:
        """Start the first helpers. Raises OSError when the run directory or a process cannot be made."""
        os.makedirs(self._status_directory, mode=0o700, exist_ok=True)
        self._running = True
        while len(self._idle) < WARM:
            self._idle.append(self._start_helper())

    def close(self) -> None:
        """End the idle helpers; those at work are left behind, and their jobs' futures are cancelled."""
        self._running = False
        for helper in (*self._idle, *self._leaving):
            helper.forget(remove_status=True)
        for jobs in (self._busy, self._abandoned):
            for job, helper in jobs.items():
                helper.forget(remove_status=False)
                job.cancel()
        for job in self._waiting:
            job.cancel()
        for collection in (self._idle, self._leaving, self._busy, self._abandoned, self._waiting):
            collection.clear()
        self._leftovers.close()

    def run(self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]) -> ScriptRun:
        """Execute `script`, as Backend.run documents."""
        job = ScriptRun(adapter, script, on_result, self)
        self._submit(job)
        return job

    async def scan_holders(self, paths: Sequence[str]) -> HolderReply:
        """Which processes have one of the absolute `paths` open. Raises ConnectionError."""
        job = HolderScan(paths)
        self._submit(job)
        return await job.finished

    async def open_node(self, path: str, timeout_sec: float) -> int:
        """A descriptor of the device node `path`, open for reading and writing, which is the caller's.
        Raises OSError, of which TimeoutError when the kernel has not answered in time, at once when it
        still owes the answer to somebody before; and ConnectionError."""
        if path in self._opening:  # however often a tenant asks, one helper waits
            raise TimeoutError(f"{path} is being opened already")
        job = NodeOpening(path)
        self._opening.add(path)
        job.finished.add_done_callback(lambda _: self._opening.discard(path))
        self._submit(job)
        try:
            async with asyncio.timeout(timeout_sec):
                return await asyncio.shield(job.finished)
        except (TimeoutError, asyncio.CancelledError):
            self.abandon(job)
            job.discard()
            raise

    def find_leftovers(self) -> Sequence[Leftover]:
        """What a former daemon process left hanging. Raises OSError."""
        helpers = [*self._idle, *self._leaving, *self._busy.values(), *self._abandoned.values()]
        return self._leftovers.find(self._status_directory, frozenset(helper.pid for helper in helpers))

    def stop(self, job: AnyJob) -> None:
        """Let `job` begin no further chain, as Run.stop documents."""
        helper = self._busy.get(job) or self._abandoned.get(job)
        if helper is not None:
            helper.send(("stop",))
        self._withdraw(job)

    def abandon(self, job: AnyJob) -> Evidence:
        """Free the place of `job`, as Run.abandon documents."""
        self._withdraw(job)
        helper = self._busy.pop(job, None)
        if helper is not None:
            self._abandoned[job] = helper
            self._dispatch()
            asyncio.get_running_loop().call_soon(self._warm, WARM)
        return self.describe(job)

    def describe(self, job: AnyJob) -> Evidence:
        """Where `job` is, as Run.describe documents."""
        helper = self._busy.get(job) or self._abandoned.get(job)
        return job.describe_wait() if helper is None else helper.read_evidence()

    def _submit(self, job: AnyJob) -> None:
        if not self._running:  # a late caller, while the daemon ends
            job.cancel()
            return
        self._waiting.append(job)
        self._dispatch()

    def _withdraw(self, job: AnyJob) -> None:
        """End `job` if it still waits for a helper."""
        if job in self._waiting:
            self._waiting.remove(job)
            job.withdraw()

    def _dispatch(self) -> None:
        """Give waiting jobs to helpers as far as the cap allows."""
        while self._waiting and len(self._busy) < self._cap:
            job = self._waiting.popleft()
            if job.finished.done():  # cancelled meanwhile
                continue
            try:
                helper = self._idle.pop() if self._idle else self._start_helper()
            except OSError as error:
                job.fail(f"no helper process can be started: {error}")
                continue
            self._assign(job, helper)

    def _assign(self, job: AnyJob, helper: HelperProcess) -> None:
        self._busy[job] = helper
        helper.on_message = partial(self._hear, job)
        helper.on_death = partial(self._bury, job)
        helper.status.write_begin(job.adapter, job.title)
        self._tell(job, helper, job.orders())
        # One in reserve is enough while work is under way: starting more would compete with it for the CPU.
        asyncio.get_running_loop().call_soon(self._warm, 1)

    def _tell(self, job: AnyJob, helper: HelperProcess, orders: Iterator[Order]) -> None:
        """Give the helper what it needs to begin, and the rest while it works, in turn with others."""
        if self._busy.get(job) is not helper and self._abandoned.get(job) is not helper:
            return  # done already
        batch = tuple(itertools.islice(orders, ORDERS_AT_ONCE))
        for order in batch:
            helper.send(order)
        if batch:
            asyncio.get_running_loop().call_soon(self._tell, job, helper, orders)

    def _hear(self, job: AnyJob, kind: str, payload: object) -> None:
        if kind in ("done", "opened"):
            self._reclaim(job)
            job.finish(payload)
            self._dispatch()
        else:
            job.take(payload)

    def _reclaim(self, job: AnyJob) -> None:
        """The helper of `job` is free again."""
        helper = self._busy.pop(job, None) or self._abandoned.pop(job)
        helper.status.write_idle()
        helper.on_death = partial(self._bury_idle, helper)
        if len(self._idle) < MAX_IDLE:
            self._idle.append(helper)
        else:
            self._leaving.add(helper)
            helper.release()

    def _bury(self, job: AnyJob, how: str) -> None:
        self._busy.pop(job, None)
        self._abandoned.pop(job, None)
        _log.error("%s: %s", job.title, how)
        job.fail(how)
        self._dispatch()

    def _bury_idle(self, helper: HelperProcess, how: str) -> None:
        if helper in self._leaving:
            self._leaving.remove(helper)
            return
        self._idle.remove(helper)  # not replaced at once: another could die for the same reason
        _log.warning("%s", how)

    def _warm(self, target: int) -> None:
        """Have `target` helpers in reserve, within the cap."""
        while self._running and len(self._idle) < target and len(self._busy) + len(self._idle) < self._cap:
            try:
                self._idle.append(self._start_helper())
            except OSError as error:
                _log.warning("no helper process can be started in advance: %s", error)
                return

    def _start_helper(self) -> HelperProcess:
        helper = HelperProcess(self._root, self._status_directory)
        helper.on_death = partial(self._bury_idle, helper)
        return helper
