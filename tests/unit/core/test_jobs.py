"""Jobs: one end each, cancelled only between stages, told in steps, forgotten in time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from sriovd.backend.base import HostReadError
from sriovd.core import jobs as jobs_module
from sriovd.core.errors import BackendFailed, Cancelled, InUse, SriovdError
from sriovd.core.jobs import Job, JobRegistry, JobState
from sriovd.core.results import Changed, Result
from tests.unit.core.minihost import run_async, settle

Work = Callable[[Job], Awaitable[Result]]


class Watched:
    """A registry with a record of its signals."""

    def __init__(self) -> None:
        self.registry = JobRegistry()
        self.log: list[str] = []
        for name in ("added", "changed", "ended", "removed"):
            setattr(
                self.registry, f"on_{name}", lambda job, name=name: self.log.append(f"{name} {job.number}")
            )

    def start(self, work: Work) -> Job:
        return self.registry.start("Test", [], "uid 0", work)


async def succeed(job: Job) -> Result:
    job.enter("working", 0.5)
    return Changed("Done it")


def fail_with(error: Exception) -> Work:
    async def fail(_job: Job) -> Result:
        raise error

    return fail


ENDS: list[tuple[Work, JobState, type[SriovdError] | None, str]] = [
    (succeed, JobState.DONE, None, "Done it."),
    (fail_with(InUse("It is held.", "Wait.")), JobState.FAILED, InUse, "It is held. Wait."),
    (fail_with(Cancelled("Stopped.")), JobState.CANCELLED, Cancelled, "Stopped."),
    (
        fail_with(HostReadError("/sys/x: no number")),
        JobState.FAILED,
        BackendFailed,
        "Test: /sys/x: no number. See the journal.",
    ),
    (
        fail_with(ConnectionError("the helper died")),
        JobState.FAILED,
        BackendFailed,
        "Test: the helper died. See the journal.",
    ),
    (fail_with(KeyError("secret")), JobState.FAILED, BackendFailed, "Test failed for a defect of sriovd."),
]


@pytest.mark.parametrize(("work", "state", "error", "outcome"), ENDS)
def test_every_end_is_told_once(
    work: Work, state: JobState, error: type[SriovdError] | None, outcome: str
) -> None:
    async def test() -> None:
        watched = Watched()
        job = watched.start(work)
        assert (job.state, job.outcome) == (JobState.QUEUED, "")
        assert await job.wait(5_000_000)
        await settle()
        assert (job.state, type(job.error) if job.error else None) == (state, error)
        assert (job.outcome, job.stage) == (outcome, "")
        assert [each for each in watched.log if "changed" not in each] == ["added 1", "ended 1"]
        assert watched.registry.running == []

    run_async(test())


def test_only_a_job_that_is_done_is_at_its_full_progress() -> None:
    async def test() -> None:
        watched = Watched()
        done, failed = watched.start(succeed), watched.start(fail_with(InUse("no")))
        await settle()
        assert (done.progress, failed.progress) == (1.0, 0.0)

    run_async(test())


def test_cancelled_before_its_first_stage_nothing_is_begun() -> None:
    async def test() -> None:
        watched = Watched()
        job = watched.start(succeed)
        job.cancel()
        await job.wait(5_000_000)
        assert job.state is JobState.CANCELLED
        assert job.outcome == "Test was cancelled before working."

    run_async(test())


def test_cancelled_between_two_stages_the_second_is_not_begun() -> None:
    async def test() -> None:
        reached, entered, gate = [], asyncio.Event(), asyncio.Event()

        async def work(job: Job) -> Result:
            job.enter("first")
            entered.set()
            await gate.wait()
            reached.append("end of first")  # a stage is never cut
            job.enter("second")
            reached.append("second")
            return Changed("Never")

        job = Watched().start(work)
        await entered.wait()
        job.cancel()
        assert job.state is JobState.RUNNING
        gate.set()
        await job.wait(5_000_000)
        assert (job.state, reached) == (JobState.CANCELLED, ["end of first"])

    run_async(test())


def test_cancel_is_passed_on_once_and_never_after_the_end() -> None:
    async def test() -> None:
        calls = []
        job = Watched().start(succeed)
        job.on_cancel = lambda: calls.append("stop")
        job.cancel()
        job.cancel()
        assert calls == ["stop"]
        late = Watched().start(succeed)
        await late.wait(5_000_000)
        late.on_cancel = lambda: calls.append("late")
        late.cancel()
        assert (calls, late.cancel_asked) == (["stop"], False)

    run_async(test())


def test_progress_is_told_in_steps_and_never_goes_back() -> None:
    async def test() -> None:
        told: list[float] = []
        job = Job(1, "Test", [], "uid 0")
        job.on_change = lambda job: told.append(job.progress)
        for part in range(1, 121):
            job.advance(part / 120)
        assert len(told) == 10
        assert told == sorted(told)
        job.advance(0.2)
        job.advance(7.0)
        assert job.progress == 1.0

    run_async(test())


def test_waiting_ends_with_the_time_given() -> None:
    async def test() -> None:
        gate = asyncio.Event()

        async def work(_job: Job) -> Result:
            await gate.wait()
            return Changed("Late")

        job = Watched().start(work)
        assert not await job.wait(0)
        assert not await job.wait(1000)
        gate.set()
        assert await job.wait(5_000_000)
        assert await job.wait(0)

    run_async(test())


def test_the_history_is_bounded_and_running_jobs_are_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT_COUNT", 3)

    async def test() -> None:
        watched, gate = Watched(), asyncio.Event()

        async def wait(_job: Job) -> Result:
            await gate.wait()
            return Changed("Waited")

        first = watched.start(wait)
        for _ in range(10):
            await watched.start(succeed).wait(5_000_000)
        await settle()
        assert [each.number for each in watched.registry.running] == [first.number]
        assert [number for number in range(1, 12) if watched.registry.get(number)] == [1, 9, 10, 11]
        assert [each for each in watched.log if "removed" in each] == [f"removed {n}" for n in range(2, 9)]
        gate.set()
        await first.wait(5_000_000)

    run_async(test())


def test_an_ended_job_is_forgotten_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "KEPT_SEC", 0)

    async def test() -> None:
        watched = Watched()
        await watched.start(succeed).wait(5_000_000)
        while watched.registry.get(1) is not None:
            await asyncio.sleep(0)
        assert watched.log[-2:] == ["ended 1", "removed 1"]

    run_async(test())
