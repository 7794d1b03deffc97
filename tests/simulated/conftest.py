"""Daemons for the tests of this folder: one process that most share, and buses for the others."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sriovd.bus.private import PrivateBus
from tests.simulated.client import Client
from tests.simulated.process import DaemonProcess, running_daemon


@contextmanager
def made_root() -> Iterator[str]:
    """Where a simulated host makes its tree: in memory if possible, for a disk makes thousands of files
    slow."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="sriovd-test-", dir=memory) as directory:
        yield f"{directory}/sys"


@pytest.fixture
def root() -> Iterator[str]:
    """As made_root."""
    with made_root() as path:
        yield path


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    """A bus with nobody on it."""
    with PrivateBus.start(tmp_path) as bus:
        yield bus


@pytest.fixture(scope="session")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    """The daemon of most tests."""
    with made_root() as path, running_daemon(tmp_path_factory.mktemp("daemon"), path) as daemon:
        yield daemon
        assert daemon.terminate().status == 0


@pytest.fixture
def host(shared_daemon: DaemonProcess) -> Iterator[DaemonProcess]:
    """The shared daemon; its host is put back as it was when the test is over."""
    yield shared_daemon
    asyncio.run(_tidy(shared_daemon))


async def _tidy(daemon: DaemonProcess) -> None:
    async with Client.connected(daemon.address) as client:
        await client.tidy()


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated drivers keep what they took, and nothing is gained by looking again later."""
    monkeypatch.setattr("sriovd.core.binder.SETTLE_SEC", 0.0)
    monkeypatch.setattr("sriovd.core.converge.keeper.PAUSE_SEC", 0.0)
    monkeypatch.setattr("sriovd.core.configurer._PAUSE_SEC", 0.0)


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the hosts of one test are."""
    with made_root() as path:
        yield Path(path).parent
