"""PF and VF registers besides SR-IOV and AER: header, PCI Express with FLR, MSI-X, power management."""

from __future__ import annotations

import pytest

from sriovd.backend.model import Reset
from sriovd.backend.model.power import PowerState
from sriovd.pci_registers import Sriov
from tests.unit.model.cards import build_adapter, build_pf, enable_vfs, sriov_read, sriov_write

# offset, width, reset, after ones, after zeros of an igb PF
PF_TABLE = [
    (0x00, 4, 0x10C9_8086, 0x10C9_8086, 0x10C9_8086),
    (0x04, 2, 0, 0x0547, 0),
    (0x06, 2, 0x0010, 0x0010, 0x0010),
    (0x08, 4, 0x0200_0001, 0x0200_0001, 0x0200_0001),
    (0x0C, 1, 0, 0xFF, 0),
    (0x0E, 1, 0, 0, 0),
    (0x10, 4, 0, 0xFFFE_0000, 0),
    (0x14, 4, 0, 0xFFFE_0000, 0),
    (0x18, 4, 1, 0xFFFF_FFE1, 1),
    (0x1C, 4, 4, 0xFFFF_C004, 4),
    (0x20, 4, 0, 0xFFFF_FFFF, 0),
    (0x24, 4, 0, 0, 0),
    (0x2C, 4, 0x1100_1AF4, 0x1100_1AF4, 0x1100_1AF4),
    (0x34, 4, 0x40, 0x40, 0x40),
    (0x3C, 2, 0x0100, 0x01FF, 0x0100),
    (0x70, 4, 0x0009_A011, 0xC009_A011, 0x0009_A011),
    (0x74, 4, 3, 3, 3),
    (0x78, 4, 0x2003, 0x2003, 0x2003),
    (0xA0, 4, 0x0002_0010, 0x0002_0010, 0x0002_0010),
    (0xA4, 4, 0x1000_8020, 0x1000_8020, 0x1000_8020),
    (0xA8, 4, 0, 0, 0),
    (0xAC, 4, 0x411, 0x411, 0x411),
    (0xB0, 4, 0x0011_0000, 0x0011_00CB, 0x0011_0000),
    (0xC4, 4, 0x0030_0000, 0x0030_0000, 0x0030_0000),
    (0xC8, 4, 0, 0x8000, 0),
]
# the same of an igb VF: identity ffff, Bus Master Enable and MSI-X control are all that can be written
VF_TABLE = [
    (0x00, 4, 0xFFFF_FFFF, 0xFFFF_FFFF, 0xFFFF_FFFF),
    (0x04, 2, 0, 0x0004, 0),
    (0x06, 2, 0x0010, 0x0010, 0x0010),
    (0x08, 4, 0x0200_0001, 0x0200_0001, 0x0200_0001),
    (0x0C, 4, 0, 0, 0),
    *[(0x10 + 4 * bar, 4, 0, 0, 0) for bar in range(6)],
    (0x2C, 4, 0x1100_1AF4, 0x1100_1AF4, 0x1100_1AF4),
    (0x30, 4, 0, 0, 0),
    (0x34, 4, 0xA0, 0xA0, 0xA0),
    (0x3C, 2, 0, 0, 0),
    (0x70, 4, 0x0002_0011, 0xC002_0011, 0x0002_0011),
    (0xA0, 4, 0x0002_7010, 0x0002_7010, 0x0002_7010),
    (0xA4, 4, 0x1000_8020, 0x1000_8020, 0x1000_8020),
    (0xA8, 4, 0, 0, 0),
    (0xB0, 4, 0x0011_0000, 0x0011_0000, 0x0011_0000),
    (0x160, 4, 0, 0, 0),
]


@pytest.mark.parametrize(("offset", "width", "reset", "ones", "zeros"), PF_TABLE)
def test_pf_register(offset: int, width: int, reset: int, ones: int, zeros: int) -> None:
    pf = build_pf("igb")
    assert pf.read(offset, width) == reset
    pf.write(offset, width, (1 << 8 * width) - 1)
    assert pf.read(offset, width) == ones
    pf.write(offset, width, 0)
    assert pf.read(offset, width) == zeros


@pytest.mark.parametrize(("offset", "width", "reset", "ones", "zeros"), VF_TABLE)
def test_vf_register(offset: int, width: int, reset: int, ones: int, zeros: int) -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 2)
    vf = pf.virtual_functions[1]
    assert vf.read(offset, width) == reset
    vf.write(offset, width, (1 << 8 * width) - 1)
    assert vf.read(offset, width) == ones
    vf.write(offset, width, 0)
    assert vf.read(offset, width) == zeros
    assert pf.virtual_functions[0].read(offset, width) == reset, "its neighbour is untouched"


def test_flr_of_a_pf_takes_its_vfs_with_it() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 3)
    vf = pf.virtual_functions[0]
    pf.write(0x04, 2, 0x0406)
    pf.write(0x72, 2, 0x8000)
    pf.write(0x10, 4, 0xE000_0000)
    pf.transactions_pending = True
    pf.write(0xA8, 2, 0x800F)
    assert (pf.flr_count, pf.virtual_functions, pf.transactions_pending) == (1, [], False)
    assert (pf.read(0x04, 2), pf.read(0x72, 2), pf.read(0x10, 4), pf.read(0xA8, 2)) == (0, 0x0009, 0, 0)
    assert (sriov_read(pf, Sriov.CONTROL, 2), sriov_read(pf, Sriov.NUM_VFS, 2)) == (0, 0)
    assert (vf.read(0x04, 4), vf.present) == (0xFFFF_FFFF, False)


def test_flr_of_a_vf_is_its_own_business() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 3)
    first, second, _ = pf.virtual_functions
    for vf in (first, second):
        vf.write(0x04, 2, 0x4)
        vf.write(0x72, 2, 0xC000)
    first.write(0xA8, 2, 0x8000)
    assert (first.flr_count, second.flr_count, pf.flr_count) == (1, 0, 0)
    assert (first.bus_master, first.msix and first.msix.enabled) == (False, False)
    assert (second.bus_master, second.msix and second.msix.enabled, second.msix and second.msix.masked) == (
        True,
    ) * 3
    assert len(pf.virtual_functions) == 3 and pf.virtual_functions[0] is first


def test_what_survives_a_function_level_reset() -> None:
    """Max Payload Size and the link's settings do (PCIe 6.6.2); the rest of Device Control does not."""
    pf = build_pf("dlb")
    assert pf.read(0x74, 2) == 0x2810
    pf.write(0x74, 2, 0x504F)
    pf.write(0x7C, 2, 0x43)
    pf.function_level_reset()
    assert (pf.read(0x74, 2), pf.read(0x7C, 2)) == (0x2850, 0x43)
    pf.reset(Reset.HOT)
    assert (pf.read(0x74, 2), pf.read(0x7C, 2)) == (0x2810, 0)


def test_transactions_pending_shows_and_cannot_be_written() -> None:
    pf = build_pf("igb")
    pf.transactions_pending = True
    pf.write(0xAA, 2, 0xFFFF)
    assert pf.read(0xAA, 2) == 0x20
    assert pf.read(0xA8, 4) == 0x0020_0000
    pf.transactions_pending = False
    assert pf.read(0xAA, 2) == 0


def test_msix_reads_like_its_registers() -> None:
    pf = build_pf("nvme")
    assert pf.msix is not None
    assert (pf.msix.vectors, pf.msix.enabled, pf.msix.masked) == (18, False, False)
    pf.write(0x42, 2, 0xFFFF)
    assert (pf.msix.vectors, pf.msix.enabled, pf.msix.masked) == (18, True, True)


@pytest.mark.parametrize(("written", "state"), [(0, 0), (1, 0), (2, 0), (3, 3)])
def test_unsupported_power_states_are_ignored(written: int, state: int) -> None:
    pf = build_pf("igb")
    pf.write(0x44, 2, written)
    assert (pf.read(0x44, 2), pf.power_state) == (state, PowerState(state))


def test_d3hot_without_no_soft_reset_loses_the_configuration() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 2)
    pf.write(0x44, 2, 3)
    assert (pf.power_state, len(pf.virtual_functions)) == (PowerState.D3HOT, 2)
    pf.write(0x44, 2, 0)
    assert (pf.power_state, pf.virtual_functions, pf.flr_count) == (PowerState.D0, [], 0)


def test_d3hot_with_no_soft_reset_keeps_it() -> None:
    pf = build_pf("nvme")
    enable_vfs(pf, 2)
    pf.write(0x64, 2, 3)
    pf.write(0x64, 2, 0)
    assert (pf.read(0x64, 2), len(pf.virtual_functions)) == (0x8, 2)


@pytest.mark.parametrize(("name", "power", "kept"), [("dlb", 0xB4, 0x10), ("igb", 0x44, 0)])
def test_ari_hierarchy_survives_d3hot_where_the_capability_says_so(name: str, power: int, kept: int) -> None:
    pf = build_pf(name)
    sriov_write(pf, Sriov.CONTROL, 2, 0x10)
    pf.write(power, 2, 3)
    pf.write(power, 2, 0)
    assert sriov_read(pf, Sriov.CONTROL, 2) == kept
    sriov_write(pf, Sriov.CONTROL, 2, 0x10)
    pf.function_level_reset()
    assert sriov_read(pf, Sriov.CONTROL, 2) == 0, "an FLR clears it either way"


def test_memory_space_of_a_vf_is_its_pfs_vf_mse() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 1)
    vf = pf.virtual_functions[0]
    vf.write(0x04, 2, 0x2)
    assert vf.memory_space is True
    sriov_write(pf, Sriov.CONTROL, 2, 0x1)
    assert (vf.memory_space, vf.present, pf.memory_space) == (False, True, False)
    pf.write(0x04, 2, 0x2)
    assert (vf.memory_space, pf.memory_space) == (False, True)


def test_header_type_tells_several_functions() -> None:
    assert [pf.read(0x0E, 1) for pf in build_adapter("igb", physical_functions=2).physical_functions] == [
        0x80,
        0x80,
    ]


def test_pf_bar_windows_follow_the_registers() -> None:
    pf = build_pf("igb")
    pf.write(0x10, 4, 0xFEA0_0000)
    pf.write(0x18, 4, 0xC001)
    pf.write(0x1C, 4, 0xE000_0000)
    pf.write(0x20, 4, 0x7)
    assert [(w.bar.index, w.address, w.size) for w in pf.bar_windows()] == [
        (0, 0xFEA0_0000, 0x20000), (1, 0, 0x20000), (2, 0xC000, 32), (3, 0x7_E000_0000, 0x4000),
    ]  # fmt: skip


def test_dma_needs_bus_master_enable_power_and_somebody_who_answers() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 1)
    vf = pf.virtual_functions[0]
    for function in (pf, vf):
        assert not function.may_dma
        function.write(4, 2, 4)
        assert function.may_dma
        function.frozen = True
        assert not function.may_dma and function.bus_master
        function.frozen = False
    pf.write(0x44, 2, 3)
    assert pf.power_state is PowerState.D3HOT and not pf.may_dma
    pf.write(0x44, 2, 0)
    enable_vfs(pf, 1)
    pf.virtual_functions[0].write(4, 2, 4)
    pf.adapter.hot_reset()
    assert not pf.may_dma and not vf.may_dma
