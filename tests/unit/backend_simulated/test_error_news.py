"""What the simulated kernel tells of errors: records, counters, its log; and what is hidden or refused."""

from __future__ import annotations

import itertools

import pytest

from sriovd.backend.base import ErrorPath, Fault, Severity, Uevent
from sriovd.backend.simulated import error_news
from sriovd.pci import PciAddress

from .errors import (
    ECRC,
    HEADER,
    MALFORMED,
    POISONED,
    PORT,
    TIMEOUT,
    config,
    counters,
    inject,
    log,
    record_of,
)
from .support import IGB, IGB2, NVME, VF, Sim


def test_uevents_say_whether_the_device_is_online(card: Sim) -> None:
    card.backend.inject_error(PciAddress.parse(IGB), Severity.NONFATAL, 0, ())
    events = [event for event in card.backend.host.uevents.drain() if isinstance(event, Uevent)]
    shown = {(each.properties["ERROR_EVENT"], each.properties["DEVICE_ONLINE"]) for each in events}
    assert shown == {("BEGIN_RECOVERY", "0"), ("SUCCESSFUL_RECOVERY", "1")}
    assert {str(each.action) for each in events} == {"change"}


def test_a_correctable_error_is_recorded_and_counted_and_that_is_all(card: Sim) -> None:
    assert inject(card, IGB, Severity.CORRECTED, 0x41) == [f"corrected {IGB}"]
    inject(card, IGB, Severity.CORRECTED, 0x1)
    assert counters(card, IGB) == {"corrected": {"RxErr": 2, "BadTLP": 1, "total": 2}}
    assert card.read(f"{IGB}/aer_dev_correctable").startswith("RxErr 2\nBadTLP 1\nBadDLLP 0\n")
    assert config(card, IGB)[0x110:0x114] == bytes(4), "the kernel clears the status"
    assert counters(card, IGB2) == counters(card, VF) == {}


def test_the_record_says_what_the_kernel_has_read(card: Sim) -> None:
    record = record_of(card, IGB, Severity.NONFATAL, POISONED)
    assert (record.status, record.tlp_header) == (POISONED, HEADER)
    assert counters(card, IGB) == {"nonfatal": {"TLP": 1, "total": 1}}
    fatal = record_of(card, IGB, Severity.FATAL, MALFORMED)
    assert (fatal.status, fatal.tlp_header) == (0, ()), "a fatal error keeps the kernel's hands off"
    assert "fatal" not in counters(card, IGB)
    assert log(card, "Inaccessible") == [
        f"igb {IGB}: AER: PCIe Bus Error: severity=Uncorrectable (Fatal), type=Inaccessible, "
        "(Unregistered Agent ID)"
    ]


def test_the_log_is_in_the_kernels_words(card: Sim) -> None:
    record_of(card, VF, Severity.NONFATAL, TIMEOUT | POISONED)
    assert log(card)[:6] == [
        f"pcieport {PORT}: AER: Uncorrectable (Non-Fatal) error message received from {VF}",
        f"vfio-pci {VF}: PCIe Bus Error: severity=Uncorrectable (Non-Fatal), type=Transaction Layer, "
        "(Requester ID)",
        f"vfio-pci {VF}:   device [8086:10ca] error status/mask=00005000/00000000",
        f"vfio-pci {VF}:    [12] TLP                    (First)",
        f"vfio-pci {VF}:    [14] CmpltTO               ",
        f"vfio-pci {VF}: AER:   TLP Header: 40000001 0000220f 10000000 00000000",
    ]
    assert log(card)[6] == f"igb {IGB}: Non-correctable non-fatal error reported."
    record_of(card, IGB, Severity.CORRECTED, 0x41)
    assert log(card)[-5:] == [
        f"pcieport {PORT}: AER: Correctable error message received from {IGB}",
        f"igb {IGB}: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)",
        f"igb {IGB}:   device [8086:10c9] error status/mask=00000041/0000e000",
        f"igb {IGB}:    [ 0] RxErr                  (First)",
        f"igb {IGB}:    [ 6] BadTLP                ",
    ]


def test_the_log_can_be_asked_for_a_time_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(1_999_999)
    monkeypatch.setattr(error_news, "now_usec", lambda: next(clock))
    news = error_news.ErrorNews()
    for text in ("igb 1: up", "igb 2: up", "igb 1: down"):
        news.note(text)
    assert news.read_log(0, ("igb 1",)) == ["[    1.999999] igb 1: up", "[    2.000001] igb 1: down"]
    assert news.read_log(2_000_000, ("up", "down")) == [
        "[    2.000000] igb 2: up",
        "[    2.000001] igb 1: down",
    ]
    assert news.read_log(0, ("no such word",)) == news.read_log(2_000_002, ("igb",)) == []
    for _ in range(300):
        news.note("again")
    assert len(news.read_log(0, ("igb", "again"))) == 200


def test_what_is_hidden_is_not_told(card: Sim) -> None:
    card.backend.hide_errors(["records"])
    assert inject(card, IGB, Severity.NONFATAL)[0] == f"BEGIN_RECOVERY {IGB}"
    assert not card.backend.read_error_path(PciAddress.parse(IGB)).is_recorded
    card.backend.hide_errors(["uevents", "counters"])
    counted = counters(card, IGB)
    assert inject(card, IGB, Severity.NONFATAL) == [f"nonfatal {IGB}"]
    assert counters(card, IGB) == counted == {"nonfatal": {"CmpltTO": 1, "total": 1}}
    card.backend.hide_errors([])
    assert len(inject(card, IGB, Severity.NONFATAL)) == 7 and counters(card, IGB) != counted
    with pytest.raises(ValueError, match="no source of errors 'rumours'"):
        card.backend.hide_errors(["rumours"])


@pytest.mark.parametrize(
    ("verb", "first"),
    [
        ("lose-record", [f"BEGIN_RECOVERY {IGB}"]),
        ("reorder-record", [f"BEGIN_RECOVERY {IGB}", f"nonfatal {IGB}"]),
        ("repeat-record", [f"nonfatal {IGB}", f"nonfatal {IGB}", f"BEGIN_RECOVERY {IGB}"]),
        ("repeat-event", [f"nonfatal {IGB}", f"BEGIN_RECOVERY {IGB}", f"BEGIN_RECOVERY {IGB}"]),
        ("reorder-event", [f"nonfatal {IGB}", f"BEGIN_RECOVERY {VF}", f"BEGIN_RECOVERY {IGB}"]),
        ("lose-event", [f"nonfatal {IGB}", "lost", f"BEGIN_RECOVERY {VF}"]),
    ],
)
def test_misfortunes_of_the_news(card: Sim, verb: str, first: list[str]) -> None:
    card.backend.inject_fault(Fault(verb, PciAddress.parse(IGB), times=1))
    assert inject(card, IGB, Severity.NONFATAL)[: len(first)] == first


@pytest.mark.parametrize(
    ("address", "severity", "status", "header", "message"),
    [
        (NVME, Severity.NONFATAL, 0, (), "no AER capability"),
        (PORT, Severity.NONFATAL, 0, (), "no PF or VF is at"),
        ("0000:07:00.0", Severity.FATAL, 0, (), "no PF or VF is at"),
        (IGB, Severity.FATAL, TIMEOUT, (), "the severity register of 0000:01:00.0 makes 0x4000 nonfatal"),
        (VF, Severity.FATAL, 0, (), "no usual fatal error"),
        (IGB, Severity.CORRECTED, 0x2000, (), "masks such an error"),
        (VF, Severity.NONFATAL, ECRC, (), "this function logs"),
        (IGB, Severity.NONFATAL, 0, (1, 2), "a TLP header has 4 dwords"),
    ],
)
def test_what_cannot_be_is_refused(
    card: Sim, address: str, severity: Severity, status: int, header: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        inject(card, address, severity, status, header)
    assert card.events() == []


def test_a_dead_vf_has_no_errors(card: Sim) -> None:
    inject(card, IGB, Severity.FATAL)
    with pytest.raises(ValueError, match="does not answer"):
        inject(card, VF, Severity.NONFATAL)


def test_the_way_of_errors(card: Sim) -> None:
    path = card.backend.read_error_path(PciAddress.parse(VF))
    assert path == ErrorPath((PciAddress.parse(PORT),), has_aer=True, is_native=True, is_recorded=True)
    assert not card.backend.read_error_path(PciAddress.parse(NVME)).has_aer
    assert card.backend.read_error_path(PciAddress.parse("0000:07:00.0")) == ErrorPath()
    card.must("drivers/pcieport/unbind", PORT)
    assert not card.backend.read_error_path(PciAddress.parse(VF)).is_native
