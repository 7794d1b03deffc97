"""How sriovd begins and ends: what makes no sense at the start is one sentence that names it, and status 1;
what comes to make no sense later is in the log, and the last good picture stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from sriovd import __version__
from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.fixture import format_fixture
from sriovd.backend.simulated.record import Recorder
from sriovd.bus.private import PrivateBus
from sriovd.pci import PciAddress
from tests.simulated.client import FUNCTION, IGB0, PFS, Client, function_path
from tests.simulated.process import Ended, run_to_end, running_daemon, wait_until
from tests.simulated.truth import expected_objects, shown_objects
from tests.unit.bus.support import in_loop


def assert_one_sentence(ended: Ended, *parts: str) -> None:
    """It ended with 1, and its log is one line that has all `parts`."""
    complaints = [line for line in ended.output.splitlines() if line.startswith("CRITICAL: sriovd ends: ")]
    assert (ended.status, len(complaints)) == (1, 1), ended.output
    for part in parts:
        assert part in complaints[0]
    assert "Traceback" not in ended.output


@pytest.fixture
def recording(root: str) -> str:
    """The text of a good recording of a simulated host."""
    backend = SimulatedBackend(root, machine=(("igb", IGB0),))
    backend.kernel.write(f"bus/pci/devices/{IGB0}/sriov_numvfs", "2")
    recorder = Recorder(root, blocking=True, anonymize=False, warn=pytest.fail)
    return format_fixture(recorder.record([PciAddress.parse(IGB0)]))


def write(path: Path, contents: str | bytes) -> str:
    path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return str(path)


def test_starts_from_a_good_recording(recording: str, tmp_path: Path, bus: PrivateBus) -> None:
    fixture = write(tmp_path / "host.sysfs", recording)
    with running_daemon(tmp_path, str(tmp_path / "sys"), "--fixture", fixture, bus=bus.address) as daemon:

        @in_loop
        async def test() -> None:
            async with Client.connected(daemon.address) as client:
                assert len(await client.vfs(IGB0)) == 2
                assert shown_objects(await client.managed()) == expected_objects(daemon.root)

        test()


Damage = Callable[[str], str | bytes]
DRIVER_LINK = "driver -> ../../../../bus/pci/drivers/igb"
BAD_FIXTURES: list[tuple[str, Damage, tuple[str, ...]]] = [
    ("truncated", lambda text: text[: len(text) // 2], ()),
    ("without its end", lambda text: text.removesuffix("end\n"), ("end",)),
    ("malformed", lambda text: text.replace("driver ->", "driver =>", 1), ("driver =>",)),
    ("of another version", lambda text: text.replace("sysfs 1", "sysfs 9", 1), ("sriovd-sysfs 1",)),
    ("not UTF-8", lambda text: text.encode().replace(b"vendor", b"vend\xff\xfe", 1), ("UTF-8",)),
    ("a symlink loop", lambda text: text.replace(DRIVER_LINK, "driver -> driver", 1), ("driver",)),
    ("empty", lambda text: "", ("sriovd-sysfs 1",)),
    ("binary", lambda text: os.urandom(4096), ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "damage", "says"), BAD_FIXTURES, ids=[row[0] for row in BAD_FIXTURES])
def test_bad_recording(
    bus: PrivateBus, tmp_path: Path, recording: str, name: str, damage: Damage, says: tuple[str, ...]
) -> None:
    damaged = damage(recording)
    assert damaged not in (recording, recording.encode())
    fixture = write(tmp_path / "bad.sysfs", damaged)
    ended = run_to_end("--simulated", "--bus", bus.address, "--fixture", fixture)
    assert_one_sentence(ended, f"{fixture}:", *says)


def test_recording_that_cannot_be_read(bus: PrivateBus, tmp_path: Path) -> None:
    loop = tmp_path / "loop.sysfs"
    loop.symlink_to(loop)
    for path, says in (
        (tmp_path / "absent.sysfs", "No such file"), (tmp_path, "directory"), (loop, "symbolic links")
    ):  # fmt: skip
        assert_one_sentence(
            run_to_end("--simulated", "--bus", bus.address, "--fixture", str(path)), str(path), says
        )


def test_root_that_is_not_empty(bus: PrivateBus, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    ended = run_to_end("--simulated", "--bus", bus.address, "--root", str(tmp_path))
    assert_one_sentence(ended, str(tmp_path), "empty directory")


def test_root_that_is_no_device_tree(bus: PrivateBus, tmp_path: Path) -> None:
    ended = run_to_end("--bus", bus.address, "--root", str(tmp_path))
    assert_one_sentence(ended, f"{tmp_path}/bus/pci/devices")


@pytest.mark.parametrize(
    "address",
    ["nonsense", "unix:path=/nonexistent/bus", "tcp:host=", "unix:path=", "", "unix:path=/etc/passwd"],
)
def test_bus_that_is_not_there(address: str) -> None:
    assert_one_sentence(run_to_end("--simulated", "--bus", address), f"'{address}'", "bus")


def test_name_that_is_taken(bus: PrivateBus, tmp_path: Path, root: str) -> None:
    with running_daemon(tmp_path, root, bus=bus.address):
        ended = run_to_end("--simulated", "--bus", bus.address)
        assert_one_sentence(ended, "'org.sriovd1'", "running already?")


def test_bus_that_goes_away(bus: PrivateBus, tmp_path: Path, root: str) -> None:
    """systemd starts it again; without a bus it is of no use."""
    with running_daemon(tmp_path, root, bus=bus.address) as daemon:
        bus.stop()
        assert daemon.process.wait(10) == 1
        assert "the connection to the bus is lost" in daemon.said()
        assert "Traceback" not in daemon.said()


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("--fixture", "x"), {}, "--fixture goes with --simulated"),
        (("--private-bus", "--bus", "session"), {}, "give one of them"),
        (("--time-scale", "-1"), {}, "--time-scale"),
        (("--time-scale", "nan"), {}, "--time-scale"),
        (("--log-level", "loud"), {}, "loud"),
        (("--uevent-buffer", "big"), {}, "big"),
        ((), {"SRIOVD_UEVENT_BUFFER": "big"}, "big"),
        (("--frobnicate",), {}, "--frobnicate"),
    ],
)
def test_arguments_that_make_no_sense(
    arguments: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    ended = run_to_end(*arguments, environment=environment)
    assert ended.status == 2
    assert says in ended.output.splitlines()[-1]
    assert "Traceback" not in ended.output


def test_help_and_version() -> None:
    version = run_to_end("--version")
    assert (version.status, version.output) == (0, f"sriovd {__version__}\n")
    text = run_to_end("--help").output
    for part in ("--simulated", "--private-bus", "busctl tree org.sriovd1", "--time-scale"):
        assert part in text


NONSENSE = [
    ("sriov_totalvfs", b"many\n", "'many'"),
    ("sriov_totalvfs", b"-3\n", "outside 0 to 65535"),
    ("sriov_totalvfs", b"\xff\xfe\n", "not ASCII"),
    ("sriov_vf_device", b"", "not a number"),
    ("reset_method", b"fl\xc3\xa9\n", "not ASCII"),
]


@pytest.mark.parametrize(("name", "contents", "says"), NONSENSE)
def test_attribute_that_comes_to_make_no_sense(
    bus: PrivateBus, tmp_path: Path, root: str, name: str, contents: bytes, says: str
) -> None:
    with running_daemon(tmp_path, root, bus=bus.address) as daemon:
        attribute = Path(root) / "bus/pci/devices" / IGB0 / name
        good = attribute.read_bytes()

        @in_loop
        async def test() -> None:
            async with Client.connected(daemon.address) as client:
                before = await client.managed()
                attribute.write_bytes(contents)
                await client.rescan()
                wait_until(lambda: f"{IGB0}/{name}" in daemon.said(), "the complaint")
                assert says in daemon.said()
                assert shown_objects(await client.managed()) == shown_objects(before)
                attribute.write_bytes(good)
                assert (await client.set_num_vfs(IGB0, 1))[1] == "done"
                assert shown_objects(await client.managed()) == expected_objects(root)

        test()
        assert "Traceback" not in daemon.said()


def test_links_that_come_to_make_no_sense(bus: PrivateBus, tmp_path: Path, root: str) -> None:
    """A VF's link to its PF leads to itself, and a device's directory into a circle."""
    with running_daemon(tmp_path, root, bus=bus.address) as daemon:

        @in_loop
        async def test() -> None:
            async with Client.connected(daemon.address) as client:
                await client.set_num_vfs(IGB0, 1)
                (vf,) = await client.vfs(IGB0)
                link = Path(root) / "bus/pci/devices" / vf
                target = os.readlink(link)
                link.unlink()
                link.symlink_to(vf)
                await client.rescan()
                wait_until(lambda: "Too many levels of symbolic links" in daemon.said(), "the complaint")
                link.unlink()
                link.symlink_to(target)
                await client.rescan()
                assert shown_objects(await client.managed()) == expected_objects(root)
                assert await client.get(function_path(IGB0), FUNCTION, "Driver") == PFS[IGB0]

        test()
        assert "Traceback" not in daemon.said()
