"""Which VFs an event concerns: those that the kernel names beyond doubt, and nobody else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from sriovd.backend.base import (
    ErrorRecord,
    EventsLost,
    KernelEvent,
    LinkChanged,
    Severity,
    Uevent,
    UeventAction,
)
from sriovd.backend.driver_events import (
    TEXT_LIMIT,
    DeviceReport,
    DriverMessage,
    MailboxMessage,
    MessagesLost,
    ReportSource,
)
from sriovd.backend.vf_mentions import NUMBERING, find_index
from sriovd.core.recovery.record import Place
from sriovd.core.trace.joining import Neighbourhood, Telling, join
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, RecordType, Status

PF, TWIN = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:00.1")
VFS = {index: PciAddress.parse(f"0000:01:10.{2 * index}") for index in range(4)}
TWIN_VFS = {0: PciAddress.parse("0000:01:10.1")}
STRANGER = PciAddress.parse("0000:05:00.0")
MAC_DENIED = "VF 1 requested MAC filter but is administratively denied"
OVERRIDE = (
    "VF 1 attempted to override administratively set MAC address\nReload the VF driver to resume operations"
)


def make_host(driver: str = "igb") -> Neighbourhood:
    places: dict[PciAddress, Place] = {address: (PF, index) for index, address in VFS.items()}
    places |= {address: (TWIN, index) for index, address in TWIN_VFS.items()}
    vfs = {PF: VFS, TWIN: TWIN_VFS}
    return Neighbourhood(
        place_of=places.get,
        pf_driver_of=lambda address: driver if address in vfs else "",
        vfs_of=lambda pf: vfs.get(pf, {}),
        pfs_beside=lambda address: (PF, TWIN) if address in vfs else (),
        list_traced=lambda: ((PF, 2), (TWIN, 0)),
    )


def places_of(event: KernelEvent, driver: str = "igb") -> list[Place]:
    return [place for place, _ in join(event, make_host(driver))]


def say(text: str, address: PciAddress = PF, driver: str = "igb") -> DriverMessage:
    return DriverMessage(address, driver, text, 5)


def tell(kind: RecordType, operation: str, arguments: str, status: Status = Status.OK) -> Telling:
    return Telling(kind, Direction.FROM_KERNEL, status, operation, arguments, 5000)


@pytest.mark.parametrize(
    "text",
    [
        MAC_DENIED,
        OVERRIDE,
        OVERRIDE.replace("MAC address", "VLAN tag"),
        "remove administratively set MAC on VF 1",
        "setting MAC 02:00:00:00:00:07 on VF 1",
        "Setting VLAN 5, QOS 0x0 on VF 1",
        "The VF MAC address has been set on VF 1.",
        "VF 1: reset",
        "Spoof event(s) detected on VF 1",
        "1 Tx Malicious Driver Detection events detected on PF 0 VF 1 MAC 02:00:00:00:00:07. "
        "mdd-auto-reset-vfs=on",
        "VF 1 at 0000:01:10.2 is told VF 1",
    ],
)
def test_a_pf_driver_names_one_vf(text: str) -> None:
    assert places_of(say(text)) == [(PF, 1)]


@pytest.mark.parametrize(
    "text",
    [
        "no VF at all",
        "Link is Up",
        "VF 1 and VF 2 collide",
        "VF 1 collides with VF 2",
        "VF 1, 2 collide",
        "VF 1 and 2 collide",
        "VF 1 to 3 are reset",
        "VF 1-3 are reset",
        "VF 1..3 are reset",
        "VF 1 and all other VFs are reset",
        "VFs 1 are reset",
        "VF 1 is slower than vf2",
        "VF 1 is slower than virtual function 2",
        "VF 1 took the address of 0000:01:10.4",
        "VF 1 took the address of 01:10.4",
        "VF 1 has the queues of enp1s0vf2",
        "Malicious Driver Detection event 3 on TX queue 2 PF# 0 VF# 1",
        "Malicious Driver Detection event 0x03 on TX queue 2 PF number 0x00 VF number 0x01",
        "VF 0x1 is reset",
        "VF 01 is reset",
        "VF 1.5 is reset",
        "VF ID 1 is reset",
        "VF \N{ARABIC-INDIC DIGIT ONE} is reset",
        "VF 9 is reset",
        "reset VF 1/VF 2",
        "the VF driver 2 of VF 1 is old",
    ],
)
def test_a_message_that_names_others_or_nobody_for_sure_is_nobodys(text: str) -> None:
    assert places_of(say(text)) == []


@pytest.mark.parametrize(
    ("driver", "text"),
    [
        ("ixgbe", "VF Reset msg received from vf 1"),
        ("i40e", "VF reset check timeout on VF 1"),
        ("ice", "VF reset check timeout on VF 1"),
    ],
)
def test_messages_that_speak_of_vf_resets_are_known_by_their_whole_text(driver: str, text: str) -> None:
    assert places_of(say(text, driver=driver), driver) == [(PF, 1)]
    assert places_of(say(text)) == []  # igb says no such thing
    for other in (f"{text}0000", f"{text}, 2", f"{text} and VF 2", f"so {text}", text.replace("1", "01")):
        assert places_of(say(other, driver=driver), driver) == [], other


@pytest.mark.parametrize("driver", ["mlx5_core", "nvme", "vfio-pci", "kernel", ""])
def test_only_drivers_that_are_known_to_number_from_0_are_understood(driver: str) -> None:
    assert places_of(say(MAC_DENIED, driver=driver), driver) == []


def test_only_the_pfs_own_driver_is_believed() -> None:
    assert places_of(say(MAC_DENIED, driver="ice"), driver="igb") == []
    assert places_of(say(MAC_DENIED, STRANGER)) == []


def test_numbers_count_within_the_pf() -> None:
    assert places_of(say("VF 0 is reset", TWIN)) == [(TWIN, 0)]
    assert places_of(say(MAC_DENIED, TWIN)) == []  # it has no such VF


def test_a_message_about_a_vf_is_its_own_whatever_driver_it_has() -> None:
    assert places_of(say("enabling device", VFS[2], "vfio-pci")) == [(PF, 2)]
    assert places_of(say("PF 0000:01:00.0 is down", VFS[2], "igbvf")) == [(PF, 2)]
    assert places_of(say("VF 2 is told so", VFS[2], "igbvf")) == [(PF, 2)]
    for text in ("BAR 0: conflicts with 0000:01:10.6", "VF 3 was first", "VF 2 and vf#3", "virtfn3 is gone"):
        assert places_of(say(text, VFS[2], "igbvf")) == [], text


_OTHERS = st.sampled_from(
    [
        "VF {n}", "vf {n}", "VF{n}", "VF #{n}", "VF#{n}", "VF-{n}", "VF: {n}", "VF  {n}", "VF\n{n}",
        "Vf {n}",
        "VF[{n}]", "VF({n})", "VF={n}", "VFs {n}", "VF id {n}", "virtual function {n}", "virtfn{n}",
        "Virtual Function {n}", "vport {n}", "VF {n:#x}", "VF {n:02d}", "pf0vf{n}", "{address}",
    ]
)  # fmt: skip


@given(
    st.text(),
    st.text(),
    st.text(),
    _OTHERS,
    st.integers(0, 300),
    st.booleans(),
    st.sampled_from(list(NUMBERING)),
)
@example("", " and ", "", "VF {n}", 2, True, "igb")
def test_what_names_another_vf_never_reaches_this_one(
    before: str, between: str, after: str, form: str, other: int, is_first: bool, driver: str
) -> None:
    assume(other != 1)
    mention = form.format(n=other, address=PciAddress.parse(f"0000:01:11.{other % 8}"))
    parts = (mention, "VF 1") if is_first else ("VF 1", mention)
    text = f"{before} {parts[0]} {between} {parts[1]} {after}"
    assert (PF, 1) not in places_of(say(text, driver=driver), driver)


@given(st.text(alphabet="VFvf 0123456789,.:-/andto\n", max_size=40))
def test_whoever_is_named_is_the_only_one(text: str) -> None:
    index = find_index("igb", text)
    if index is not None:
        assert f"VF {index}" in text
        assert text.upper().count("VF") == text.count(f"VF {index}")


def test_uevents_reports_and_mailbox_commands_are_told_by_address_alone() -> None:
    change = Uevent(UeventAction.CHANGE, VFS[0], {"ERROR_EVENT": "BEGIN_RECOVERY", "PCI_ID": "8086:10CA"})
    [(place, telling)] = join(change, make_host())
    assert place == (PF, 0)
    assert telling == Telling(
        RecordType.UEVENT, Direction.FROM_KERNEL, Status.OK, "change", "ERROR_EVENT=BEGIN_RECOVERY"
    )
    report = DeviceReport(VFS[0], ReportSource.HEALTH, "fw: is unwell", 5)
    assert join(report, make_host()) == [
        ((PF, 0), tell(RecordType.HEALTH, "devlink-health", "fw: is unwell"))
    ]
    message = DeviceReport(VFS[0], ReportSource.HARDWARE_MESSAGE, "to device: type 1, 2 bytes: 0000", 5)
    assert join(message, make_host())[0][1].type is RecordType.HARDWARE
    command = MailboxMessage(VFS[0], "set-mac", "02:00:00:00:00:07", False, 5)
    assert join(command, make_host()) == [
        ((PF, 0), tell(RecordType.MAILBOX, "set-mac", "02:00:00:00:00:07", Status.FAILED))
    ]
    assert places_of(Uevent(UeventAction.CHANGE, PF)) == []
    assert places_of(DeviceReport(PF, ReportSource.HEALTH, "fw: VF 1 is unwell", 5)) == []


@pytest.mark.parametrize("other", ["VF 2", str(VFS[2]), "01:10.4"])
def test_a_report_that_names_another_belongs_to_nobody(other: str) -> None:
    assert places_of(DeviceReport(VFS[1], ReportSource.HEALTH, f"fw: unlike {other}", 5)) == []


@pytest.mark.parametrize(("whole", "cut"), [("VF 12", 4), (f"VF 1 at {VFS[3]}", 15)])
def test_a_text_whose_end_is_missing_belongs_to_nobody(whole: str, cut: int) -> None:
    """Else "VF 12" would become VF 1's, and its owner read half of another's address."""
    filler = "x" * (TEXT_LIMIT - cut - 1)
    assert places_of(say(f"{filler[1:]} {whole[:cut]}")) == [(PF, 1)]
    assert places_of(say(f"{filler} {whole[:cut]}")) == []
    assert places_of(say(f"{filler}+{whole[:cut]}"[-TEXT_LIMIT:], VFS[1], "vfio-pci")) == []
    assert places_of(DeviceReport(VFS[1], ReportSource.HEALTH, f"{filler} {whole[:cut]}", 5)) == []


def test_an_error_of_a_vf_is_told_with_all_that_was_logged() -> None:
    error = ErrorRecord(VFS[2], Severity.NONFATAL, 1 << 14, (1, 2, 3, 0xF), 5)
    text = "nonfatal CmpltTO tlp 00000001 00000002 00000003 0000000f"
    assert join(error, make_host()) == [((PF, 2), tell(RecordType.ERROR, "vf-error", text, Status.FAILED))]


def test_an_error_of_a_pf_is_told_to_all_vfs_of_the_adapter_without_anybodys_transaction() -> None:
    error = ErrorRecord(TWIN, Severity.NONFATAL, 1 << 20, (0xDEADBEEF, 2, 3, 4), 5)
    told = join(error, make_host())
    assert [place for place, _ in told] == [*((PF, index) for index in VFS), (TWIN, 0)]
    telling = tell(RecordType.ERROR, "pf-error", "nonfatal UnsupReq", Status.FAILED)
    assert {each for _, each in told} == {telling}
    assert places_of(ErrorRecord(STRANGER, Severity.FATAL, 0, (), 5)) == []


def test_a_corrected_error_has_not_failed_and_a_fatal_one_has_no_names() -> None:
    [(_, corrected)] = join(ErrorRecord(VFS[0], Severity.CORRECTED, 1, (), 5), make_host())
    assert (corrected.status, corrected.arguments) == (Status.OK, "corrected RxErr")
    [(_, fatal)] = join(ErrorRecord(VFS[0], Severity.FATAL, 0, (), 5), make_host())
    assert fatal.arguments == "fatal status-unknown"


def test_lost_messages_are_counted_for_whom_they_were_for_sure() -> None:
    assert join(MessagesLost(VFS[3], 7, 5), make_host()) == [
        ((PF, 3), tell(RecordType.NOTE, "messages-lost", "7 of this VF", Status.FAILED))
    ]
    assert join(MessagesLost(PF, 7, 5, vf=3), make_host()) == join(MessagesLost(VFS[3], 7, 5), make_host())
    assert places_of(MessagesLost(TWIN, 7, 5, vf=3)) == []  # there is none
    of_pf = join(MessagesLost(TWIN, 7, 5), make_host())
    assert of_pf == [
        ((TWIN, 0), tell(RecordType.NOTE, "messages-lost", "perhaps of this VF", Status.FAILED))
    ]


def test_a_flood_is_one_record() -> None:
    flood = DriverMessage(PF, "igb", MAC_DENIED, 5, times=4711)
    assert join(flood, make_host()) == [
        ((PF, 1), tell(RecordType.DRIVER, "igb", f"{MAC_DENIED} (4711 times)"))
    ]


@pytest.mark.parametrize(
    ("event", "operation", "at_usec"),
    [(EventsLost("x"), "events-lost", 0), (MessagesLost(None, 3, 5), "messages-lost", 5)],
)
def test_what_the_host_has_lost_is_perhaps_of_each_who_reads_along(
    event: KernelEvent, operation: str, at_usec: int
) -> None:
    telling = tell(RecordType.NOTE, operation, "perhaps of this VF", Status.FAILED)
    telling = replace(telling, time_nsec=at_usec * 1000)
    assert join(event, make_host()) == [((PF, 2), telling), ((TWIN, 0), telling)]


def test_what_is_nobodys() -> None:
    assert join(LinkChanged(VFS[0]), make_host()) == []
