"""A tree that stands for /sys, and pools of real helper processes that work on it.

Rule: helpers are real processes and writes are real; a kernel write that hangs is a FIFO that nobody reads:
open(2) for writing sleeps until somebody does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.linux.helpers import HelperPool
from sriovd.backend.linux.registry import Record, read_start_time
from sriovd.backend.steps import Chain, Script, Step
from sriovd.pci import PciAddress

DEADLINE_SECONDS = 20.0
FUNCTION = PciAddress.parse("0000:01:00.0")


class FakeTree:
    """Files below `root`, and FIFOs for writes that hang."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "sys"
        self.run_directory = directory / "run"
        self.function = FUNCTION
        self.device = self.root / "bus/pci/devices" / str(FUNCTION)
        self.device.mkdir(parents=True)
        self._readers: list[int] = []

    def add_file(self, path: str, text: str = "") -> Path:
        """A file at `path` below the root."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def hang(self, name: str) -> Path:
        """Let the device's attribute `name` swallow its writers."""
        fifo = self.device / name
        os.mkfifo(fifo)
        return fifo

    def release(self, fifo: Path) -> None:
        """Let the writers of `fifo` go on."""
        self._readers.append(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))

    def read_released(self, index: int = -1) -> bytes:
        """What has been written to a released FIFO."""
        return os.read(self._readers[index], 4096)

    def read_records(self) -> list[Record]:
        """The status files of all helpers."""
        return [Record.decode(path.read_bytes()) for path in (self.run_directory / "helpers").iterdir()]

    def read_working(self) -> list[Record]:
        """The status files of the helpers that have a job."""
        return [record for record in self.read_records() if record.adapter]

    def close(self) -> None:
        """End the helpers that still hang, and close everything."""
        if (self.run_directory / "helpers").is_dir():
            for record in self.read_working():
                if read_start_time(record.pid) == record.start_time:
                    os.kill(record.pid, signal.SIGKILL)
        for fd in self._readers:
            os.close(fd)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[FakeTree]:
    tree = FakeTree(tmp_path)
    yield tree
    tree.close()


OpenPool = Callable[..., AbstractAsyncContextManager[HelperPool]]


@pytest.fixture
def open_pool(tree: FakeTree) -> OpenPool:
    @asynccontextmanager
    async def make(**options: Any) -> AsyncIterator[HelperPool]:
        pool = HelperPool(str(tree.root), str(tree.run_directory), **options)
        pool.start()
        try:
            yield pool
        finally:
            pool.close()

    return make


Play = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def play() -> Play:
    """Run a coroutine to its end, with a deadline."""

    def run(story: Coroutine[Any, Any, None]) -> None:
        asyncio.run(asyncio.wait_for(story, DEADLINE_SECONDS))

    return run


WaitUntil = Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]


@pytest.fixture
def wait_until() -> WaitUntil:
    """Wait until a condition holds."""

    async def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            await asyncio.sleep(0.002)

    return wait


MakeScript = Callable[..., Script]


@pytest.fixture
def make_script() -> MakeScript:
    """A script of one chain for each argument, each a sequence of steps on the tree's function."""

    def make(*chains: tuple[Step, ...], stop_on_failure: bool = False) -> Script:
        return Script("a test", tuple(Chain(FUNCTION, steps) for steps in chains), stop_on_failure)

    return make
