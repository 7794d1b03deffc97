"""The line of every key of a TOML text: tomllib gives values without them.

Rule: for whatever tomllib accepts, every key and every element of an array is found (a property test holds
that); for the rest, what comes before the error is. It is more tolerant than tomllib and judges one thing:
nesting, which tomllib treats with quadratic time (dotted keys) or a RecursionError (brackets). Pure.
"""

from __future__ import annotations

import contextlib
import re
import tomllib

Path = tuple[str | int, ...]  # from the top: names of keys, and indexes into arrays

DEPTH_AT_MOST = 16
# Loops are unrolled, so that nothing is tried twice; Python 3.11.2 (Debian 12) errs with possessive ones.
_BETWEEN = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")  # also over lines, with comments
_BLANKS = re.compile(r"[ \t]*")
_QUOTED = r"""  "[^"\\\n]* (?: \\. [^"\\\n]* )* "  |  '[^'\n]*'  """
_LONG = r"""
    "{3} [^"\\]* (?: (?: \\[\s\S] | "{1,2}(?!") ) [^"\\]* )* "{3,5}
    | '{3} [^']* (?: '{1,2}(?!') [^']* )* '{3,5}
"""
_KEY = re.compile(rf"(?P<bare> [A-Za-z0-9_-]+ ) | {_QUOTED}", re.VERBOSE)
_TEXT = re.compile(f"{_LONG} | {_QUOTED}", re.VERBOSE)
_SCALAR = re.compile(r"[^,\]}#\r\n]+")


class TooDeepError(ValueError):
    """Keys or values are nested deeper than anybody means it. `line`: where."""

    def __init__(self, line: int) -> None:
        super().__init__(f"nested more than {DEPTH_AT_MOST} deep")
        self.line = line


class _NotTomlError(Exception):
    """The text is not TOML here; what tomllib has to say about that is said elsewhere."""


def find_lines(text: str) -> dict[Path, int]:
    """The line (from 1) at which each key, table or element is written first. Raises TooDeepError."""
    scanner = _Scanner(text)
    with contextlib.suppress(_NotTomlError):
        scanner.take_document()
    return scanner.lines


class _Scanner:
    """One pass over a text. `take_...` methods move on; those with a path record what they meet below it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._sizes: dict[Path, int] = {}  # of arrays of tables, so far
        self.lines: dict[Path, int] = {}

    def take_document(self) -> None:
        """All statements: tables' headers, and keys with values."""
        table: Path = ()
        self._take(_BETWEEN)
        while self._at < len(self._text):
            if self._take_if("[["):
                table = self._take_header(array=True)
            elif self._take_if("["):
                table = self._take_header(array=False)
            else:
                self._take_pair(table)
            self._take(_BETWEEN)

    def _take_header(self, array: bool) -> Path:
        """The path of the table that begins here. A name of an array of tables means its last element."""
        *above, name = self._take_names(())
        path: Path = ()
        for each in above:
            path = self._enter((*path, each))
        path = (*path, name)
        self._record(path)
        if array:
            self._sizes[path] = self._sizes.get(path, 0) + 1
        path = self._enter(path)
        if not self._take_if("]]" if array else "]"):
            raise _NotTomlError
        return path

    def _enter(self, path: Path) -> Path:
        """The table at `path`, which is its last element if it is an array of tables."""
        self._record(path)
        if path in self._sizes:
            path = (*path, self._sizes[path] - 1)
            self._record(path)
        return path

    def _take_pair(self, above: Path) -> None:
        """A key and its value."""
        path = self._take_names(above)
        for length in range(len(above) + 1, len(path) + 1):
            self._record(path[:length])
        if not self._take_if("="):
            raise _NotTomlError
        self._take(_BLANKS)
        self._take_value(path)

    def _take_names(self, above: Path) -> Path:
        """The path of a dotted key below `above`."""
        path = above
        while True:
            self._take(_BLANKS)
            path = (*path, self._take_name())
            self._check_depth(path)
            self._take(_BLANKS)
            if not self._take_if("."):
                return path

    def _take_name(self) -> str:
        match = _KEY.match(self._text, self._at)
        if match is None:
            raise _NotTomlError
        self._take(_KEY)
        if match["bare"]:
            return match[0]
        return match[0][1:-1] if "\\" not in match[0] or match[0][0] == "'" else _unescape(match[0])

    def _take_value(self, path: Path) -> None:
        if self._take_if("["):
            self._take_array(path)
        elif self._take_if("{"):
            self._take_inline_table(path)
        elif not self._take(_TEXT) and not self._take(_SCALAR):
            raise _NotTomlError

    def _take_array(self, path: Path) -> None:
        """The rest of an array; it may go over many lines, with comments."""
        index = 0
        self._take(_BETWEEN)
        while not self._take_if("]"):
            self._record((*path, index))
            self._take_value((*path, index))
            index += 1
            self._take_separator("]")

    def _take_inline_table(self, path: Path) -> None:
        """The rest of an inline table."""
        self._take(_BETWEEN)
        while not self._take_if("}"):
            self._take_pair(path)
            self._take_separator("}")

    def _take_separator(self, end: str) -> None:
        """A comma, unless `end` follows."""
        self._take(_BETWEEN)
        if self._take_if(","):
            self._take(_BETWEEN)
        elif not self._text.startswith(end, self._at):
            raise _NotTomlError

    def _record(self, path: Path) -> None:
        self._check_depth(path)
        self.lines.setdefault(path, self._line)

    def _check_depth(self, path: Path) -> None:
        if len(path) > DEPTH_AT_MOST:
            raise TooDeepError(self._line)

    def _take(self, pattern: re.Pattern[str]) -> bool:
        """Go past what `pattern` matches here; whether that is anything."""
        match = pattern.match(self._text, self._at)
        if match is None:
            return False
        self._at = match.end()
        self._line += match[0].count("\n")
        return bool(match[0])

    def _take_if(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) if found else 0
        return found


def _unescape(name: str) -> str:
    """The text of a quoted key with escapes."""
    try:
        return str(tomllib.loads(f"key = {name}")["key"])
    except ValueError:
        raise _NotTomlError from None
