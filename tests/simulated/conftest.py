"""Daemons for the tests of this folder: one process that most share, and buses for those that start theirs."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sriovd.bus.private import PrivateBus
from tests.simulated.client import Client
from tests.simulated.process import DaemonProcess, running_daemon


def make_directory() -> Path:
    """A directory in memory if there is any: a disk makes thousands of files slow."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="sriovd-test-", dir=memory))


@pytest.fixture
def root() -> Iterator[str]:
    """Where a simulated host makes its tree."""
    directory = make_directory()
    yield str(directory / "sys")
    shutil.rmtree(directory)


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    """A bus with nobody on it."""
    with PrivateBus.start(tmp_path) as bus:
        yield bus


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """The daemon of most tests."""
    directory = make_directory()
    with running_daemon(tmp_path_factory.mktemp("daemon"), str(directory / "sys")) as daemon:
        yield daemon
        assert daemon.terminate().status == 0
    shutil.rmtree(directory)


@pytest.fixture
def host(shared_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """The shared daemon; its host is put back as it was when the test is over."""
    yield shared_daemon
    asyncio.run(_tidy(shared_daemon))


async def _tidy(daemon: DaemonProcess) -> None:
    async with Client.connected(daemon.address) as client:
        await client.tidy(daemon.root)
