"""Reading records back: what each field must be, and the complaint that names the one that is not.

Rule: what comes back from the store is believed no more than what a stranger wrote. A record that does not
make sense is refused, never repaired; True is no number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from sriovd.core.errors import InvalidArgument
from sriovd.pci import PciAddress

T = TypeVar("T")
LARGEST_NUMBER = 2**63 - 1  # an SQLite integer
Parser = Callable[[object], Any]


def load_record(text: str) -> dict[str, Any]:
    """A record as the store keeps it, in JSON; for what is none an empty one, which every reader refuses."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def parse_fields(record: str, fields: Mapping[str, Parser], data: object) -> dict[str, Any]:
    """The values of `fields` in `data`. `record`: what it is, for complaints. Raises ValueError naming the
    field when one is missing, unknown or wrong."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{record} is no table: {data!r:.64}")
    if data.keys() != fields.keys():
        odd = ", ".join(sorted(map(repr, data.keys() ^ fields.keys())))
        raise ValueError(f"{record} has fields too many or too few: {odd}")
    return {field: _parse(record, field, parse, data[field]) for field, parse in fields.items()}


def whole(lowest: int, highest: int) -> Callable[[object], int]:
    """A whole number of that range."""

    def parse(value: object) -> int:
        if type(value) is not int or not lowest <= value <= highest:
            raise ValueError(f"{value!r:.64} is not a whole number from {lowest} to {highest}")
        return value

    return parse


def text(value: object) -> str:
    """Any text."""
    if type(value) is not str:
        raise ValueError(f"{value!r:.64} is not text")
    return value


def flag(value: object) -> bool:
    """True or false."""
    if type(value) is not bool:
        raise ValueError(f"{value!r:.64} is neither true nor false")
    return value


def address(value: object) -> PciAddress:
    """A PCI address as text."""
    return PciAddress.parse(text(value))


def converted(convert: Callable[[str], T]) -> Callable[[object], T]:
    """Text of which `convert` makes a value, as a StrEnum does; it raises ValueError or InvalidArgument."""
    return lambda value: convert(text(value))


def checked(check: Callable[[str], None]) -> Callable[[object], str]:
    """Text in which `check` finds nothing wrong; it raises ValueError or InvalidArgument."""

    def parse(value: object) -> str:
        found = text(value)
        check(found)
        return found

    return parse


def list_of(parse: Callable[[object], T]) -> Callable[[object], tuple[T, ...]]:
    """A list of what `parse` takes."""

    def parse_list(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise ValueError(f"{value!r:.64} is not a list")
        return tuple(parse(each) for each in value)

    return parse_list


def table_of(
    parse_key: Callable[[object], T], parse: Callable[[object], Any]
) -> Callable[[object], dict[T, Any]]:
    """A table from what `parse_key` takes to what `parse` takes."""

    def parse_table(value: object) -> dict[T, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{value!r:.64} is not a table")
        return {parse_key(key): parse(each) for key, each in value.items()}

    return parse_table


def _parse(record: str, field: str, parse: Parser, value: object) -> object:
    try:
        return parse(value)
    except (ValueError, InvalidArgument) as error:
        raise ValueError(f"{record}'s {field} is wrong: {error}") from error
