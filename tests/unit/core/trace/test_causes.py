"""Whose doing something is, when another has told of it: a helper process, or whoever called first."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sriovd.core.trace.transaction import current_requester, transaction
from tests.unit.core.lease.leasehost import on_host, until, world
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


@on_host
async def test_policy_looks_in_nobodys_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wakes it for the first: it looks at all that have changed by then."""
    causes: list[str] = []

    async def look(_adapter: str) -> None:
        causes.append(current_requester())

    async with world(tmp_path) as host:
        monkeypatch.setattr(host.engine.policy, "_check_adapter", look)
        with transaction("Release", "uid 1000"):
            host.engine.policy._begin_checks(A)
        await until(lambda: causes)
        assert causes == ["sriovd"]
