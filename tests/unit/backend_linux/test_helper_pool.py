"""Helpers that hang, die and come back, and how many there are."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.linux import helper
from sriovd.backend.linux.process import HelperProcess
from sriovd.backend.steps import Step, Verb

if TYPE_CHECKING:
    from sriovd.backend.base import Run
    from sriovd.backend.linux.helpers import HelperPool
    from tests.unit.backend_linux.conftest import FakeTree, MakeScript, OpenPool, Play, WaitUntil

RESCAN = (("script", False, 1), ("chains", [[("rescan", "write", "bus/pci/rescan", b"1", None)]]))


def _ignore(_result: object) -> None:
    pass


async def _hang(pool: HelperPool, tree: FakeTree, make_script: MakeScript, wait_until: WaitUntil) -> Run:
    """A run that has arrived in its hanging step."""
    run = pool.run("0000:01:00", make_script((Step(Verb.RESET, tree.function),)), _ignore)
    await wait_until(lambda: any(record.step.startswith("reset") for record in tree.read_working()))
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
            assert run.describe().step == "reset 0000:01:00.0"
            assert not waiting.finished.done(), "a run is not abandoned by being asked"
            evidence = run.abandon()
            assert evidence.step == "reset 0000:01:00.0"
            assert evidence.running_usec > 0
            await wait_until(lambda: "wait_for_partner" in str(run.abandon()))  # fs/pipe.c, of a FIFO's open
            assert (await waiting.finished)[0].ok
            assert (await pool.run("other", count, _ignore).finished)[0].ok
            assert not run.finished.done()
            tree.release(fifo)
            assert (await run.finished)[0].ok
            await wait_until(
                lambda: not Path(f"/proc/{evidence.pid}/fd/0").exists() or not tree.read_working()
            )

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
            await wait_until(lambda: any(record.step.startswith("reset") for record in tree.read_working()))
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
            process = HelperProcess(str(tree.root), str(tree.run_directory / "helpers"))
            done = asyncio.Event()

            def listen(kind: str, payload: object) -> None:
                said.append((kind, payload))
                if kind == "done":
                    done.set()

            process.on_message = listen
            process.send(("stop",))
            for message in RESCAN:
                process.send(message)
            await done.wait()
            process.forget(remove_status=True)

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
            await wait_until(lambda: len(tree.read_working()) == 3)
            assert len(tree.read_records()) <= 4  # a warm one at most in addition
            runs[0].abandon()
            await wait_until(lambda: len(tree.read_working()) == 4)
            assert {record.adapter for record in tree.read_working()} == {f"adapter {n}" for n in range(4)}
            tree.release(fifo)
            for run in runs:
                assert (await run.finished)[0].ok
            await wait_until(lambda: not tree.read_working())

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
            (record,) = tree.read_working()
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
            for record in tree.read_records():
                os.kill(record.pid, signal.SIGKILL)
            await wait_until(lambda: not tree.read_records())
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
            (record,) = tree.read_working()
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
        gc.collect()  # what tests before this one have left must not vanish in between
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with open_pool() as pool:
                runs = [pool.run("x", count, _ignore) for _ in range(10)]
                await asyncio.gather(*(run.finished for run in runs))
                hanging = await _hang(pool, tree, make_script, wait_until)
                killed = pool.run("y", make_script((Step(Verb.RESET, tree.function),)), _ignore)
                await wait_until(lambda: len({record.pid for record in tree.read_working()}) >= 2)
                os.kill(killed.abandon().pid, signal.SIGKILL)
                await asyncio.wait([killed.finished])
                hanging.abandon()
            assert hanging.finished.cancelled()
            for record in tree.read_working():
                os.kill(record.pid, signal.SIGKILL)
                (tree.run_directory / f"helpers/{record.pid}.json").unlink()
            assert len(os.listdir("/proc/self/fd")) == before

    play(story())


def test_no_chain_is_begun_without_a_daemon(tree: FakeTree) -> None:
    rescanned = tree.add_file("bus/pci/rescan")
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-I", "-S", helper.__file__, str(tree.root), str(tree.run_directory)]
    with subprocess.Popen(command, stdin=theirs.fileno(), start_new_session=True) as process:
        theirs.close()
        process.send_signal(signal.SIGSTOP)  # so that it finds the script and the end at once
        ours.send(b"".join(map(helper.frame, RESCAN)))
        ours.close()
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 0
    assert rescanned.read_text() == ""


def test_a_wiped_run_directory_stops_no_work(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            for path in (tree.run_directory / "helpers").iterdir():
                path.unlink()
            count = make_script((Step(Verb.COUNT_VFS, tree.function),))
            assert (await pool.run("x", count, _ignore).finished)[0].ok

    play(story())


def test_a_run_after_the_end_is_cancelled(open_pool: OpenPool, play: Play, make_script: MakeScript) -> None:
    async def story() -> None:
        async with open_pool() as pool:
            pass
        assert pool.run("x", make_script(), _ignore).finished.cancelled()

    play(story())


def test_stopping_ends_idle_helpers_and_their_files(tree: FakeTree, open_pool: OpenPool, play: Play) -> None:
    pids: list[int] = []

    async def story() -> None:
        async with open_pool():
            pids.extend(record.pid for record in tree.read_records())

    play(story())
    assert len(pids) == 2
    assert tree.read_records() == []
    for pid in pids:
        os.waitpid(pid, 0)  # returns because it has ended
