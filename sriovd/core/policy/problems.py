"""What is wrong with a policy file, and where. Rule: one line of text for each thing that is wrong, which
names the file, the line, the key, and what to do. Pure.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

AT_MOST = 100  # problems reported of one file; a binary file taken for a policy would fill the journal
_SHOWN_CHARACTERS = 64


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One wrong thing. `line`: from 1, 0 when it is the file as a whole. `key`: as `[table] key`, empty when
    no key is to blame. `suggestion`: the next step, empty if there is none."""

    file: str
    line: int
    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = f"{self.message}; {self.suggestion}" if self.suggestion else self.message
        return _keep_on_one_line(": ".join(part for part in (where, self.key, what) if part))


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where something is written; the fields are those of Problem."""

    file: str
    line: int = 0
    key: str = ""

    def problem(self, message: str, suggestion: str = "") -> Problem:
        """What is wrong here."""
        return Problem(self.file, self.line, self.key, message, suggestion)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Findings:
    """The problems of one file, as they are found. Past AT_MOST they are only counted."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}
        self._dropped = 0

    def add(self, problem: Problem) -> None:
        """Note `problem`, once."""
        if self.full:
            self._dropped += 1
        else:
            self._found.setdefault(problem)

    @property
    def full(self) -> bool:
        """Whether what follows is only counted, so that nobody need think of good words for it."""
        return len(self._found) >= AT_MOST

    def list(self, file: str) -> tuple[Problem, ...]:
        """All in order of their lines; those that were only counted are the last, in one, against `file`."""
        more = (Problem(file, 0, "", f"{self._dropped} more problems"),) if self._dropped else ()
        return (*sorted(self._found), *more)


def suggest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for a name that is not among `known`; empty when none of them is near."""
    close = difflib.get_close_matches(name[:_SHOWN_CHARACTERS], list(known), n=1)
    return f"did you mean {close[0]}?" if close else ""


def show(value: object) -> str:
    """A value as people see it in a message: of bounded length."""
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _keep_on_one_line(text: str) -> str:
    """`text` with what would break a line or a terminal, or is not Unicode, written as an escape."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
