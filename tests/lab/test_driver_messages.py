"""What the PF's driver says of its VFs reaches the backend in the unit's sandbox, soon and for the right VF;
and the simulated driver says the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.driver_events import DriverMessage, MessagesLost
from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.steps import Step, Verb
from sriovd.core.trace.joining import Neighbourhood, join
from sriovd.pci import PciAddress
from tests.lab.client import IGB0, Client
from tests.lab.guest import Guest
from tests.lab.tenant import TenantVm, give_group, pf_address, pf_interface, set_vf_mac
from tests.lab.waiting import wait_until

PROGRAM = "/usr/local/lib/host_probe.py"
UNIT = "/run/systemd/system/sriovd-probe.service"
OUTPUT = "/run/probe.out"
USER, PF_ADDRESS = "tenant1", "10.0.0.1"
VF, INDEX = "0000:01:10.2", 1
MAC, OTHER_MAC, NO_MAC = "02:00:00:00:00:07", "02:00:00:00:00:99", "00:00:00:00:00:00"
DENIED = "VF 1 requested MAC filter but is administratively denied"
OVERRIDE = (
    "VF 1 attempted to override administratively set MAC address\nReload the VF driver to resume operations"
)
SOON_USEC = 2_000_000
FLOOD = 600
Event = dict[str, Any]
PF_AT, VF_AT = PciAddress.parse(IGB0), PciAddress.parse(VF)


@pytest.fixture
def host(client: Client) -> Iterator[Guest]:
    """A guest with two VFs on vfio-pci, the PF up, and no daemon."""
    client.set_num_vfs(IGB0, 2, driver="vfio-pci")
    client.guest.put(PROGRAM, Path(__file__).with_name("host_probe.py").read_bytes())
    with pf_address(client.guest, IGB0, PF_ADDRESS):
        client.guest.run("systemctl stop sriovd")
        yield client.guest


class Ear:
    """What the backend tells of the igb adapter, from a unit that is confined as sriovd's."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def events(self) -> list[Event]:
        lines = self._guest.run(f"cat {OUTPUT}").stdout.splitlines()[1:]
        return [json.loads(line) for line in lines]

    def messages(self) -> list[Event]:
        return [event for event in self.events() if event["kind"] == "DriverMessage"]

    def texts(self) -> list[str]:
        """What igb has said of its PF's VFs, each once, in the order in which it came first."""
        told = [each["text"] for each in self.messages() if each["address"] == IGB0]
        return list(dict.fromkeys(text for text in told if "VF" in text))

    def wait_for(self, text: str) -> Event:
        """The first message with that text."""
        wait_until(lambda: text in self.texts(), 20.0, f"{text!r}")
        return next(each for each in self.messages() if each["text"] == text)


@contextmanager
def listening(guest: Guest) -> Iterator[Ear]:
    guest.run(
        "sed -e 's/^Type=.*/Type=exec/' -e '/^BusName=/d' -e '/^Restart/d' -e '/^ExecReload=/d'"
        f" -e 's|^ExecStart=.*|ExecStart=/usr/bin/python3 -u {PROGRAM} listen|' -e '/^WatchdogSec=/d'"
        f" -e 's|^UMask=.*|StandardOutput=file:{OUTPUT}\\nStandardError=journal|'"
        " -e '/^FileDescriptorStore/d'"
        f" $(systemctl show -P FragmentPath sriovd) > {UNIT}"
    )
    guest.run(f"systemctl daemon-reload; rm -f {OUTPUT}; systemctl start sriovd-probe")
    try:
        wait_until(lambda: "listening" in guest.run(f"cat {OUTPUT}", check=False).stdout, 30.0, "the probe")
        yield Ear(guest)
    finally:
        guest.run(f"systemctl kill --signal=KILL sriovd-probe; rm {UNIT}; systemctl daemon-reload")


def to_message(event: Event) -> DriverMessage:
    address = PciAddress.parse(event["address"])
    return DriverMessage(address, event["driver"], event["text"], event["at_usec"], event["times"])


def indexes_of(event: Event) -> list[int]:
    """The VFs that a message is joined to."""
    vfs = {0: PciAddress.parse("0000:01:10.0"), 1: VF_AT}
    places = {address: (PF_AT, index) for index, address in vfs.items()}
    host = Neighbourhood(places.get, lambda _: "igb", lambda _: vfs, lambda pf: (pf,), lambda: ())
    return [index for (_, index), _ in join(to_message(event), host)]


def test_a_tenants_denied_requests_are_heard_soon_and_as_its_own(host: Guest) -> None:
    set_vf_mac(host, IGB0, INDEX, MAC)
    give_group(host, VF, USER)
    with listening(host) as ear, TenantVm.start(host, USER, VF, peer=PF_ADDRESS) as vm:
        assert vm.mac() == MAC
        denied = ear.wait_for(DENIED)
        assert not vm.change_mac(OTHER_MAC)
        override = ear.wait_for(OVERRIDE)
        for event in (denied, override):
            assert (event["address"], event["driver"]) == (IGB0, "igb")
            assert 0 <= event["told_usec"] - event["at_usec"] < SOON_USEC
            assert indexes_of(event) == [INDEX]
            print(f"{(event['told_usec'] - event['at_usec']) / 1000:.0f} ms {event['text']!r}")
        assert not [event for event in ear.messages() if indexes_of(event) not in ([INDEX], [])]


def play_real(guest: Guest, ear: Ear) -> list[str]:
    """What igb says while VF 1, with its driver here, is administered and asks for this and that."""
    device, pf = f"/sys/bus/pci/devices/{VF}", pf_interface(guest, IGB0)
    set_vf_mac(guest, IGB0, INDEX, MAC)
    guest.run("modprobe igbvf; modprobe 8021q")
    guest.run(f"echo {VF} > {device}/driver/unbind; echo igbvf > {device}/driver_override")
    guest.run(f"echo {VF} > /sys/bus/pci/drivers/igbvf/bind; udevadm settle")  # which renames it
    vf = pf_interface(guest, VF)
    guest.run(f"ip link set {vf} up")
    ear.wait_for(DENIED)
    guest.run(f"! ip link set {vf} address {OTHER_MAC}")
    uptime = guest.run(f"cut -d' ' -f1 /proc/uptime; ip link set {pf} vf 1 trust on").stdout
    guest.run(f"ip link set {pf} vf 1 trust off")
    told_usec = ear.wait_for("VF 1 is trusted")["told_usec"]
    assert 0 < told_usec - float(uptime) * 1e6 < SOON_USEC
    guest.run(f"ip link set {pf} vf 1 vlan 5")
    guest.run(f"ip link add link {vf} name v7 type vlan id 7; ip link set v7 up; ip link del v7")
    guest.run(f"ip link set {pf} vf 1 vlan 0")
    guest.run(f"ip link set {pf} vf 1 mac {NO_MAC}")
    guest.run(f"ip link set {vf} promisc on; ip link set {vf} promisc off")
    guest.run(f"echo {VF} > {device}/driver/unbind; echo > {device}/driver_override")
    ear.wait_for("VF 1 attempted to set invalid MAC filter")
    return ear.texts()


def play_simulated(folder: Path) -> list[str]:
    """The same on the simulated host; a VF's requests are those that igbvf makes of what was done."""
    backend = SimulatedBackend(f"{folder}/sys", machine=(("igb", IGB0),))
    backend.host.uevents.open()
    backend.listen_to_drivers(True)
    for step in (Step(Verb.SET_AUTOPROBE, PF_AT, "0"), Step(Verb.SET_NUM_VFS, PF_AT, "2")):
        backend.kernel.write(step.spell().path, step.spell().data)
    backend.set_vf_attribute(PF_AT, f"1 mac {MAC}")
    # igbvf tells the PF the address that it has just been given (igbvf/vf.c e1000_init_hw_vf)
    requests = (("reset", ""), ("set-mac", MAC), ("clear-mac-filters", ""), ("set-mac", OTHER_MAC))
    for command, argument in requests:
        backend.send_mailbox(VF_AT, command, argument)
    for request in ("1 trust on", "1 trust off", "1 vlan 5 0 802.1Q"):
        backend.set_vf_attribute(PF_AT, request)
    backend.send_mailbox(VF_AT, "add-vlan", "7")
    for request in ("1 vlan 0 0 802.1Q", f"1 mac {NO_MAC}"):
        backend.set_vf_attribute(PF_AT, request)
    backend.send_mailbox(VF_AT, "clear-mac-filters", "")
    told = [event.text for event in backend.host.uevents.drain() if isinstance(event, DriverMessage)]
    return list(dict.fromkeys(text for text in told if "VF" in text))


def test_the_simulated_driver_says_what_the_real_one_says(host: Guest, tmp_path: Path) -> None:
    with listening(host) as ear:
        real = play_real(host, ear)
        print(*real, sep="\n")
        heard = {tuple(indexes_of(event)) for event in ear.messages() if event["text"] in real}
    assert play_simulated(tmp_path) == real
    assert heard <= {(INDEX,), ()}
    shutil.rmtree(tmp_path)


def test_a_flood_is_counted_and_hides_nobody(host: Guest) -> None:
    """One VF's messages by the hundred, and one of another's in their midst."""
    pf = pf_interface(host, IGB0)
    lines = [f"link set {pf} vf 1 trust {'on' if number % 2 else 'off'}" for number in range(1, FLOOD + 1)]
    lines.insert(FLOOD // 2, f"link set {pf} vf 0 trust on")
    with listening(host) as ear:
        host.run("ip -batch -", stdin="\n".join(lines).encode())
        wait_until(lambda: count(ear) >= FLOOD, 20.0, "all of them")
        events = ear.events()
        print(len(events), "events")
    assert count(ear) == FLOOD
    assert len(ear.messages()) < FLOOD // 4
    (other,) = [event for event in ear.messages() if indexes_of(event) == [0]]
    assert other["text"] == "VF 0 is trusted"
    assert not [event for event in events if event["kind"] == MessagesLost.__name__]


def count(ear: Ear) -> int:
    """How often VF 1's trust was said to have changed."""
    return sum(each["times"] for each in ear.messages() if each["text"].startswith("VF 1 is "))
