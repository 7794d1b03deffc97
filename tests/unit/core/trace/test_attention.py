"""What drivers say is followed while somebody traces, and is not begun anew each time."""

from __future__ import annotations

import asyncio

import pytest

from sriovd.core.trace import attention
from sriovd.core.trace.attention import Attention
from tests.unit.core.minihost import run_async, until


def test_who_begins_and_ends_all_the_time_lets_it_go_on() -> None:
    async def test() -> None:
        told: list[bool] = []
        paid = Attention(told.append)
        for _ in range(100):
            paid.want(True)
            paid.want(False)
            await asyncio.sleep(0)
        assert told == [True] * 100

    run_async(test())


def test_each_who_begins_asks_for_it() -> None:
    async def test() -> None:
        told: list[bool] = []
        paid = Attention(told.append)
        paid.want(True)
        paid.want(True)
        assert told == [True, True]

    run_async(test())


def test_it_ends_some_time_after_the_last_and_begins_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LINGER_SEC", 0.01)

    async def test() -> None:
        told: list[bool] = []
        paid = Attention(told.append)
        paid.want(True)
        paid.want(False)
        await until(lambda: told == [True, False])
        paid.want(True)
        assert told == [True, False, True]

    run_async(test())
