"""Parsers of trees: what sysfs holds, recordings of it, and what is written to the simulated one."""

from __future__ import annotations

import atexit
import os
import shutil
from contextlib import suppress
from functools import cache
from pathlib import Path

from sriovd.backend.base import HostReadError
from sriovd.backend.linux import holders
from sriovd.backend.simulated import SimulatedBackend, record
from sriovd.backend.simulated.device import Ids
from sriovd.backend.simulated.fixture import FixtureError, format_fixture, parse_fixture
from sriovd.backend.simulated.parse import parse_bool, parse_signed, parse_unsigned, same_text
from sriovd.backend.simulated.recorded import build_profile
from sriovd.backend.sysfs import SysfsReader
from tests.conformance.recorded import recording_path
from tests.fuzz.entry import NO_ERRORS, Entry, to_name
from tests.unit.backend_simulated.support import IGB, Sim, make_root
from tests.unit.core.recovery.samples import PF, VF, load_configs
from tests.unit.test_sysfs import PF as READ_PF
from tests.unit.test_sysfs import VFS as READ_VFS
from tests.unit.test_sysfs import Tree

SIMULATED = "sriovd.backend.simulated"
_ATTRIBUTES = (
    "vendor", "device", "class", "revision", "numa_node", "reset_method", "sriov_totalvfs", "sriov_offset",
    "sriov_stride", "sriov_vf_device", "sriov_drivers_autoprobe", "aer_dev_correctable", "aer_dev_fatal",
)  # fmt: skip
_LINKS = ("physfn", "driver", "iommu_group", "virtfn0")
_STORES = (
    f"bus/pci/devices/{IGB}/sriov_numvfs", f"bus/pci/devices/{IGB}/driver_override",
    f"bus/pci/devices/{IGB}/sriov_drivers_autoprobe", f"bus/pci/devices/{IGB}/reset_method",
    f"bus/pci/devices/{IGB}/reset", f"bus/pci/devices/{IGB}/uevent", f"bus/pci/devices/{IGB}/config",
    "bus/pci/drivers/igb/new_id", "bus/pci/drivers/igb/remove_id", "bus/pci/drivers/igb/bind",
    "bus/pci/drivers/igb/unbind", "bus/pci/drivers_probe", "bus/pci/drivers_autoprobe",
)  # fmt: skip
_WRITES_PER_HOST = 2000


@cache
def _root() -> str:
    root = make_root()
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


@cache
def _tree() -> Tree:
    return Tree(Path(_root()) / "tree")


def _attribute(data: bytes) -> object:
    """The first byte chooses an attribute, the rest is what it holds."""
    tree = _tree()
    name = _ATTRIBUTES[data[0] % len(_ATTRIBUTES)] if data else "vendor"
    path = tree.pf / name
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(data[1:])
    try:
        reader = SysfsReader(str(tree.root))
        return reader.read_function(READ_PF), reader.read_error_counters(READ_PF)
    finally:
        path.unlink() if before is None else path.write_bytes(before)


def _link(data: bytes) -> object:
    """The first byte chooses a link, the rest is where it leads."""
    tree = _tree()
    device, address = (tree.vfs[0], READ_VFS[0]) if data[:1] < b"\x80" else (tree.pf, READ_PF)
    path = device / _LINKS[data[0] % len(_LINKS)] if data else device / "driver"
    before = os.readlink(path) if path.is_symlink() else None
    path.unlink(missing_ok=True)
    try:
        with suppress(ValueError, OSError):  # no file system takes it
            path.symlink_to(to_name(data[1:]))
        reader = SysfsReader(str(tree.root))
        nodes = holders.vfio_nodes(str(tree.root), address, "/dev/vfio")
        return reader.read_function(address), reader.list_virtual_functions(READ_PF), nodes
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.symlink_to(before)


def _fixture(data: bytes) -> object:
    recording = parse_fixture(data, "input")
    assert format_fixture(parse_fixture(format_fixture(recording).encode(), "again")) == format_fixture(
        recording
    )
    return recording


def _fixtures() -> tuple[bytes, ...]:
    whole = recording_path("6.12", "-vfs").read_bytes()
    part = b"""sriovd-sysfs 1
kernel 6.12.1

devices/pci0000:00/0000:00:03.0:
    config 0644 hex=32
        0000 8680c910070510000100000200000000
    driver -> ../../../bus/pci/drivers/igb
    driver_override 0644 unread
    link/
    resource0 0600 size=131072
    vendor 0444 "0x8086\\n"
end
"""
    return part, whole[:4096] + b"\nend\n"


def _restored(data: bytes) -> object:
    """A recording, as far as a host that begins with it."""
    recording = parse_fixture(data, "input")
    root = f"{_root()}/restored"
    shutil.rmtree(root, ignore_errors=True)
    return SimulatedBackend(root, fixture=recording).list_functions()


def _profile(config: bytes) -> object:
    """Configuration space that somebody has recorded, as the simulated host takes it."""
    ids = Ids(0x8086, 0x10C9, 0x1AF4, 0x1100, 0x020000, 1)
    whole = config[:4096].ljust(4096, b"\0")
    return build_profile("igb", ids, whole, (), whole, ids, 1), record._without_serial(config)


@cache
def _sims() -> list[Sim]:
    return []


def _write(data: bytes) -> object:
    """The first byte chooses the attribute that the rest is written to. Only an errno may come back."""
    sims = _sims()
    if not sims or len(sims) % _WRITES_PER_HOST == 0:
        sims[:] = [Sim(make_root())]
        atexit.register(shutil.rmtree, os.path.dirname(sims[0].backend.host.tree.root), ignore_errors=True)
    sims.append(sims[0])
    path = _STORES[data[0] % len(_STORES)] if data else _STORES[0]
    return sims[0].write(path, data[1:])


def _numbers(data: bytes) -> object:
    for parse in (lambda each: parse_unsigned(each, 16), lambda each: parse_signed(each, 32), parse_bool):
        with suppress(OSError):
            parse(data)
    return same_text(data, "x")


ENTRIES = (
    Entry(
        "sysfs-attribute",
        _attribute,
        (HostReadError,),
        lambda: tuple(
            bytes((number,)) + text
            for number in range(len(_ATTRIBUTES))
            for text in (b"0x8086\n", b"RxErr 2\nTOTAL_ERR_COR 2\n", b"flr pm bus\n", b"-1\n")
        ),
        ("sriovd.backend.sysfs", "sriovd.backend.sysfs_directory"),
        (b"\n", b" ", b"0x", b"_", b"-", b"TOTAL_ERR_"),
        8192,
        quick_inputs=600,
    ),
    Entry(
        "sysfs-link",
        _link,
        (HostReadError,),
        lambda: tuple(
            bytes((number + high,)) + target
            for number in range(len(_LINKS))
            for high in (0, 128)
            for target in (f"../{READ_PF}".encode(), b"../../bus/pci/drivers/igb", b"../../9")
        ),
        ("sriovd.backend.sysfs", "sriovd.backend.sysfs_directory"),
        (b"/", b"..", b"0000:01:00.0"),
        4096,
        quick_inputs=600,
    ),
    Entry(
        "fixture",
        _fixture,
        (FixtureError,),
        _fixtures,
        (f"{SIMULATED}.fixture",),
        (
            b"    ",
            b" -> ",
            b"hex=",
            b"size=",
            b"unread",
            b'"',
            b"\n",
            b":",
            b"/",
            b"end",
            b"0644",
            b"[",
            b"{",
            b"..",
            b"\\ud800",
        ),
        quick_inputs=600,
    ),
    Entry(
        "restored-host",
        _restored,
        (FixtureError,),
        lambda: (recording_path("6.12", "-vfs").read_bytes(),),
        (f"{SIMULATED}.restore",),
        (b"0x", b'"', b"\n", b"    ", b"../", b"0000:01:10.0", b"igb", b"10", b"0"),
        1 << 17,
        quick_inputs=40,
    ),
    Entry(
        "recorded-config",
        _profile,
        (ValueError,),
        lambda: (load_configs()[PF], load_configs()[VF]),
        (
            f"{SIMULATED}.recorded",
            f"{SIMULATED}.record",
            "sriovd.backend.model.configspace",
            "sriovd.backend.model.capabilities",
        ),
        max_bytes=4096,
        quick_inputs=600,
    ),
    Entry(
        "simulated-write",
        _write,
        NO_ERRORS,
        lambda: tuple(
            bytes((number,)) + text
            for number in range(len(_STORES))
            for text in (b"0\n", b"3", b"1", b"igb", IGB.encode(), b"8086 10c9", b"flr", b"change")
        ),
        (
            f"{SIMULATED}.kernel",
            f"{SIMULATED}.driver_rules",
            f"{SIMULATED}.reset_rules",
            f"{SIMULATED}.config_rules",
            f"{SIMULATED}.hotplug_rules",
            f"{SIMULATED}.attributes",
        ),
        (b"\n", b"\0", b" ", b"0x", b"0000:01:10.0", b"vfio-pci", b"none"),
        8192,
        quick_inputs=600,
    ),
    Entry(
        "simulated-number",
        _numbers,
        NO_ERRORS,
        lambda: (b"0x10\n", b"-7", b"+010", b"on", b"Yes\n"),
        (f"{SIMULATED}.parse",),
        (b"0x", b"-", b"+", b"\n", b"9" * 20),
        4096,
    ),
)
