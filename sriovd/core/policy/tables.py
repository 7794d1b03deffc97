"""Reads one table of a policy by its declaration in the schema.

Rule: every key is looked at by itself, so that one wrong key does not hide the next; what is wrong is noted,
left out, and the rest is used. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin

import msgspec
from msgspec import Struct
from msgspec.structs import FieldInfo

from sriovd.core.policy.document import Document
from sriovd.core.policy.locate import Path
from sriovd.core.policy.problems import Findings, show, suggest
from sriovd.core.policy.schema import TABLES


class TableReader:
    """Reads tables of one document and notes in `findings` what is wrong."""

    def __init__(self, document: Document, findings: Findings) -> None:
        self.document = document
        self.findings = findings
        self.unreadable: set[str] = set()  # fields whose value is wrong, so that nobody calls them missing

    def blame(self, path: Path, message: str, suggestion: str = "") -> None:
        """Note what is wrong at `path`."""
        self.findings.add(self.document.place(path).problem(message, suggestion))

    def read_table(self, path: Path, value: object) -> Mapping[str, Any]:
        """`value`, if it is a table; an empty one if not."""
        if isinstance(value, dict):
            return value
        self.blame(path, f"{show(value)} is not a table")
        return {}

    def check_keys(self, path: Path, table: Mapping[str, Any], known: Mapping[str, object]) -> None:
        """Note every key of `table` that is not among `known`."""
        for key in table:
            if key not in known:
                suggestion = "" if self.findings.full else _suggest_key(key, known)
                self.blame((*path, key), "unknown key", suggestion)

    def read(self, kind: type[Struct], path: Path, value: object) -> dict[str, Any]:
        """The values of the table at `path` that are right, by the fields' names in `kind`."""
        table = self.read_table(path, value)
        fields = _fields_of(kind)
        self.check_keys(path, table, fields)
        read = {}
        for key, each in fields.items():
            if key in table:
                found = self._read_value((*path, key), each.type, table[key])
                if found is None:
                    self.unreadable.add(each.name)
                else:
                    read[each.name] = found
        return read

    def _read_value(self, path: Path, kind: object, value: object) -> object | None:
        if get_origin(kind) is tuple:
            return self._read_choices(path, get_args(kind)[0], value)
        wanted = next(each for each in get_args(kind) if each is not NoneType)
        if get_origin(wanted) is tuple:
            return self._read_list(path, get_args(wanted)[0], value)
        return self._convert(path, wanted, value)

    def _read_list(self, path: Path, kind: object, value: object) -> object | None:
        """A list of values, none of them twice. That it must not be empty is for its key to say."""
        if not isinstance(value, list):
            self.blame(path, f"{show(value)} is not a list", "write it in [ ]")
            return None
        found = [self._convert((*path, index), kind, each) for index, each in enumerate(value)]
        for index, each in enumerate(value):
            if each in value[:index]:
                self.blame((*path, index), f"{show(each)} is in the list twice", "say it once")
        return None if None in found else tuple(found)

    def _read_choices(self, path: Path, kind: object, value: object) -> object | None:
        """A value, or a list of values any of which will do."""
        if value == []:
            self.blame(path, "an empty list matches nothing", "leave the key out to match anything")
            return None
        if not isinstance(value, list):
            found = [self._convert(path, kind, value)]
        else:
            found = [self._convert((*path, index), kind, each) for index, each in enumerate(value)]
        return None if None in found else tuple(found)

    def _convert(self, path: Path, kind: object, value: object) -> object | None:
        try:
            converted: object = msgspec.convert(value, kind)
        except msgspec.ValidationError:
            suggestion = "" if self.findings.full else _suggest_value(value, kind)
            self.blame(path, f"{show(value)} is not {_describe(kind)}", suggestion)
            return None
        return converted


@cache
def _fields_of(kind: type[Struct]) -> Mapping[str, FieldInfo]:
    """The fields of `kind` as they are written in files."""
    return {each.encode_name: each for each in msgspec.structs.fields(kind)}


def _describe(kind: object) -> str:
    return str(cast(Any, kind).__metadata__[-1].description)


def _suggest_value(value: object, kind: object) -> str:
    if _is_right_without_quotes(value, kind):
        return "write it without quotes"
    wanted = get_args(kind)[0]  # within its Annotated
    is_word = isinstance(value, str) and get_origin(wanted) is Literal
    return suggest(str(value), get_args(wanted)) if is_word else ""


def _is_right_without_quotes(value: object, kind: object) -> bool:
    try:
        msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        return False
    return isinstance(value, str)


def _suggest_key(key: str, known: Mapping[str, object]) -> str:
    name = key.replace("_", "-")
    for place, kind in TABLES.items():
        names = _fields_of(kind).keys()
        if name in names and names != known.keys():
            return f"{name} belongs in [{place}]"
    return suggest(key, known)
