"""What a daemon leaves behind for the next one: hanging helpers and their status files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.linux import registry
from sriovd.backend.linux.registry import Record, read_start_time

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import FakeTree, OpenPool, Play


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
    tree: FakeTree, open_pool: OpenPool, play: Play
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
            assert len(tree.read_records()) == 2  # its own are left alone

    with caplog.at_level(logging.WARNING):
        play(story())


@pytest.mark.parametrize(
    ("pid", "start_time", "adapter"),
    [
        (2**31 - 1, 1, "a"),
        (2**70, 1, "a"),
        (os.getpid(), 1, "a"),
        (os.getpid(), read_start_time(os.getpid()), ""),
    ],
    ids=["no such process", "no such number", "number of another process by now", "alive but idle"],
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
