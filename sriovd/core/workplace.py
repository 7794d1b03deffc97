"""The right to change an adapter, for as long as a job does.

Rule: whoever writes to an adapter does so in here: one job at a time on each, and the picture knows that the
job looks at what it touches by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sriovd.core.execute import Executor
from sriovd.core.jobs import Job
from sriovd.core.picture import Picture


class Workplace:
    """Where jobs get their adapters."""

    def __init__(self, executor: Executor, picture: Picture) -> None:
        self._executor = executor
        self._picture = picture
        self._working: Counter[str] = Counter()

    @asynccontextmanager
    async def working_on(self, job: Job, adapter: str, *, exclusive: bool = False) -> AsyncIterator[None]:
        """Wait for the adapter's turn and keep it. Raises Stuck, Cancelled, and as the job's `admit`."""
        async with self._executor.lane(adapter, exclusive=exclusive):
            job.heed_cancel("its turn came")
            job.admit()
            self._picture.begin_job(adapter)
            self._working[adapter] += 1
            try:
                yield
            finally:
                self._working[adapter] -= 1
                self._picture.end_job(adapter)

    def is_busy(self, adapter: str) -> bool:
        """Whether a job is at it: how its functions are is not known before that has ended."""
        return self._working[adapter] > 0
