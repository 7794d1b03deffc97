"""Which requests bring a VF's attributes from what they are to what is wished. Pure.

Rule: one request for each attribute that differs, none for those that do not; what a request must carry and
nobody wishes stays as it is (setting one rate would zero the other, drivers/net of several vendors). Undoing
is the same from the other side.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sriovd.backend.steps import Chain, Step, Verb
from sriovd.backend.vf_attributes import (
    FIELD_NAMES,
    FIELDS_OF,
    LINK_STATES,
    VLAN_PROTOCOLS,
    Attribute,
    VfAttributes,
    format_request,
)
from sriovd.core.errors import InvalidArgument
from sriovd.pci import PciAddress

# What no tenant may leave behind where no policy says otherwise. Its MAC address is the place's, and stays.
NEUTRAL = VfAttributes(vlan=0, qos=0, min_tx_rate=0, max_tx_rate=0, spoof_check=True, trust=False)

# What an attribute is when the kernel leaves it out: without a VLAN there is no protocol to tell.
_UNTOLD: Mapping[str, str | int] = {
    "vlan": 0, "qos": 0, "vlan_protocol": VLAN_PROTOCOLS[0], "min_tx_rate": 0, "max_tx_rate": 0,
}  # fmt: skip
# What a new VF may be by itself, so that nobody can say beforehand whether a request is needed.
_PERHAPS_SO: Mapping[str, tuple[str | bool, ...]] = {
    "spoof_check": (True, False), "trust": (False,), "link_state": ("auto",), "rss_query": (False,),
}  # fmt: skip
# What people may write; policy files are checked against the same (core/policy/schema.py).
MAC_PATTERN = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}"
GUID_PATTERN = r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){7}"
HIGHEST_VLAN = 4094
HIGHEST_QOS = 7
HIGHEST_RATE = 2**32 - 1
_PATTERNS: Mapping[str, str] = {"mac": MAC_PATTERN, "node_guid": GUID_PATTERN, "port_guid": GUID_PATTERN}
_RANGES: Mapping[str, int] = {
    "vlan": HIGHEST_VLAN, "qos": HIGHEST_QOS, "min_tx_rate": HIGHEST_RATE, "max_tx_rate": HIGHEST_RATE,
}  # fmt: skip
_CHOICES: Mapping[str, tuple[str, ...]] = {"vlan_protocol": VLAN_PROTOCOLS, "link_state": LINK_STATES}
_BOOLEANS = frozenset({"spoof_check", "trust", "rss_query"})


def check_value(name: str, value: object) -> str:
    """What would be right for the field `name`, when `value` cannot be; empty when it can."""
    if name in _BOOLEANS:
        return "" if isinstance(value, bool) else "true or false"
    if name in _RANGES:
        right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _RANGES[name]
        return "" if right else f"a number from 0 to {_RANGES[name]}"
    if name in _CHOICES:
        return "" if value in _CHOICES[name] else " or ".join(repr(each) for each in _CHOICES[name])
    if not isinstance(value, str) or not re.fullmatch(_PATTERNS[name], value):
        return f"{'six' if name == 'mac' else 'eight'} hexadecimal pairs with colons"
    if name == "mac" and (is_multicast(value) or is_zero(value)):
        return "a unicast address that is not zero"
    return ""


def is_multicast(mac: str) -> bool:
    """As the kernel's is_multicast_ether_addr (include/linux/etherdevice.h)."""
    return bool(int(mac[:2], 16) & 1)


def is_zero(mac: str) -> bool:
    """The address that means something else on each driver."""
    return not int(mac.replace(":", ""), 16)


def make_wish(given: Mapping[str, Any]) -> VfAttributes:
    """The wish that `given`, by the names that people write, stands for. Raises InvalidArgument."""
    values = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in FIELD_NAMES or "_" in key:
            known = ", ".join(each.replace("_", "-") for each in FIELD_NAMES)
            raise InvalidArgument(f"A VF has no attribute {key[:32]!r}.", f"There are {known}.")
        right = check_value(name, value)
        if right:
            raise InvalidArgument(f"{key} cannot be {str(value)[:64]!r}.", f"Give {right}.")
        values[name] = value.lower() if name in ("mac", "node_guid", "port_guid") else value
    least, most = values.get("min_tx_rate", 0), values.get("max_tx_rate", 0)
    if 0 < most < least:
        raise InvalidArgument(
            f"min-tx-rate {least} is more than max-tx-rate {most}.",
            "Lower it, or give max-tx-rate 0: no limit.",
        )
    return VfAttributes(**values)


def complete(wish: VfAttributes, have: VfAttributes) -> VfAttributes:
    """`have` with everything that is wished."""
    wished = {name: value for name in FIELD_NAMES if (value := getattr(wish, name)) is not None}
    return replace(have, **wished)


def list_differences(wish: VfAttributes, have: VfAttributes) -> tuple[Attribute, ...]:
    """The attributes that must be set, in the order of FIELDS_OF."""
    return tuple(
        attribute
        for attribute, names in FIELDS_OF.items()
        if any((wanted := getattr(wish, name)) is not None and wanted != _told(have, name) for name in names)
    )


def list_certain(wish: VfAttributes) -> tuple[Attribute, ...]:
    """The attributes that must be set on a new VF, whatever its driver begins with."""
    unknown = {name for name, values in _PERHAPS_SO.items() if getattr(wish, name) in values}
    return list_differences(replace(wish, **dict.fromkeys(unknown)), VfAttributes())


def list_untold(wish: VfAttributes, have: VfAttributes) -> tuple[Attribute, ...]:
    """The attributes that are wished and that the kernel cannot tell, so that nobody could verify them."""
    return tuple(
        attribute
        for attribute, names in FIELDS_OF.items()
        if any(getattr(wish, name) is not None and _told(have, name) is None for name in names)
    )


def set_chain(pf: PciAddress, index: int, wish: VfAttributes, have: VfAttributes) -> Chain | None:
    """The requests for one VF; None when there is nothing to do."""
    full = complete(wish, have)
    told = replace(full, **{name: _told(full, name) for name in _UNTOLD})  # type: ignore[arg-type]
    steps = tuple(
        Step(Verb.SET_VF_ATTRIBUTE, pf, format_request(index, attribute, told))
        for attribute in list_differences(wish, have)
    )
    return Chain(pf, steps) if steps else None


def set_chains(
    pf: PciAddress, wishes: Mapping[int, VfAttributes], have: Mapping[int, VfAttributes]
) -> Iterator[Chain]:
    """The requests for several VFs, by index; VFs that the kernel does not list are left out."""
    for index, wish in sorted(wishes.items()):
        chain = set_chain(pf, index, wish, have[index]) if index in have else None
        if chain is not None:
            yield chain


def restrict(before: VfAttributes, wish: VfAttributes) -> VfAttributes:
    """The part of `before` that setting `wish` may have changed: a wish that takes it back."""
    touched = {name for names in FIELDS_OF.values() if _any_wished(wish, names) for name in names}
    return VfAttributes(**{name: _told(before, name) for name in touched})  # type: ignore[arg-type]


def clash(says: VfAttributes, wish: VfAttributes) -> VfAttributes:
    """The part of `says` that `wish` contradicts."""
    names = [name for name in FIELD_NAMES if getattr(wish, name) is not None]
    return VfAttributes(
        **{name: getattr(says, name) for name in names if getattr(says, name) != getattr(wish, name)}
    )


def restrict_to_told(wish: VfAttributes, have: VfAttributes) -> VfAttributes:
    """The part of `wish` that the kernel could show."""
    untold = {name for attribute in list_untold(wish, have) for name in FIELDS_OF[attribute]}
    return replace(wish, **dict.fromkeys(untold))


def describe(wish: VfAttributes, have: VfAttributes | None = None) -> str:
    """What would change, for people: `vlan 0 to 100, trust off`."""
    parts = []
    for name, value in wish.items():
        before = None if have is None else _told(have, name.replace("-", "_"))
        if before is None:
            parts.append(f"{name} {_word(value)}")
        elif before != value:
            parts.append(f"{name} {_word(before)} to {_word(value)}")
    return ", ".join(parts)


def _any_wished(wish: VfAttributes, names: tuple[str, ...]) -> bool:
    return any(getattr(wish, name) is not None for name in names)


def _told(have: VfAttributes, name: str) -> str | int | bool | None:
    value: str | int | bool | None = getattr(have, name)
    return _UNTOLD.get(name) if value is None else value


def _word(value: str | int | bool) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
