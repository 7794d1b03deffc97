"""Netlink messages of steps: what asks for a link or sets a VF's attribute, and what the answer says.

Rule: pure, and imported only when the first such step comes. One attribute per request, because the kernel
applies many one by one and leaves what came before the first that fails. The classes are pyroute2's with
tables of our own: its ifinfmsg decodes all of an interface, and its GUIDs are longer than the kernel's.

Sizes and numbers: include/uapi/linux/if_link.h. What is told: net/core/rtnetlink.c rtnl_fill_vfinfo.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Mapping
from typing import Any

from sriovd.backend.steps import Step, Verb
from sriovd.backend.vf_attributes import (
    LINK_STATES,
    VF_COUNTERS,
    VLAN_PROTOCOLS,
    Attribute,
    LinkReport,
    VfAttributes,
    format_report,
    parse_request,
)
from sriovd.partial_import import without_package

with without_package("pyroute2"):  # which loads all of the library, with a database and a web server
    from pyroute2.netlink import nla, nlmsg
    from pyroute2.netlink.exceptions import NetlinkDecodeError

_RTM_NEWLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 18, 19
_REQUEST, _REQUEST_AND_ACK = 0x1, 0x5  # NLM_F_REQUEST, NLM_F_ACK
_FILTER_VF, _FILTER_SKIP_STATS = 1, 8  # RTEXT_FILTER_*
_MAC_BYTES = 32  # MAX_ADDR_LEN
_MAC_LENGTHS = (6, 20)  # ETH_ALEN, INFINIBAND_ALEN
_NESTED_LIMIT_BYTES = 65535  # nlattr.nla_len has 16 bits
_UNKNOWN = 2**32 - 1  # (u32)-1
_PROTOCOLS = dict(zip(VLAN_PROTOCOLS, (0x8100, 0x88A8), strict=True))  # ETH_P_8021Q, ETH_P_8021AD
_PROTOCOL_NAMES = {number: name for name, number in _PROTOCOLS.items()}
_IFF_UP = 1
_SWITCH_ARGUMENTS = {"up": _IFF_UP, "down": 0}
READ_ARGUMENTS = {
    "": _FILTER_SKIP_STATS,
    "vfs": _FILTER_VF | _FILTER_SKIP_STATS,
    "statistics": _FILTER_VF,
}


class _Mac(nla):  # type: ignore[misc]  # pyroute2 has no types
    fields = (("vf", "I"), ("mac", f"{_MAC_BYTES}s"))


class _Vlan(nla):  # type: ignore[misc]
    fields = (("vf", "I"), ("vlan", "I"), ("qos", "I"))


class _Setting(nla):  # type: ignore[misc]
    """A switch or a state."""

    fields = (("vf", "I"), ("setting", "I"))


class _Rate(nla):  # type: ignore[misc]
    fields = (("vf", "I"), ("min_tx_rate", "I"), ("max_tx_rate", "I"))


class _Guid(nla):  # type: ignore[misc]
    fields = (("vf", "I"), ("padding", "I"), ("guid", "Q"))


class _VlanInfo(nla):  # type: ignore[misc]
    fields = (("vf", "I"), ("vlan", "I"), ("qos", "I"), ("protocol", ">H"), ("padding", "H"))


class _VlanList(nla):  # type: ignore[misc]
    VlanInfo = _VlanInfo
    nla_map = ((1, "IFLA_VF_VLAN_INFO", "VlanInfo"),)


class _Statistics(nla):  # type: ignore[misc]
    nla_map = tuple((number, name, "uint64") for number, name in VF_COUNTERS.items())


class _VfInfo(nla):  # type: ignore[misc]
    Mac, Vlan, Setting, Rate, Guid, VlanList = _Mac, _Vlan, _Setting, _Rate, _Guid, _VlanList
    Statistics = _Statistics
    nla_map = (
        (1, "IFLA_VF_MAC", "Mac"),
        (2, "IFLA_VF_VLAN", "Vlan"),
        (4, "IFLA_VF_SPOOFCHK", "Setting"),
        (5, "IFLA_VF_LINK_STATE", "Setting"),
        (6, "IFLA_VF_RATE", "Rate"),
        (7, "IFLA_VF_RSS_QUERY_EN", "Setting"),
        (8, "IFLA_VF_STATS", "Statistics"),
        (9, "IFLA_VF_TRUST", "Setting"),
        (10, "IFLA_VF_IB_NODE_GUID", "Guid"),
        (11, "IFLA_VF_IB_PORT_GUID", "Guid"),
        (12, "IFLA_VF_VLAN_LIST", "VlanList"),
    )


class _VfInfoList(nla):  # type: ignore[misc]
    VfInfo = _VfInfo
    nla_map = ((1, "IFLA_VF_INFO", "VfInfo"),)


class _LinkMessage(nlmsg):  # type: ignore[misc]
    """struct ifinfomsg, and of its attributes those that a LinkReport is made of."""

    VfInfoList = _VfInfoList
    fields = (
        ("family", "B"), ("padding", "B"), ("type", "H"), ("index", "i"), ("flags", "I"), ("change", "I"),
    )  # fmt: skip
    nla_map = (
        (1, "IFLA_ADDRESS", "cdata"),
        (4, "IFLA_MTU", "uint32"),
        (21, "IFLA_NUM_VF", "uint32"),
        (22, "IFLA_VFINFO_LIST", "VfInfoList"),
        (29, "IFLA_EXT_MASK", "uint32"),
        (50, "IFLA_MIN_MTU", "uint32"),
        (51, "IFLA_MAX_MTU", "uint32"),
    )


def encode_step(step: Step) -> bytes:
    """The message of a READ_LINK, SWITCH_LINK or SET_VF_ATTRIBUTE step, for interface 0: the helper puts the
    function's own in. Empty for an argument that makes no sense, at which the helper says EINVAL."""
    try:
        if step.verb is Verb.READ_LINK:
            return _encode(_RTM_GETLINK, _REQUEST, ["IFLA_EXT_MASK", READ_ARGUMENTS[step.argument]])
        if step.verb is Verb.SWITCH_LINK:
            state = _SWITCH_ARGUMENTS[step.argument]
            return _encode(_RTM_SETLINK, _REQUEST_AND_ACK, flags=state, change=_IFF_UP)
        name, value = _encode_attribute(*parse_request(step.argument))
        vf = {"attrs": [[name, value]]}
        return _encode(
            _RTM_SETLINK, _REQUEST_AND_ACK, ["IFLA_VFINFO_LIST", {"attrs": [["IFLA_VF_INFO", vf]]}]
        )
    except (ValueError, KeyError):
        return b""


def decode_reply(data: bytes) -> tuple[int, str]:
    """An errno and the text of the LinkReport in an RTM_NEWLINK message. EMSGSIZE: the VFs do not fit into
    one attribute, so that the kernel has told of some only. EBADMSG: this is no such message."""
    try:
        message = _LinkMessage(data)
        message.decode()
        report = _to_report(message)
    except (ValueError, KeyError, struct.error, NetlinkDecodeError, TypeError, AttributeError):
        # the latter two: the library leaves what is too short for its fields as bytes
        return errno.EBADMSG, ""
    is_cut = len(data) > _NESTED_LIMIT_BYTES and len(report.vfs) < (message.get_attr("IFLA_NUM_VF") or 0)
    return (errno.EMSGSIZE, "") if is_cut else (0, format_report(report))


def _encode(kind: int, header_flags: int, *attributes: list[Any], flags: int = 0, change: int = 0) -> bytes:
    """A message with `attributes`. Those of the interface's flags that are in `change` become `flags`."""
    message = _LinkMessage()
    message["header"] = {"type": kind, "flags": header_flags, "sequence_number": 1, "pid": 0}
    message["flags"], message["change"] = flags, change
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data)


def _encode_attribute(vf: int, attribute: Attribute, values: VfAttributes) -> tuple[str, dict[str, Any]]:
    """An attribute of IFLA_VF_INFO by name, and its fields."""
    match attribute:
        case Attribute.MAC:
            return "IFLA_VF_MAC", {"vf": vf, "mac": bytes.fromhex((values.mac or "").replace(":", ""))}
        case Attribute.VLAN:
            return _encode_vlan(vf, values)
        case Attribute.RATE:
            rates = {"min_tx_rate": values.min_tx_rate, "max_tx_rate": values.max_tx_rate}
            return "IFLA_VF_RATE", {"vf": vf, **rates}
        case Attribute.LINK_STATE:
            return "IFLA_VF_LINK_STATE", {"vf": vf, "setting": LINK_STATES.index(values.link_state or "")}
        case Attribute.NODE_GUID:
            return "IFLA_VF_IB_NODE_GUID", {"vf": vf, "padding": 0, "guid": _parse_guid(values.node_guid)}
        case Attribute.PORT_GUID:
            return "IFLA_VF_IB_PORT_GUID", {"vf": vf, "padding": 0, "guid": _parse_guid(values.port_guid)}
    name, setting = {
        Attribute.SPOOF_CHECK: ("IFLA_VF_SPOOFCHK", values.spoof_check),
        Attribute.TRUST: ("IFLA_VF_TRUST", values.trust),
        Attribute.RSS_QUERY: ("IFLA_VF_RSS_QUERY_EN", values.rss_query),
    }[attribute]
    return name, {"vf": vf, "setting": int(bool(setting))}


def _encode_vlan(vf: int, values: VfAttributes) -> tuple[str, dict[str, Any]]:
    """802.1Q as every kernel and tool says it; another protocol needs the list, which holds one."""
    fields: dict[str, Any] = {"vf": vf, "vlan": values.vlan, "qos": values.qos}
    protocol = _PROTOCOLS[values.vlan_protocol or ""]
    if protocol == _PROTOCOLS[VLAN_PROTOCOLS[0]]:
        return "IFLA_VF_VLAN", fields
    info = fields | {"protocol": protocol, "padding": 0}
    return "IFLA_VF_VLAN_LIST", {"attrs": [["IFLA_VF_VLAN_INFO", info]]}


def _to_report(message: Any) -> LinkReport:  # noqa: ANN401  pyroute2 has no types
    if message["header"]["type"] != _RTM_NEWLINK:
        raise ValueError("not RTM_NEWLINK")
    mac_bytes = len(message.get_attr("IFLA_ADDRESS") or b"")
    if mac_bytes not in _MAC_LENGTHS:  # nothing that a VF has
        mac_bytes = 0
    infos = message.get_attr("IFLA_VFINFO_LIST")
    told = infos.get_attrs("IFLA_VF_INFO") if infos else []
    vfs = dict(_to_vf(info, mac_bytes) for info in told)
    counters = dict(_to_counters(info) for info in told if info.get_attr("IFLA_VF_STATS"))
    names = {"mtu": "IFLA_MTU", "min_mtu": "IFLA_MIN_MTU", "max_mtu": "IFLA_MAX_MTU"}
    sizes = {name: message.get_attr(kernel) or 0 for name, kernel in names.items()}
    if not all(isinstance(size, int) for size in sizes.values()):
        raise ValueError("a size is cut off")
    return LinkReport(**sizes, up=message["flags"] & _IFF_UP, vfs=vfs, counters=counters)


def _to_counters(info: Any) -> tuple[int, Mapping[str, int]]:  # noqa: ANN401
    """A VF's index and counters."""
    names = {*VF_COUNTERS.values()}
    told = {name: value for name, value in info.get_attr("IFLA_VF_STATS")["attrs"] if name in names}
    return info.get_attr("IFLA_VF_MAC")["vf"], told


def _to_vf(info: Any, mac_bytes: int) -> tuple[int, VfAttributes]:  # noqa: ANN401
    """A VF's index and attributes. Every field comes for every VF; -1 is what no driver has filled in."""
    found: Mapping[str, Any] = {name: value for name, value in info["attrs"] if name != "UNKNOWN"}
    vlans = found.get("IFLA_VF_VLAN_LIST")
    vlan = (vlans.get_attr("IFLA_VF_VLAN_INFO") if vlans else None) or {}
    rate = found.get("IFLA_VF_RATE") or {}
    mac = found["IFLA_VF_MAC"]
    return mac["vf"], VfAttributes(
        mac=mac["mac"][:mac_bytes].hex(":") or None,
        vlan=vlan.get("vlan"),
        qos=vlan.get("qos"),
        vlan_protocol=_PROTOCOL_NAMES.get(vlan.get("protocol", 0)),
        spoof_check=_to_switch(found.get("IFLA_VF_SPOOFCHK")),
        trust=_to_switch(found.get("IFLA_VF_TRUST")),
        min_tx_rate=rate.get("min_tx_rate"),
        max_tx_rate=rate.get("max_tx_rate"),
        link_state=dict(enumerate(LINK_STATES)).get(_to_number(found.get("IFLA_VF_LINK_STATE"))),
        rss_query=_to_switch(found.get("IFLA_VF_RSS_QUERY_EN")),
        node_guid=_format_guid(found.get("IFLA_VF_IB_NODE_GUID")),
        port_guid=_format_guid(found.get("IFLA_VF_IB_PORT_GUID")),
    )


def _to_number(setting: Mapping[str, int] | None) -> int:
    return setting["setting"] if setting else _UNKNOWN


def _to_switch(setting: Mapping[str, int] | None) -> bool | None:
    number = _to_number(setting)
    return None if number == _UNKNOWN else bool(number)


def _parse_guid(text: str | None) -> int:
    return int((text or "").replace(":", ""), 16)


def _format_guid(guid: Mapping[str, int] | None) -> str | None:
    return guid["guid"].to_bytes(8, "big").hex(":") if guid else None
