"""Scripts on the simulated kernel: one asyncio task per run, and time.

Rule: the only place of the simulated host that waits. What is refused before the kernel sees it is what the
real host's helper refuses: paths outside the PCI bus, and empty writes, which would look like success.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Sequence

from sriovd.backend.base import Evidence
from sriovd.backend.simulated.kernel import Call, SimulatedKernel
from sriovd.backend.steps import Access, Chain, ChainResult, FileAccess, Script, Step, StepResult

_log = logging.getLogger(__name__)
_ALLOWED = "bus/pci/"


async def drive(call: Call, kernel: SimulatedKernel, time_scale: float) -> None:
    """Let a call run to its end, sleeping as it asks, `time_scale` seconds for a second."""
    while (wait := call.advance()) is not None:
        await asyncio.sleep(wait.usec / 1e6 * (time_scale if wait.scaled else 1.0))
        while not wait.ready():
            changed = asyncio.Event()
            kernel.host.on_change.append(changed.set)
            await changed.wait()


class SimulatedRun:
    """A script under way: backend.base.Run."""

    def __init__(
        self,
        kernel: SimulatedKernel,
        adapter: str,
        script: Script,
        on_result: Callable[[ChainResult], None],
        time_scale: float,
    ) -> None:
        self.adapter = adapter
        self.title = script.title
        self._kernel = kernel
        self._script = script
        self._on_result = on_result
        self._time_scale = time_scale
        self._step: Step | None = None
        self._began = time.monotonic()
        self._call: Call | None = None
        self._stopped = False
        loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[Sequence[ChainResult]] = loop.create_future()
        self.task = loop.create_task(self._execute())
        self.task.add_done_callback(self._fail)

    @property
    def finished(self) -> asyncio.Future[Sequence[ChainResult]]:
        """Resolves with the chains that were tried."""
        return self._finished

    def stop(self) -> None:
        """Begin no further chain."""
        self._stopped = True

    def abandon(self) -> Evidence:
        """Nobody waits any more. The chain goes on if the kernel comes back, as a helper's does."""
        return self.describe()

    def detach(self) -> None:
        """The daemon is gone: nobody learns of results, and no further chain is begun, as linux/helper.py
        does."""
        self._on_result = _ignore
        self._stopped = True
        self._finished.cancel()

    def describe(self) -> Evidence:
        """Where it is."""
        step = str(self._step) if self._step else f"{self.title} (not begun)"
        waiting = self._call.waiting if self._call else None
        usec = int((time.monotonic() - self._began) * 1e6)
        return Evidence(0, step, waiting.wchan if waiting else "", usec)

    def _fail(self, task: asyncio.Task[None]) -> None:
        """A mistake in a rule ends the run as the death of a helper does."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("%s: the simulated kernel failed", self.title, exc_info=error)
            if not self._finished.done():
                self._finished.set_exception(ConnectionError(f"{self.title}: {error}"))

    async def _execute(self) -> None:
        results: list[ChainResult] = []
        for chain in self._script.chains:
            if self._stopped:
                break
            result = await self._run_chain(chain)
            results.append(result)
            try:
                self._on_result(result)
            except Exception:  # the listener's fault must not lose the results that follow
                _log.exception("%s: a listener failed", self.title)
            if self._script.stop_on_failure and not result.ok:
                break
        if not self._finished.done():
            self._finished.set_result(tuple(results))

    async def _run_chain(self, chain: Chain) -> ChainResult:
        results: list[StepResult] = []
        for step in chain.steps:
            results.append(await self._run_step(step))
            if not results[-1].ok:
                break
        return ChainResult(chain, tuple(results))

    async def _run_step(self, step: Step) -> StepResult:
        self._step, self._began = step, time.monotonic()
        access = step.spell()
        if not _is_allowed(access):
            return StepResult(step, errno.EINVAL)
        data = access.data.encode("utf-8", "backslashreplace")
        self._call = self._kernel.start(access.access, access.path, data)
        await asyncio.sleep(0)
        await drive(self._call, self._kernel, self._time_scale)
        usec = int((time.monotonic() - self._began) * 1e6)
        error = self._call.error
        if error is not None:
            return StepResult(step, error.errno or errno.EIO, "", usec)
        return StepResult(step, 0, self._call.value.decode("ascii", "backslashreplace").rstrip("\n"), usec)


def _is_allowed(access: FileAccess) -> bool:
    if access.access is Access.WRITE and not access.data:
        return False
    path = access.path
    plain = path.isascii() and path.isprintable() and not path.endswith("/")
    return path.startswith(_ALLOWED) and plain and "//" not in path and "/." not in path


def _ignore(_result: ChainResult) -> None:
    return
