"""The trailing `a{sv}` of a verb: known keys with known types, everything else refused by name. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from sriovd.bus.signature import BASIC_NAMES, Value, Variant, parse_single
from sriovd.bus.wire import Buffer, WireError, writer_for
from sriovd.core.errors import InvalidArgument

_INTEGERS = frozenset("ynqiuxt")


def parse_options(options: Mapping[str, Variant], table: Mapping[str, str]) -> dict[str, Value]:
    """The plain values of `options`. table: the keys there can be, each with the signature of its value.

    An integer may come in any width, as long as it fits: who types `u` for a `t` means the same number.
    Raises InvalidArgument naming the key and what would be right.
    """
    return {key: _parse_option(key, value, table) for key, value in options.items()}


def _parse_option(key: str, given: Variant, table: Mapping[str, str]) -> Value:
    if key not in table:
        known = ", ".join(f"'{name}' ({_describe(table[name])})" for name in sorted(table))
        raise InvalidArgument(f"unknown option '{key}'", f"Known options: {known or 'none'}.")
    wanted = table[key]
    same_kind = given.signature == wanted or (wanted in _INTEGERS and given.signature in _INTEGERS)
    if not same_kind:
        raise InvalidArgument(
            f"option '{key}' has type '{given.signature}'", f"It takes {_describe(wanted)} ('{wanted}')."
        )
    if wanted in _INTEGERS and not _fits(given.value, wanted):
        raise InvalidArgument(
            f"option '{key}': {given.value} does not fit", f"It takes {_describe(wanted)}."
        )
    return given.value


def _describe(signature: str) -> str:
    return BASIC_NAMES.get(signature, f"a value of type '{signature}'")


def _fits(number: int, signature: str) -> bool:
    try:
        writer_for(parse_single(signature))(Buffer(), number)
    except WireError:
        return False
    return True
