"""One device twice, QEMU's and the model's: writes go to both, then every register of both is compared."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sriovd.backend.model import PROFILES, Adapter, FunctionModel
from sriovd.backend.model.aer import AerProfile
from sriovd.backend.model.function import find_profile
from sriovd.backend.model.msi import MsixProfile
from sriovd.pci import PciAddress
from sriovd.pci_registers import Sriov, SriovControl
from tests.model_qtest.deviations import (
    COMPARED_PAGE_SIZES,
    KEPT_WHILE_VFS,
    UNEXERCISED,
    Deviation,
    deviations_at,
)
from tests.model_qtest.qtest import QtestMachine

SLOT = PciAddress.parse("0000:01:00.0")
VFS = 127
DEVICE_ARGS = {
    "igb": ("-netdev", "hubport,id=n0,hubid=0", "-device", "igb,id=dut,bus=rp1,netdev=n0"),
    "nvme": (
        "-device", "nvme-subsys,id=s0,nqn=s0",
        "-device", f"nvme,id=dut,bus=rp1,serial=x,subsys=s0,sriov_max_vfs={VFS},sriov_vq_flexible={2 * VFS},"
        f"sriov_vi_flexible={VFS},max_ioqpairs={2 * VFS + 10},msix_qsize={VFS + 18}",
    ),
}  # fmt: skip
INTERESTING = (0, 1, 2, 7, 8, 9, 0x19, 0x18, 0x10, 127, 128, 0x8000, 0xC000, 0xFFFF, 0xFFFF_FFFF)


@dataclass(frozen=True, slots=True)
class Block:
    """A run of registers that is compared: name as in deviations.py, first byte and length."""

    name: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Write:
    """One configuration write; `target` None is the PF, else the index of a VF."""

    target: int | None
    offset: int
    width: int
    value: int


def blocks_of(function: FunctionModel, sriov_offset: int | None) -> list[Block]:
    """What is compared of a function."""
    blocks = [Block("header", 0, 0x40)]
    blocks.append(Block("express", function.express.profile.offset, 0x2C))
    msix = find_profile(function.profile.capabilities, MsixProfile)
    if msix:
        blocks.append(Block("msix", msix.offset, 0x0C))
    aer = find_profile(function.profile.extended, AerProfile)
    if aer:
        blocks.append(Block("aer", aer.offset, 0x2C))
    if sriov_offset is not None:
        blocks.append(Block("sriov", sriov_offset, 0x40))
    return blocks


class Twins:
    """The device under test in QEMU and in the model."""

    def __init__(self, device: str, machine: QtestMachine) -> None:
        self.device = device
        self.machine = machine
        self.adapter = Adapter(PROFILES[device], SLOT)
        (self.pf,) = self.adapter.physical_functions
        self.sriov = self.pf.sriov.profile.offset
        self.history: list[Write] = []
        self.compared = 0
        self.deviated: set[Deviation] = set()

    def write(self, write: Write) -> None:
        """Write to both and compare everything."""
        rid = self.pf.rid if write.target is None else self.pf.vf_address(write.target).rid
        self.history.append(write)
        self.machine.write(rid, write.offset, write.width, write.value)
        self.adapter.write_config(rid, write.offset, write.width, write.value)
        self.compare()

    def compare(self) -> None:
        """Every register of the PF, and which VFs exist; of the first and last VF every register too."""
        self._compare_function("pf", self.pf, blocks_of(self.pf, self.sriov))
        self._compare_existence()
        vfs = self.pf.sriov.enabled_vfs
        for index in {0, vfs - 1} if vfs else ():
            vf = self.pf.virtual_function(index)
            self._compare_function("vf", vf, blocks_of(vf, None))

    def _compare_existence(self) -> None:
        total = self.pf.sriov.profile.total_vfs
        rids = [self.pf.vf_address(index).rid for index in range(total)]
        answers = self.machine.read_dwords([(rid, 0x08) for rid in rids])
        mine = [self.adapter.read_config(rid, 0x08, 4) for rid in rids]
        self.compared += len(rids)
        assert mine == answers, f"{self.device}: which VFs exist, after {self.history[-5:]}"

    def _compare_function(self, kind: str, function: FunctionModel, blocks: list[Block]) -> None:
        places = [(block, at) for block in blocks for at in range(0, block.length, 4)]
        answers = self.machine.read_dwords([(function.rid, block.offset + at) for block, at in places])
        for (block, at), theirs in zip(places, answers, strict=True):
            rows = deviations_at(self.device, kind, block.name, at)
            compared = 0xFFFF_FFFF
            mine = function.read(block.offset + at, 4)
            self.compared += 1
            for row in rows:
                compared &= ~row.dword_bits
                if (mine ^ theirs) & row.dword_bits:
                    self.deviated.add(row)
            assert mine & compared == theirs & compared, (
                f"{self.device} {kind} {block.name}+{at:#x}: model {mine:#010x}, QEMU {theirs:#010x}, "
                f"after {self.history[-5:]}"
            )


def random_write(rng: random.Random, twins: Twins) -> Write:
    """A write that could show a difference.

    Any compared register, values that matter more often than chance.
    """
    if rng.random() < SRIOV_MOVE_SHARE:
        register, width, values = rng.choice(SRIOV_MOVES)
        return steer(Write(None, twins.sriov + register, width, rng.choice(values)), twins)
    vfs = twins.pf.sriov.enabled_vfs
    target = rng.choice((None, None, 0, vfs - 1)) if vfs else None
    function: FunctionModel = twins.pf if target is None else twins.pf.virtual_function(target)
    blocks = blocks_of(function, twins.sriov if target is None else None)
    block = rng.choice(blocks)
    width = rng.choice((1, 2, 4))
    offset = block.offset + rng.randrange(block.length // width) * width
    value = rng.choice((rng.choice(INTERESTING), rng.getrandbits(32))) & (1 << 8 * width) - 1
    return steer(Write(target, offset, width, value), twins)


SRIOV_MOVE_SHARE = 0.4
SRIOV_MOVES = (
    (Sriov.NUM_VFS, 2, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 127, 128, 0xFFFF)),
    (Sriov.NUM_VFS, 2, (1, 2, 3, 4, 5, 6, 7, 8)),
    (Sriov.CONTROL, 2, (0, 9)),
    (Sriov.CONTROL, 2, (0, 0, 1, 8, 9, 9, 9, 0x19, 0xFFFF)),
    (Sriov.SYSTEM_PAGE_SIZE, 4, (1, 2)),
)


def steer(write: Write, twins: Twins) -> Write:
    """The write, or where deviations.py leaves it out, a harmless one in its place."""
    at = write.offset - twins.sriov
    if write.target is not None or not 0 <= at < 0x40:
        return write
    vf_enable = twins.pf.sriov.vf_enable
    harmless = Write(None, twins.sriov, 4, 0)
    if any(
        row.first < at + write.width and at < row.end and (vf_enable or not row.while_vfs)
        for row in UNEXERCISED
    ):
        return harmless
    if Sriov.SYSTEM_PAGE_SIZE <= at < Sriov.SYSTEM_PAGE_SIZE + 4:
        return write if write.width == 4 and write.value in COMPARED_PAGE_SIZES else harmless
    if at == Sriov.CONTROL and vf_enable and write.value & SriovControl.VF_ENABLE:
        kept = twins.pf.read(write.offset, 2) & KEPT_WHILE_VFS
        return Write(None, write.offset, write.width, write.value & ~KEPT_WHILE_VFS | kept)
    return write
