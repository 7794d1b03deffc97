"""How the tables of broken policy files are written: a name, a text, the line that is to blame, and a part
of what is said about it."""

from __future__ import annotations

from typing import NamedTuple

MATCH = '[match]\naddress = "0000:01:00.0"\n'  # two lines


class Broken(NamedTuple):
    """A text, or several as the file and its drop-ins; the last is to blame. `line` 0: as a whole."""

    name: str
    text: str | tuple[str, ...]
    line: int
    fragment: str


def in_match(text: str) -> str:
    """`text` begins on line 2."""
    return f"[match]\n{text}\n"


def in_functions(text: str) -> str:
    """`text` begins on line 4."""
    return f"{MATCH}[functions]\n{text}\n"


def in_defaults(text: str) -> str:
    """`text` begins on line 4."""
    return f"{MATCH}[vf.defaults]\n{text}\n"


def in_vf(index: str, text: str) -> str:
    """`text` begins on line 4."""
    return f'{MATCH}[vf."{index}"]\n{text}\n'


def after_match(text: str) -> str:
    """`text` begins on line 3."""
    return f"{MATCH}{text}\n"


def in_recovery(text: str) -> str:
    """`text` begins on line 4."""
    return f"{MATCH}[recovery]\n{text}\n"
