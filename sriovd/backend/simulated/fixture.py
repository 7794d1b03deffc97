"""Recorded trees as text: the format of fixtures-sysfs/*.sysfs, reading and writing.

    sriovd-sysfs 1
    kernel 6.12.107+deb13-amd64

    devices/pci0000:00/0000:00:03.0/0000:01:00.0:
        config 0644 hex=4096
            0000 8680c910070510000100000200000000
        driver -> ../../../../bus/pci/drivers/igb
        driver_override 0644 unread
        link/
        remove 0220
        resource0 0600 size=131072
        vendor 0444 "0x8086\\n"
    end

Rule: a directory is one unindented line, what is in it follows with four blanks, sorted. Text is quoted as
JSON does it. Lines of 16 zero bytes are left out of dumps. `unread` is an attribute that the recorder did
not touch, one without anything is write-only. `end` tells a whole file from a cut one. Every complaint names
file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

HEADER = "sriovd-sysfs 1"
_DUMP_WIDTH = 16
_MAX_BYTES = 1 << 16
_LINK_HOPS = 40  # as the kernel's own limit, include/linux/namei.h MAXSYMLINKS
_ENTRY = re.compile(
    r" {4}(?P<name>[^ /]+)(?:(?P<directory>/)| -> (?P<target>.+)| (?P<mode>[0-7]{4})(?: (?P<rest>.+))?)"
)
_DUMP = re.compile(r" {8}([0-9a-f]{4}) ([0-9a-f]{32})")


class FixtureError(ValueError):
    """A recording that cannot be right; the message begins with file and line."""


@dataclass(frozen=True, slots=True)
class Link:
    """A symlink and its target as readlink(2) gives it."""

    target: str


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory with nothing recorded in it."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """A file: mode; contents, None if they were not read; size if that is all that matters."""

    mode: int
    data: bytes | None = None
    size: int = 0


Entry = Link | Directory | Attribute


@dataclass(slots=True)
class Recording:
    """A tree: its directories by path, and in each the entries by name. `origin` and `lines` are for
    complaints."""

    kernel: str = ""
    directories: dict[str, dict[str, Entry]] = field(default_factory=dict)
    origin: str = "recording"
    lines: dict[tuple[str, str], int] = field(default_factory=dict)

    def complain(self, directory: str, name: str, message: str) -> FixtureError:
        """The error for an entry, or for a directory if `name` is empty."""
        line = self.lines.get((directory, name), 0)
        place = f"{directory}/{name}" if name else directory
        return FixtureError(f"{self.origin}:{line}: {place}: {message}")


def read_fixture(path: str) -> Recording:
    """Load a recording. Raises FixtureError, OSError."""
    with open(path, "rb") as file:
        return parse_fixture(file.read(), path)


def parse_fixture(raw: bytes, origin: str) -> Recording:
    """A recording from its text. Raises FixtureError naming `origin` and the line."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FixtureError(f"{origin}:{line}: byte {raw[error.start]:#04x} is not UTF-8 text") from error
    recording = _Parser(text.split("\n"), origin).parse()
    _check_links(recording)
    return recording


def format_fixture(recording: Recording) -> str:
    """The text of a recording; the same tree always gives the same text."""
    lines = [HEADER, f"kernel {recording.kernel}"]
    for directory in sorted(recording.directories):
        lines += ["", f"{directory}:"]
        for name, entry in sorted(recording.directories[directory].items()):
            lines += _format_entry(name, entry)
    return "\n".join([*lines, "end", ""])


def resolve_link(directory: str, target: str) -> str | None:
    """Where a symlink in `directory` leads, from the root; None if it leaves the root or is absolute."""
    if target.startswith("/"):
        return None
    parts = directory.split("/")
    for part in target.split("/"):
        if part == ".." and not parts:
            return None
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _format_entry(name: str, entry: Entry) -> Iterator[str]:
    if isinstance(entry, Link):
        yield f"    {name} -> {entry.target}"
    elif isinstance(entry, Directory):
        yield f"    {name}/"
    elif entry.size:
        yield f"    {name} {entry.mode:04o} size={entry.size}"
    elif entry.data is None:
        yield f"    {name} {entry.mode:04o}" + (" unread" if entry.mode & 0o444 else "")
    elif _is_text(entry.data):
        yield f"    {name} {entry.mode:04o} {json.dumps(entry.data.decode('utf-8'))}"
    else:
        yield f"    {name} {entry.mode:04o} hex={len(entry.data)}"
        for offset in range(0, len(entry.data), _DUMP_WIDTH):
            row = entry.data[offset : offset + _DUMP_WIDTH].ljust(_DUMP_WIDTH, b"\0")
            if any(row):
                yield f"        {offset:04x} {row.hex()}"


def _is_text(data: bytes) -> bool:
    try:
        return data.decode("utf-8").replace("\n", "").isprintable()
    except UnicodeDecodeError:
        return False


class _Parser:
    """One pass over the lines."""

    def __init__(self, lines: list[str], origin: str) -> None:
        self._lines = lines
        self._origin = origin
        self._number = 0
        self._recording = Recording(origin=origin)
        self._directory = ""

    def parse(self) -> Recording:
        if self._next() != HEADER:
            raise self._error(f"a recording begins with the line {HEADER!r}")
        kernel = self._next()
        if not kernel.startswith("kernel "):
            raise self._error("the second line says `kernel RELEASE`")
        self._recording.kernel = kernel.removeprefix("kernel ")
        while (line := self._next()) != "end":
            if line.startswith("    "):
                self._take_entry(line)
            elif line:
                self._take_directory(line)
        return self._recording

    def _next(self) -> str:
        if self._number >= len(self._lines):
            raise self._error("the file ends before the line `end`: it has been cut off")
        self._number += 1
        return self._lines[self._number - 1]

    def _take_directory(self, line: str) -> None:
        path = line.removesuffix(":")
        if path == line:
            raise self._error(f"{line[:60]!r} is neither a directory, which ends in a colon, nor an entry")
        if path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
            raise self._error(f"directory {path!r}: a path below the root without `.`, `..` is needed")
        if path in self._recording.directories:
            raise self._error(f"directory {path} is there twice")
        self._directory = path
        self._recording.directories[path] = {}
        self._recording.lines[path, ""] = self._number

    def _take_entry(self, line: str) -> None:
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise self._error(
                f"{line.strip()[:60]!r}: an entry is `NAME MODE VALUE`, `NAME -> TARGET` or `NAME/`"
            )
        if not self._directory:
            raise self._error("an entry before the first directory")
        name = match["name"]
        if name in (".", ".."):
            raise self._error(f"{name!r} is not a name")
        if name in self._recording.directories[self._directory]:
            raise self._error(f"{self._directory}/{name} is there twice")
        self._recording.lines[self._directory, name] = self._number
        self._recording.directories[self._directory][name] = self._make_entry(match)

    def _make_entry(self, match: re.Match[str]) -> Entry:
        if match["directory"]:
            return Directory()
        if match["target"]:
            return self._make_link(match["target"])
        mode, rest = int(match["mode"], 8), match["rest"] or ""
        if rest in ("", "unread"):
            return Attribute(mode)
        if rest.startswith("size="):
            return Attribute(mode, None, self._read_size(rest, 1 << 48))
        if rest.startswith("hex="):
            return Attribute(mode, self._read_dump(self._read_size(rest, _MAX_BYTES)))
        return Attribute(mode, self._read_text(rest))

    def _make_link(self, target: str) -> Link:
        if resolve_link(self._directory, target) is None:
            raise self._error(f"link target {target!r} leaves the tree")
        return Link(target)

    def _read_text(self, rest: str) -> bytes:
        try:
            text = json.loads(rest)
        except json.JSONDecodeError as error:
            raise self._error(f'{rest[:40]!r} is no "text", hex=, size= or unread') from error
        if not isinstance(text, str):
            raise self._error(f"{rest[:40]!r}: text in double quotes is needed")
        return text.encode("utf-8", "surrogatepass")

    def _read_size(self, rest: str, limit: int) -> int:
        text = rest.partition("=")[2]
        if not text.isascii() or not text.isdecimal() or not 0 < int(text) <= limit:
            raise self._error(f"{rest!r}: a number of bytes from 1 to {limit} is needed")
        return int(text)

    def _read_dump(self, size: int) -> bytes:
        data = bytearray(size)
        while self._number < len(self._lines) and self._lines[self._number].startswith("        "):
            line = self._next()
            match = _DUMP.fullmatch(line)
            if match is None:
                raise self._error(
                    f"{line.strip()[:60]!r}: a dump line is an offset of 4 and bytes of 32 digits"
                )
            offset, row = int(match[1], 16), bytes.fromhex(match[2])
            if offset % _DUMP_WIDTH or offset >= size:
                raise self._error(f"offset {offset:#06x}: multiples of 16 below {size} are possible")
            data[offset : offset + _DUMP_WIDTH] = row[: size - offset]
        return bytes(data)

    def _error(self, message: str) -> FixtureError:
        return FixtureError(f"{self._origin}:{self._number}: {message}")


def _check_links(recording: Recording) -> None:
    """Raises FixtureError for a symlink that leads to itself, over however many others."""
    for directory, entries in recording.directories.items():
        for name, entry in entries.items():
            if isinstance(entry, Link):
                _follow(recording, directory, name, entry)


def _follow(recording: Recording, directory: str, name: str, link: Link) -> None:
    place, entry = directory, link
    for _ in range(_LINK_HOPS):
        path = resolve_link(place, entry.target)
        place, _, last = (path or "").rpartition("/")
        following = recording.directories.get(place, {}).get(last)
        if not isinstance(following, Link):
            return
        entry = following
    raise recording.complain(directory, name, "this symlink leads in a circle")
