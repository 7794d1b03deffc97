"""The lanes: one script at a time on each adapter, adapters side by side, and writes that do not return."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

import pytest

from sriovd.backend.base import Evidence, Leftover
from sriovd.backend.steps import Chain, ChainResult, Script, Step, StepResult, Verb
from sriovd.core import execute
from sriovd.core.errors import BackendFailed, Stuck
from sriovd.core.execute import HOST, Executor, left_sec, step_deadline_sec
from tests.unit.core.minihost import MiniHost, run_async, settle, until
from tests.unit.core.minikernel import PF

A, B = "0000:01:00", "0000:02:00"


def make_script(chain_count: int = 1, verb: Verb = Verb.RESET) -> Script:
    return Script("testing", tuple(Chain(PF, (Step(verb, PF, str(n)),)) for n in range(chain_count)))


class HandRun:
    """A run that does what the test's hand tells it. `at`, `running_usec`: what it says when it is asked."""

    def __init__(self, script: Script, on_result: Callable[[ChainResult], None]) -> None:
        self.script = script
        self.finished: asyncio.Future[Sequence[ChainResult]] = asyncio.get_running_loop().create_future()
        self.stopped = self.abandoned = False
        self.at, self.running_usec = str(script.chains[0].steps[0]), 3_000_000
        self.asked = 0
        self._on_result = on_result
        self._results: list[ChainResult] = []

    def stop(self) -> None:
        self.stopped = True

    def describe(self) -> Evidence:
        self.asked += 1
        return Evidence(42, self.at, "pci_dev_wait", self.running_usec)

    def abandon(self) -> Evidence:
        self.abandoned = True
        return self.describe()

    def finish_chain(self) -> None:
        """The next chain succeeds."""
        chain = self.script.chains[len(self._results)]
        self._results.append(ChainResult(chain, tuple(StepResult(step, 0) for step in chain.steps)))
        self._on_result(self._results[-1])

    def finish(self) -> None:
        """All the rest succeeds."""
        while len(self._results) < len(self.script.chains):
            self.finish_chain()
        self.finished.set_result(tuple(self._results))

    def die(self) -> None:
        self.finished.set_exception(ConnectionError("helper 42 was killed by signal 9"))


class HandHost(MiniHost):
    """A host whose scripts go on when the test says so; `runs`: those begun, by adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[tuple[str, HandRun]] = []

    def run(self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]) -> HandRun:  # type: ignore[override]
        self.runs.append((adapter, HandRun(script, on_result)))
        return self.runs[-1][1]

    @property
    def busy(self) -> list[str]:
        """The adapters with a script under way."""
        return [adapter for adapter, run in self.runs if not run.finished.done()]


class MemoryJournal:
    """A journal that lasts as long as the test: requester, title and outcome of each intent."""

    def __init__(self) -> None:
        self.intents: list[list[str]] = []

    async def begin(self, adapter: str, requester: str, script: Script) -> int:
        self.intents.append([adapter, requester, script.title, ""])
        return len(self.intents)

    async def finish(self, intent: int, outcome: str) -> None:
        self.intents[intent - 1][-1] = outcome


class Bench:
    """An executor on a hand-driven host."""

    def __init__(self) -> None:
        self.host = HandHost()
        self.journal = MemoryJournal()
        self.executor = Executor(self.host, self.journal)
        self.log: list[str] = []
        self.executor.on_stuck = lambda adapter, evidence: self.log.append(f"stuck {adapter}: {evidence}")
        self.executor.on_recovered = lambda adapter: self.log.append(f"recovered {adapter}")

    def begin(
        self,
        adapter: str,
        script: Script | None = None,
        *,
        exclusive: bool = False,
        cleanup: Script | None = None,
    ) -> asyncio.Task[Sequence[ChainResult]]:
        """Take the lane and run a script in it."""

        async def work() -> Sequence[ChainResult]:
            async with self.executor.lane(adapter, exclusive=exclusive):
                return await self.executor.run(adapter, script or make_script(), cleanup=cleanup)

        return asyncio.create_task(work())

    def finish(self, adapter: str) -> None:
        """The script under way on `adapter` ends well."""
        next(run for each, run in self.host.runs if each == adapter and not run.finished.done()).finish()

    async def hang(
        self, adapter: str, script: Script | None = None, cleanup: Script | None = None
    ) -> HandRun:
        """Let a script on `adapter` go over its deadline."""
        task = self.begin(adapter, script, cleanup=cleanup)
        with pytest.raises(Stuck):
            await task
        return self.host.runs[-1][1]


DEADLINES = [
    (Verb.SET_NUM_VFS, 0, 30.0),
    (Verb.SET_NUM_VFS, 120, 150.0),
    (Verb.REMOVE, 7, 67.0),
    (Verb.BIND, 120, 30.0),
    (Verb.RESET, 0, 10.0),
    (Verb.READ_DRIVER, 120, 5.0),
]


@pytest.mark.parametrize(("verb", "vf_count", "seconds"), DEADLINES)
def test_deadlines(verb: Verb, vf_count: int, seconds: float) -> None:
    assert step_deadline_sec(Step(verb, PF, "1"), vf_count) == seconds


BIND, UNBIND = Step(Verb.BIND, PF, "igb"), Step(Verb.UNBIND, PF, "vfio-pci")
LEFT = [
    (str(UNBIND), 0.0, 20.0),
    (str(UNBIND), 20.5, -0.5),
    (str(BIND), 20.5, 9.5),  # the time of those before it is not counted
    ("testing (not begun)", 20.5, 9.5),  # waits for a helper
    ("a step between others", 0.0, 30.0),
]


@pytest.mark.parametrize(("step", "running_sec", "left"), LEFT)
def test_each_step_has_a_deadline_of_its_own(step: str, running_sec: float, left: float) -> None:
    script = Script("testing", (Chain(PF, (UNBIND, BIND)),))
    assert left_sec(Evidence(42, step, "", int(running_sec * 1e6)), script, 0) == pytest.approx(left)


def test_the_results_come_back_and_each_is_told() -> None:
    async def test() -> None:
        bench = Bench()
        told: list[ChainResult] = []
        task = asyncio.create_task(bench.executor.run(A, make_script(3), on_result=told.append))
        await settle()
        bench.finish(A)
        assert list(await task) == told
        assert len(told) == 3

    run_async(test())


def test_one_script_at_a_time_on_an_adapter_and_in_order() -> None:
    async def test() -> None:
        bench = Bench()
        tasks = [bench.begin(A, make_script(n)) for n in (1, 2, 3)]
        for n in (1, 2, 3):
            await settle()
            assert bench.host.busy == [A]
            assert len(bench.host.runs[-1][1].script.chains) == n
            bench.finish(A)
        await asyncio.gather(*tasks)

    run_async(test())


def test_adapters_run_side_by_side() -> None:
    async def test() -> None:
        bench = Bench()
        tasks = [bench.begin(A), bench.begin(B)]
        await settle()
        assert bench.host.busy == [A, B]
        bench.finish(B)
        await tasks[1]
        assert not tasks[0].done()
        bench.finish(A)
        await tasks[0]

    run_async(test())


def test_an_exclusive_lane_waits_for_all_writers_and_keeps_all_out() -> None:
    async def test() -> None:
        bench = Bench()
        tasks = [bench.begin(A), bench.begin(B)]
        await settle()
        tasks += [bench.begin(HOST, exclusive=True), bench.begin("0000:03:00")]
        await settle()
        assert bench.host.busy == [A, B]
        bench.finish(A)
        await settle()
        assert bench.host.busy == [B]
        bench.finish(B)
        await settle()
        assert bench.host.busy == [HOST]
        bench.finish(HOST)
        await settle()
        assert bench.host.busy == ["0000:03:00"]
        bench.finish("0000:03:00")
        await asyncio.gather(*tasks)

    run_async(test())


def test_exclusive_lanes_exclude_each_other() -> None:
    async def test() -> None:
        bench = Bench()
        tasks = [bench.begin(A, exclusive=True), bench.begin(B, exclusive=True)]
        for adapter in (A, B):
            await settle()
            assert bench.host.busy == [adapter]
            bench.finish(adapter)
        await asyncio.gather(*tasks)

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_over_its_deadline_an_adapter_is_stuck_with_the_evidence() -> None:
    async def test() -> None:
        bench = Bench()
        run = await bench.hang(A)
        assert run.abandoned
        assert run.stopped, "what the script had still to do would go on behind everybody's back"
        text = f"reset {PF} 0 has not returned from the kernel in pci_dev_wait for 3 s (helper pid 42)"
        assert bench.log == [f"stuck {A}: {text}"]
        with pytest.raises(Stuck) as refusal:
            bench.executor.refuse_stuck(A)
        assert text in refusal.value.inside
        assert A in refusal.value.message
        assert str(PF) not in str(refusal.value), "the write may be on another tenant's VF"
        assert refusal.value.hint

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_a_stuck_adapter_refuses_at_once_and_others_are_not_affected() -> None:
    async def test() -> None:
        bench = Bench()
        await bench.hang(A)
        with pytest.raises(Stuck):
            await bench.begin(A)
        other = bench.begin(B)
        await until(lambda: bench.host.busy == [A, B])
        bench.finish(B)
        await other

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_who_waits_for_the_lane_of_an_adapter_that_gets_stuck_is_refused() -> None:
    async def test() -> None:
        bench = Bench()
        first, second = bench.begin(A), bench.begin(A)
        for task in (first, second):
            with pytest.raises(Stuck):
                await task
        assert len(bench.host.runs) == 1

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_a_late_return_runs_the_cleanup_and_only_then_clears_stuck() -> None:
    async def test() -> None:
        bench, cleanup = Bench(), make_script(2, Verb.SET_AUTOPROBE)
        told: list[Script] = []
        bench.executor.on_written = lambda _adapter, script, _outcome: told.append(script)
        run = await bench.hang(A, cleanup=cleanup)
        assert len(bench.host.runs) == 1
        run.finish()
        await until(lambda: len(bench.host.runs) == 2)
        assert bench.host.runs[1][1].script == cleanup
        with pytest.raises(Stuck):
            bench.executor.refuse_stuck(A)
        bench.finish(A)
        await until(lambda: bench.log[-1] == f"recovered {A}")
        bench.executor.refuse_stuck(A)
        assert told[1:] == [cleanup]

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
@pytest.mark.parametrize("ending", ["finish", "die"])
def test_stuck_is_cleared_however_the_write_ends(ending: str) -> None:
    async def test() -> None:
        bench = Bench()
        run = await bench.hang(A)
        getattr(run, ending)()
        await until(lambda: bench.log[-1] == f"recovered {A}")
        task = bench.begin(A)
        await settle()
        bench.finish(A)
        await task

    run_async(test())


@pytest.mark.usefixtures("short_deadlines")
def test_a_script_that_goes_on_is_not_stuck_however_long_it_takes() -> None:
    """120 binds take as long as they take; only a step that stands still is stuck."""

    async def test() -> None:
        bench = Bench()
        task = bench.begin(A)
        await settle()
        (_, run) = bench.host.runs[0]
        run.running_usec = 50_000
        await until(lambda: run.asked == 3)
        assert not task.done()
        run.finish()
        await task
        assert bench.log == []

    run_async(test())


def test_the_deadline_is_that_of_the_step_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "_STEP_DEADLINE_SEC", {Verb.BIND: 60.0, Verb.UNBIND: 0.02})
    monkeypatch.setattr(execute, "_OTHER_STEP_DEADLINE_SEC", 0.01)

    async def test() -> None:
        bench = Bench()
        task = bench.begin(A, Script("testing", (Chain(PF, (BIND, UNBIND)),)))
        await settle()
        (_, run) = bench.host.runs[0]
        await until(lambda: run.asked == 1)
        await settle()  # 3 s of 60: it may go on
        assert not task.done()
        run.at = str(UNBIND)
        run.finish_chain()  # who is told of progress asks again
        with pytest.raises(Stuck):
            await task

    run_async(test())


def test_a_dead_helper_is_a_failure_and_not_stuck() -> None:
    async def test() -> None:
        bench = Bench()
        task = bench.begin(A)
        await settle()
        bench.host.runs[0][1].die()
        with pytest.raises(BackendFailed, match=r"testing: helper 42 was killed by signal 9\."):
            await task
        bench.executor.refuse_stuck(A)
        assert bench.log == []

    run_async(test())


def test_leftovers_make_their_adapter_stuck_until_all_have_returned() -> None:
    async def test() -> None:
        bench, ends = Bench(), [asyncio.get_running_loop().create_future() for _ in range(2)]
        for title, finished in zip(("fencing", "resetting"), ends, strict=True):
            evidence = Evidence(7, "reset", "pci_dev_wait", 9_000_000)
            bench.executor.adopt(Leftover(A, title, evidence, finished))
        ends[1].set_result(None)
        await until(lambda: len(bench.log) == 3)
        with pytest.raises(Stuck) as refusal:
            bench.executor.refuse_stuck(A)
        assert re.search(r"fencing: reset has not returned .* for 9 s", refusal.value.inside)
        ends[0].set_result(None)
        await until(lambda: bench.log[-1] == f"recovered {A}")
        assert bench.log[2] == bench.log[0]
        bench.executor.refuse_stuck(A)

    run_async(test())
