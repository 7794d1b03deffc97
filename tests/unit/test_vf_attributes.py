"""The text form of VF attributes: what is said comes back, and nonsense is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.vf_attributes import (
    FIELD_NAMES,
    FIELDS_OF,
    LINK_STATES,
    VLAN_PROTOCOLS,
    Attribute,
    LinkReport,
    VfAttributes,
    format_report,
    format_request,
    format_value,
    parse_report,
    parse_request,
    parse_value,
)

NUMBERS = st.integers(0, 2**32 - 1)


def pairs(count: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=count, max_size=count).map(lambda raw: raw.hex(":"))


VALUES: dict[str, st.SearchStrategy[object]] = {
    "mac": pairs(6) | pairs(20),
    **dict.fromkeys(("vlan", "qos", "min_tx_rate", "max_tx_rate"), NUMBERS),
    **dict.fromkeys(("spoof_check", "trust", "rss_query"), st.booleans()),
    "vlan_protocol": st.sampled_from(VLAN_PROTOCOLS),
    "link_state": st.sampled_from(LINK_STATES),
    "node_guid": pairs(8),
    "port_guid": pairs(8),
}
WHOLE = st.builds(VfAttributes, **VALUES)
PARTIAL = st.builds(VfAttributes, **{name: st.none() | each for name, each in VALUES.items()})
REPORTS = st.builds(
    LinkReport,
    NUMBERS,
    NUMBERS,
    NUMBERS,
    st.sampled_from((0, 1)),
    st.dictionaries(st.integers(0, 300), PARTIAL),
)


def test_every_field_belongs_to_one_attribute() -> None:
    assert sorted(name for names in FIELDS_OF.values() for name in names) == sorted(FIELD_NAMES)
    assert set(FIELDS_OF) == set(Attribute)


@given(NUMBERS, st.sampled_from(Attribute), WHOLE)
def test_a_request_comes_back(index: int, attribute: Attribute, values: VfAttributes) -> None:
    text = format_request(index, attribute, values)
    found_index, found_attribute, found = parse_request(text)
    assert (found_index, found_attribute) == (index, attribute)
    for name in FIELD_NAMES:
        wanted = getattr(values, name) if name in FIELDS_OF[attribute] else None
        assert getattr(found, name) == wanted


@given(REPORTS)
def test_a_report_comes_back(report: LinkReport) -> None:
    assert parse_report(format_report(report)) == report


@given(PARTIAL)
def test_a_value_comes_back(values: VfAttributes) -> None:
    assert {name: parse_value(name, format_value(value)) for name, value in values.items()} == dict(
        values.items()
    )


def test_a_request_is_what_the_seam_says() -> None:
    values = VfAttributes(vlan=100, qos=0, vlan_protocol="802.1Q")
    assert format_request(3, Attribute.VLAN, values) == "3 vlan 100 0 802.1Q"


@pytest.mark.parametrize(
    "text",
    [
        "", "3", "3 colour red", "x trust on", "-1 trust on", "4294967296 trust on", "3 trust",
        "3 trust on off", "3  trust on", "3 trust ON", "3 trust None", "3 mac 02:00:00:00:00",
        "3 mac 02:00:00:00:00:0G",
        "3 mac 02:00:00:00:00:AA", "3 vlan 1 0 802.1q", "3 vlan 1 0 802x1Q", "3 vlan 1",
        "3 vlan 0x1 0 802.1Q", "3 rate 0 -1", "3 rate 0 4294967296", "3 rate 0 \u0661", "3 link-state on",
        "3 node-guid 00:11",
    ],
)  # fmt: skip
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_request(text)


@pytest.mark.parametrize("text", ["link mtu=1 vfs=1", "link mtu=x", "link colour=1", "link\nx mac="])
def test_a_report_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises((ValueError, KeyError)):
        parse_report(text)


def test_an_unknown_name_is_another_matter() -> None:
    with pytest.raises(KeyError):
        parse_value("colour", "red")
