"""What the simulated igb answers to its VFs, and what it prints; the lab compares the texts with igb's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sriovd.backend.driver_events import DriverMessage, MailboxMessage
from sriovd.backend.simulated.driver_log import print_message
from sriovd.pci import PciAddress
from tests.unit.backend_simulated.support import IGB, NVME, NVME_VF, VF, VF1, Sim, root

__all__ = ["root"]
PF_AT, VF_AT, VF1_AT = (PciAddress.parse(each) for each in (IGB, VF, VF1))
MAC, OTHER_MAC, NO_MAC = "02:00:00:00:00:07", "02:00:00:00:00:99", "00:00:00:00:00:00"
DENIED = "VF 1 requested MAC filter but is administratively denied"
OVERRIDE = "VF 1 attempted to override administratively set {}\nReload the VF driver to resume operations"


class Mail:
    """An igb with two VFs; what is said and sent on it."""

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.backend = sim.backend
        self.backend.listen_to_drivers(True)

    def send(self, command: str, argument: str = "") -> bool:
        return self.backend.send_mailbox(VF1_AT, command, argument)

    def administer(self, request: str) -> None:
        self.backend.set_vf_attribute(PF_AT, request)

    def said(self) -> list[str]:
        """What was printed since the last time."""
        events = [each for each in self.backend.host.uevents.drain() if isinstance(each, DriverMessage)]
        assert {(each.address, each.driver) for each in events} <= {(PF_AT, "igb")}
        return [each.text for each in events]

    def mac(self) -> str | None:
        return self.backend.host.devices[PF_AT].vf_attributes[1].mac


@pytest.fixture
def mail(root: str) -> Iterator[Mail]:
    sim = Sim(root)
    sim.write(f"{IGB}/sriov_drivers_autoprobe", "0")
    assert sim.write(f"{IGB}/sriov_numvfs", "2") == "ok"
    mail = Mail(sim)
    mail.said()
    yield mail


def test_a_vf_that_has_not_reset_itself_is_refused_without_a_word(mail: Mail) -> None:
    assert not mail.send("set-mac", MAC)
    assert not mail.send("reset")  # it has no address yet
    assert mail.send("set-mac", MAC)
    assert mail.mac() == MAC
    assert mail.send("reset")
    assert mail.said() == []


def test_an_administrative_address_is_not_overridden_unless_the_vf_is_trusted(mail: Mail) -> None:
    mail.administer(f"1 mac {MAC}")
    assert mail.said() == [
        f"setting MAC {MAC} on VF 1",
        "Reload the VF driver to make this change effective.",
    ]
    assert mail.send("reset")
    assert not mail.send("set-mac", OTHER_MAC)
    assert not mail.send("add-mac-filter", OTHER_MAC)
    assert not mail.send("clear-mac-filters")
    assert mail.said() == [OVERRIDE.format("MAC address"), DENIED, DENIED]
    assert mail.mac() == MAC
    mail.administer("1 trust on")
    assert mail.send("add-mac-filter", OTHER_MAC)
    assert mail.send("set-mac", OTHER_MAC)
    mail.administer("1 trust off")
    assert mail.said() == ["VF 1 is trusted", "VF 1 is not trusted"]
    mail.administer(f"1 mac {NO_MAC}")
    assert mail.said() == ["remove administratively set MAC on VF 1"]
    assert mail.send("set-mac", MAC)


def test_no_address_is_an_invalid_one(mail: Mail) -> None:
    mail.send("reset")
    assert not mail.send("set-mac", "01:00:5e:00:00:01")
    assert not mail.send("add-mac-filter", NO_MAC)
    assert not mail.send("clear-mac-filters")  # igbvf sends no address along
    assert mail.said() == [
        "VF 1 attempted to set invalid MAC",
        *["VF 1 attempted to set invalid MAC filter"] * 2,
    ]


def test_a_vf_cannot_leave_its_vlan(mail: Mail) -> None:
    mail.send("reset")
    assert mail.send("add-vlan", "7")
    mail.administer("1 vlan 5 0 802.1Q")
    assert not mail.send("add-vlan", "7")
    assert not mail.send("remove-vlan", "7")
    assert mail.said() == ["Setting VLAN 5, QOS 0x0 on VF 1", *[OVERRIDE.format("VLAN tag")] * 2]
    mail.administer("1 vlan 0 0 802.1Q")
    assert mail.send("add-vlan", "7")
    assert mail.said() == []


def test_what_else_igb_has_and_has_not(mail: Mail) -> None:
    mail.send("reset")
    assert mail.send("set-multicast", "1 2 3")
    assert mail.send("set-max-frame", "1518")
    assert mail.send("set-promiscuous", "multicast")
    assert mail.send("set-promiscuous", "none")
    assert not mail.send("set-promiscuous", "unicast")
    assert not mail.send("get-version")
    assert not mail.send("get-queues")
    assert mail.said() == ["Unhandled Msg 00000008", "Unhandled Msg 00000009"]


def test_a_reset_of_the_function_begins_anew(mail: Mail) -> None:
    mail.administer(f"1 mac {MAC}")
    mail.send("reset")
    assert mail.send("set-max-frame", "1518")
    assert mail.sim.write(f"{VF1}/reset", "1") == "ok"
    assert not mail.send("set-max-frame", "1518")
    assert mail.send("reset")
    assert mail.mac() == MAC


def test_commands_are_told_and_counted_for_the_vf_that_sent_them(mail: Mail) -> None:
    mail.administer(f"1 mac {MAC}")
    mail.backend.host.uevents.drain()
    mail.send("reset")
    mail.send("set-mac", OTHER_MAC)
    told = [each for each in mail.backend.host.uevents.drain() if isinstance(each, MailboxMessage)]
    assert [(each.address, each.command, each.argument, each.ok) for each in told] == [
        (VF1_AT, "reset", "", True),
        (VF1_AT, "set-mac", OTHER_MAC, False),
    ]
    counters = {"mailbox-received": 2, "mailbox-acked": 1, "mailbox-nacked": 1}
    assert mail.backend.read_counters(VF1_AT) == counters
    assert mail.backend.read_counters(VF_AT) == dict.fromkeys(counters, 0)
    assert mail.backend.read_counters(PF_AT) == {}
    assert mail.backend.read_counters(PciAddress.parse("0000:09:00.0")) == {}


def test_while_nobody_listens_only_the_log_has_it(mail: Mail) -> None:
    mail.backend.listen_to_drivers(False)
    mail.administer(f"1 mac {MAC}")
    mail.send("reset")
    mail.send("set-mac", OTHER_MAC)
    assert not [
        each
        for each in mail.backend.host.uevents.drain()
        if isinstance(each, DriverMessage | MailboxMessage)
    ]
    lines = mail.backend.host.errors.read_log(0, [IGB])
    assert lines[-1].endswith(f"igb {IGB}: {OVERRIDE.format('MAC address')}")
    assert mail.backend.read_counters(VF1_AT)["mailbox-nacked"] == 1


def test_nobody_answers_while_the_pf_is_down_or_the_vf_is_cut_off(mail: Mail) -> None:
    mail.administer(f"1 mac {MAC}")
    assert mail.send("reset")
    mail.backend.switch_interface(PF_AT, on=False)
    assert not mail.send("reset")
    mail.backend.switch_interface(PF_AT, on=True)
    mail.backend.freeze_function(VF1_AT, frozen=True)
    assert not mail.send("reset")
    assert mail.backend.read_counters(VF1_AT)["mailbox-received"] == 1


def test_who_has_no_mailbox_says_so(mail: Mail) -> None:
    mail.sim.write(f"{NVME}/sriov_drivers_autoprobe", "0")
    mail.sim.write(f"{NVME}/sriov_numvfs", "1")
    for address in (IGB, NVME_VF, "0000:09:00.0"):
        with pytest.raises(ValueError, match="VF"):
            mail.backend.send_mailbox(PciAddress.parse(address), "reset", "")
    with pytest.raises(ValueError, match="no command"):
        mail.send("dance")


def test_a_dlb_has_three_commands(root: str) -> None:
    sim = Sim(root, machine=(("dlb", "0000:05:00.0"),))
    sim.write("0000:05:00.0/sriov_numvfs", "1")
    vf = next(iter(sim.backend.list_virtual_functions(PciAddress.parse("0000:05:00.0")).values()))
    assert sim.backend.send_mailbox(vf, "reset", "")
    assert sim.backend.send_mailbox(vf, "get-queues", "")
    assert not sim.backend.send_mailbox(vf, "set-mac", MAC)


def test_a_line_has_its_driver_or_the_bus(mail: Mail) -> None:
    print_message(mail.backend.host, mail.backend.host.devices[VF_AT], "hello")
    [message] = [each for each in mail.backend.host.uevents.drain() if isinstance(each, DriverMessage)]
    assert (message.address, message.driver, message.text) == (VF_AT, "pci", "hello")
