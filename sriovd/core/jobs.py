"""Jobs: every mutation is one, whether its caller waits for it or not.

Rule: a job ends exactly once, as done, failed or cancelled; ended jobs stay readable for a while, and their
number is bounded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum

from sriovd.backend.base import HostReadError
from sriovd.core.errors import BackendFailed, Cancelled, SriovdError
from sriovd.core.inventory import Function
from sriovd.core.results import Result
from sriovd.core.trace.transaction import transaction

_log = logging.getLogger(__name__)

KEPT_SEC = 600
KEPT_COUNT = 128
_PROGRESS_STEP = 0.1


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"  # another job has its adapter
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Job:
    """One mutation under way or past. `progress`: 0.0 to 1.0. `requester`: who asked, for the journal.
    `admit`: raises an SriovdError when it is no longer his to ask for, once the adapter's turn has come."""

    def __init__(self, number: int, operation: str, objects: Sequence[Function], requester: str) -> None:
        self.number = number
        self.operation = operation
        self.objects = tuple(objects)
        self.requester = requester
        self.state = JobState.QUEUED
        self.stage = "waiting for the adapter"
        self.progress = 0.0
        self.result: Result | None = None
        self.error: SriovdError | None = None
        self.on_change: Callable[[Job], None] = lambda _: None
        self.on_cancel: Callable[[], None] = lambda: None
        self.admit: Callable[[], None] = lambda: None
        self._cancel_asked = False
        self._ended = asyncio.Event()

    @property
    def outcome(self) -> str:
        """The sentence that the job ended with; empty before."""
        return str(self.error or self.result or "")

    def enter(self, stage: str, progress: float | None = None) -> None:
        """Begin a stage. Raises Cancelled if that was asked for: between stages nothing is half done."""
        self.heed_cancel(stage)
        self.show(stage, progress)

    def show(self, stage: str, progress: float | None = None) -> None:
        """Say that a stage has begun."""
        self.state, self.stage = JobState.RUNNING, stage
        self.progress = max(self.progress, progress or 0.0)
        self.on_change(self)

    def queue(self, for_what: str) -> None:
        """Say what it waits for; nothing of it is under way."""
        self.state, self.stage = JobState.QUEUED, f"waiting for {for_what}"
        self.on_change(self)

    def heed_cancel(self, before: str) -> None:
        """Raises Cancelled if that was asked for; `before`: what is not begun then."""
        if self._cancel_asked:
            raise Cancelled(f"{self.operation} was cancelled before {before}.")

    def advance(self, progress: float) -> None:
        """Move the progress forward; it never goes back. Told in steps that a person can see: 120 VFs shall
        not cost 120 signals."""
        told, self.progress = int(self.progress / _PROGRESS_STEP), max(self.progress, min(progress, 1.0))
        if int(self.progress / _PROGRESS_STEP) > told:
            self.on_change(self)

    def cancel(self) -> None:
        """Ask for the end at the next place where nothing is half done. Raises nothing, undoes nothing
        that the kernel is in the middle of."""
        if not self.state.ended and not self._cancel_asked:
            self._cancel_asked = True
            self.on_cancel()

    def stop_by(self, stop: Callable[[], None]) -> None:
        """What cancelling does from now on; at once, if it was asked for before."""
        self.on_cancel = stop
        if self._cancel_asked:
            stop()

    @property
    def cancel_asked(self) -> bool:
        return self._cancel_asked

    async def wait(self, timeout_usec: int) -> bool:
        """Wait for the end, at most so long; whether it has ended."""
        try:
            async with asyncio.timeout(timeout_usec / 1e6):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def end(self, state: JobState, result: Result | None = None, error: SriovdError | None = None) -> None:
        """The one end."""
        self.state, self.stage, self.result, self.error = state, "", result, error
        self.progress = 1.0 if state is JobState.DONE else self.progress
        self._ended.set()


class JobRegistry:
    """All jobs, numbered from 1."""

    def __init__(self) -> None:
        self._jobs: dict[int, Job] = {}
        self._last_number = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_added: Callable[[Job], None] = lambda _: None
        self.on_changed: Callable[[Job], None] = lambda _: None
        self.on_ended: Callable[[Job], None] = lambda _: None
        self.on_removed: Callable[[Job], None] = lambda _: None

    def get(self, number: int) -> Job | None:
        """The job of that number while it is kept."""
        return self._jobs.get(number)

    @property
    def running(self) -> Sequence[Job]:
        """The jobs that have not ended."""
        return [job for job in self._jobs.values() if not job.state.ended]

    def start(
        self,
        operation: str,
        objects: Sequence[Function],
        requester: str,
        work: Callable[[Job], Awaitable[Result]],
    ) -> Job:
        """Begin `work` as a job on `objects` for `requester`."""
        self._last_number += 1
        job = Job(self._last_number, operation, objects, requester)
        job.on_change = self.on_changed
        self._jobs[job.number] = job
        self.on_added(job)
        task = asyncio.create_task(self._carry_out(job, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    async def _carry_out(self, job: Job, work: Callable[[Job], Awaitable[Result]]) -> None:
        try:
            with transaction(job.operation, job.requester):
                result = await work(job)
            job.end(JobState.DONE, result=result)
        except Cancelled as error:
            job.end(JobState.CANCELLED, error=error)
        except SriovdError as error:
            job.end(JobState.FAILED, error=error)
        except (HostReadError, ConnectionError) as error:  # what is read between the writes
            job.end(JobState.FAILED, error=BackendFailed(f"{job.operation}: {error}.", "See the journal."))
        except Exception:
            _log.exception("Job %d (%s) met a defect of sriovd", job.number, job.operation)
            job.end(JobState.FAILED, error=BackendFailed(f"{job.operation} failed for a defect of sriovd."))
        self.on_ended(job)
        self._forget_later(job)

    def _forget_later(self, job: Job) -> None:
        asyncio.get_running_loop().call_later(KEPT_SEC, self._forget, job.number)
        ended = [number for number, each in self._jobs.items() if each.state.ended]
        for number in ended[: max(0, len(ended) - KEPT_COUNT)]:
            self._forget(number)

    def _forget(self, number: int) -> None:
        job = self._jobs.pop(number, None)
        if job is not None:
            self.on_removed(job)
