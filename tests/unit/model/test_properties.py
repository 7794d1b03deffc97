"""What holds for any sequence of configuration writes, resets and losses of the device."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sriovd.backend.model import PhysicalFunctionModel, Reset, VirtualFunctionModel
from sriovd.pci_registers import Sriov, SriovControl
from tests.unit.model.cards import build_pf, enable_vfs

WIDTHS = st.sampled_from([1, 2, 4])
# values that matter to SR-IOV more often than chance would bring them
VALUES = st.one_of(st.sampled_from([0, 1, 8, 9, 0x10, 0x18, 0x19, 0xFFFF_FFFF]), st.integers(0, 0xFFFF_FFFF))


def read_only_dwords(pf: PhysicalFunctionModel) -> list[int]:
    """Identity and all registers of the SR-IOV capability that no write may change."""
    cap = pf.sriov.profile.offset
    offsets = [0x00, 0x08, 0x2C, 0x34, cap, cap + 0x04, cap + 0x0C, cap + 0x18, cap + 0x1C, cap + 0x3C]
    return [pf.config.read(offset, 4) for offset in offsets]


class SriovMachine(RuleBasedStateMachine):
    """Random writes to a PF and its VFs, resets, freezing, and the card falling off the bus."""

    @initialize(name=st.sampled_from(["igb", "nvme", "dlb"]))
    def insert(self, name: str) -> None:
        self.pf = build_pf(name)
        self.cap = self.pf.sriov.profile.offset
        self.read_only = read_only_dwords(self.pf)
        self.handles: list[VirtualFunctionModel] = []
        self.gone: list[VirtualFunctionModel] = []

    @rule(offset=st.integers(0, 0x3F), width=WIDTHS, value=VALUES)
    def write_sriov(self, offset: int, width: int, value: int) -> None:
        before = (self.pf.sriov.vf_enable, self.pf.sriov.num_vfs, self.pf.sriov.page_size)
        address = self.cap + offset // width * width
        self.pf.write(address, width, value & (1 << 8 * width) - 1)
        if before[0]:
            assert (self.pf.sriov.num_vfs, self.pf.sriov.page_size) == before[1:], (
                "fixed while VF Enable is set"
            )
        elif self.pf.sriov.vf_enable:
            assert self.pf.sriov.num_vfs <= self.pf.sriov.profile.total_vfs

    @rule(offset=st.integers(0, 0xFFF), width=WIDTHS, value=VALUES)
    def write_anywhere(self, offset: int, width: int, value: int) -> None:
        self.pf.write(offset // width * width, width, value & (1 << 8 * width) - 1)

    @rule(count=st.integers(0, 300))
    def enable(self, count: int) -> None:
        enable_vfs(self.pf, count)

    @rule(index=st.integers(0, 300), offset=st.integers(0, 0xFFF), width=WIDTHS, value=VALUES)
    def write_vf(self, index: int, offset: int, width: int, value: int) -> None:
        if index < self.pf.sriov.enabled_vfs:
            vf = self.pf.virtual_function(index)
            self.handles.append(vf)
            vf.write(offset // width * width, width, value & (1 << 8 * width) - 1)
            if vf.reachable:
                assert (vf.read(0, 4), vf.read(4, 2) & ~0x4, vf.read(0x10, 4)) == (0xFFFF_FFFF, 0, 0)

    @rule(kind=st.sampled_from(list(Reset)))
    def reset(self, kind: Reset) -> None:
        self.pf.reset(kind)
        assert (self.pf.sriov.vf_enable, self.pf.sriov.num_vfs, self.pf.sriov.page_size) == (False, 0, 4096)
        assert (self.pf.bus_master, self.pf.memory_space) == (False, False)
        if kind is Reset.POWER:
            assert self.pf.config.to_bytes() == build_pf(self.pf.adapter.profile.name).config.to_bytes()

    @rule(frozen=st.booleans())
    def freeze(self, frozen: bool) -> None:
        self.pf.frozen = frozen

    @rule()
    def lose_and_return(self) -> None:
        self.pf.adapter.surprise_down()
        self.pf.write(self.cap + Sriov.CONTROL, 2, int(SriovControl.VF_ENABLE))
        assert self.pf.read(0, 4) == 0xFFFF_FFFF
        self.pf.adapter.restore()
        assert self.pf.virtual_functions == []

    @invariant()
    def functions_follow_the_registers(self) -> None:
        control = self.pf.config.peek(self.cap + Sriov.CONTROL, 2)
        expected = (
            self.pf.config.peek(self.cap + Sriov.NUM_VFS, 2) if control & SriovControl.VF_ENABLE else 0
        )
        vfs = self.pf.virtual_functions
        assert len(vfs) == expected
        routing = (self.pf.sriov.first_vf_offset, self.pf.sriov.vf_stride)
        assert [vf.rid - self.pf.rid for vf in vfs] == [
            routing[0] + routing[1] * index for index in range(expected)
        ]

    @invariant()
    def read_only_registers_stay(self) -> None:
        assert read_only_dwords(self.pf) == self.read_only

    @invariant()
    def a_vf_once_gone_stays_gone(self) -> None:
        self.gone += [vf for vf in self.handles if not vf.present]
        self.handles = [vf for vf in self.handles if vf.present]
        assert not any(vf.present for vf in self.gone)


TestSriovMachine = SriovMachine.TestCase
TestSriovMachine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.sampled_from(["igb", "nvme", "dlb"]), st.integers(0, 0xFFF), WIDTHS, VALUES)
@settings(deadline=None)
def test_bytes_and_wider_reads_agree(name: str, offset: int, width: int, value: int) -> None:
    pf = build_pf(name)
    pf.write(offset // width * width, width, value & (1 << 8 * width) - 1)
    image = pf.config_bytes()
    start = offset // 4 * 4
    assert pf.read(start, 4) == int.from_bytes(image[start : start + 4], "little")
    assert bytes(pf.read(start + i, 1) for i in range(4)) == image[start : start + 4]
