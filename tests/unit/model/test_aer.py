"""AER: register access rules, and what an injected error leaves in the registers and sends."""

from __future__ import annotations

import pytest

from sriovd.backend.model import AerRecord, AerSeverity, FunctionModel, Reset
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES, bit_names
from sriovd.pci_registers import Aer, Header
from tests.unit.model.cards import build_pf, enable_vfs

AER = 0x100
DEVICE_CONTROL, DEVICE_STATUS = 0xA8, 0xAA
POISONED, UNSUPPORTED, MALFORMED, DLP, INTERNAL = 1 << 12, 1 << 20, 1 << 18, 1 << 4, 1 << 22
HEADER = (0x4000_0001, 0x0000_000F, 0xFEDC_BA90, 0x1234_5678)

# register offset, reset value, after writing ones, after writing zeros; the values that QEMU's igb has
TABLE = [
    (0x04, 0, 0, 0),
    (0x08, 0x0240_0000, 0x03FF_F030, 0),
    (0x0C, 0x0046_2030, 0x03FF_F030, 0),
    (0x10, 0, 0, 0),
    (0x14, 0xE000, 0xF1C1, 0),
    (0x18, 0xA0, 0x1E0, 0xA0),
    (0x1C, 0, 0, 0),
    (0x28, 0, 0, 0),
]


def register(function: FunctionModel, offset: int) -> int:
    return function.read(AER + offset, 4)


@pytest.mark.parametrize(("offset", "reset", "ones", "zeros"), TABLE)
def test_access_rules(offset: int, reset: int, ones: int, zeros: int) -> None:
    pf = build_pf("igb")
    assert register(pf, offset) == reset
    pf.write(AER + offset, 4, 0xFFFF_FFFF)
    assert register(pf, offset) == ones
    pf.write(AER + offset, 4, 0)
    assert register(pf, offset) == zeros


@pytest.mark.parametrize(("offset", "reset", "ones", "zeros"), TABLE)
def test_masks_severity_and_log_survive_an_flr_and_not_power(
    offset: int, reset: int, ones: int, zeros: int
) -> None:
    pf = build_pf("igb")
    pf.write(AER + offset, 4, 0xFFFF_FFFF)
    pf.function_level_reset()
    assert register(pf, offset) == ones
    pf.reset(Reset.HOT)
    assert register(pf, offset) == ones
    pf.reset(Reset.POWER)
    assert register(pf, offset) == reset


def test_a_poisoned_tlp_is_logged_with_its_header_and_reported() -> None:
    pf = build_pf("igb")
    pf.write(DEVICE_CONTROL, 2, 0xF)
    records = pf.inject_uncorrectable(POISONED, HEADER)
    assert records == (AerRecord(AerSeverity.NONFATAL, POISONED, HEADER, reported=True),)
    assert records[0].names == ("TLP",)
    assert register(pf, Aer.UNCORRECTABLE_STATUS) == POISONED
    assert register(pf, Aer.CONTROL) & 0x1F == 12
    assert tuple(register(pf, Aer.HEADER_LOG + 4 * i) for i in range(4)) == HEADER
    assert pf.read(DEVICE_STATUS, 2) == 0x2


def test_the_first_error_keeps_pointer_and_header_until_cleared() -> None:
    pf = build_pf("igb")
    pf.inject_uncorrectable(POISONED, HEADER)
    (second,) = pf.inject_uncorrectable(MALFORMED, (1, 2, 3, 4))
    assert (second.severity, second.tlp_header) == (AerSeverity.FATAL, None)
    assert (register(pf, Aer.CONTROL) & 0x1F, register(pf, Aer.HEADER_LOG)) == (12, HEADER[0])
    pf.write(AER + Aer.UNCORRECTABLE_STATUS, 4, POISONED)
    assert register(pf, Aer.UNCORRECTABLE_STATUS) == MALFORMED
    pf.write(AER + Aer.UNCORRECTABLE_STATUS, 4, MALFORMED)
    pf.inject_uncorrectable(UNSUPPORTED, (1, 2, 3, 4))
    assert (register(pf, Aer.CONTROL) & 0x1F, register(pf, Aer.HEADER_LOG)) == (20, 1)


def test_a_masked_error_is_neither_logged_nor_reported() -> None:
    pf = build_pf("igb")
    assert pf.inject_uncorrectable(INTERNAL, HEADER) == (), "internal errors are masked from reset on"
    assert register(pf, Aer.UNCORRECTABLE_STATUS) == INTERNAL
    assert (register(pf, Aer.CONTROL) & 0x1F, register(pf, Aer.HEADER_LOG)) == (0, 0)
    assert pf.read(DEVICE_STATUS, 2) == 0x4, "Device Status tells what was detected all the same"


def test_severity_is_softwares_choice_and_both_may_come_at_once() -> None:
    pf = build_pf("igb")
    records = pf.inject_uncorrectable(POISONED | DLP, HEADER)
    assert [(r.severity, r.status, r.tlp_header) for r in records] == [
        (AerSeverity.NONFATAL, POISONED, None),
        (AerSeverity.FATAL, DLP, None),
    ], "the lowest error is pointed at, and a data link error has no TLP"
    pf.write(AER + Aer.UNCORRECTABLE_SEVERITY, 4, POISONED)
    assert [(r.severity, r.status) for r in pf.inject_uncorrectable(POISONED | DLP)] == [
        (AerSeverity.NONFATAL, DLP),
        (AerSeverity.FATAL, POISONED),
    ]


@pytest.mark.parametrize(
    ("device_control", "command", "reported"),
    [(0, 0, (False, False, False)), (0x1, 0, (True, False, False)), (0x2, 0, (False, True, False)),
     (0x4, 0, (False, False, True)), (0, 0x100, (False, True, True)), (0x7, 0, (True, True, True))],
)  # fmt: skip
def test_what_may_be_reported(device_control: int, command: int, reported: tuple[bool, ...]) -> None:
    pf = build_pf("igb")
    pf.write(DEVICE_CONTROL, 2, device_control)
    pf.write(Header.COMMAND, 2, command)
    records = (
        pf.inject_correctable(1 << 6) + pf.inject_uncorrectable(POISONED) + pf.inject_uncorrectable(DLP)
    )
    assert tuple(record.reported for record in records) == reported
    assert pf.read(DEVICE_STATUS, 2) == 0x7, "detected, reported or not"
    assert bool(pf.read(Header.STATUS, 2) & 0x4000) == (command != 0)


def test_correctable_errors() -> None:
    pf = build_pf("igb")
    assert pf.inject_correctable(1 << 13) == (), "advisory non-fatal is masked from reset on"
    (record,) = pf.inject_correctable(1 << 0 | 1 << 12 | 1 << 13)
    assert (record.severity, record.names) == (AerSeverity.CORRECTED, ("RxErr", "Timeout"))
    assert register(pf, Aer.CORRECTABLE_STATUS) == 0x3001
    pf.write(AER + Aer.CORRECTABLE_STATUS, 4, 0x0001)
    assert register(pf, Aer.CORRECTABLE_STATUS) == 0x3000


def test_unsupported_request_sets_its_device_status_bit() -> None:
    pf = build_pf("igb")
    pf.inject_uncorrectable(UNSUPPORTED)
    assert pf.read(DEVICE_STATUS, 2) == 0xA
    pf.write(DEVICE_STATUS, 2, 0x8)
    assert pf.read(DEVICE_STATUS, 2) == 0x2


@pytest.mark.parametrize("status", [0, 1 << 0, 1 << 31, -1, 1 << 12 | 1 << 1, 1 << 40])
def test_a_bit_that_does_not_exist_is_refused(status: int) -> None:
    pf = build_pf("igb")
    with pytest.raises(ValueError, match="uncorrectable status"):
        pf.inject_uncorrectable(status)
    assert register(pf, Aer.UNCORRECTABLE_STATUS) == 0


def test_a_function_without_aer_says_so() -> None:
    with pytest.raises(ValueError, match=r"0000:01:00\.0 has no AER"):
        build_pf("nvme").inject_correctable(1)


def test_an_unreachable_function_meets_no_error() -> None:
    pf = build_pf("igb")
    pf.frozen = True
    assert pf.inject_uncorrectable(POISONED) == ()
    pf.frozen = False
    assert register(pf, Aer.UNCORRECTABLE_STATUS) == 0


def test_a_vf_logs_function_errors_under_its_pfs_masks() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 2)
    pf.write(DEVICE_CONTROL, 2, 0xF)
    vf = pf.virtual_functions[1]
    (record,) = vf.inject_uncorrectable(POISONED)
    assert (record.severity, record.reported) == (AerSeverity.NONFATAL, True)
    assert (register(vf, 0x04), register(pf, 0x04), register(pf.virtual_functions[0], 0x04)) == (
        POISONED,
        0,
        0,
    )
    assert vf.read(DEVICE_STATUS, 2) == 0x2
    pf.write(AER + Aer.UNCORRECTABLE_MASK, 4, POISONED)
    assert vf.inject_uncorrectable(POISONED) == ()
    for mask in (0x08, 0x0C, 0x14):
        vf.write(AER + mask, 4, 0xFFFF_FFFF)
        assert register(vf, mask) == 0, "a VF has neither masks nor severity of its own"
    with pytest.raises(ValueError, match="uncorrectable status 0x10: this function logs 0x0031d000 only"):
        vf.inject_uncorrectable(DLP)


def test_names_are_the_kernels() -> None:
    assert bit_names(0xFFFF_F031, UNCORRECTABLE_NAMES) == tuple(UNCORRECTABLE_NAMES.values())
    assert bit_names(0xF1C1, CORRECTABLE_NAMES) == tuple(CORRECTABLE_NAMES.values())
    assert bit_names(0x0000_0012, UNCORRECTABLE_NAMES) == ("bit1", "DLP")
