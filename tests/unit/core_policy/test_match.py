"""Which PFs a policy means, and what several policies for one PF amount to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.inventory import Function
from sriovd.core.policy.document import Document, parse_document
from sriovd.core.policy.globs import can_match_address, can_match_slot, matches_glob
from sriovd.core.policy.match import Decision, decide, matches
from sriovd.core.policy.model import Policy
from sriovd.core.policy.reading import read_policies
from sriovd.core.policy.schema import Repair
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import make_pf, make_vf

NIC = Function(
    replace(make_pf(), net_interfaces=("ens1f0", "ens1f0_rep")), 1
)  # 8086:10c9, igb, 0000:01:00.0
BARE = Function(make_pf(driver=""), 1)
NVME = Function(replace(make_pf(PciAddress.parse("0000:0a:00.0"), driver="nvme"), class_code=0x010802), 1)


def read(text: str, file: str = "a.toml") -> list[Policy]:
    document = parse_document(file, text)
    assert isinstance(document, Document), document
    policies, problems = read_policies(document)
    assert problems == ()
    return list(policies)


def decide_texts(*texts: str) -> Decision:
    """For NIC, of one file for each text."""
    every = "match.address = '*'\n"
    files = [read(every + text, f"{name}.toml") for name, text in zip("abc", texts, strict=False)]
    return decide([policy for policies in files for policy in policies], NIC)


MATCHING = [
    ('address = "0000:01:00.0"', NIC),
    ('address = "0000:01:00.*"', NIC),
    ('address = "0000:0A:*"', NVME),
    ('address = ["ffff:*", "????:0[1-3]:00.0"]', NIC),
    ("vendor = 0x8086", NIC),
    ('vendor = "8086"', NIC),
    ('vendor = [1, "0x8086"]', NIC),
    ('device = "10C9"', NIC),
    ('class = "network"', NIC),
    ('class = "02"', NIC),
    ('class = "0x0200"', NIC),
    ('class = "nvme"', NVME),
    ('class = ["02", "010802"]', NVME),
    ('driver = "ig*"', NIC),
    ('driver = ["igb", "ixgbe"]', NIC),
    ('netdev = "ens1f*"', NIC),
    ('netdev = "ens1f0_rep"', NIC),
    ('slot = "0000:01:00"', NIC),
    ('slot = "*:0A:*"', NVME),
    ('slot = "0000:01:00"\nvendor = 0x8086\ndriver = "igb"', NIC),
]
NOT_MATCHING = [
    ('address = "0000:01:00.1"', NIC),
    ('address = "0000:01:00.[!0]"', NIC),
    ("vendor = 0x8087", NIC),
    ("device = 0x10ca", NIC),
    ('class = "nvme"', NIC),
    ('class = "01"', NIC),
    ('class = "network"', NVME),
    ('driver = "igbvf"', NIC),
    ('driver = "IGB"', NIC),
    ('driver = "*"', BARE),
    ('netdev = "*"', BARE),
    ('netdev = "ens1"', NIC),
    ('slot = "0000:0a:00"', NIC),
    ('slot = "0000:01:00"\nvendor = 1', NIC),
]


@pytest.mark.parametrize(("text", "pf"), MATCHING)
def test_a_pf_that_is_meant(text: str, pf: Function) -> None:
    assert matches(read(f"[match]\n{text}\n")[0].match, pf)


@pytest.mark.parametrize(("text", "pf"), NOT_MATCHING)
def test_a_pf_that_is_not_meant(text: str, pf: Function) -> None:
    assert not matches(read(f"[match]\n{text}\n")[0].match, pf)


def test_a_vf_is_never_meant() -> None:
    assert not matches(read("match.address = '*'")[0].match, Function(make_vf(0), 1))


ADDRESSES = st.builds(
    PciAddress, st.integers(0, 0xFFFFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7)
)


@given(ADDRESSES, st.data())
def test_a_glob_made_from_an_address_can_match_and_does(address: PciAddress, data: st.DataObject) -> None:
    text = str(address)
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(text) - 1))
        end = data.draw(st.integers(at, len(text)))
        text = text[:at] + data.draw(st.sampled_from(["*", "?" * (end - at)])) + text[end:]
    if matches_glob(str(address), text):
        assert can_match_address(text)
    if matches_glob(str(address.slot), text):
        assert can_match_slot(text)


@given(st.text(st.sampled_from("0189af:.*?[]!-x"), max_size=14), ADDRESSES)
def test_no_glob_matches_what_it_is_said_not_to(glob: str, address: PciAddress) -> None:
    assert can_match_address(glob) or not matches_glob(str(address), glob)
    assert can_match_slot(glob) or not matches_glob(str(address.slot), glob)


def test_a_wish_has_everything_that_is_written_and_nothing_else() -> None:
    decision = decide_texts(
        "[functions]\nnum-vfs = 8\ndriver = 'vfio-pci'\nrepair = 'report'\n"
        "[vf.defaults]\nvlan = 9\nqos = 1\nspoof-check = false\nmac = 'stable'\nmax-tx-rate = 10\n"
        "[vf.'0,2-3']\nvlan = 100\ndriver = 'default'\n[vf.3]\nmac = '0A:00:00:00:00:01'\n"
    )
    wish = decision.wish
    assert wish is not None
    assert (wish.num_vfs, wish.driver, wish.repair) == (8, "vfio-pci", Repair.REPORT)
    common = VfAttributes(vlan=9, qos=1, spoof_check=False, max_tx_rate=10)
    seven, two, three = wish.vf(7), wish.vf(2), wish.vf(3)
    assert (seven.attributes, seven.driver, seven.stable_mac) == (common, "vfio-pci", True)
    assert (two.attributes, two.driver, two.stable_mac) == (replace(common, vlan=100), "default", True)
    assert three.attributes == replace(common, vlan=100, mac="0a:00:00:00:00:01")
    assert not three.stable_mac
    assert wish.vf(1) == wish.vf(4) == wish.vf(65534) == seven


def test_what_is_not_written_is_not_wished() -> None:
    wish = decide_texts("").wish
    assert wish is not None
    assert (wish.num_vfs, wish.driver, wish.repair) == (None, None, Repair.ALWAYS)
    assert (wish.vf(0).attributes, wish.vf(0).driver, wish.vf(0).stable_mac) == (VfAttributes(), None, False)


def test_no_policy_no_wish() -> None:
    assert decide(read("match.class = 'nvme'"), NIC) == Decision()


def test_policies_that_do_not_differ_are_one() -> None:
    decision = decide_texts(
        "functions.num-vfs = 4\n[vf.0-1]\nvlan = 1",
        "functions.driver = 'none'\nfunctions.num-vfs = 4\n[vf.1-2]\ntrust = true",
    )
    assert decision.conflicts == ()
    assert decision.sources == ("a.toml:1", "b.toml:1")
    wish = decision.wish
    assert wish is not None
    assert (wish.num_vfs, wish.driver) == (4, "none")
    seen = [(wish.vf(index).attributes.vlan, wish.vf(index).attributes.trust) for index in range(4)]
    assert seen == [(1, None), (1, True), (None, True), (None, None)]
    assert {wish.vf(index).driver for index in range(4)} == {"none"}


CONFLICTS = [
    ("functions.num-vfs = 4", "\nfunctions.num-vfs = 5", 3, "a.toml:2 ([functions] num-vfs) says 4"),
    ("functions.repair = 'report'", "functions.repair = 'always'", 2, "says 'report'"),
    ("recovery.fatal = 'recover'", "\nrecovery.fatal = 'quarantine'", 3, "[recovery] fatal) says 'recover'"),
    ("recovery.rungs = ['kernel']", "recovery.rungs = ['driver-rebind']", 2, "says 'kernel'"),
    ("functions.driver = 'none'", "vf.defaults.driver = 'default'", 2, "a.toml:2 ([functions] driver)"),
    ("vf.defaults.vlan = 1", "vf.7.vlan = 2", 2, "a.toml:2 ([vf.defaults] vlan) says 1"),
    ("vf.0-3.vlan = 1", "\n\nvf.3-9.vlan = 2", 4, "a.toml:2 ([vf.0-3] vlan) says 1"),
    ("vf.0.mac = 'stable'", "vf.0.mac = '02:00:00:00:00:01'", 2, "says 'stable'"),
    ("functions.num-vfs = 2", "vf.2.vlan = 1", 2, "will not exist: num-vfs is 2 (a.toml:2)"),
    ("vf.0.mac = '02:00:00:00:00:01'", "vf.1.mac = '02:00:00:00:00:01'", 2, "a.toml:2 has it too"),
    ("vf.defaults.max-tx-rate = 5", "vf.1.min-tx-rate = 6", 2, "which is 5 (a.toml:2)"),
]


@pytest.mark.parametrize(("one", "other", "line", "fragment"), CONFLICTS)
def test_policies_that_differ_are_both_named_and_neither_counts(
    one: str, other: str, line: int, fragment: str
) -> None:
    decision = decide_texts(one, other)
    assert decision.wish is None
    assert [(each.file, each.line) for each in decision.conflicts] == [("b.toml", line)]
    assert fragment in str(decision.conflicts[0])


def test_a_third_policy_is_compared_with_both() -> None:
    decision = decide_texts("functions.num-vfs = 1", "vf.0.vlan = 1", "functions.num-vfs = 2\nvf.0.vlan = 2")
    assert [(each.file, each.line) for each in decision.conflicts] == [("c.toml", 2), ("c.toml", 3)]


def test_policies_of_one_file_can_differ_too() -> None:
    both = "[[policy]]\nmatch.address = '*'\nfunctions.num-vfs = 1\n"
    decision = decide(read(both + both.replace("1", "2")), NIC)
    assert [(each.line, "a.toml:3" in str(each)) for each in decision.conflicts] == [(6, True)]
    assert decision.sources == ("a.toml:1", "a.toml:4")
