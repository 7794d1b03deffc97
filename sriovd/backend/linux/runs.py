"""What helpers are asked to do: jobs, their orders and the meaning of the replies.

Rule: no process and no file here. A job knows how it is spelled for a helper (the other end is helper.py)
and how its future is resolved; which helper does it, and when, is the pool's affair.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast

from sriovd.backend.base import Evidence
from sriovd.backend.linux.registry import now_usec
from sriovd.backend.steps import Access, Chain, ChainResult, Script, Step, StepResult

if TYPE_CHECKING:  # helper.py defines no types at run time
    from sriovd.backend.linux.helper import (
        ChainsOrder,
        HolderReply,
        HoldersOrder,
        OpenOrder,
        Order,
        ScriptOrder,
        StepOrder,
        StepReply,
    )

_log = logging.getLogger(__name__)
Result = TypeVar("Result")
# The rest of a script is spelled while its first chain is at work: making 120 VFs takes a second, and
# spelling the 500 steps that bind them 50 ms on a slow machine.
_CHAINS_AT_ONCE = 16


class Job(ABC, Generic[Result]):
    """Something for a helper to do. `adapter` is empty for what concerns none; `title` says what it is."""

    def __init__(self, adapter: str, title: str) -> None:
        self.adapter = adapter
        self.title = title
        self._submitted_usec = now_usec()
        self._finished: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        # An abandoned run may fail when nobody looks any more; that is not worth a warning by asyncio.
        self._finished.add_done_callback(lambda future: future.cancelled() or future.exception())

    @property
    def finished(self) -> asyncio.Future[Result]:
        """Resolves when the helper is done. Raises ConnectionError when it died."""
        return self._finished

    @abstractmethod
    def orders(self) -> Iterator[Order]:
        """The job as the helper is told, message by message."""

    @abstractmethod
    def take(self, payload: object) -> None:
        """A part of the results has come."""

    @abstractmethod
    def conclude(self, payload: object) -> Result:
        """The helper is done: the value for `finished`. Raises OSError when that raises one."""

    def finish(self, payload: object) -> None:
        """Resolve `finished`."""
        if self._finished.done():
            return
        try:
            self._finished.set_result(self.conclude(payload))
        except OSError as error:
            self._finished.set_exception(error)

    def withdraw(self) -> None:
        """No helper will ever have it."""
        self.finish(None)

    def fail(self, message: str) -> None:
        """Let `finished` raise ConnectionError."""
        if not self._finished.done():
            self._finished.set_exception(ConnectionError(f"{self.title}: {message}"))

    def cancel(self) -> None:
        """Nobody will ever know."""
        self._finished.cancel()

    def describe_wait(self) -> Evidence:
        """Evidence for a job that no helper has."""
        return Evidence(0, f"{self.title} (not begun)", "", now_usec() - self._submitted_usec)


class RunControl(Protocol):
    """Who knows which helper has a job."""

    def stop(self, job: Job[Any]) -> None:
        """Let the job's helper begin no further chain."""

    def abandon(self, job: Job[Any]) -> Evidence:
        """Free the job's place."""

    def describe(self, job: Job[Any]) -> Evidence:
        """Where the job is."""


class ScriptRun(Job[Sequence[ChainResult]]):
    """A script under way: backend.base.Run."""

    def __init__(
        self,
        adapter: str,
        script: Script,
        on_result: Callable[[ChainResult], None],
        control: RunControl,
    ) -> None:
        super().__init__(adapter, script.title)
        self._script = script
        self._on_result = on_result
        self._control = control
        self._results: list[ChainResult] = []

    def describe(self) -> Evidence:
        """Where it is; see Run."""
        return self._control.describe(self)

    def abandon(self) -> Evidence:
        """Stop waiting and free the helper's place; see Run. One that has not begun never will, and
        resolves without results."""
        return self._control.abandon(self)

    def stop(self) -> None:
        """Begin no further chain; see Run. One that has not begun resolves without results."""
        self._control.stop(self)

    def orders(self) -> Iterator[ScriptOrder | ChainsOrder]:
        chains = self._script.chains
        yield "script", self._script.stop_on_failure, len(chains)
        for first, end in itertools.pairwise((0, *range(1, len(chains), _CHAINS_AT_ONCE), len(chains))):
            yield "chains", [[_spell(step) for step in chain.steps] for chain in chains[first:end]]

    def take(self, payload: object) -> None:
        for index, replies in cast("list[tuple[int, list[StepReply]]]", payload):
            result = _understand(self._script.chains[index], replies)
            self._results.append(result)
            try:
                self._on_result(result)
            except Exception:  # the listener's fault must not lose the results that follow
                _log.exception("%s: a listener failed", self.title)

    def conclude(self, payload: object) -> Sequence[ChainResult]:  # noqa: ARG002  nothing comes with it
        return tuple(self._results)


class HolderScan(Job["HolderReply"]):
    """A search of all processes for those that have one of `paths` open."""

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__("", "find-holders")
        self._paths = list(paths)

    def orders(self) -> Iterator[HoldersOrder]:
        yield "holders", self.title, self._paths

    def take(self, payload: object) -> None:
        raise TypeError(f"a scan has no partial results: {payload!r}")

    def conclude(self, payload: object) -> HolderReply:
        return cast("HolderReply", payload)


class NodeOpening(Job[int]):
    """Opens a device node; `finished` has its descriptor, which is the caller's, or raises OSError. It
    writes nothing, so what a dead daemon leaves of it hanging is no reason to leave an adapter alone."""

    def __init__(self, path: str) -> None:
        super().__init__("", f"opening {path}")
        self._path = path

    def orders(self) -> Iterator[OpenOrder]:
        yield "open", self.title, self._path

    def take(self, payload: object) -> None:
        raise TypeError(f"a node is open or not: {payload!r}")

    def conclude(self, payload: object) -> int:
        code, fd = cast("tuple[int, int]", payload)
        if code:
            raise OSError(code, os.strerror(code), self._path)
        return fd

    def withdraw(self) -> None:
        self.cancel()

    def discard(self) -> None:
        """Nobody wants it any more: what is open, or will be, is closed again."""
        self._finished.add_done_callback(_close)


def _close(finished: asyncio.Future[int]) -> None:
    if not finished.cancelled() and finished.exception() is None:
        os.close(finished.result())


def _spell(step: Step) -> StepOrder:
    access = step.spell()
    if access.access is Access.LINK:  # what is read is a text only at this end: the helper cannot expect it
        return str(step), access.access.value, access.path, _import_codec().encode_step(step), None
    data = access.data.encode("utf-8", "backslashreplace")
    return str(step), access.access.value, access.path, data, step.expect


def _understand(chain: Chain, replies: list[StepReply]) -> ChainResult:
    pairs = zip(chain.steps, replies, strict=False)  # a chain ends at its first failure
    return ChainResult(chain, tuple(_understand_reply(step, *reply) for step, reply in pairs))


def _understand_reply(step: Step, number: int, value: str | bytes, usec: int) -> StepResult:
    if isinstance(value, str):
        return StepResult(step, number, value, usec)
    number, text = _import_codec().decode_reply(value)
    return StepResult(step, number, text, usec)


def _import_codec() -> ModuleType:
    """netlink.py, which most daemons never need."""
    return importlib.import_module("sriovd.backend.linux.netlink")
