"""Daemons that can be killed at any moment: an engine on the simulated host, its database in a file.

Rule: only the host and the database outlive a daemon, so a moment differs from the one before only if one of
them has changed, or a helper would do more; all other moments are the same crash and are not tried. A killed
daemon's helper ends its chain and begins no other; or it is killed too, in the middle of the chain.

The store works in the event loop's own thread here, so that the moments come in the same order every time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from unittest.mock import patch

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.runner import SimulatedRun
from sriovd.backend.steps import ChainResult, Script, Step, StepResult
from sriovd.core.engine import Engine, Places
from sriovd.core.store import Store

T = TypeVar("T")

DEADLINE_SEC = 20.0


class Life:
    """One daemon's life. `dies_at`: the moment, counted from 0, at which it is killed; None for never.
    `moments`: what they were, in words."""

    def __init__(self, backend: SimulatedBackend, places: Places, dies_at: int | None = None) -> None:
        self.backend = backend
        self.moments: list[str] = []
        self.dead = asyncio.Event()
        self._dies_at = dies_at
        self._ending = False
        self._news = True  # whether the host or the database have changed since the last moment
        with patch("sriovd.core.engine.Store", lambda *rest: _MortalStore(self, *rest)):
            self.engine = Engine(_MortalBackend(self), places)
        self.engine.executor.on_stuck = self.engine.inventory.set_stuck
        self.engine.executor.on_recovered = self._note_recovered

    async def start(self, *, policy: bool = True) -> None:
        """As the daemon starts."""
        await self.backend.start()
        self._follower = asyncio.create_task(self.engine.picture.follow())
        await self.engine.look_around()
        await self.engine.take_up_recovery()
        self.engine.take_up_leases(frozenset())
        if policy:
            await self.engine.start_policy()

    def note_change(self) -> None:
        """The host or the database is not as it was."""
        self._news = True

    def reach(self, moment: str) -> None:
        """A moment. Raises CancelledError when it is the last, and ever after."""
        if not self.dead.is_set() and self._news and not self._ending:
            self._news = False
            self.moments.append(moment)
            if len(self.moments) - 1 == self._dies_at:
                self.die()
        if self.dead.is_set():
            raise asyncio.CancelledError

    def die(self) -> None:
        """It is killed."""
        self.dead.set()
        self._runs = list(self.backend._runs)
        end = self.backend.stop()
        with suppress(StopIteration):
            end.send(None)

    async def bury(self, *, helpers_end: bool = True) -> None:
        """Nothing of it runs on but the chain that its helper is in; returns when that has ended, if it
        will."""
        helpers = {run.task for run in self._runs} | {asyncio.current_task()}
        while rest := asyncio.all_tasks() - helpers - self.backend._tasks:
            for task in rest:
                task.cancel()
            await asyncio.sleep(0)
        self.engine.store.drop()
        if helpers_end:
            await asyncio.gather(*(run.task for run in self._runs), return_exceptions=True)

    async def end(self) -> None:
        """The end of a daemon that is asked to."""
        self._follower.cancel()
        self._ending = True
        await self.backend.stop()
        await self.engine.close()

    def _note_recovered(self, adapter: str) -> None:
        """As the daemon's."""
        self.engine.inventory.set_stuck(adapter, "")
        self.engine.picture.look_again(adapter)
        self.engine.policy.note_adapter(adapter)
        self.engine.recovery.check(adapter)


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until `condition` holds."""
    async with asyncio.timeout(DEADLINE_SEC):
        while not condition():
            await asyncio.sleep(0)


class _MortalStore(Store):
    """The database of one life."""

    def __init__(self, life: Life, path: str, boot: str, kernel: str) -> None:
        super().__init__(path, boot, kernel)
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None
        self._life = life

    def _do(self, work: Callable[[], T]) -> Awaitable[T]:
        self._life.reach("before a commit")
        done = super()._do(work)
        self._life.note_change()
        self._life.reach("after a commit")
        return done


class _MortalBackend:
    """The host, as one life reaches it."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._backend = life.backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run(self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]) -> SimulatedRun:
        """A script, whose every step is a moment."""
        life = self._life
        life.reach(f"before {script.title}")

        def note(result: ChainResult) -> None:
            try:
                life.reach(f"after {result.chain.steps[-1]}")
            except asyncio.CancelledError:
                return  # nobody is left to be told
            on_result(result)

        run = self._backend.run(adapter, script, note)
        execute = run._run_step

        async def run_step(step: Step) -> StepResult:
            result = await execute(step)
            if step.writes:
                life.note_change()
            if step.writes and not life.dead.is_set() and not _ends_chain(script, step, result):
                life.reach(f"in the middle of a chain, after {step}")  # which ends the helper, too
                life.note_change()  # the next moment is not this one: there the helper lives on
            return result

        run._run_step = run_step  # type: ignore[method-assign]
        return run

    def hand_over(self, *arguments: Any) -> None:
        """The owner gets the VFIO group."""
        self._touch(self._backend.hand_over, arguments)

    def take_back(self, *arguments: Any) -> None:
        """And loses it."""
        self._touch(self._backend.take_back, arguments)

    def _touch(self, access: Callable[..., None], arguments: Sequence[Any]) -> None:
        self._life.reach(f"before {access.__name__}")
        access(*arguments)
        self._life.note_change()
        self._life.reach(f"after {access.__name__}")


def _ends_chain(script: Script, step: Step, result: StepResult) -> bool:
    """Whether a chain ends with it: then the end of the chain is the moment."""
    return not result.ok or any(chain.steps[-1] is step for chain in script.chains)
