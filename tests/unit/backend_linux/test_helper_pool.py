"""Helpers that hang, die, come back and are left behind."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.linux import registry
from sriovd.backend.linux.process import HelperProcess
from sriovd.backend.linux.registry import Record, read_start_time
from sriovd.backend.steps import Step, Verb

if TYPE_CHECKING:
    from sriovd.backend.base import Run
    from sriovd.backend.linux.helpers import HelperPool
    from tests.unit.backend_linux.conftest import FakeTree, MakeScript, OpenPool, Play, WaitUntil


def _ignore(_result: object) -> None:
    pass


def _records(tree: FakeTree) -> list[Record]:
    return [Record.decode(path.read_bytes()) for path in (tree.run_directory / "helpers").glob("*.json")]


def _working(tree: FakeTree) -> list[Record]:
    return [record for record in _records(tree) if record.adapter]


async def _hang(pool: HelperPool, tree: FakeTree, make_script: MakeScript, wait_until: WaitUntil) -> Run:
    """A run that has arrived in its hanging step."""
    run = pool.run("0000:01:00", make_script((Step(Verb.RESET, tree.function),)), _ignore)
    await wait_until(lambda: any(record.step.startswith("reset") for record in _working(tree)))
    return run


def test_a_hanging_write_is_abandoned_and_resolves_when_it_returns(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    fifo = tree.hang("reset")
    count = make_script((Step(Verb.COUNT_VFS, tree.function),))

    async def story() -> None:
        async with open_pool(cap=1) as pool:
            run = await _hang(pool, tree, make_script, wait_until)
            waiting = pool.run("other", count, _ignore)
            evidence = run.abandon()
            assert evidence.step == "reset 0000:01:00.0"
            assert evidence.running_usec > 0
            await wait_until(lambda: "wait_for_partner" in str(run.abandon()))  # fs/pipe.c, of a FIFO's open
            assert (await waiting.finished)[0].ok
            assert (await pool.run("other", count, _ignore).finished)[0].ok
            assert not run.finished.done()
            tree.release(fifo)
            assert (await run.finished)[0].ok
            await wait_until(lambda: not Path(f"/proc/{evidence.pid}/fd/0").exists() or not _working(tree))

    play(story())
    assert tree.read_released() == b"1"


def test_a_run_that_never_began_can_be_abandoned(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    tree.hang("reset")
    rescan = tree.add_file("bus/pci/rescan")

    async def story() -> None:
        async with open_pool(cap=1) as pool:
            hanging = await _hang(pool, tree, make_script, wait_until)
            queued = pool.run("other", make_script((Step(Verb.RESCAN_BUS),)), _ignore)
            evidence = queued.abandon()
            assert (evidence.pid, evidence.step) == (0, "a test (not begun)")
            assert await queued.finished == ()
            hanging.abandon()
            assert (
                await pool.run("x", make_script((Step(Verb.COUNT_VFS, tree.function),)), _ignore).finished
            )[0].ok

    play(story())
    assert rescan.read_text() == ""


def test_a_stopped_script_ends_its_chain_and_begins_no_other(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    fifo = tree.hang("reset")
    bound, rescanned = tree.add_file("bus/pci/drivers/x/bind"), tree.add_file("bus/pci/rescan")
    first = Step(Verb.RESET, tree.function), Step(Verb.BIND, tree.function, "x")
    rescan = make_script((Step(Verb.RESCAN_BUS),))

    async def story() -> None:
        async with open_pool(cap=1) as pool:
            run = pool.run("slot", make_script(first, (Step(Verb.RESCAN_BUS),)), _ignore)
            await wait_until(lambda: any(record.step.startswith("reset") for record in _working(tree)))
            queued = pool.run("slot", rescan, _ignore)
            queued.stop()
            assert await queued.finished == ()
            run.stop()
            tree.release(fifo)
            (result,) = await run.finished
            assert result.ok
            assert (bound.read_text(), rescanned.read_text()) == ("0000:01:00.0", "")

    play(story())


def test_a_stop_that_comes_too_late_does_not_concern_the_next_script(
    tree: FakeTree, open_pool: OpenPool, play: Play
) -> None:
    rescanned = tree.add_file("bus/pci/rescan")
    said: list[tuple[str, object]] = []

    async def story() -> None:
        async with open_pool():
            helper = HelperProcess(str(tree.root), str(tree.run_directory / "helpers"))
            done = asyncio.Event()

            def listen(kind: str, payload: object) -> None:
                said.append((kind, payload))
                if kind == "done":
                    done.set()

            helper.on_message = listen
            helper.send(("stop",))
            helper.send(("script", False, [[("rescan", "write", "bus/pci/rescan", b"1", None)]]))
            await done.wait()
            helper.forget(remove_status=True)

    play(story())
    assert [kind for kind, _ in said] == ["results", "done"]
    assert rescanned.read_text() == "1"


def test_no_more_helpers_work_than_the_cap_allows(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    fifo = tree.hang("reset")

    async def story() -> None:
        async with open_pool(cap=3) as pool:
            script = make_script((Step(Verb.RESET, tree.function),))
            runs = [pool.run(f"adapter {index}", script, _ignore) for index in range(5)]
            await wait_until(lambda: len(_working(tree)) == 3)
            assert len(_records(tree)) <= 4  # a warm one at most in addition
            runs[0].abandon()
            await wait_until(lambda: len(_working(tree)) == 4)
            assert {record.adapter for record in _working(tree)} == {f"adapter {n}" for n in range(4)}
            tree.release(fifo)
            for run in runs:
                assert (await run.finished)[0].ok
            await wait_until(lambda: not _working(tree))

    play(story())


@pytest.mark.parametrize("abandoned", [False, True])
def test_a_helper_that_dies_fails_its_run(
    tree: FakeTree,
    open_pool: OpenPool,
    play: Play,
    make_script: MakeScript,
    wait_until: WaitUntil,
    abandoned: bool,
) -> None:
    tree.hang("reset")

    async def story() -> None:
        async with open_pool() as pool:
            run = await _hang(pool, tree, make_script, wait_until)
            (record,) = _working(tree)
            if abandoned:
                run.abandon()
            os.kill(record.pid, signal.SIGKILL)
            with pytest.raises(ConnectionError) as caught:
                await run.finished
            for part in (f"pid {record.pid}", "SIGKILL", "reset 0000:01:00.0"):
                assert part in str(caught.value)
            assert not (tree.run_directory / f"helpers/{record.pid}.json").exists()
            count = make_script((Step(Verb.COUNT_VFS, tree.function),))
            assert (await pool.run("x", count, _ignore).finished)[0].ok

    play(story())


def test_idle_helpers_that_die_are_noticed(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            for record in _records(tree):
                os.kill(record.pid, signal.SIGKILL)
            await wait_until(lambda: not _records(tree))
            count = make_script((Step(Verb.COUNT_VFS, tree.function),))
            assert (await pool.run("x", count, _ignore).finished)[0].ok

    play(story())


def test_a_helper_that_cannot_be_started_fails_the_run(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            monkeypatch.setattr(sys, "executable", "/nonexistent/python")
            count = make_script((Step(Verb.COUNT_VFS, tree.function),))
            runs = [pool.run("x", count, _ignore) for _ in range(3)]  # two are warm
            outcomes = await asyncio.gather(*(run.finished for run in runs), return_exceptions=True)
            assert isinstance(outcomes[2], ConnectionError)
            assert "/nonexistent/python" in str(outcomes[2]) or "No such file" in str(outcomes[2])

    play(story())


def test_a_termination_signal_does_not_cut_a_chain_in_two(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    fifo = tree.hang("reset")

    async def story() -> None:
        async with open_pool() as pool:
            run = await _hang(pool, tree, make_script, wait_until)
            (record,) = _working(tree)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(record.pid, number)
            tree.release(fifo)
            assert (await run.finished)[0].ok

    play(story())


def test_no_descriptor_leaks(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    tree.hang("reset")
    count = make_script((Step(Verb.COUNT_VFS, tree.function),))

    async def story() -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with open_pool() as pool:
                runs = [pool.run("x", count, _ignore) for _ in range(10)]
                await asyncio.gather(*(run.finished for run in runs))
                hanging = await _hang(pool, tree, make_script, wait_until)
                killed = pool.run("y", make_script((Step(Verb.RESET, tree.function),)), _ignore)
                await wait_until(lambda: len({record.pid for record in _working(tree)}) >= 2)
                os.kill(killed.abandon().pid, signal.SIGKILL)
                await asyncio.wait([killed.finished])
                hanging.abandon()
            assert hanging.finished.cancelled()
            for record in _working(tree):
                os.kill(record.pid, signal.SIGKILL)
                (tree.run_directory / f"helpers/{record.pid}.json").unlink()
            assert len(os.listdir("/proc/self/fd")) == before

    play(story())


_FORMER_DAEMON = """
    import asyncio, os, sys
    from sriovd.backend.linux.helpers import HelperPool
    from sriovd.backend.steps import Chain, Script, Step, Verb
    from sriovd.pci import PciAddress

    async def main(root, run_directory):
        pool = HelperPool(root, run_directory)
        pool.start()
        function = PciAddress.parse("0000:01:00.0")
        override, bind = Step(Verb.SET_DRIVER_OVERRIDE, function, "x"), Step(Verb.BIND, function, "x")
        chains = Chain(function, (override, bind)), Chain(function, (Step(Verb.RESCAN_BUS),))
        pool.run("0000:01:00", Script("bind 0000:01:00.0 to x", chains), print)
        while '"step": "set-driver-override' not in "".join(
            open(f"{run_directory}/helpers/{name}").read() for name in os.listdir(f"{run_directory}/helpers")
        ):
            await asyncio.sleep(0.002)
        os._exit(0)  # as kill -9 does: nothing is tidied up

    asyncio.run(main(*sys.argv[1:]))
"""


def test_a_new_daemon_finds_what_its_predecessor_left_hanging(
    tree: FakeTree, open_pool: OpenPool, play: Play, wait_until: WaitUntil, make_script: MakeScript
) -> None:
    fifo = tree.hang("driver_override")
    bound, rescanned = tree.add_file("bus/pci/drivers/x/bind"), tree.add_file("bus/pci/rescan")
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(_FORMER_DAEMON),
        str(tree.root),
        str(tree.run_directory),
    ]
    subprocess.run(command, check=True, timeout=20)

    async def story() -> None:
        async with open_pool() as pool:
            pool.find_leftovers()
        async with open_pool() as pool:  # two restarts: it is still found
            (leftover,) = pool.find_leftovers()
            assert leftover.adapter == "0000:01:00"
            assert leftover.title == "bind 0000:01:00.0 to x"
            assert leftover.evidence.step == "set-driver-override 0000:01:00.0 x"
            assert leftover.evidence.wchan == "wait_for_partner"
            assert leftover.evidence.running_usec > 0
            status = tree.run_directory / f"helpers/{leftover.evidence.pid}.json"
            assert status.exists()
            assert not leftover.finished.done()
            tree.release(fifo)
            await leftover.finished
            assert not status.exists()
            assert pool.find_leftovers() == []

    play(story())
    # The chain in progress was ended, the next one was not begun.
    assert bound.read_text() == "0000:01:00.0"
    assert rescanned.read_text() == ""


_BAD_FILES = {
    "1.json": b"",
    "2.json": b"{",
    "3.json": b"\xff\xfe",
    "4.json": b"[" * 60_000,
    "5.json": b"{}",
    "6.json": b'{"step": "x", "began_usec": "1", "pid": 6, "start_time": 1, "adapter": "a", "title": "t"}',
    "7.json": Record("x", 1, 8, 1, "a", "t").encode(),
    "8.txt": Record("x", 1, 8, 1, "a", "t").encode(),
    "9.json": Record("x", 1, 9, 1, "a", "t").encode()[:300],
}


@pytest.mark.parametrize("name", _BAD_FILES)
def test_what_is_no_status_file_is_reported_and_removed(
    tree: FakeTree, open_pool: OpenPool, play: Play, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            path = tree.run_directory / "helpers" / name
            path.write_bytes(_BAD_FILES[name])
            assert pool.find_leftovers() == []
            assert not path.exists()
            assert str(path) in caplog.text
            assert len(_records(tree)) == 2  # its own are left alone

    with caplog.at_level(logging.WARNING):
        play(story())


@pytest.mark.parametrize(
    ("pid", "start_time", "adapter"),
    [
        (2**31 - 1, 1, "a"),  # no such process
        (2**70, 1, "a"),  # no such number
        (os.getpid(), 1, "a"),  # the number belongs to another process now
        (os.getpid(), read_start_time(os.getpid()), ""),  # alive but idle
    ],
)
def test_files_of_the_dead_and_the_idle_are_removed(
    tree: FakeTree, open_pool: OpenPool, play: Play, pid: int, start_time: int, adapter: str
) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            path = tree.run_directory / f"helpers/{pid}.json"
            path.write_bytes(Record("x", 1, pid, start_time, adapter, "t").encode())
            assert pool.find_leftovers() == []
            assert not path.exists()

    play(story())


def test_a_run_after_the_end_is_cancelled(open_pool: OpenPool, play: Play, make_script: MakeScript) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            pass
        assert pool.run("x", make_script(), _ignore).finished.cancelled()

    play(story())


@pytest.mark.parametrize(
    ("wchan", "stack", "expected"),
    [
        ("pci_dev_wait", "", "pci_dev_wait"),
        ("0", "[<0>] msleep+0x2c/0x40\n[<0>] pci_dev_wait+0xd5/0x1c0\n", "msleep"),
        ("0", "", ""),
        ("", "", ""),
    ],
)
def test_the_kernel_function_comes_from_wchan_or_the_stack(
    monkeypatch: pytest.MonkeyPatch, wchan: str, stack: str, expected: str
) -> None:
    files = {"/proc/1/wchan": wchan, "/proc/1/stack": stack}
    monkeypatch.setattr(registry, "_read_proc", files.__getitem__)
    assert registry.read_wchan(1) == expected


def test_a_status_file_can_be_read_by_people(tree: FakeTree, open_pool: OpenPool, play: Play) -> None:
    async def story() -> None:
        async with open_pool():
            for path in (tree.run_directory / "helpers").iterdir():
                fields = json.loads(path.read_text())
                assert path.name == f"{fields['pid']}.json"
                assert fields["start_time"] == read_start_time(fields["pid"])
            assert (tree.run_directory / "helpers").stat().st_mode & 0o777 == 0o700

    play(story())


def test_stopping_ends_idle_helpers_and_their_files(tree: FakeTree, open_pool: OpenPool, play: Play) -> None:
    pids: list[int] = []

    async def story() -> None:
        async with open_pool():
            pids.extend(record.pid for record in _records(tree))

    play(story())
    assert len(pids) == 2
    assert _records(tree) == []
    for pid in pids:
        os.waitpid(pid, 0)  # returns because it has ended
