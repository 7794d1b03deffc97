"""Whose doing something is, when another has told of it: a helper process, or whoever called first."""

from __future__ import annotations

import asyncio

from sriovd.core.trace.transaction import current_requester, transaction
from tests.unit.core.minihost import run_async, settle
from tests.unit.core.test_execute import A, Bench, make_script


def test_what_a_result_causes_is_its_callers_whoever_tells_of_it() -> None:
    async def test() -> None:
        bench = Bench()
        causes: list[str] = []

        async def call() -> None:
            with transaction("Call", "uid 1000"):
                await bench.executor.run(
                    A, make_script(), on_result=lambda _: causes.append(current_requester())
                )

        task = asyncio.create_task(call())
        await settle()
        with transaction("Another", "uid 1001"):
            bench.finish(A)
        await task
        assert causes == ["uid 1000"]

    run_async(test())
