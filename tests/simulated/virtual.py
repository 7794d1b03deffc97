"""Time that passes only while nothing can be done: an event loop with a clock of its own.

Rule: everything runs in one thread and in the same order every time; minutes of the kernel cost nothing. A
loop that waits for something that can never come is told at once, instead of by a deadline.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")

_BEGAN_NSEC = 1_800_000_000 * 10**9  # of CLOCK_REALTIME


class Clock:
    """Nanoseconds since it was made."""

    def __init__(self) -> None:
        self.nsec = 10**12

    def advance(self, seconds: float) -> None:
        """Let time pass, at least a microsecond."""
        self.nsec += max(1000, int(seconds * 1e9) + 1)

    @contextmanager
    def rules(self) -> Iterator[None]:
        """While it lasts, everybody sees this clock."""
        with (
            patch("time.monotonic", lambda: self.nsec / 1e9),
            patch("time.monotonic_ns", lambda: self.nsec),
            patch("time.time", lambda: (_BEGAN_NSEC + self.nsec) / 1e9),
            patch("time.time_ns", lambda: _BEGAN_NSEC + self.nsec),
        ):
            yield


class _Selector(selectors.SelectSelector):
    """Waits by moving the clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("Everybody waits for something that can never come.")
        if timeout > 0:
            self._clock.advance(timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    """Threads' work is done by the one that asks for it."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        done: asyncio.Future[Any] = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as error:
            done.set_exception(error)
        return done

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """asyncio.run, in a time of its own."""
    clock = Clock()
    with clock.rules(), asyncio.Runner(loop_factory=lambda: _Loop(_Selector(clock))) as runner:
        return runner.run(main())
