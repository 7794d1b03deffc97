"""Waiting for something on behalf of a caller, and no longer than the caller is on the bus."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from sriovd.bus.connection import Connection

_Result = TypeVar("_Result")


async def wait_while_present(
    connection: Connection, sender: str, work: Coroutine[Any, Any, _Result]
) -> _Result:
    """The result of `work`, which is cancelled when `sender` (a unique name) leaves the bus. Raises
    CancelledError then, what `work` raises, and BusError."""
    task = asyncio.ensure_future(work)
    watch = None
    try:
        watch = await connection.watch_name(sender, task.cancel)
        return await task
    finally:
        task.cancel()
        if watch is not None:
            await watch.cancel()
