"""Intents around scripts: open before the first write, closed when nothing can come of them any more."""

from __future__ import annotations

import asyncio

import pytest

from sriovd.backend.steps import Script, Verb
from sriovd.core.errors import BackendFailed
from sriovd.core.execute import Executor
from tests.unit.core.minihost import run_async, settle, until
from tests.unit.core.test_execute import A, Bench, MemoryJournal, make_script


def outcomes(bench: Bench) -> list[str]:
    return [intent[-1] for intent in bench.journal.intents]


def test_an_intent_is_open_before_the_write_and_closed_after_it() -> None:
    async def test() -> None:
        bench = Bench()
        task = bench.begin(A)
        await settle()
        assert outcomes(bench) == [""]
        bench.finish(A)
        await task
        assert outcomes(bench) == ["done"]

    run_async(test())


def test_reading_leaves_no_intent() -> None:
    async def test() -> None:
        bench = Bench()
        task = bench.begin(A, make_script(1, Verb.READ_DRIVER))
        await settle()
        bench.finish(A)
        await task
        assert outcomes(bench) == []

    run_async(test())


def test_what_failed_stays_open_until_nobody_can_undo_it_any_more() -> None:
    """Else a daemon killed before the undoing would leave half of it to nobody."""

    async def test() -> None:
        bench = Bench()
        undo = asyncio.Event()

        async def work() -> None:
            async with bench.executor.lane(A):
                with pytest.raises(BackendFailed):
                    await bench.executor.run(A, make_script())
                await undo.wait()
                await bench.executor.run(A, make_script())

        task = asyncio.create_task(work())
        await until(lambda: len(bench.host.runs) == 1)
        bench.host.runs[0][1].die()
        await settle()
        assert outcomes(bench) == [""]
        undo.set()
        await until(lambda: len(bench.host.runs) == 2)
        assert outcomes(bench) == ["", ""]
        bench.finish(A)
        await task
        assert outcomes(bench)[1] == "done"
        assert "killed by signal 9" in outcomes(bench)[0]

    run_async(test())


def test_who_is_cancelled_leaves_the_intent_open() -> None:
    async def test() -> None:
        bench = Bench()
        task = bench.begin(A)
        await settle()
        task.cancel()
        await asyncio.wait({task})
        assert outcomes(bench) == [""]

    run_async(test())


class FullJournal(MemoryJournal):
    """A journal whose disk is full by now."""

    async def finish(self, intent: int, outcome: str) -> None:
        raise BackendFailed(f"no space for {intent}: {outcome}")


def test_what_was_done_is_done_though_the_journal_cannot_say_so() -> None:
    async def test() -> None:
        bench = Bench()
        bench.executor = Executor(bench.host, FullJournal())
        task = bench.begin(A)
        await settle()
        bench.finish(A)
        assert len(await task) == 1

    run_async(test())


class NoJournal(MemoryJournal):
    """One that takes nothing."""

    async def begin(self, adapter: str, requester: str, script: Script) -> int:
        raise BackendFailed(f"no space for {script.title} on {adapter} for {requester}")


def test_nothing_is_written_that_is_not_in_the_journal() -> None:
    async def test() -> None:
        bench = Bench()
        bench.executor = Executor(bench.host, NoJournal())
        with pytest.raises(BackendFailed):
            await bench.begin(A)
        assert bench.host.runs == []

    run_async(test())
