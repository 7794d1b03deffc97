"""Which drivers there are, by names that may come from anybody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sriovd.backend.base import DriverState
from sriovd.backend.linux.modules import ModuleCatalog

_DEP = """\
kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/drivers/vfio/pci/vfio-pci-core.ko.xz
kernel/drivers/net/ethernet/intel/igbvf/igbvf.ko:
kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko.zst: kernel/net/psample/psample.ko.zst
extra/c++driver.ko: kernel/net/last-one.ko
"""


@pytest.fixture
def catalog(tmp_path: Path) -> ModuleCatalog:
    (tmp_path / "sys/bus/pci/drivers/igb").mkdir(parents=True)
    (tmp_path / "sys/bus/pci/devices/trap").mkdir(parents=True)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/modules.dep").write_text(_DEP)
    (tmp_path / "modules/modules.builtin").write_text("kernel/drivers/pci/pci-stub.ko\n")
    return ModuleCatalog(str(tmp_path / "sys"), str(tmp_path / "modules"))


@pytest.mark.parametrize(
    ("driver", "state"),
    [
        ("igb", DriverState.LOADED),
        ("vfio-pci", DriverState.NOT_LOADED),
        ("vfio_pci", DriverState.NOT_LOADED),
        ("mlx5-core", DriverState.NOT_LOADED),
        ("igbvf", DriverState.NOT_LOADED),
        ("psample", DriverState.NOT_LOADED),  # named as a dependency only
        ("last_one", DriverState.NOT_LOADED),  # at the end of a line
        ("pci-stub", DriverState.NOT_LOADED),  # built in, yet not registered
        ("c++driver", DriverState.NOT_LOADED),
        ("vfio", DriverState.UNKNOWN),  # a part of a name
        ("pci", DriverState.UNKNOWN),
        ("igbvf.ko", DriverState.UNKNOWN),
        ("cccdriver", DriverState.UNKNOWN),  # a name is not a pattern
        ("nosuch", DriverState.UNKNOWN),
    ],
)
def test_states(catalog: ModuleCatalog, driver: str, state: DriverState) -> None:
    assert catalog.state(driver) is state


@pytest.mark.parametrize(
    "driver",
    [
        "",
        ".",
        "..",
        "../devices/trap",
        "/",
        "igb/",
        "igb/../igb",
        "a\0b",
        "igb\n",
        "\xefgb",
        "x" * 100_000,
        "*",
    ],
)
def test_hostile_names_are_unknown_without_touching_a_file(
    catalog: ModuleCatalog, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    def touch(*_arguments: object) -> None:
        pytest.fail("a file was touched")

    monkeypatch.setattr(os, "stat", touch)
    monkeypatch.setattr(os.path, "isdir", touch)
    assert catalog.state(driver) is DriverState.UNKNOWN


def test_lists_are_read_again_after_depmod(catalog: ModuleCatalog, tmp_path: Path) -> None:
    assert catalog.state("new") is DriverState.UNKNOWN
    (tmp_path / "modules/modules.dep").write_text(_DEP + "extra/new.ko:\n")
    assert catalog.state("new") is DriverState.NOT_LOADED
    (tmp_path / "modules/modules.dep").unlink()
    assert catalog.state("new") is DriverState.UNKNOWN
    assert catalog.state("pci-stub") is DriverState.NOT_LOADED


def test_lists_are_read_once_for_each_name(catalog: ModuleCatalog, tmp_path: Path) -> None:
    assert catalog.state("igbvf") is DriverState.NOT_LOADED
    dep = tmp_path / "modules/modules.dep"
    status = dep.stat()
    dep.write_bytes(b"#" * status.st_size)  # same stamp: noticed only by whoever reads
    os.utime(dep, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert catalog.state("igbvf") is DriverState.NOT_LOADED


def test_no_lists_at_all(tmp_path: Path) -> None:
    assert ModuleCatalog(str(tmp_path), str(tmp_path / "none")).state("igb") is DriverState.UNKNOWN
