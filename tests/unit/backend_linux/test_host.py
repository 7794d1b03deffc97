"""The host as core sees it: wiring, and who holds a function open."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.base import Backend, DriverState, ErrorPath, Holder, KernelEvent
from sriovd.backend.driver_events import MessagesLost
from sriovd.backend.linux.device_reports import DeviceReports
from sriovd.backend.linux.driver_messages import DriverMessages
from sriovd.backend.linux.host import LinuxBackend
from sriovd.backend.steps import Step, Verb
from sriovd.pci import PciAddress

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import FakeTree, MakeScript, Play

OTHER = PciAddress.parse("0000:01:00.1")


@contextmanager
def _process_with(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has `path` open."""
    program = "import sys; file = open(sys.argv[1]); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has opened the file
        yield process
        process.kill()


@pytest.fixture
def nodes(tree: FakeTree) -> Path:
    """VFIO nodes of the tree's function (group 7, vfio0); OTHER is in group 8."""
    for address, group in ((tree.function, 7), (OTHER, 8)):
        (tree.root / f"kernel/iommu_groups/{group}").mkdir(parents=True)
        device = tree.root / "bus/pci/devices" / str(address)
        device.mkdir(exist_ok=True)
        (device / "iommu_group").symlink_to(f"../../../../kernel/iommu_groups/{group}")
    (tree.device / "vfio-dev/vfio0").mkdir(parents=True)
    directory = tree.root.parent / "dev/vfio"
    (directory / "devices").mkdir(parents=True)
    for name in ("vfio", "7", "8", "noiommu-7", "devices/vfio0", "devices/vfio1"):
        (directory / name).touch()
    return directory


@pytest.mark.parametrize("node", ["7", "noiommu-7", "devices/vfio0"])
def test_the_process_that_holds_a_function_is_named(
    tree: FakeTree, nodes: Path, play: Play, node: str
) -> None:
    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory), vfio_directory=str(nodes))
        await backend.start()
        both = [tree.function, OTHER]
        assert await backend.find_holders(both) == {}
        with _process_with(nodes / node) as process, _process_with(nodes / "vfio"):
            name = Path(f"/proc/{process.pid}/comm").read_text().strip()
            assert await backend.find_holders(both) == {tree.function: (Holder(process.pid, name),)}
            with _process_with(nodes / "8") as second:
                found = await backend.find_holders(both)
                assert [holder.pid for holder in found[OTHER]] == [second.pid]
                assert [holder.pid for holder in found[tree.function]] == [process.pid]
        assert await backend.find_holders(both) == {}
        await backend.stop()

    play(story())


def test_a_holder_of_two_nodes_is_named_once(tree: FakeTree, nodes: Path, play: Play) -> None:
    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory), vfio_directory=str(nodes))
        await backend.start()
        with open(nodes / "7"), open(nodes / "7"), open(nodes / "devices/vfio0"):
            found = await backend.find_holders([tree.function])
            assert [holder.pid for holder in found[tree.function]] == [os.getpid()]
        await backend.stop()

    play(story())


def test_a_function_that_is_not_there_is_held_by_nobody(tree: FakeTree, play: Play) -> None:
    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory))
        await backend.start()
        assert await backend.find_holders([]) == {}
        assert await backend.find_holders([PciAddress.parse("ffff:ff:1f.7")]) == {}
        await backend.stop()

    play(story())


def test_the_parts_are_wired(tree: FakeTree, play: Play, make_script: MakeScript) -> None:
    tree.add_file("bus/pci/drivers/igb/bind")
    tree.add_file(f"bus/pci/devices/{tree.function}/sriov_totalvfs", "7\n")

    async def story() -> None:
        backend: Backend = LinuxBackend(str(tree.root), str(tree.run_directory))
        assert backend.simulator is None
        assert backend.describe() == f"Linux {os.uname().release}"
        await backend.start()
        assert backend.list_functions() == [tree.function]
        assert backend.list_virtual_functions(tree.function) == {}
        assert backend.read_function(OTHER) is None
        assert backend.driver_state("igb") is DriverState.LOADED
        assert backend.read_error_counters(tree.function) == {}
        assert backend.read_error_path(OTHER) == ErrorPath()
        assert await backend.find_leftovers() == []
        step = Step(Verb.BIND, tree.function, "igb")
        results = await backend.run("0000:01:00", make_script((step,)), lambda _result: None).finished
        assert results[0].ok
        await backend.stop()
        assert [event async for event in backend.events()] == []

    play(story())


def test_a_run_directory_that_cannot_be_made_is_named(tree: FakeTree, play: Play) -> None:
    tree.run_directory.write_text("a file in its place")

    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory))
        with pytest.raises(OSError, match="run"):
            await backend.start()
        await backend.stop()

    play(story())


def test_drivers_are_listened_to_while_that_is_wanted(
    tree: FakeTree, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once however often it is asked for, and no longer than the host itself."""
    calls: list[str] = []
    for source in (DriverMessages, DeviceReports):
        for verb in ("start", "stop"):
            name = f"{verb} {source.__name__}"
            monkeypatch.setattr(source, verb, lambda _self, name=name: calls.append(name))

    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory))
        await backend.start()
        assert calls == []
        for wanted in (False, True, True):
            backend.listen_to_drivers(wanted)
        assert calls == ["start DriverMessages", "start DeviceReports"]
        await backend.stop()
        assert calls[2:] == ["stop DriverMessages", "stop DeviceReports"]

    play(story())


def test_what_has_failed_is_started_again_by_who_asks_next(
    tree: FakeTree, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who asks is told when that fails, too; what a host never had is not asked for again."""
    calls: list[str] = []
    told: list[KernelEvent] = []
    repaired: list[bool] = []

    def start(source: DriverMessages | DeviceReports) -> None:
        calls.append(type(source).__name__)
        source.has_failed = source.has_failed and not repaired

    for source in (DriverMessages, DeviceReports):
        monkeypatch.setattr(source, "start", start)
        monkeypatch.setattr(source, "stop", lambda _self: None)

    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory))
        await backend.start()
        monkeypatch.setattr(backend._monitor, "put", told.append)
        backend.listen_to_drivers(True)
        backend._drivers[0].has_failed = True
        backend.listen_to_drivers(True)
        assert calls == ["DriverMessages", "DeviceReports", "DriverMessages"]
        (lost,) = told
        assert isinstance(lost, MessagesLost)
        assert (lost.address, lost.count) == (None, 0)
        repaired.append(True)
        for _ in range(2):
            backend.listen_to_drivers(True)
        assert calls[3:] == ["DriverMessages"]
        assert told == [lost]
        await backend.stop()

    play(story())


def test_an_instance_that_a_killed_daemon_left_is_removed(tree: FakeTree, play: Play) -> None:
    left = tree.root / "kernel/tracing/instances/sriovd-devlink"
    left.mkdir(parents=True)

    async def story() -> None:
        backend = LinuxBackend(str(tree.root), str(tree.run_directory))
        await backend.start()
        assert not left.exists()
        assert backend.read_counters(tree.function) == {}
        await backend.stop()

    play(story())
