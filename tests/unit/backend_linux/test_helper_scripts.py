"""Scripts done by real helper processes: order, first failure, errno, exact bytes."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.linux import helper
from sriovd.backend.steps import ChainResult, Step, Verb

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import FakeTree, MakeScript, OpenPool, Play, WaitUntil


def _errnos(results: Sequence[ChainResult]) -> list[list[int]]:
    return [[step.errno for step in result.results] for result in results]


def test_a_chain_ends_at_its_first_failure_and_the_next_goes_on(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    written = tree.add_file("bus/pci/drivers/vfio-pci/bind")
    override = tree.add_file(f"bus/pci/devices/{tree.function}/driver_override", "(null)\n")
    good = Step(Verb.BIND, tree.function, "vfio-pci")
    absent = Step(Verb.BIND, tree.function, "absent")
    never = Step(Verb.SET_DRIVER_OVERRIDE, tree.function, "x")
    seen: list[ChainResult] = []

    async def story() -> None:
        async with open_pool() as pool:
            results = await pool.run("slot", make_script((absent, never), (good,)), seen.append).finished
            assert _errnos(results) == [[errno.ENOENT], [0]]
            assert list(results) == seen
            assert [result.ok for result in results] == [False, True]

    play(story())
    assert written.read_text() == "0000:01:00.0"
    assert override.read_text() == "(null)\n"


def test_stop_on_failure_leaves_later_chains_untried(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    written = tree.add_file("bus/pci/drivers/vfio-pci/bind")
    absent = Step(Verb.BIND, tree.function, "absent")
    script = make_script((absent,), (Step(Verb.BIND, tree.function, "vfio-pci"),), stop_on_failure=True)

    async def story() -> None:
        async with open_pool() as pool:
            results = await pool.run("slot", script, lambda _result: None).finished
            assert _errnos(results) == [[errno.ENOENT]]

    play(story())
    assert written.read_text() == ""


def test_reads_and_expectations(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    tree.add_file(f"bus/pci/devices/{tree.function}/driver_override", "vfio-pci\n")
    (tree.device / "driver").symlink_to("../../../../bus/pci/drivers/igbvf")
    for index in range(3):
        (tree.device / f"virtfn{index}").symlink_to(f"../0000:01:10.{index}")
    never = tree.add_file("bus/pci/rescan")
    function = tree.function
    chains = (
        (Step(Verb.READ_DRIVER_OVERRIDE, function, expect="vfio-pci"),),
        (Step(Verb.READ_DRIVER, function, expect="igbvf"),),
        (Step(Verb.COUNT_VFS, function, expect="3"),),
        (Step(Verb.COUNT_VFS, function, expect="4"), Step(Verb.RESCAN_BUS)),
    )

    async def story() -> None:
        async with open_pool() as pool:
            results = await pool.run("slot", make_script(*chains), lambda _result: None).finished
            assert [result.ok for result in results] == [True, True, True, False]
            assert results[3].failure is not None
            assert results[3].failure.mismatch
            assert results[3].value(Verb.COUNT_VFS) == "3"

    play(story())
    assert never.read_text() == ""


def test_no_driver_is_an_empty_name_and_no_device_an_error(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    step = Step(Verb.READ_DRIVER, tree.function, expect="")

    async def story() -> None:
        async with open_pool() as pool:
            results = await pool.run("slot", make_script((step,)), lambda _result: None).finished
            assert results[0].ok
            tree.device.rmdir()
            results = await pool.run("slot", make_script((step,)), lambda _result: None).finished
            assert _errnos(results) == [[errno.ENOENT]]

    play(story())


@pytest.mark.parametrize(
    ("verb", "argument", "code"),
    [
        (Verb.BIND, "directory", errno.EISDIR),
        (Verb.BIND, "absent", errno.ENOENT),
        (Verb.BIND, "file", errno.ENOTDIR),
        (Verb.BIND, "loop", errno.ELOOP),
        (Verb.BIND, "x" * 300, errno.ENAMETOOLONG),
        (Verb.BIND, "../../../victim", errno.EINVAL),
        (Verb.BIND, "", errno.EINVAL),
        (Verb.BIND, "a\0b", errno.EINVAL),
        (Verb.BIND, "\ud800", errno.EINVAL),
        (Verb.SET_NUM_VFS, "", errno.EINVAL),  # an empty write would succeed without reaching the kernel
    ],
)
def test_what_cannot_be_done_has_its_errno(
    tree: FakeTree,
    open_pool: OpenPool,
    play: Play,
    make_script: MakeScript,
    verb: Verb,
    argument: str,
    code: int,
) -> None:
    (tree.root / "bus/pci/drivers/directory/bind").mkdir(parents=True)
    (tree.root / "bus/pci/drivers/loop").symlink_to("loop")
    tree.add_file("bus/pci/drivers/file")
    tree.add_file(f"bus/pci/devices/{tree.function}/sriov_numvfs", "0\n")
    victim = tree.add_file("victim/bind", "untouched")

    async def story() -> None:
        async with open_pool() as pool:
            script = make_script((Step(verb, tree.function, argument),))
            results = await pool.run("slot", script, lambda _result: None).finished
            assert _errnos(results) == [[code]]

    play(story())
    assert victim.read_text() == "untouched"


def test_a_write_is_exactly_the_spelled_bytes(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    tree.release(tree.hang("driver_override"))
    step = Step(Verb.SET_DRIVER_OVERRIDE, tree.function, "")

    async def story() -> None:
        async with open_pool() as pool:
            results = await pool.run("slot", make_script((step,)), lambda _result: None).finished
            assert results[0].ok

    play(story())
    assert tree.read_released() == b"\n"


def test_a_large_script_and_one_without_chains(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    step = Step(Verb.COUNT_VFS, tree.function, expect="0")

    async def story() -> None:
        async with open_pool() as pool:
            run = pool.run("slot", make_script(*((step, step),) * 10_000), lambda _result: None)
            assert all(result.ok for result in await run.finished)
            assert len(await run.finished) == 10_000
            assert await pool.run("slot", make_script(), lambda _result: None).finished == ()

    play(story())


def test_what_a_stopped_script_had_still_to_say_is_not_taken_for_the_next_ones(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    count = Step(Verb.COUNT_VFS, tree.function)
    long = make_script(*(((count,),) * 1000))
    written = tree.add_file("bus/pci/rescan")
    seen: list[ChainResult] = []

    async def story() -> None:
        async with open_pool(cap=1) as pool:
            run = pool.run("slot", long, seen.append)
            run.stop()
            assert len(await run.finished) < 1000
            (result,) = await pool.run("slot", make_script((Step(Verb.RESCAN_BUS),)), seen.append).finished
            assert (result.ok, result.results[0].step.verb) == (True, Verb.RESCAN_BUS)

    play(story())
    assert written.read_text() == "1"


def test_a_slow_chain_is_reported_while_the_next_one_hangs(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    reset, override = tree.hang("reset"), tree.hang("driver_override")
    chains = (Step(Verb.RESET, tree.function),), (Step(Verb.SET_DRIVER_OVERRIDE, tree.function, "x"),)
    seen: list[ChainResult] = []

    async def story() -> None:
        async with open_pool() as pool:
            run = pool.run("slot", make_script(*chains), seen.append)
            status = tree.run_directory / "helpers"
            await wait_until(lambda: any("reset 0000" in path.read_text() for path in status.iterdir()))
            held_back_usec = helper._FLUSH_NSEC // 1000
            await asyncio.sleep(
                1.2 * held_back_usec / 1e6
            )  # a slow chain: longer than results are held back
            tree.release(reset)
            await wait_until(lambda: len(seen) == 1)
            assert not run.finished.done()
            tree.release(override)
            assert len(await run.finished) == 2
            assert seen[0].results[0].duration_usec >= held_back_usec

    play(story())


def test_a_failing_listener_loses_no_results(
    tree: FakeTree,
    open_pool: OpenPool,
    play: Play,
    make_script: MakeScript,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step = Step(Verb.COUNT_VFS, tree.function)

    def listen(_result: ChainResult) -> None:
        raise ValueError("the listener's own mistake")

    async def story() -> None:
        async with open_pool() as pool:
            assert len(await pool.run("slot", make_script((step,), (step,)), listen).finished) == 2

    play(story())
    assert "the listener's own mistake" in caplog.text


def test_helpers_see_nothing_of_the_environment(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, wait_until: WaitUntil
) -> None:
    fifo = tree.hang("reset")

    async def story() -> None:
        async with open_pool() as pool:
            run = pool.run("slot", make_script((Step(Verb.RESET, tree.function),)), lambda _result: None)
            await wait_until(lambda: "reset" in run.abandon().step)
            pid = run.abandon().pid
            with open(f"/proc/{pid}/environ", "rb") as environment, open(f"/proc/{pid}/comm") as comm:
                assert environment.read() == b""
                assert comm.read() == "sriovd-helper\n"
            open_files = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
            assert sum(name.startswith("socket:") for name in open_files) == 1
            tree.release(fifo)
            await run.finished

    play(story())
