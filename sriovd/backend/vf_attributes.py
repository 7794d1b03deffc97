"""VF attributes as the kernel has them: their vocabulary, and the text form in which they pass the seam.

Rule: both hosts read and write exactly these. An attribute is what one netlink request can set
(net/core/rtnetlink.c do_setvfinfo): VLAN id, QoS and protocol are one, both rates are one. A value that the
kernel does not tell is None. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum

Value = str | int | bool

# include/uapi/linux/if_link.h IFLA_VF_STATS_*, by number; 7 is padding.
VF_COUNTERS: Mapping[int, str] = {
    1: "rx-packets", 2: "tx-packets", 3: "rx-bytes", 4: "tx-bytes", 5: "broadcast", 6: "multicast",
    8: "rx-dropped", 9: "tx-dropped",
}  # fmt: skip
_COUNTERS = "counters"  # how a line of them begins
VLAN_PROTOCOLS = ("802.1Q", "802.1ad")
LINK_STATES = ("auto", "enable", "disable")


class Attribute(StrEnum):
    """What one request sets."""

    MAC = "mac"
    VLAN = "vlan"
    SPOOF_CHECK = "spoof-check"
    TRUST = "trust"
    RATE = "rate"
    LINK_STATE = "link-state"
    RSS_QUERY = "rss-query"
    NODE_GUID = "node-guid"
    PORT_GUID = "port-guid"


# The fields of VfAttributes that each attribute consists of, in the order in which they are written.
FIELDS_OF: Mapping[Attribute, tuple[str, ...]] = {
    Attribute.MAC: ("mac",),
    Attribute.VLAN: ("vlan", "qos", "vlan_protocol"),
    Attribute.SPOOF_CHECK: ("spoof_check",),
    Attribute.TRUST: ("trust",),
    Attribute.RATE: ("min_tx_rate", "max_tx_rate"),
    Attribute.LINK_STATE: ("link_state",),
    Attribute.RSS_QUERY: ("rss_query",),
    Attribute.NODE_GUID: ("node_guid",),
    Attribute.PORT_GUID: ("port_guid",),
}


@dataclass(frozen=True, slots=True)
class VfAttributes:
    """The attributes of one VF; None: the kernel does not tell, or nobody wishes anything.

    `mac`: six lower-case hexadecimal pairs with colons (IP over InfiniBand: 20). `vlan`: 0 to 4095, 0 for
    none. `qos`: 0 to 7. `vlan_protocol`: of VLAN_PROTOCOLS. `min_tx_rate`, `max_tx_rate`: Mbit/s, 0 for no
    limit. `link_state`: of LINK_STATES. `node_guid`, `port_guid`: eight pairs, InfiniBand only.
    """

    mac: str | None = None
    vlan: int | None = None
    qos: int | None = None
    vlan_protocol: str | None = None
    spoof_check: bool | None = None
    trust: bool | None = None
    min_tx_rate: int | None = None
    max_tx_rate: int | None = None
    link_state: str | None = None
    rss_query: bool | None = None
    node_guid: str | None = None
    port_guid: str | None = None

    def items(self) -> Iterator[tuple[str, Value]]:
        """What is known, by the field's name with hyphens, as people write it."""
        for name in FIELD_NAMES:
            value = getattr(self, name)
            if value is not None:
                yield name.replace("_", "-"), value


FIELD_NAMES = tuple(each.name for each in fields(VfAttributes))
_BOOLEANS = frozenset({"spoof_check", "trust", "rss_query"})
_NUMBERS = frozenset({"vlan", "qos", "min_tx_rate", "max_tx_rate"})
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)
_NUMBER_LIMIT = 2**32  # whether a driver takes it is the kernel's to say
_GUID = r"(?:[0-9a-f]{2}:){7}[0-9a-f]{2}"
_TEXTS = {
    "mac": re.compile(r"(?:[0-9a-f]{2}:){5}(?:(?:[0-9a-f]{2}:){14})?[0-9a-f]{2}"),
    "vlan_protocol": re.compile("|".join(map(re.escape, VLAN_PROTOCOLS))),
    "link_state": re.compile("|".join(LINK_STATES)),
    "node_guid": re.compile(_GUID),
    "port_guid": re.compile(_GUID),
}


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What the kernel says of a function's network interface, and, for a PF that was asked so, of its VFs.

    `mtu`, `min_mtu`, `max_mtu`: bytes; 0: not told. `up`: 1 when it is switched on (IFF_UP), carrier or not.
    `vfs`: by VF index. `counters`: the same, if asked for: packets, bytes and drops by name (VF_COUNTERS),
    as the PF's driver has them; zeros where it has none (rtnl_fill_vfinfo does not tell those apart).
    """

    mtu: int = 0
    min_mtu: int = 0
    max_mtu: int = 0
    up: int = 0
    vfs: Mapping[int, VfAttributes] = field(default_factory=dict)
    counters: Mapping[int, Mapping[str, int]] = field(default_factory=dict)


_LINK_FIELDS = {"mtu": "mtu", "min-mtu": "min_mtu", "max-mtu": "max_mtu", "up": "up"}


def format_value(value: Value) -> str:
    """A value as text without blanks."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def parse_value(name: str, text: str) -> Value:
    """The inverse for the field `name` (with hyphens or underscores). Raises ValueError for what is no value
    of it, KeyError for an unknown name."""
    name = name.replace("-", "_")
    if name in _NUMBERS:
        return _parse_number(text)
    known = text in ("on", "off") if name in _BOOLEANS else _TEXTS[name].fullmatch(text)
    if not known:
        raise ValueError(f"{text!r} is no {name}")
    return text == "on" if name in _BOOLEANS else text


def _parse_number(text: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) >= _NUMBER_LIMIT:
        raise ValueError(f"{text!r} is no number of 32 bits")
    return int(text)


def format_request(index: int, attribute: Attribute, values: VfAttributes) -> str:
    """The argument of a step that sets `attribute` of VF `index` to what `values` has for it; all its fields
    must be there: `3 vlan 100 0 802.1Q`."""
    texts = [format_value(getattr(values, name)) for name in FIELDS_OF[attribute]]
    return " ".join((str(index), attribute, *texts))


def parse_request(text: str) -> tuple[int, Attribute, VfAttributes]:
    """The inverse of format_request. Raises ValueError."""
    index, attribute, *texts = text.split(" ")
    names = FIELDS_OF[Attribute(attribute)]
    values = {name: parse_value(name, each) for name, each in zip(names, texts, strict=True)}
    return _parse_number(index), Attribute(attribute), VfAttributes(**values)  # type: ignore[arg-type]


def format_report(report: LinkReport) -> str:
    """One line for the link, one for each VF by its index: the value that a step which reads it gives."""
    lines = [f"link mtu={report.mtu} min-mtu={report.min_mtu} max-mtu={report.max_mtu} up={report.up}"]
    for index, attributes in sorted(report.vfs.items()):
        pairs = (f"{name}={format_value(value)}" for name, value in attributes.items())
        lines.append(" ".join((str(index), *pairs)))
    for index, counters in sorted(report.counters.items()):
        counts = (f"{name}={count}" for name, count in counters.items())
        lines.append(" ".join((_COUNTERS, str(index), *counts)))
    return "\n".join(lines)


def parse_report(text: str) -> LinkReport:
    """The inverse of format_report. Raises ValueError, KeyError."""
    first, *rest = text.split("\n")
    link = {_LINK_FIELDS[name]: int(value) for name, value in _pairs(first.split(" ")[1:])}
    vfs: dict[int, VfAttributes] = {}
    counters: dict[int, dict[str, int]] = {}
    for line in rest:
        index, *words = line.split(" ")
        if index == _COUNTERS:
            counters[int(words[0])] = {name: int(value) for name, value in _pairs(words[1:])}
            continue
        values = {name.replace("-", "_"): parse_value(name, each) for name, each in _pairs(words)}
        vfs[int(index)] = VfAttributes(**values)  # type: ignore[arg-type]
    return LinkReport(**link, vfs=vfs, counters=counters)


def _pairs(words: list[str]) -> Iterator[tuple[str, str]]:
    for word in words:
        name, _, value = word.partition("=")
        yield name, value
