"""A TOML text with the place of every key, and how one is laid over another.

Rule: a drop-in changes what it names and nothing else: tables are merged key by key, everything else (lists
included) is replaced. Every key keeps the place where the value that counts is written. Pure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass

from sriovd.core.policy.locate import Path, TooDeepError, find_lines
from sriovd.core.policy.problems import Place, Problem

Table = Mapping[str, object]

_TOMLLIB_SAYS = re.compile(
    r"(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)", re.DOTALL
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Document:
    """The tables of a text. `places`: file and line by path; `file` is where what has no path belongs to."""

    file: str
    table: Table
    places: Mapping[Path, tuple[str, int]]

    def place(self, path: Path) -> Place:
        """Where `path` is written, or if nowhere, the nearest table around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return Place(*self.places[path[:length]], describe_path(path))
        return Place(self.file, 1, describe_path(path))


def parse_document(file: str, text: str) -> Document | Problem:
    """The document in `text`, which is called `file`, or why there is none."""
    if text.startswith("\ufeff"):
        return Problem(file, 1, "", "begins with a byte order mark", "save it as UTF-8 without one")
    try:
        lines = find_lines(text)
        table = tomllib.loads(text)
    except TooDeepError as error:
        return Problem(file, error.line, "", str(error))
    except ValueError as error:  # TOMLDecodeError is one; so is Python's limit on the digits of an integer
        return _explain(file, text, error)
    return Document(file, table, {path: (file, line) for path, line in lines.items()})


def _explain(file: str, text: str, error: ValueError) -> Problem:
    match = _TOMLLIB_SAYS.fullmatch(str(error))
    if match is None:
        return Problem(file, 0, "", f"not TOML: {error}")
    last_line = max(len(text.splitlines()), 1)
    return Problem(file, int(match["line"] or last_line), "", f"not TOML: {match['what']}")


def merge(below: Document, above: Document) -> Document:
    """`above` laid over `below`."""
    table = _merge_tables(below.table, above.table)
    return Document(below.file, table, {**below.places, **above.places})


def _merge_tables(below: Table, above: Table) -> Table:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _merge_tables(old, value)
        else:
            merged[key] = value
    return merged


def describe_path(path: Path) -> str:
    """A path as people write it: `[vf.defaults] vlan`; indexes into arrays are left to the line."""
    names = [_quote(each) for each in path if isinstance(each, str)]
    if len(names) < 2:
        return "".join(names)
    return f"[{'.'.join(names[:-1])}] {names[-1]}"


def _quote(name: str) -> str:
    shown = name if len(name) <= _SHOWN_CHARACTERS else f"{name[: _SHOWN_CHARACTERS - 3]}..."
    return shown if _BARE_KEY.fullmatch(shown) else f'"{shown}"'
