"""The model reads what QEMU's igb and nvme read, register by register, after every write of directed and
random sequences.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise

import pytest

from sriovd.pci_registers import Aer, Express, Header, Sriov
from tests.model_qtest.deviations import DEVIATIONS
from tests.model_qtest.qtest import QtestMachine
from tests.model_qtest.replay import DEVICE_ARGS, Twins, Write, blocks_of, random_write, steer

RANDOM_WRITES = 300
SEEDS = (1, 2, 3, 4)


@pytest.fixture(params=sorted(DEVICE_ARGS))
def twins(request: pytest.FixtureRequest, qemu: str) -> Iterator[Twins]:
    """A device straight out of power-on, twice."""
    with QtestMachine(qemu, *DEVICE_ARGS[request.param]) as machine:
        yield Twins(request.param, machine)


def test_reset_values(twins: Twins) -> None:
    twins.compare()
    assert twins.compared >= 45


def test_every_register_takes_ones_and_zeros(twins: Twins) -> None:
    """Without VFs, then with them.

    Each PF register, then each of a VF. Every deviation has to show on the way.
    """
    write_ones_and_zeros(twins)
    assert len(twins.pf.virtual_functions) == 3
    express = twins.pf.express.profile.offset
    for offset in (Express.DEVICE_CONTROL, Express.DEVICE_CONTROL_2, Express.DEVICE_CONTROL):
        twins.write(Write(None, express + offset, 2, 0xFFFF))
    expected = {row for row in DEVIATIONS if twins.device in row.devices}
    assert twins.deviated == expected, "a row that never shows is out of date"


def write_ones_and_zeros(twins: Twins) -> None:
    """16 bits at a time."""
    targets: list[int | None] = [None]
    for vf_enable in (False, True):
        if vf_enable:
            enable(twins, 3)
            targets = [None, 2]
        for target in targets:
            function = twins.pf if target is None else twins.pf.virtual_function(target)
            for block in blocks_of(function, twins.sriov if target is None else None):
                for at in range(0, block.length, 2):
                    for value in (0xFFFF, 0):
                        if target is None and block.name == "sriov" and at == Sriov.CONTROL and vf_enable:
                            continue  # would end the VFs; test_vf_enable does it
                        if block.name == "express" and at == 8:
                            value &= 0x7FFF  # FLR would end the VFs; test_function_level_reset does it
                        twins.write(steer(Write(target, block.offset + at, 2, value), twins))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 127, 128, 0xFFFF])
def test_vf_enable(twins: Twins, count: int) -> None:
    enable(twins, count)
    twins.write(Write(None, twins.sriov + Sriov.NUM_VFS, 2, 1))
    twins.write(Write(None, twins.sriov + Sriov.CONTROL, 1, 0x1))
    twins.write(Write(None, twins.sriov + Sriov.CONTROL, 2, 0))
    twins.write(Write(None, twins.sriov + Sriov.NUM_VFS, 2, 2))
    twins.write(Write(None, twins.sriov + Sriov.CONTROL, 2, 0x19))


@pytest.mark.parametrize("target", [None, 1])
def test_function_level_reset(twins: Twins, target: int | None) -> None:
    enable(twins, 3)
    function = twins.pf if target is None else twins.pf.virtual_function(target)
    for block in blocks_of(function, None):
        if block.name != "express":
            for at in range(0, block.length, 4):
                twins.write(Write(target, block.offset + at, 4, 0xFFFF_FFFF))
    twins.write(Write(target, function.express.profile.offset + 8, 2, 0x8000))
    assert function.flr_count == 1
    assert len(twins.pf.virtual_functions) == (0 if target is None else 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_writes(twins: Twins, seed: int) -> None:
    rng = random.Random(f"{twins.device} {seed}")
    counts = [0]
    for _ in range(RANDOM_WRITES):
        twins.write(random_write(rng, twins))
        counts.append(twins.pf.sriov.enabled_vfs)
    assert twins.compared > RANDOM_WRITES * 40
    changes = sum(before != after for before, after in pairwise(counts))
    assert changes >= 10, "the sequence has to make VFs come and go"


HEADER = (0x4000_0001, 0xF, 0xFEDC_BA90, 0x12)
# monitor command, bits, header: an error at a time, and cleared before the next (see INJECTION_DEVIATIONS)
INJECTED = (
    ("POISON_TLP 0x40000001 0xf 0xfedcba90 0x12", 1 << 12, HEADER),
    ("MALF_TLP 0x40000001 0xf 0xfedcba90 0x12", 1 << 18, HEADER),
    ("UNSUP 0x40000001 0xf 0xfedcba90 0x12", 1 << 20, HEADER),
    ("DLP", 1 << 4, None),
)


@pytest.mark.parametrize("twins", ["igb"], indirect=True)
@pytest.mark.parametrize("masked", [0, 1 << 12, 1 << 4 | 1 << 18])
def test_an_injected_error_leaves_the_same_registers(twins: Twins, masked: int) -> None:
    """Status, first error pointer, header log and Device Status, and what writing ones back clears."""
    aer = 0x100
    twins.write(Write(None, aer + Aer.UNCORRECTABLE_MASK, 4, masked))
    twins.write(Write(None, aer + Aer.CORRECTABLE_MASK, 4, 0))
    for command, status, header in INJECTED:
        assert twins.machine.monitor(f"pcie_aer_inject_error dut {command}").startswith("OK")
        twins.pf.inject_uncorrectable(status, header)
        assert error_registers(twins, "model") == error_registers(twins, "qemu")
        assert twins.pf.read(aer + Aer.UNCORRECTABLE_STATUS, 4) == status
        write_both(twins, aer + Aer.UNCORRECTABLE_STATUS, status)
    assert twins.machine.monitor("pcie_aer_inject_error -c dut 0x40").startswith("OK")
    twins.pf.inject_correctable(1 << 6)
    assert error_registers(twins, "model") == error_registers(twins, "qemu")
    assert twins.pf.read(aer + Aer.CORRECTABLE_STATUS, 4) == 1 << 6
    write_both(twins, aer + Aer.CORRECTABLE_STATUS, 1 << 6)
    assert error_registers(twins, "model") == error_registers(twins, "qemu")


def write_both(twins: Twins, offset: int, value: int) -> None:
    """A write without comparing everything, because an injection spoils other registers of QEMU's."""
    twins.machine.write(twins.pf.rid, offset, 4, value)
    twins.pf.write(offset, 4, value)


def error_registers(twins: Twins, side: str) -> tuple[int, ...]:
    """AER status, masks, pointer and header log, then Device Status; QEMU's header log put right."""
    express = twins.pf.express.profile.offset
    offsets = [*range(0x104, 0x12C, 4), express + Express.DEVICE_CONTROL]
    if side == "model":
        values = [twins.pf.read(offset, 4) for offset in offsets]
    else:
        values = twins.machine.read_dwords([(twins.pf.rid, offset) for offset in offsets])
        values[6:10] = [int.from_bytes(value.to_bytes(4, "big"), "little") for value in values[6:10]]
    return (*values[:10], values[10] >> 16)


def test_a_configuration_read_from_qemu_loads_into_the_model(twins: Twins) -> None:
    enable(twins, 5)
    twins.write(Write(None, Header.COMMAND, 2, 0x0406))
    words = twins.machine.read_dwords([(twins.pf.rid, at) for at in range(0, 4096, 4)])
    recorded = b"".join(word.to_bytes(4, "little") for word in words)
    fresh = Twins(twins.device, twins.machine)
    fresh.pf.load_config(recorded)
    assert fresh.pf.config_bytes() == recorded
    fresh.compare()
    assert len(fresh.pf.virtual_functions) == 5


def enable(twins: Twins, count: int) -> None:
    """NumVFs, then VF Enable and VF MSE."""
    twins.write(Write(None, twins.sriov + Sriov.NUM_VFS, 2, count))
    twins.write(Write(None, twins.sriov + Sriov.CONTROL, 2, 0x9))
