"""What must be true of values together. Pure: a wish in, problems out.

Rule: whatever no kernel could do is refused here, when the file is read; what depends on the device (how
many VFs, which attributes) is found when a plan is made. The same rules are for one policy and for the sum
of several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping

from sriovd.backend.vf_attributes import Value
from sriovd.core.attributes import is_multicast, is_zero
from sriovd.core.errors import InvalidArgument
from sriovd.core.policy.model import ADDRESSES, STABLE, PfWish, Setting, Settings
from sriovd.core.policy.problems import Problem
from sriovd.core.rules import check_driver_name

_MORE_THAN_ONE = 2


def check_wish(wish: PfWish, unreadable: Collection[str] = ()) -> Iterator[Problem]:
    """Everything in `wish` that does not go together; the keys `unreadable` are there and not in `wish`."""
    for settings in wish.kinds():
        if "vlan" not in unreadable:
            yield from _check_vlan(settings)
        yield from _check_rates(settings)
    yield from _check_indexes(wish)
    yield from _check_shared(wish)


def check_setting(name: str, setting: Setting) -> Iterator[Problem]:
    """What is wrong with the value of the key `name` (as in the schema) that a pattern cannot say."""
    rule = _RULES_OF_ONE.get(name)
    if rule is not None:
        yield from rule(setting)


def _check_driver(setting: Setting) -> Iterator[Problem]:
    try:
        check_driver_name(str(setting.value))
    except InvalidArgument as error:
        yield setting.place.problem(error.message.rstrip("."), _as_clause(error.hint))


def _as_clause(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].rstrip(".")


def _check_mac(setting: Setting) -> Iterator[Problem]:
    """As the kernel's is_valid_ether_addr (include/linux/etherdevice.h), which PF drivers ask."""
    mac = str(setting.value)
    if mac == STABLE:
        return
    if is_zero(mac):
        yield setting.place.problem("the zero address means something else on each driver", 'write "stable"')
    elif is_multicast(mac):
        yield setting.place.problem(
            f"{mac} is a multicast address", "the first pair of a VF's address is an even number"
        )


def _check_rungs(setting: Setting) -> Iterator[Problem]:
    if not setting.value:
        yield setting.place.problem(
            "no rung is allowed, so that nothing could bring an adapter back",
            'leave the key out to allow all, or say fatal = "quarantine"',
        )


_RULES_OF_ONE: Mapping[str, Callable[[Setting], Iterator[Problem]]] = {
    "driver": _check_driver,
    "mac": _check_mac,
    "rungs": _check_rungs,
}


def _check_vlan(settings: Settings) -> Iterator[Problem]:
    """One request sets VLAN, priority and protocol, so two of them alone cannot be set."""
    vlan = settings.get("vlan")
    for name, harmless in (("qos", 0), ("vlan_protocol", "802.1Q")):
        setting = settings.get(name)
        if setting is None or (vlan is not None and (vlan.value or setting.value == harmless)):
            continue
        without = "no vlan is given" if vlan is None else f"vlan is 0 ({vlan.place})"
        yield setting.place.problem(f"needs a VLAN, and {without}", "give vlan for the same VFs")


def _check_rates(settings: Settings) -> Iterator[Problem]:
    least, most = settings.get("min_tx_rate"), settings.get("max_tx_rate")
    if least is None or most is None or not most.value:
        return
    if int(least.value) > int(most.value):
        yield least.place.problem(
            f"{least.value} is more than max-tx-rate, which is {most.value} ({most.place})",
            "lower it, or give max-tx-rate 0 for no limit",
        )


def _check_indexes(wish: PfWish) -> Iterator[Problem]:
    """Nothing may be said of VFs that will not exist."""
    count = wish.functions.get("num_vfs")
    if count is None:
        return
    message = f"this is about VFs that will not exist: num-vfs is {count.value} ({count.place})"
    suggestion = f"VFs are counted from 0 to {int(count.value) - 1}" if count.value else ""
    for each in wish.ranges:
        if each.span.last >= int(count.value):
            yield from (place.problem(message, suggestion) for place in each.tables)
    if not count.value:
        own = (each for each in wish.defaults.values() if each is not wish.functions.get("driver"))
        yield from (each.place.problem(message) for each in own)


def _check_shared(wish: PfWish) -> Iterator[Problem]:
    """No two VFs may have the same address; defaults and ranges would give them one."""
    seen: dict[tuple[str, Value], Setting] = {}
    spans = ((each.span.last - each.span.first + 1, each.settings) for each in wish.ranges)
    for vfs, settings in ((_MORE_THAN_ONE, wish.defaults), *spans):
        for name in ADDRESSES:
            setting = settings.get(name)
            if setting is None or setting.value == STABLE:
                continue
            first = seen.get((name, setting.value))
            if first is not None or vfs >= _MORE_THAN_ONE:
                yield _describe_shared(first or setting, setting)
            seen.setdefault((name, setting.value), setting)


def _describe_shared(first: Setting, setting: Setting) -> Problem:
    also = "" if first.place == setting.place else f" ({first.place} has it too)"
    return setting.place.problem(
        f"more than one VF would have {setting.value}{also}",
        "give each VF its own, in a table for its index",
    )
