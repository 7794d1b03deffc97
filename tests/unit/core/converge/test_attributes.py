"""Which requests bring a VF from what it is to what is wished; pure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.vf_attributes import LINK_STATES, VLAN_PROTOCOLS, Attribute, VfAttributes, parse_request
from sriovd.core import attributes
from sriovd.core.attributes import clash, describe, list_certain, make_wish, restrict, set_chain
from sriovd.core.errors import InvalidArgument
from tests.unit.core.minikernel import PF

NEW = VfAttributes(
    mac="00:00:00:00:00:00", vlan=0, qos=0, spoof_check=True, trust=False, min_tx_rate=0, max_tx_rate=0,
    link_state="auto",
)  # fmt: skip
macs = st.integers(1, 9).map(lambda number: f"02:00:00:00:00:{number:02x}")
wishes = st.builds(
    VfAttributes,
    mac=st.none() | macs,
    vlan=st.none() | st.integers(0, 4094),
    qos=st.none() | st.integers(0, 7),
    vlan_protocol=st.none() | st.sampled_from(VLAN_PROTOCOLS),
    spoof_check=st.none() | st.booleans(),
    trust=st.none() | st.booleans(),
    min_tx_rate=st.none() | st.integers(0, 9),
    max_tx_rate=st.none() | st.integers(0, 9),
    link_state=st.none() | st.sampled_from(LINK_STATES),
)


def carry_out(wish: VfAttributes, have: VfAttributes) -> VfAttributes:
    """`have` after the requests, as a kernel takes them that can do everything."""
    chain = set_chain(PF, 3, wish, have)
    for step in chain.steps if chain else ():
        index, _, values = parse_request(step.argument)
        assert index == 3
        have = attributes.complete(values, have)
    return have


def requests(wish: dict[str, Any], have: VfAttributes = NEW) -> list[str]:
    chain = set_chain(PF, 3, make_wish(wish), have)
    return [step.argument for step in chain.steps] if chain else []


@given(wishes, wishes)
def test_what_is_wished_comes_true_and_can_be_taken_back(wish: VfAttributes, before: VfAttributes) -> None:
    have = attributes.complete(before, NEW)
    after = carry_out(wish, have)
    shown = {"vlan-protocol": "802.1Q"} | dict(after.items())  # which the kernel need not tell
    assert shown | dict(wish.items()) == shown
    assert set_chain(PF, 3, wish, after) is None
    assert set_chain(PF, 3, have, carry_out(restrict(have, wish), after)) is None


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, []),
        ({"vlan": 0, "qos": 0, "spoof-check": True, "link-state": "auto"}, []),
        ({"vlan": 5}, ["3 vlan 5 0 802.1Q"]),
        ({"vlan": 5, "qos": 2, "vlan-protocol": "802.1ad"}, ["3 vlan 5 2 802.1ad"]),
        ({"max-tx-rate": 9}, ["3 rate 0 9"]),
        ({"trust": True, "mac": "02:00:00:00:00:AA"}, ["3 mac 02:00:00:00:00:aa", "3 trust on"]),
    ],
)
def test_requests(wish: dict[str, Any], expected: list[str]) -> None:
    assert requests(wish) == expected


def test_one_rate_keeps_the_other() -> None:
    assert requests({"min-tx-rate": 3}, VfAttributes(min_tx_rate=0, max_tx_rate=9)) == ["3 rate 3 9"]


def test_what_was_not_told_is_taken_back_to_what_that_means() -> None:
    """Without a VLAN the kernel tells no protocol."""
    before = VfAttributes(vlan=0, qos=0)
    undo = restrict(before, make_wish({"vlan": 5, "vlan-protocol": "802.1ad"}))
    assert undo == VfAttributes(vlan=0, qos=0, vlan_protocol="802.1Q")
    assert restrict(VfAttributes(), make_wish({"trust": True})) == VfAttributes()


def test_what_must_be_set_on_a_new_vf_for_certain() -> None:
    perhaps = {"spoof-check": False, "trust": False, "link-state": "auto", "rss-query": False, "vlan": 0}
    assert list_certain(make_wish(perhaps)) == ()
    certain = {"trust": True, "link-state": "enable", "rss-query": True, "vlan": 5, "max-tx-rate": 5}
    assert list_certain(make_wish(certain)) == (
        Attribute.VLAN, Attribute.TRUST, Attribute.RATE, Attribute.LINK_STATE, Attribute.RSS_QUERY,
    )  # fmt: skip


def test_words() -> None:
    wish = make_wish({"vlan": 100, "trust": False, "spoof-check": False})
    assert describe(wish, NEW) == "vlan 0 to 100, spoof-check on to off"
    assert describe(wish) == "vlan 100, spoof-check off, trust off"
    assert clash(VfAttributes(vlan=7, qos=1), wish) == VfAttributes(vlan=7)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"spoof_check": True}, "no attribute 'spoof_check'. There are mac, vlan"),
        ({"vlan": True}, "vlan cannot be 'True'. Give a number from 0 to 4094"),
        ({"mac": "02:00:00:00:00"}, "six hexadecimal pairs"),
        ({"mac": "03:00:00:00:00:01"}, "unicast"),
        ({"node-guid": "02:00:00:00:00:01"}, "eight hexadecimal pairs"),
        ({"min-tx-rate": 5, "max-tx-rate": 4}, "min-tx-rate 5 is more than max-tx-rate 4"),
    ],
)
def test_wishes_that_make_no_sense(wish: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        make_wish(wish)
    assert says in str(refused.value)


def test_a_minimum_without_a_maximum_is_fine() -> None:
    assert make_wish({"min-tx-rate": 5, "max-tx-rate": 0}).min_tx_rate == 5
