"""Finds policy files and reads them. The only module of policy that touches the file system.

Rule: as systemd.unit(5) and tmpfiles.d(5) have it: a file hides those of its name in later directories, an
empty file or a link to /dev/null hides them and says nothing itself, and drop-ins are laid over their file
in the order of their names, wherever they are. Nothing here raises or waits: what cannot be read is a
problem, and only regular files are opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sriovd.core.policy.problems import Place, Problem, suggest

BYTES_AT_MOST = 1 << 20
_SUFFIX = ".toml"
_DROP_INS = ".d"
_DEV_NULL = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt
_ABSENT = (errno.ENOENT,)


@dataclass(frozen=True, slots=True)
class Text:
    """A file that was read."""

    file: str
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """A policy file by its `name`. `texts`: its own, then its drop-ins' in order; none of them is to be used
    when there are `problems`."""

    name: str
    texts: tuple[Text, ...]
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """All files, in the order of their names. `problems`: those of no one file. `complete`: whether every
    directory could be listed, so that a name which is absent has been taken away."""

    found: tuple[Found, ...]
    problems: tuple[Problem, ...]
    complete: bool


def find_policies(directories: Sequence[str]) -> Listing:
    """The policy files in `directories`, of which an earlier one goes before a later one."""
    files, problems = _list_files(directories)
    odd = [Place(path).problem("its name has characters that cannot be shown") for path in _odd(files)]
    found = [
        _read_policy(name, path, directories) for name, path in sorted(files.items()) if name.isprintable()
    ]
    return Listing(
        found=tuple(each for each in found if each is not None),
        problems=(*problems, *odd, *_find_orphans(directories, files)),
        complete=not problems,
    )


def _odd(files: Mapping[str, str]) -> list[str]:
    return [path for name, path in sorted(files.items()) if not name.isprintable()]


def _list_files(directories: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """The path that counts of every name, and the directories that cannot be listed."""
    files: dict[str, str] = {}
    problems = []
    for directory in directories:
        try:
            names = os.listdir(directory)
        except OSError as error:
            if error.errno not in _ABSENT:
                problems.append(_explain(directory, error))
            continue
        for name in names:
            if name.endswith(_SUFFIX) and not name.startswith("."):
                files.setdefault(name, os.path.join(directory, name))
    return files, problems


def _read_policy(name: str, path: str, directories: Sequence[str]) -> Found | None:
    """The file at `path` with its drop-ins; None when it is masked."""
    own = _read_text(path)
    if own is None:
        return None
    files, problems = _list_files([os.path.join(each, name + _DROP_INS) for each in directories])
    read = [own, *(_read_text(each) for _, each in sorted(files.items()))]
    return Found(
        name,
        texts=tuple(each for each in read if isinstance(each, Text)),
        problems=(*problems, *(each for each in read if isinstance(each, Problem))),
    )


def _read_text(path: str) -> Text | Problem | None:
    """What is in the file at `path`; None when it masks."""
    try:
        status = os.stat(path)
        if _masks(status):
            return None
        if not stat.S_ISREG(status.st_mode):
            return Problem(path, 0, "", f"is {_KINDS.get(stat.S_IFMT(status.st_mode), 'no regular file')}")
        data = _read_bytes(path)
    except OSError as error:
        return _explain(path, error)
    if len(data) > BYTES_AT_MOST:
        return Problem(path, 0, "", f"has more than {BYTES_AT_MOST >> 20} MiB")
    try:
        return Text(path, data.decode())
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return Problem(path, line, "", f"not UTF-8: byte {data[error.start]:#04x}")


_KINDS: Mapping[int, str] = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _masks(status: os.stat_result) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == _DEV_NULL
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _read_bytes(path: str) -> bytes:
    """The file's contents, at most one byte more than allowed. Raises OSError. O_NONBLOCK: should a FIFO
    have taken its place since, the open does not wait for a writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    with open(descriptor, "rb", buffering=0) as file:
        data = b""
        while len(data) <= BYTES_AT_MOST and (more := file.read(BYTES_AT_MOST + 1 - len(data))):
            data += more
        return data


def _find_orphans(directories: Sequence[str], files: Mapping[str, str]) -> list[Problem]:
    """Directories of drop-ins without a file that they could be laid over."""
    problems = []
    for directory in directories:
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            continue  # said before
        for name in names:
            if name.endswith(_SUFFIX + _DROP_INS) and name.removesuffix(_DROP_INS) not in files:
                place = Place(os.path.join(directory, name))
                missing = name.removesuffix(_DROP_INS)
                problems.append(
                    place.problem(f"there is no {missing} to lay it over", suggest(missing, files))
                )
    return problems


def _explain(path: str, error: OSError) -> Problem:
    if error.errno in _ABSENT and os.path.islink(path):
        return Problem(path, 0, "", "is a link to nothing", "link it to /dev/null to mask the file")
    reason = errno.errorcode.get(error.errno or 0, "unknown error")
    return Problem(path, 0, "", f"cannot be read: {os.strerror(error.errno or 0)} ({reason})")
