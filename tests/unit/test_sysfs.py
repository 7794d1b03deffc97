"""The reader of sysfs on trees that are right, odd, damaged or changing under it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sriovd.backend.base import (
    ErrorPath,
    FunctionFacts,
    HostReadError,
    PhysicalFacts,
    Severity,
    VirtualFacts,
)
from sriovd.backend.sysfs import SysfsReader
from sriovd.pci import PciAddress

PF = PciAddress.parse("0000:01:00.0")
VFS = [PciAddress.parse("0000:01:10.0"), PciAddress.parse("0000:01:10.2")]
_COMMON = {
    "vendor": "0x8086",
    "device": "0x10c9",
    "subsystem_vendor": "0x8086",
    "subsystem_device": "0xa03c",
    "class": "0x020000",
    "revision": "0x01",
    "numa_node": "-1",
    "reset_method": "flr pm",
}
_SRIOV = {
    "sriov_totalvfs": "7",
    "sriov_offset": "128",
    "sriov_stride": "2",
    "sriov_vf_device": "10ca",
    "sriov_drivers_autoprobe": "0",
}
_FORBIDDEN = ("uevent", "config", "driver_override", "sriov_numvfs")  # these can block: never to be opened


class Tree:
    """A root with one PF that has two VFs, and a device without SR-IOV, linked as sysfs links them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bus = root / "bus/pci/devices"
        self.bus.mkdir(parents=True)
        self.pf = self.add(PF, _COMMON | _SRIOV)
        self.add(PciAddress.parse("0000:00:1f.0"), _COMMON)
        self.vfs = [self.add(address, _COMMON | {"vendor": "0x8086"}) for address in VFS]
        for index, address in enumerate(VFS):
            (self.pf / f"virtfn{index}").symlink_to(f"../{address}")
            (self.vfs[index] / "physfn").symlink_to(f"../{PF}")
        self.reader = SysfsReader(str(root))

    def add(self, address: PciAddress, attributes: dict[str, str]) -> Path:
        device = self.root / "devices/pci0000:00" / str(address)
        device.mkdir(parents=True)
        for name, text in attributes.items():
            (device / name).write_text(text + "\n")
        for name in _FORBIDDEN:
            os.mkfifo(device / name)  # opening it would hang the test, as it could hang the daemon
        (self.bus / str(address)).symlink_to(f"../../../devices/pci0000:00/{address}")
        return device

    def facts(self, address: PciAddress) -> FunctionFacts:
        facts = self.reader.read_function(address)
        assert facts is not None
        return facts


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_functions_are_listed_pfs_first(tree: Tree) -> None:
    assert tree.reader.list_functions() == [PF, *VFS]
    assert tree.reader.list_virtual_functions(PF) == dict(enumerate(VFS))


def test_a_pf_is_read(tree: Tree) -> None:
    (tree.pf / "driver").symlink_to("../../../bus/pci/drivers/igb")
    (tree.pf / "iommu_group").symlink_to("../../../kernel/iommu_groups/14")
    (tree.pf / "net/enp1s0").mkdir(parents=True)
    assert tree.facts(PF) == FunctionFacts(
        address=PF,
        identity=tree.pf.stat().st_ino,
        vendor_id=0x8086,
        device_id=0x10C9,
        subsystem_vendor_id=0x8086,
        subsystem_device_id=0xA03C,
        class_code=0x020000,
        revision=1,
        driver="igb",
        iommu_group=14,
        numa_node=-1,
        net_interfaces=("enp1s0",),
        reset_methods=("flr", "pm"),
        path=str(tree.pf),
        physical=PhysicalFacts(7, 128, 2, 0x10CA, drivers_autoprobe=False),
    )


def test_a_vf_is_read(tree: Tree) -> None:
    facts = tree.facts(VFS[1])
    assert facts.virtual == VirtualFacts(PF, 1)
    assert (facts.physical, facts.driver, facts.iommu_group, facts.net_interfaces) == (None, "", None, ())


def test_what_is_neither_pf_nor_vf_is_nothing(tree: Tree) -> None:
    assert tree.reader.read_function(PciAddress.parse("0000:00:1f.0")) is None
    assert tree.reader.read_function(PciAddress.parse("0000:02:00.0")) is None
    assert tree.reader.list_virtual_functions(PciAddress.parse("0000:02:00.0")) == {}


@pytest.mark.parametrize("link", ["virtfn1", "physfn"])
def test_a_vf_counts_once_both_links_exist(tree: Tree, link: str) -> None:
    ((tree.pf if link == "virtfn1" else tree.vfs[1]) / link).unlink()
    assert tree.reader.read_function(VFS[1]) is None


def test_a_vf_whose_link_belongs_to_another_is_not_believed(tree: Tree) -> None:
    (tree.pf / "virtfn1").unlink()
    (tree.pf / "virtfn1").symlink_to(f"../{VFS[0]}")
    assert tree.reader.read_function(VFS[1]) is None


def test_a_successor_at_the_same_address_is_read_anew(tree: Tree) -> None:
    before = tree.facts(PF)
    shutil.move(tree.pf, tree.root / "old")
    tree.pf.mkdir()
    for name, text in (_COMMON | _SRIOV | {"device": "0x1563"}).items():
        (tree.pf / name).write_text(text)
    after = tree.facts(PF)
    assert after.identity != before.identity
    assert after.device_id == 0x1563


def test_a_successor_that_comes_during_the_read_is_not_mixed_up(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_readlink = os.readlink

    def readlink_and_replace(name: str, *, dir_fd: int | None = None) -> str:
        if name == "driver":
            monkeypatch.undo()
            successor = shutil.copytree(
                tree.pf, tree.root / "new", ignore=shutil.ignore_patterns(*_FORBIDDEN), symlinks=True
            )
            shutil.rmtree(tree.pf)
            Path(successor).rename(tree.pf)
        return really_readlink(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", readlink_and_replace)
    assert tree.reader.read_function(PF) is None
    assert tree.facts(PF).identity == tree.pf.stat().st_ino


_BAD = (
    b"",  # empty
    b"0x",  # no digits
    b"several\n",  # no number
    b"\xff\xfe\x00\n",  # not UTF-8
    "\u0663\n".encode(),  # UTF-8
    b"0x10000000000\n",  # too large
    b"-2\n",  # negative
    b"1\n2\n",  # two lines
    b"\0\0\0",  # NUL
    b"1" * 100_000,  # endless
    b"1.5\n",  # fraction
)


@pytest.mark.parametrize("name", [*sorted(_COMMON.keys() - {"reset_method"}), *_SRIOV])
def test_a_number_that_makes_no_sense_is_an_error_that_names_the_file(tree: Tree, name: str) -> None:
    for bad in _BAD:
        (tree.pf / name).write_bytes(bad)
        with pytest.raises(HostReadError, match=f"{PF}/{name} ") as caught:
            SysfsReader(str(tree.root)).read_function(PF)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 400
        if name not in ("sriov_offset", "sriov_stride"):  # a VF's place depends on these
            assert tree.facts(VFS[0]).virtual == VirtualFacts(PF, 0)  # the others are not hurt


@pytest.mark.parametrize("name", sorted((_COMMON | _SRIOV).keys() - {"numa_node", "reset_method"}))
def test_a_missing_attribute_means_that_the_function_is_going(tree: Tree, name: str) -> None:
    (tree.pf / name).unlink()
    assert tree.reader.read_function(PF) is None


def test_attributes_that_a_kernel_may_lack(tree: Tree) -> None:
    (tree.pf / "numa_node").unlink()
    (tree.pf / "reset_method").unlink()
    facts = tree.facts(PF)
    assert (facts.numa_node, facts.reset_methods) == (-1, ())


@pytest.mark.parametrize("name", ["vendor", "driver", "net", "iommu_group", "sriov_totalvfs"])
def test_a_symlink_loop_is_an_error_or_a_name_but_never_a_hang(tree: Tree, name: str) -> None:
    (tree.pf / name).unlink(missing_ok=True)
    (tree.pf / name).symlink_to(name)
    if name in ("driver", "iommu_group"):  # only the link is read, not what it leads to
        assert tree.facts(PF).driver == ("driver" if name == "driver" else "")
        assert tree.facts(PF).iommu_group is None
    else:
        with pytest.raises(HostReadError, match=f"{PF}/{name}: Too many levels"):
            tree.reader.read_function(PF)


def test_a_device_directory_that_is_a_loop(tree: Tree) -> None:
    link = tree.bus / str(PF)
    link.unlink()
    link.symlink_to(str(PF))
    with pytest.raises(HostReadError, match="Too many levels"):
        tree.reader.read_function(PF)
    with pytest.raises(HostReadError, match="Too many levels"):
        tree.reader.list_virtual_functions(PF)


@pytest.mark.parametrize("name", ["driver", "iommu_group", "virtfn0"])
def test_a_file_where_a_link_should_be(tree: Tree, name: str) -> None:
    (tree.pf / name).unlink(missing_ok=True)
    (tree.pf / name).write_text("x")
    read = tree.reader.list_virtual_functions if name == "virtfn0" else tree.reader.read_function
    with pytest.raises(HostReadError, match=f"{PF}/{name}: Invalid argument"):
        read(PF)


def test_a_directory_where_a_file_should_be(tree: Tree) -> None:
    (tree.pf / "vendor").unlink()
    (tree.pf / "vendor").mkdir()
    with pytest.raises(HostReadError, match="Is a directory"):
        tree.reader.read_function(PF)


@pytest.mark.parametrize("target", ["../nonsense", "../0000:01:99.9", "../\udcff\udcfe", "../..", "/"])
def test_a_link_to_something_else_names_both(tree: Tree, target: str) -> None:
    (tree.pf / "virtfn0").unlink()
    os.symlink(os.fsencode(target), tree.pf / "virtfn0")
    with pytest.raises(HostReadError, match="virtfn0 points to") as caught:
        tree.reader.list_virtual_functions(PF)
    assert str(caught.value).isprintable()


def test_odd_names_beside_the_virtfn_links_are_no_vfs(tree: Tree) -> None:
    for name in ("virtfn", "virtfnx", "virtfn-1", "virtfn\u0663", "virtfn1 ", "xvirtfn1"):
        (tree.pf / name).symlink_to("../nonsense")
    assert tree.reader.list_virtual_functions(PF) == dict(enumerate(VFS))


def test_interfaces_of_any_name(tree: Tree) -> None:
    for name in (b"eth0", b"\xff\xfe", b"a b", "\u00e9".encode()):
        os.makedirs(os.fsencode(tree.pf / "net") + b"/" + name)
    assert tree.facts(PF).net_interfaces == ("\\xff\\xfe", "a b", "eth0", "\u00e9")


@pytest.mark.parametrize("name", ["nonsense", "0000:01:00", "0000:01:20.0", "\udcff"])
def test_an_odd_name_on_the_bus_is_named(tree: Tree, name: str) -> None:
    os.mkdir(os.fsencode(tree.bus) + b"/" + os.fsencode(name))
    with pytest.raises(HostReadError, match="not a PCI address") as caught:
        tree.reader.list_functions()
    assert str(tree.bus) in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_root_without_pci_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostReadError, match="bus/pci/devices: No such file"):
        SysfsReader(str(tmp_path)).list_functions()


@pytest.mark.parametrize("after", range(1, 16))
def test_a_function_that_vanishes_while_it_is_read_is_nothing(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    opened = 0
    really_open = os.open

    def open_and_remove(path: str, flags: int, *, dir_fd: int | None = None) -> int:
        nonlocal opened
        opened += 1
        if opened == after:
            monkeypatch.undo()
            shutil.rmtree(tree.pf)
        return really_open(path, flags, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_and_remove)
    assert tree.reader.read_function(PF) is None
    assert opened == after


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64))
def test_any_bytes_are_facts_or_an_error(tree: Tree, raw: bytes) -> None:
    (tree.pf / "revision").write_bytes(raw)
    try:
        facts = SysfsReader(str(tree.root)).read_function(PF)
    except HostReadError as error:
        assert "revision" in str(error)
    else:
        assert facts is not None
        assert facts.revision == int(raw.decode("ascii"), 0)


NO_ERRORS = {
    "aer_dev_correctable": "RxErr 0\nBadTLP 0\nTOTAL_ERR_COR 0",
    "aer_dev_nonfatal": "Undefined 0\nCmpltTO 0\nTOTAL_ERR_NONFATAL 0",
    "aer_dev_fatal": "Undefined 0\nMalfTLP 0\nTOTAL_ERR_FATAL 0",
}


def add_counters(device: Path, **texts: str) -> None:
    for name, text in (NO_ERRORS | texts).items():
        (device / name).write_text(text + "\n")


def test_errors_are_counted_by_name_without_those_that_never_came(tree: Tree) -> None:
    add_counters(
        tree.pf, aer_dev_correctable="RxErr 0\nBadTLP 3\nNonFatalErr 18446744073709551615\nTOTAL_ERR_COR 2"
    )
    assert tree.reader.read_error_counters(PF) == {
        Severity.CORRECTED: {"BadTLP": 3, "NonFatalErr": 2**64 - 1, "total": 2},
        Severity.NONFATAL: {"total": 0},
        Severity.FATAL: {"total": 0},
    }


def test_a_function_without_aer_counts_nothing(tree: Tree) -> None:
    assert tree.reader.read_error_counters(PF) == {}
    assert tree.reader.read_error_counters(PciAddress.parse("0000:7f:00.0")) == {}


@pytest.mark.parametrize("text", ["RxErr", "RxErr many", "RxErr -1"])
def test_counters_that_make_no_sense_name_their_file(tree: Tree, text: str) -> None:
    add_counters(tree.pf, aer_dev_correctable=text)
    with pytest.raises(HostReadError, match=r"0000:01:00\.0/aer_dev_correctable"):
        tree.reader.read_error_counters(PF)


UPSTREAM, ROOT_PORT = PciAddress.parse("0000:04:00.0"), PciAddress.parse("0000:00:03.0")
BELOW = PciAddress.parse("0000:05:00.0")


def add_below(tree: Tree) -> Path:
    """A function below a switch's port and a root port."""
    device = tree.root / f"devices/pci0000:00/{ROOT_PORT}/{UPSTREAM}/{BELOW}"
    device.mkdir(parents=True)
    (tree.bus / str(BELOW)).symlink_to(f"../../../devices/pci0000:00/{ROOT_PORT}/{UPSTREAM}/{BELOW}")
    return device


def test_the_ports_above_a_function_are_listed_the_nearest_first(tree: Tree) -> None:
    add_below(tree)
    assert tree.reader.read_error_path(BELOW, is_recorded=True) == ErrorPath(
        (UPSTREAM, ROOT_PORT), is_recorded=True
    )
    assert tree.reader.read_error_path(PF, is_recorded=False) == ErrorPath()
    assert tree.reader.read_error_path(PciAddress.parse("0000:7f:00.0"), is_recorded=True) == ErrorPath()


def test_a_function_has_aer_when_it_has_counters(tree: Tree) -> None:
    add_counters(add_below(tree))
    assert tree.reader.read_error_path(BELOW, is_recorded=False).has_aer


@pytest.mark.parametrize(
    ("service", "is_native"),
    [(f"{ROOT_PORT}:pcie002", True), (f"{UPSTREAM}:pcie002", False), ("bind", False)],
)
def test_errors_are_the_kernels_when_it_serves_the_root_port(
    tree: Tree, service: str, is_native: bool
) -> None:
    add_below(tree)
    (tree.root / "bus/pci_express/drivers/aer" / service).mkdir(parents=True)
    assert tree.reader.read_error_path(BELOW, is_recorded=False).is_native is is_native
