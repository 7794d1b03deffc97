"""Device nodes are opened by helpers: a kernel that keeps whoever opens waiting keeps nobody else."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.linux.host import LinuxBackend
from sriovd.backend.steps import Step, Verb

if TYPE_CHECKING:
    from sriovd.backend.linux.helpers import HelperPool
    from tests.unit.backend_linux.conftest import FakeTree, MakeScript, OpenPool, Play, WaitUntil

ADAPTER = "0000:01:00"
LONG_SEC = 10.0


@pytest.fixture
def node(tmp_path: Path) -> Path:
    path = tmp_path / "7"
    path.write_text("of the device")
    return path


def count_open(path: Path) -> int:
    """How often this process has `path` open."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.readlink(link) == str(path) for link in links)


def stop_next_helper(pool: HelperPool) -> int:
    """Who gets the next job does not come back from it, as in a kernel that makes him wait; its pid."""
    pid = pool._idle[-1].pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def test_the_descriptor_is_the_callers(open_pool: OpenPool, play: Play, node: Path) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            fd = await pool.open_node(str(node), LONG_SEC)
            assert os.read(fd, 100) == b"of the device"
            os.write(fd, b"!")
            assert not os.get_inheritable(fd)
            os.close(fd)
            assert node.read_text() == "of the device!"
            for _ in range(100):
                os.close(await pool.open_node(str(node), LONG_SEC))
            assert count_open(node) == 0

    play(story())


def test_what_cannot_be_opened_says_why(open_pool: OpenPool, play: Play, tmp_path: Path) -> None:
    async def story() -> None:
        async with open_pool(cap=1) as pool:
            for path, error in ((tmp_path / "none", FileNotFoundError), (tmp_path, IsADirectoryError)):
                with pytest.raises(error):
                    await pool.open_node(str(path), LONG_SEC)

    play(story())


def test_one_that_hangs_is_left_behind_and_closed_when_it_comes(
    open_pool: OpenPool,
    play: Play,
    node: Path,
    tree: FakeTree,
    make_script: MakeScript,
    wait_until: WaitUntil,
) -> None:
    async def story() -> None:
        async with open_pool(cap=1) as pool:
            pid = stop_next_helper(pool)
            with pytest.raises(TimeoutError):
                await pool.open_node(str(node), 0.05)
            with pytest.raises(TimeoutError, match="already"):
                await pool.open_node(str(node), LONG_SEC)
            assert len(pool._abandoned) == 1, "however often somebody asks"
            script = make_script((Step(Verb.COUNT_VFS, tree.function),))
            assert (await pool.run("other", script, lambda _: None).finished)[0].ok, "its place is free"
            os.kill(pid, signal.SIGCONT)
            await wait_until(lambda: not pool._abandoned)
            await asyncio.sleep(0)  # the callbacks of what has come
            assert count_open(node) == 0
            os.close(await pool.open_node(str(node), LONG_SEC))

    play(story())


def test_one_that_never_came_to_a_helper_is_nobodys(
    open_pool: OpenPool,
    play: Play,
    node: Path,
    tree: FakeTree,
    make_script: MakeScript,
    wait_until: WaitUntil,
) -> None:
    fifo = tree.hang("reset")

    async def story() -> None:
        async with open_pool(cap=1) as pool:
            run = pool.run(ADAPTER, make_script((Step(Verb.RESET, tree.function),)), lambda _: None)
            with pytest.raises(TimeoutError):
                await pool.open_node(str(node), 0.05)
            tree.release(fifo)
            assert (await run.finished)[0].ok
            os.close(await pool.open_node(str(node), LONG_SEC))

    play(story())


def test_a_helper_that_dies_is_said(open_pool: OpenPool, play: Play, node: Path) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            pid = stop_next_helper(pool)
            opening = asyncio.create_task(pool.open_node(str(node), LONG_SEC))
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(ConnectionError, match=r"opening .*/7"):
                await opening

    play(story())


def test_the_group_is_roots_afterwards(
    tree: FakeTree, play: Play, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who had it may get it again: that is not the host's to say."""
    owners: list[int] = []
    monkeypatch.setattr("sriovd.backend.linux.host.give_node", lambda *order: owners.append(order[2]))

    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory), vfio_directory=str(node.parent))
        backend._helpers.start()
        try:
            os.close(await backend.open_group(7, LONG_SEC))
        finally:
            backend._helpers.close()
        assert owners == [0]

    play(story())
