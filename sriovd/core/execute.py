"""Runs scripts on adapters: one at a time on each, different adapters side by side, every one with a
deadline.

Rule: the only place that waits for the kernel. A write that has not come back in its time is abandoned and
its adapter is stuck, with the evidence, until the write returns; nothing else is tried on that adapter
meanwhile. Removing or rescanning devices never runs beside another write: kernels of 2025-26 deadlock there
(drivers/pci/iov.c, pci_rescan_remove_lock).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, Protocol

from sriovd.backend.base import Backend, Evidence, Leftover, Run
from sriovd.backend.steps import ChainResult, Script, Step, Verb
from sriovd.core.errors import BackendFailed, SriovdError, Stuck
from sriovd.core.trace.transaction import CURRENT, Transaction, current_requester

_log = logging.getLogger(__name__)

DONE = "done"  # the outcome of a script that did all
HOST = "host"  # the lane of writes that concern no single adapter

# Seconds that one step may take. Seen: i40e 22 s for 64 VFs, ixgbe over 60 s, mlx5 65 s for 125; an FLR that
# the kernel gives up takes 65 s and keeps the whole adapter waiting, so a reset is called stuck long before.
_STEP_DEADLINE_SEC: dict[Verb, float] = {
    Verb.SET_NUM_VFS: 30.0,
    Verb.BIND: 30.0,
    Verb.PROBE: 30.0,
    Verb.UNBIND: 20.0,
    Verb.RESET: 10.0,
    Verb.REMOVE: 60.0,
    Verb.RESCAN_BUS: 60.0,
    Verb.RESCAN_PORT: 60.0,
}
_OTHER_STEP_DEADLINE_SEC = 5.0
_PER_VF_DEADLINE_SEC = 1.0
_PER_VF_VERBS = frozenset({Verb.SET_NUM_VFS, Verb.REMOVE})


def step_deadline_sec(step: Step, vf_count: int) -> float:
    """How long the kernel may have `step` on an adapter where `vf_count` VFs come or go."""
    own = _STEP_DEADLINE_SEC.get(step.verb, _OTHER_STEP_DEADLINE_SEC)
    return own + (_PER_VF_DEADLINE_SEC * vf_count if step.verb in _PER_VF_VERBS else 0.0)


def left_sec(evidence: Evidence, script: Script, vf_count: int) -> float:
    """How long `script` may go on without a word: until the step that it is in is over its deadline. A run
    that is in none of the steps (it waits for a helper) has the time of the longest."""
    steps = [step for chain in script.chains for step in chain.steps]
    own = [step for step in steps if str(step) == evidence.step]
    allowed = max(step_deadline_sec(step, vf_count) for step in own or steps)
    return allowed - evidence.running_usec / 1e6


class _HotplugLock:
    """Many ordinary writers or one that removes or rescans; who comes first is served first."""

    def __init__(self) -> None:
        self._writers = 0
        self._gate = asyncio.Lock()
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def hold(self, exclusive: bool) -> AsyncIterator[None]:
        if exclusive:
            async with self._gate:
                await self._idle.wait()
                yield
            return
        async with self._gate:
            self._writers += 1
            self._idle.clear()
        try:
            yield
        finally:
            self._writers -= 1
            if self._writers == 0:
                self._idle.set()


class Journal(Protocol):
    """Where intents are kept: core/store.py."""

    async def begin(self, adapter: str, requester: str, script: Script) -> int:
        """Note that `script` is about to run; the number of the intent."""

    async def finish(self, intent: int, outcome: str) -> None:
        """Note how it ended."""


class Executor:
    """The lanes of all adapters."""

    def __init__(self, backend: Backend, journal: Journal) -> None:
        self._backend = backend
        self._journal = journal
        self._locks: dict[str, asyncio.Lock] = {}
        self._stuck: dict[str, list[str]] = {}  # the evidence of every write that hangs on an adapter
        self._inherited: dict[str, asyncio.Event] = {}  # adapters on which a former daemon's write goes on
        self._returned: dict[str, asyncio.Event] = {}  # set when a write that hung has come back
        self._failed: dict[str, list[tuple[int, str]]] = {}  # intents that are still open, by adapter
        self._hotplug = _HotplugLock()
        self._watchers: set[asyncio.Task[None]] = set()
        self.on_stuck: Callable[[str, str], None] = lambda _adapter, _evidence: None
        self.on_recovered: Callable[[str], None] = lambda _adapter: None
        self.on_failed: Callable[[str], None] = lambda _adapter: None  # of writes that the kernel refused
        self.refuse: Callable[[str, Script], None] = lambda _adapter, _script: None
        # What is told of each script: chains as they end, and what was never begun or has not come back.
        self.on_chain: Callable[[Transaction | None, Script, ChainResult], None] = lambda _by, _in, _chain: (
            None
        )
        self.on_refused: Callable[[str, Script, SriovdError], None] = lambda _adapter, _script, _why: None
        self.on_hung: Callable[[Script, Evidence], None] = lambda _script, _evidence: None
        self.on_written: Callable[[str, Script, str], None] = lambda _adapter, _script, _outcome: None

    @asynccontextmanager
    async def lane(self, adapter: str, *, exclusive: bool = False) -> AsyncIterator[None]:
        """The right to write to `adapter`; `exclusive`: while nobody writes anywhere. Raises Stuck."""
        self.refuse_stuck(adapter)
        async with self._locks.setdefault(adapter, asyncio.Lock()):
            self.refuse_stuck(adapter)
            async with self._hotplug.hold(exclusive):
                try:
                    yield
                except asyncio.CancelledError:
                    raise  # as a daemon does that is killed, this leaves them open
                except BaseException:
                    await self._settle(adapter)
                    raise
                await self._settle(adapter)

    async def run(
        self,
        adapter: str,
        script: Script,
        *,
        vf_count: int = 0,
        on_result: Callable[[ChainResult], None] = lambda _: None,
        on_start: Callable[[Run], None] = lambda _: None,
        cleanup: Script | None = None,
    ) -> Sequence[ChainResult]:
        """Execute `script`; the caller has the lane. Gives the results of the chains that were tried.

        `cleanup` runs when a write that was abandoned comes back after all. Raises Stuck when a step is
        over its deadline, BackendFailed when the helper died or the journal cannot be written. Whoever is
        cancelled meanwhile leaves an open intent, as a daemon does that is killed; so does a script that did
        not do all, until its lane is given back: whoever has the lane may be about to undo it. Raises what
        `refuse` raises for scripts that write.
        """
        if not script.writes:
            return await self._execute(adapter, script, vf_count, on_result, on_start, cleanup)
        self._refuse(adapter, script)
        intent = await self._journal.begin(adapter, current_requester(), script)
        try:
            results = await self._execute(adapter, script, vf_count, on_result, on_start, cleanup)
        except (Stuck, BackendFailed) as error:
            self._failed.setdefault(adapter, []).append((intent, error.message))
            self.on_written(adapter, script, error.message)
            raise
        outcome = _describe_outcome(script, results)
        self.on_written(adapter, script, outcome)
        if outcome == DONE:
            await self._finish(intent, outcome)
        else:
            self._failed.setdefault(adapter, []).append((intent, outcome))
            self.on_failed(adapter)
        return results

    def _refuse(self, adapter: str, script: Script) -> None:
        try:
            self.refuse(adapter, script)
        except SriovdError as error:
            self.on_refused(adapter, script, error)
            raise

    async def _settle(self, adapter: str) -> None:
        """Nothing of what failed will be undone any more."""
        for intent, outcome in self._failed.pop(adapter, []):
            await self._finish(intent, outcome)

    async def _finish(self, intent: int, outcome: str) -> None:
        """What was done is done: a journal that cannot be written is no reason to fail, or to undo it."""
        try:
            await self._journal.finish(intent, outcome)
        except BackendFailed as error:
            _log.error("The outcome of intent %d (%s) is not in the journal: %s", intent, outcome, error)

    async def _execute(
        self,
        adapter: str,
        script: Script,
        vf_count: int,
        on_result: Callable[[ChainResult], None],
        on_start: Callable[[Run], None],
        cleanup: Script | None,
    ) -> Sequence[ChainResult]:
        progress, transaction, context = asyncio.Event(), CURRENT.get(), copy_context()

        def note(result: ChainResult) -> None:
            progress.set()
            self.on_chain(transaction, script, result)
            context.run(on_result, result)  # what it causes is the transaction's, whoever has told of it

        run = self._backend.run(adapter, script, note)
        on_start(run)
        while not run.finished.done():
            progress.clear()
            if not await _go_on(run, progress, script, vf_count):
                self._abandon(adapter, run, script, cleanup)
        try:
            return run.finished.result()
        except ConnectionError as error:
            raise BackendFailed(
                f"{script.title}: {error}.", "See the journal for what it was doing."
            ) from error

    def adopt(self, leftover: Leftover) -> None:
        """Treat a former daemon's hanging write as if it were our own."""
        self._inherited.setdefault(leftover.adapter, asyncio.Event())
        self._watch(leftover.adapter, f"{leftover.title}: {leftover.evidence}", leftover.finished, None)

    def _abandon(self, adapter: str, run: Run, script: Script, cleanup: Script | None) -> None:
        found = run.abandon()
        evidence = str(found)
        self.on_hung(script, found)
        run.stop()  # what the script had still to do is not wanted any more when the kernel returns
        self._watch(adapter, evidence, run.finished, cleanup)
        raise _stuck_error(adapter, evidence)

    def _watch(
        self, adapter: str, evidence: str, finished: asyncio.Future[Any], cleanup: Script | None
    ) -> None:
        self._stuck.setdefault(adapter, []).append(evidence)
        self.on_stuck(adapter, evidence)
        task = asyncio.create_task(self._await_return(adapter, evidence, finished, cleanup))
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def _await_return(
        self, adapter: str, evidence: str, finished: asyncio.Future[Any], cleanup: Script | None
    ) -> None:
        """An adapter may have several: whoever waits for the lane of a daemon that is ended gets it once
        more, beside the write of whoever had it."""
        await asyncio.wait({finished})
        if finished.exception() is not None:
            _log.warning("The helper that hung on adapter %s ended: %s", adapter, finished.exception())
        if cleanup is not None:
            await self._clean_up(adapter, cleanup)
        hanging = self._stuck[adapter]
        hanging.remove(evidence)
        if hanging:
            self.on_stuck(adapter, hanging[0])
            return
        del self._stuck[adapter]
        self._inherited.pop(adapter, asyncio.Event()).set()
        self._returned.pop(adapter, asyncio.Event()).set()
        self.on_recovered(adapter)

    async def _clean_up(self, adapter: str, cleanup: Script) -> None:
        """Nobody waits for it any more; it is told as everything else is."""
        transaction = CURRENT.get()
        run = self._backend.run(adapter, cleanup, lambda chain: self.on_chain(transaction, cleanup, chain))
        await asyncio.wait({run.finished})
        error = run.finished.exception()
        outcome = str(error) if error is not None else _describe_outcome(cleanup, run.finished.result())
        self.on_written(adapter, cleanup, outcome)

    async def wait_inherited(self, adapter: str) -> None:
        """Return when nothing of a former daemon's is under way on `adapter`: at once, or when the kernel
        gives it back. Mostly it is not hanging, but in the middle of what was to be done anyway."""
        while adapter in self._inherited:
            await self._inherited[adapter].wait()

    async def wait_unstuck(self, adapter: str, timeout_sec: float) -> None:
        """Return when no write on `adapter` hangs. Raises Stuck when one still does after that time."""
        returned = self._returned.setdefault(adapter, asyncio.Event())
        try:
            async with asyncio.timeout(timeout_sec):
                while adapter in self._stuck:
                    returned.clear()
                    await returned.wait()
        except TimeoutError:
            self.refuse_stuck(adapter)

    def is_stuck(self, adapter: str) -> bool:
        """Whether a write on `adapter` hangs."""
        return adapter in self._stuck

    def refuse_stuck(self, adapter: str) -> None:
        """Raises Stuck while a write on `adapter` hangs: another's, of which no more is said than that."""
        if adapter in self._stuck:
            error = _stuck_error(adapter, "a kernel write has not returned")
            error.inside = f"It is: {self._stuck[adapter][0]}."
            raise error


def _describe_outcome(script: Script, results: Sequence[ChainResult]) -> str:
    """How a script ended, for the journal."""
    failed = next((each.failure for each in results if each.failure is not None), None)
    if failed is not None:
        return f"{failed.step}: {errno.errorcode.get(failed.errno, failed.errno) or failed.value}"
    return DONE if len(results) == len(script.chains) else f"{len(results)} of {len(script.chains)} chains"


def _stuck_error(adapter: str, evidence: str) -> Stuck:
    return Stuck(
        f"Adapter {adapter} is stuck: {evidence}.",
        "It takes requests again when the kernel returns; a reset that cannot end gives up after 70 s.",
    )


async def _go_on(run: Run, progress: asyncio.Event, script: Script, vf_count: int) -> bool:
    """Wait until a chain has ended or the run has; False when the kernel has had a step for too long."""
    patience_sec = _OTHER_STEP_DEADLINE_SEC  # the shortest there is
    while not await _settle(run, progress, patience_sec):
        patience_sec = left_sec(run.describe(), script, vf_count)
        if patience_sec <= 0:
            return False
    return True


async def _settle(run: Run, progress: asyncio.Event, timeout_sec: float) -> bool:
    """Wait until a chain has ended or the run has; False when neither came in time."""
    waiter = asyncio.ensure_future(progress.wait())
    try:
        ends: set[asyncio.Future[Any]] = {waiter, run.finished}
        done, _ = await asyncio.wait(ends, timeout=timeout_sec, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
    return bool(done)
