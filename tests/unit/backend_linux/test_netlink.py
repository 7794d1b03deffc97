"""Netlink messages: bytes as the kernel's headers have them, and helpers that ask this machine's."""

from __future__ import annotations

import errno
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.linux.netlink import decode_reply, encode_step
from sriovd.backend.steps import Step, Verb
from sriovd.backend.vf_attributes import LinkReport, VfAttributes, format_report, parse_report
from sriovd.pci import PciAddress

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import FakeTree, MakeScript, OpenPool, Play

PF = PciAddress.parse("0000:01:00.0")
NEWLINK, GETLINK, SETLINK = 16, 18, 19
UNKNOWN = 2**32 - 1
IFF_UP, IFF_RUNNING = 0x1, 0x40


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def words(*numbers: int) -> bytes:
    return struct.pack(f"={len(numbers)}I", *numbers)


def message(kind: int, flags: int, body: bytes, *, link_flags: int = 0, change: int = 0) -> bytes:
    header = struct.pack("=IHHII", 32 + len(body), kind, flags, 1, 0)
    return header + bytes(8) + words(link_flags, change) + body


def vf(index: int, *, guid: int | None = None, protocol: int = 0x8100, switch: int = 1) -> bytes:
    """IFLA_VF_INFO as rtnl_fill_vfinfo makes it."""
    mac = bytes.fromhex("020000000001") + bytes(26)
    settings = {4: switch, 5: 2, 7: UNKNOWN, 9: 0}  # spoof check, link state, RSS query, trust
    info = attribute(1, words(index) + mac) + attribute(2, words(index, 100, 3))
    info += attribute(6, words(index, 0, 50)) + attribute(3, words(index, 50)) + attribute(13, b"\xff" * 32)
    info += b"".join(attribute(kind, words(index, value)) for kind, value in settings.items())
    vlan = words(index, 100, 3) + struct.pack(">H", protocol) + bytes(2)
    info += attribute(12, attribute(1, vlan))
    if guid is not None:
        info += attribute(10, words(index, 0) + struct.pack("=Q", guid))
        info += attribute(11, words(index, 0) + struct.pack("=Q", guid + 1))
    return attribute(1, info)


def reply(vfs: bytes, count: int, *, mac_bytes: int = 6) -> bytes:
    body = attribute(1, b"\x02" * mac_bytes) + attribute(4, words(1500)) + attribute(50, words(68))
    body += attribute(51, words(9216)) + attribute(3, b"eth0\0") + attribute(21, words(count))
    length = (4 + len(vfs)) & 0xFFFF  # as the kernel's nla_nest_end cuts it
    return message(NEWLINK, 0, body + struct.pack("=HH", length, 22) + vfs + attribute(14, bytes(2)))


SEEN = VfAttributes(
    mac="02:00:00:00:00:01", vlan=100, qos=3, vlan_protocol="802.1Q", spoof_check=True, trust=False,
    min_tx_rate=0, max_tx_rate=50, link_state="disable",
)  # fmt: skip


@pytest.mark.parametrize(
    ("request_text", "expected"),
    [
        ("3 mac 02:00:00:00:00:01", (1, words(3) + bytes.fromhex("020000000001") + bytes(26))),
        ("3 vlan 100 2 802.1Q", (2, words(3, 100, 2))),
        ("3 vlan 100 2 802.1ad", (12, attribute(1, words(3, 100, 2) + b"\x88\xa8\0\0"))),
        ("3 spoof-check on", (4, words(3, 1))),
        ("3 link-state disable", (5, words(3, 2))),
        ("3 rate 10 4294967295", (6, words(3, 10, UNKNOWN))),
        ("3 rss-query off", (7, words(3, 0))),
        ("4294967295 trust on", (9, words(UNKNOWN, 1))),
        ("3 node-guid 00:11:22:33:44:55:66:77", (10, words(3, 0) + struct.pack("=Q", 0x0011223344556677))),
        ("3 port-guid ff:00:00:00:00:00:00:01", (11, words(3, 0) + struct.pack("=Q", 0xFF00000000000001))),
    ],
)
def test_one_attribute_makes_one_request(request_text: str, expected: tuple[int, bytes]) -> None:
    body = attribute(22, attribute(1, attribute(*expected)))
    assert encode_step(Step(Verb.SET_VF_ATTRIBUTE, PF, request_text)) == message(SETLINK, 5, body)


@pytest.mark.parametrize(("argument", "mask"), [("", 8), ("vfs", 9), ("statistics", 1)])
def test_statistics_are_never_asked_for(argument: str, mask: int) -> None:
    wanted = message(GETLINK, 1, attribute(29, words(mask)))
    assert encode_step(Step(Verb.READ_LINK, PF, argument)) == wanted


@pytest.mark.parametrize(("argument", "flags"), [("up", IFF_UP), ("down", 0)])
def test_a_switch_changes_one_flag(argument: str, flags: int) -> None:
    wanted = message(SETLINK, 5, b"", link_flags=flags, change=IFF_UP)
    assert encode_step(Step(Verb.SWITCH_LINK, PF, argument)) == wanted


@pytest.mark.parametrize(
    "step",
    [
        Step(Verb.READ_LINK, PF, "all"),
        Step(Verb.SET_VF_ATTRIBUTE, PF, "3 colour red"),
        Step(Verb.SWITCH_LINK, PF, "sideways"),
    ],
)
def test_nonsense_makes_no_message(step: Step) -> None:
    assert encode_step(step) == b""


def test_a_reply_tells_of_link_and_vfs() -> None:
    data = reply(vf(0) + vf(1, protocol=0x88A8, switch=UNKNOWN) + vf(2, guid=0x0011223344556677), 3)
    code, text = decode_reply(data)
    assert code == 0
    report = parse_report(text)
    assert (report.mtu, report.min_mtu, report.max_mtu) == (1500, 68, 9216)
    assert report.vfs[0] == SEEN
    assert (report.vfs[1].vlan_protocol, report.vfs[1].spoof_check) == ("802.1ad", None)
    assert report.vfs[2].node_guid == "00:11:22:33:44:55:66:77"
    assert report.vfs[2].port_guid == "00:11:22:33:44:55:66:78"


@pytest.mark.parametrize(("flags", "up"), [(IFF_RUNNING, 0), (IFF_RUNNING | IFF_UP, 1)])
def test_a_reply_tells_whether_the_link_is_switched_on(flags: int, up: int) -> None:
    code, text = decode_reply(message(NEWLINK, 0, attribute(4, words(1500)), link_flags=flags))
    assert (code, parse_report(text).up) == (0, up)


def test_a_mac_is_as_long_as_the_interfaces_own() -> None:
    _, text = decode_reply(reply(vf(0), 1, mac_bytes=20))
    assert parse_report(text).vfs[0].mac == "02:00:00:00:00:01" + ":00" * 14


def test_counters_are_told_by_name() -> None:
    numbers = (1, 2, 3, 4, 5, 6, 8, 9)
    counts = b"".join(attribute(number, struct.pack("=Q", number * 10)) for number in numbers)
    padded = counts[:72] + attribute(7, b"") + counts[72:]  # IFLA_VF_STATS_PAD
    info = attribute(1, vf(3)[4:] + attribute(8, padded))
    code, text = decode_reply(reply(info, 4))
    assert code == 0
    report = parse_report(text)
    assert report.vfs[3] == SEEN
    assert report.counters == {
        3: {
            "rx-packets": 10, "tx-packets": 20, "rx-bytes": 30, "tx-bytes": 40, "broadcast": 50,
            "multicast": 60, "rx-dropped": 80, "tx-dropped": 90,
        },
    }  # fmt: skip
    assert format_report(report) == text


def test_256_vfs_fit_and_400_do_not() -> None:
    code, text = decode_reply(reply(b"".join(vf(index) for index in range(256)), 256))
    assert code == 0
    assert parse_report(text).vfs == dict.fromkeys(range(256), SEEN)
    many = b"".join(vf(index) for index in range(400))
    assert decode_reply(reply(many, 400)) == (errno.EMSGSIZE, "")


def test_what_is_no_link_is_not_guessed_at() -> None:
    assert decode_reply(message(GETLINK, 0, b"")) == (errno.EBADMSG, "")
    assert decode_reply(b"\0" * 8) == (errno.EBADMSG, "")


@pytest.mark.parametrize(
    "body",
    [
        struct.pack("=HH", 40, 22) + attribute(1, b""),  # a list that ends after the message does
        attribute(22, attribute(1, attribute(1, words(0)))),  # a MAC that is cut off: pyroute2 leaves bytes
        attribute(22, attribute(1, attribute(1, words(0) + bytes(32)) + attribute(6, words(0)))),
        struct.pack("=HH", 8, 51) + b"\0$",  # an MTU that is cut off
    ],
)
def test_a_reply_that_is_damaged_is_no_message(body: bytes) -> None:
    assert decode_reply(message(NEWLINK, 0, body)) == (errno.EBADMSG, "")


def test_an_address_of_an_odd_length_is_not_told() -> None:
    """As a firewire interface has it, of 8 bytes: it would be no `mac` at the other end."""
    code, text = decode_reply(reply(vf(0), 1, mac_bytes=8))
    assert code == 0
    assert parse_report(text).vfs[0].mac is None


def test_the_whole_of_pyroute2_is_not_loaded() -> None:
    program = (
        "import sys; import sriovd.backend.linux.host; assert 'pyroute2.netlink' not in sys.modules;"
        "import sriovd.backend.linux.netlink; assert 'pyroute2.iproute' not in sys.modules;"
        "import pyroute2; pyroute2.IPRoute"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_helper_asks_the_kernel(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    """The loopback interface stands for a PF's own."""
    net = f"bus/pci/devices/{tree.function}/net"
    tree.add_file(f"{net}/eth9/ifindex", "1\n")
    tree.add_file(f"{net}/eth10/ifindex", "999999\n")
    script = make_script(
        (Step(Verb.READ_LINK, tree.function, "vfs"),),
        (Step(Verb.READ_LINK, tree.function, "all"),),
        (Step(Verb.SET_VF_ATTRIBUTE, tree.function, "0 trust on"),),
    )

    async def story() -> None:
        async with open_pool() as pool:
            results = await pool.run("slot", script, lambda _result: None).finished
            read, nonsense, refused = (result.results[0] for result in results)
            assert read.errno == 0
            assert read.value == format_report(LinkReport(mtu=65536, up=1))
            assert (nonsense.errno, nonsense.value) == (errno.EINVAL, "")
            assert refused.errno in (errno.EOPNOTSUPP, errno.EPERM)

    play(story())


@pytest.mark.parametrize("port", ["pf0vf0", "c1pf0vf12", "pf0sf3"])
def test_a_representor_is_not_the_functions_own(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript, port: str
) -> None:
    """The loopback interface stands for it; whom the helper asks for instead, the kernel does not know."""
    net = f"bus/pci/devices/{tree.function}/net"
    tree.add_file(f"{net}/eth1/ifindex", "1\n")
    tree.add_file(f"{net}/eth1/phys_port_name", f"{port}\n")
    tree.add_file(f"{net}/eth0/ifindex", "999999\n")
    tree.add_file(f"{net}/eth0/phys_port_name", "p0\n")
    script = make_script((Step(Verb.READ_LINK, tree.function),))

    async def story() -> None:
        async with open_pool() as pool:
            (result,) = await pool.run("slot", script, lambda _result: None).finished
            assert result.results[0].errno == errno.ENODEV

    play(story())


def test_a_function_without_interface_says_so(
    tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript
) -> None:
    gone = PciAddress.parse("0000:7f:00.0")
    script = make_script(
        (Step(Verb.READ_LINK, tree.function),),
        (Step(Verb.READ_LINK, gone),),
        (Step(Verb.SET_VF_ATTRIBUTE, tree.function, "0 trust on"),),
    )

    async def story() -> None:
        async with open_pool() as pool:
            results = await pool.run("slot", script, lambda _result: None).finished
            assert [item.results[0].errno for item in results] == [errno.ENODEV, errno.ENOENT, errno.ENODEV]

    play(story())
    (tree.device / "net").mkdir()  # and the directory is empty while the interface is in another namespace
    play(story())
