"""Every register of the SR-IOV capability, written with all-ones and zeros, in both states of VF Enable.

The tables are literal: they are the register table of PCIe 9.3.3, read for three devices, not computed from
the model.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from sriovd.backend.model import Adapter, PhysicalFunctionModel
from sriovd.backend.model.profiles import PROFILES
from sriovd.backend.model.sriov import SriovProfile
from sriovd.pci_registers import Sriov, SriovControl
from tests.unit.model.cards import (
    SLOT,
    build_adapter,
    build_pf,
    disable_vfs,
    enable_vfs,
    sriov_read,
    sriov_write,
)

# offset, width, reset | VFE=0: after ones, after zeros | VFE=1 with 3 VFs: before, after ones, after zeros
IGB_TABLE = [
    (0x00, 4, 0x0001_0010, 0x0001_0010, 0x0001_0010, 0x0001_0010, 0x0001_0010, 0x0001_0010),
    (0x04, 4, 0, 0, 0, 0, 0, 0),
    (0x08, 2, 0, 0x19, 0, 0x09, 0x09, 0),
    (0x0A, 2, 0, 0, 0, 0, 0, 0),
    (0x0C, 2, 8, 8, 8, 8, 8, 8),
    (0x0E, 2, 8, 8, 8, 8, 8, 8),
    (0x10, 2, 0, 0xFFFF, 0, 3, 3, 3),
    (0x12, 1, 0, 0, 0, 0, 0, 0),
    (0x13, 1, 0, 0, 0, 0, 0, 0),
    (0x14, 2, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80),
    (0x16, 2, 2, 2, 2, 2, 2, 2),
    (0x18, 2, 0, 0, 0, 0, 0, 0),
    (0x1A, 2, 0x10CA, 0x10CA, 0x10CA, 0x10CA, 0x10CA, 0x10CA),
    (0x1C, 4, 0x553, 0x553, 0x553, 0x553, 0x553, 0x553),
    (0x20, 4, 1, 1, 1, 1, 1, 1),
    (0x24, 4, 0x0C, 0xFFFF_C00C, 0x0C, 0x0C, 0xFFFF_C00C, 0x0C),
    (0x28, 4, 0, 0xFFFF_FFFF, 0, 0, 0xFFFF_FFFF, 0),
    (0x2C, 4, 0, 0, 0, 0, 0, 0),
    (0x30, 4, 0x0C, 0xFFFF_C00C, 0x0C, 0x0C, 0xFFFF_C00C, 0x0C),
    (0x34, 4, 0, 0xFFFF_FFFF, 0, 0, 0xFFFF_FFFF, 0),
    (0x38, 4, 0, 0, 0, 0, 0, 0),
    (0x3C, 4, 0, 0, 0, 0, 0, 0),
]
NVME_TABLE = [
    (0x00, 4, 0x0001_0010, 0x0001_0010, 0x0001_0010, 0x0001_0010, 0x0001_0010, 0x0001_0010),
    (0x08, 2, 0, 0x19, 0, 0x09, 0x09, 0),
    (0x0C, 2, 127, 127, 127, 127, 127, 127),
    (0x0E, 2, 127, 127, 127, 127, 127, 127),
    (0x10, 2, 0, 0xFFFF, 0, 3, 3, 3),
    (0x14, 2, 1, 1, 1, 1, 1, 1),
    (0x16, 2, 1, 1, 1, 1, 1, 1),
    (0x1A, 2, 0x0010, 0x0010, 0x0010, 0x0010, 0x0010, 0x0010),
    (0x24, 4, 0x04, 0xFFFF_C004, 0x04, 0x04, 0xFFFF_C004, 0x04),
    (0x28, 4, 0, 0xFFFF_FFFF, 0, 0, 0xFFFF_FFFF, 0),
    (0x30, 4, 0, 0, 0, 0, 0, 0),
]
DLB_TABLE = [
    (0x04, 4, 0x6, 0x6, 0x6, 0x6, 0x6, 0x6),
    (0x08, 2, 0, 0x39, 0, 0x09, 0x29, 0),
    (0x0C, 2, 256, 256, 256, 256, 256, 256),
    (0x0E, 2, 256, 256, 256, 256, 256, 256),
    (0x14, 2, 1, 1, 1, 1, 1, 1),
    (0x1A, 2, 0x0D1C, 0x0D1C, 0x0D1C, 0x0D1C, 0x0D1C, 0x0D1C),
    (0x24, 4, 0x0C, 0xFFFF_000C, 0x0C, 0x0C, 0xFFFF_000C, 0x0C),
]
ROWS = [
    (n, row) for n, table in (("igb", IGB_TABLE), ("nvme", NVME_TABLE), ("dlb", DLB_TABLE)) for row in table
]
IDS = [f"{name}-{row[0]:02x}" for name, row in ROWS]


@pytest.mark.parametrize(("name", "row"), ROWS, ids=IDS)
def test_register_without_vfs(name: str, row: tuple[int, ...]) -> None:
    offset, width, reset, ones, zeros = row[:5]
    pf = build_pf(name)
    assert sriov_read(pf, offset, width) == reset
    sriov_write(pf, offset, width, (1 << 8 * width) - 1)
    assert sriov_read(pf, offset, width) == ones
    sriov_write(pf, offset, width, 0)
    assert sriov_read(pf, offset, width) == zeros


@pytest.mark.parametrize(("name", "row"), ROWS, ids=IDS)
def test_register_with_vfs(name: str, row: tuple[int, ...]) -> None:
    offset, width, before, ones, zeros = row[0], row[1], *row[5:]
    pf = build_pf(name)
    enable_vfs(pf, 3)
    assert sriov_read(pf, offset, width) == before
    sriov_write(pf, offset, width, (1 << 8 * width) - 1)
    assert sriov_read(pf, offset, width) == ones
    sriov_write(pf, offset, width, 0)
    assert sriov_read(pf, offset, width) == zeros


def test_the_igb_table_covers_every_byte() -> None:
    covered = [byte for offset, width, *_ in IGB_TABLE for byte in range(offset, offset + width)]
    assert covered == list(range(0x40))


@pytest.mark.parametrize(("count", "exist"), [(0, 0), (1, 1), (8, 8), (9, 0), (0xFFFF, 0)])
def test_vf_enable_is_dropped_above_total_vfs(count: int, exist: int) -> None:
    pf = build_pf("igb")
    enable_vfs(pf, count)
    assert len(pf.virtual_functions) == exist
    assert sriov_read(pf, Sriov.CONTROL, 2) == (0x09 if count <= 8 else 0x08), "MSE of the same write stays"


def test_num_vfs_reopens_when_vf_enable_is_cleared() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 4)
    sriov_write(pf, Sriov.NUM_VFS, 2, 5)
    assert pf.sriov.num_vfs == 4
    sriov_write(pf, Sriov.CONTROL, 2, 0)
    assert (pf.sriov.num_vfs, pf.virtual_functions) == (4, []), "NumVFs keeps its value, the VFs are gone"
    sriov_write(pf, Sriov.NUM_VFS, 2, 5)
    assert pf.sriov.num_vfs == 5


def test_counts_follow_registers_that_were_set_behind_the_models_back() -> None:
    """A restore from a snapshot sets registers without a write: the state has to follow (CVE-2025-54566)."""
    pf = build_pf("igb")
    pf.config.poke(0x160 + Sriov.NUM_VFS, 2, 6)
    pf.config.poke(0x160 + Sriov.CONTROL, 2, int(SriovControl.VF_ENABLE))
    assert len(pf.virtual_functions) == 6
    sriov_write(pf, Sriov.NUM_VFS, 2, 0xFFFF)
    assert sriov_read(pf, Sriov.NUM_VFS, 2) == 6
    pf.config.poke(0x160 + Sriov.CONTROL, 2, 0)
    assert pf.virtual_functions == []
    sriov_write(pf, Sriov.NUM_VFS, 2, 0xFFFF)
    sriov_write(pf, Sriov.CONTROL, 2, 1)
    assert sriov_read(pf, Sriov.CONTROL, 2) == 0


@pytest.mark.parametrize(
    ("written", "reads"),
    [(1, 1), (2, 2), (0x10, 0x10), (0x400, 0x400), (4, 1), (3, 1), (0x553, 1), (0, 1), (0x8000_0000, 1)],
)
def test_system_page_size_takes_one_supported_bit(written: int, reads: int) -> None:
    pf = build_pf("igb")
    sriov_write(pf, Sriov.SYSTEM_PAGE_SIZE, 4, written)
    assert sriov_read(pf, Sriov.SYSTEM_PAGE_SIZE, 4) == reads


def test_system_page_size_is_fixed_while_vfs_exist() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 1)
    sriov_write(pf, Sriov.SYSTEM_PAGE_SIZE, 4, 0x10)
    assert sriov_read(pf, Sriov.SYSTEM_PAGE_SIZE, 4) == 1


def test_a_larger_page_enlarges_the_vf_bars() -> None:
    """The size probe must tell 64 KiB then, or two VFs would share a page."""
    pf = build_pf("igb")
    sriov_write(pf, Sriov.SYSTEM_PAGE_SIZE, 4, 0x10)
    sriov_write(pf, Sriov.VF_BAR0, 4, 0xFFFF_FFFF)
    sriov_write(pf, Sriov.VF_BAR0 + 4, 4, 0xFFFF_FFFF)
    assert sriov_read(pf, Sriov.VF_BAR0, 4) == 0xFFFF_000C
    assert [window.size for window in pf.sriov.vf_bar_windows()] == [0x10000, 0x10000]


def test_vf_bars_are_one_window_cut_into_equal_parts() -> None:
    pf = build_pf("igb")
    sriov_write(pf, Sriov.VF_BAR0, 4, 0xE000_0000)
    sriov_write(pf, Sriov.VF_BAR0 + 4, 4, 0x12)
    enable_vfs(pf, 7)
    windows = [vf.bar_windows()[0] for vf in pf.virtual_functions]
    assert [window.address for window in windows] == [0x12_E000_0000 + 0x4000 * index for index in range(7)]
    assert {window.size for window in windows} == {0x4000}


def test_ari_hierarchy_is_writable_in_the_lowest_pf_only() -> None:
    lowest, other = build_adapter("igb", physical_functions=2).physical_functions
    sriov_write(other, Sriov.CONTROL, 2, 0x10)
    assert sriov_read(other, Sriov.CONTROL, 2) == 0
    sriov_write(lowest, Sriov.CONTROL, 2, 0x10)
    assert sriov_read(lowest, Sriov.CONTROL, 2) == 0x10
    assert (lowest.sriov.ari_hierarchy, other.sriov.ari_hierarchy) == (True, True)
    assert (sriov_read(lowest, 0x12, 1), sriov_read(other, 0x12, 1)) == (0, 1), "each depends on itself"


def test_ari_hierarchy_is_fixed_while_any_pf_has_vfs() -> None:
    lowest, other = build_adapter("igb", physical_functions=2).physical_functions
    enable_vfs(other, 1)
    sriov_write(lowest, Sriov.CONTROL, 2, 0x10)
    assert sriov_read(lowest, Sriov.CONTROL, 2) == 0
    disable_vfs(other)
    sriov_write(lowest, Sriov.CONTROL, 2, 0x10)
    assert sriov_read(lowest, Sriov.CONTROL, 2) == 0x10


@pytest.mark.parametrize(
    ("ari", "num_vfs", "offset", "stride"),
    [(0, 0, 1, 1), (0, 7, 1, 1), (0, 8, 256, 1), (0, 256, 256, 1), (0x10, 0, 1, 1), (0x10, 256, 1, 1)],
)
def test_offset_and_stride_change_with_ari_and_num_vfs(
    ari: int, num_vfs: int, offset: int, stride: int
) -> None:
    pf = build_pf("dlb")
    sriov_write(pf, Sriov.CONTROL, 2, ari)
    sriov_write(pf, Sriov.NUM_VFS, 2, num_vfs)
    assert (sriov_read(pf, Sriov.FIRST_VF_OFFSET, 2), sriov_read(pf, Sriov.VF_STRIDE, 2)) == (offset, stride)


def build_migrating_pf() -> PhysicalFunctionModel:
    """An igb whose capability has VF migration."""
    igb = PROFILES["igb"]
    extended = tuple(
        replace(x, capabilities=1) if isinstance(x, SriovProfile) else x for x in igb.pf.extended
    )
    return Adapter(replace(igb, pf=replace(igb.pf, extended=extended)), SLOT).physical_functions[0]


def test_vf_migration_bits_exist_where_the_capability_says_so() -> None:
    pf = build_migrating_pf()
    sriov_write(pf, Sriov.CONTROL, 2, 0xFFFF)
    assert sriov_read(pf, Sriov.CONTROL, 2) == 0x1F
    pf.config.poke(0x160 + Sriov.STATUS, 2, 1)
    sriov_write(pf, Sriov.STATUS, 2, 0)
    assert sriov_read(pf, Sriov.STATUS, 2) == 1
    sriov_write(pf, Sriov.STATUS, 2, 1)
    assert sriov_read(pf, Sriov.STATUS, 2) == 0


def test_control_and_status_in_one_dword() -> None:
    pf = build_pf("igb")
    sriov_write(pf, Sriov.NUM_VFS, 4, 0xFFFF_0002)
    sriov_write(pf, Sriov.CONTROL, 4, 0xFFFF_0009)
    assert (sriov_read(pf, Sriov.CONTROL, 4), len(pf.virtual_functions)) == (0x9, 2)
    sriov_write(pf, Sriov.CONTROL, 1, 0x08)
    assert pf.virtual_functions == []
