"""What is known of helper processes outside the daemon's memory: their status files, and /proc.

Rule: the only module that reads /proc/PID of a helper or touches the status files. A status file is
RUN_DIRECTORY/helpers/PID.json, one JSON object whose first part the helper overwrites at every step, so that
a new daemon can name the write that its predecessor left hanging. It lives as long as its helper.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from sriovd.backend.base import Evidence, Leftover
from sriovd.backend.linux.helper import format_step
from sriovd.outside import add_reader

_log = logging.getLogger(__name__)
_RECORD_BYTES = 65536
_IDLE = "idle"


def now_usec() -> int:
    """CLOCK_MONOTONIC in microseconds: the same clock in every process and after a restart of the daemon."""
    return time.monotonic_ns() // 1000


@dataclass(frozen=True, slots=True)
class Record:
    """A status file's contents. An idle helper's `adapter` is empty."""

    step: str
    began_usec: int
    pid: int
    start_time: int  # clock ticks after boot: with the pid, it names one process for ever
    adapter: str
    title: str

    def encode(self) -> bytes:
        """The file's bytes."""
        rest = {"pid": self.pid, "start_time": self.start_time, "adapter": self.adapter, "title": self.title}
        return format_step(self.step, self.began_usec) + json.dumps(rest)[1:].encode() + b"\n"

    @classmethod
    def decode(cls, raw: bytes) -> Record:
        """The inverse of encode. Raises ValueError for anything else."""
        try:
            fields = json.loads(raw)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        if not isinstance(fields, dict) or fields.keys() != _FIELD_TYPES.keys():
            raise ValueError(f"not an object with exactly {', '.join(_FIELD_TYPES)}")
        for name, kind in _FIELD_TYPES.items():
            if type(fields[name]) is not kind:
                raise ValueError(f"{name} is {fields[name]!r}, not of type {kind.__name__}")
        return cls(**fields)


_FIELD_TYPES = {"step": str, "began_usec": int, "pid": int, "start_time": int, "adapter": str, "title": str}


class StatusFile:
    """The status file of one of this daemon's helpers."""

    def __init__(self, directory: str, pid: int) -> None:
        """Raises OSError."""
        self._path = f"{directory}/{pid}.json"
        self._pid = pid
        self._start_time = read_start_time(pid) or 0
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.write_idle()

    def write_begin(self, adapter: str, title: str) -> None:
        """Note that the helper has been given a job."""
        self._write(Record(title, now_usec(), self._pid, self._start_time, adapter, title))

    def write_idle(self) -> None:
        """Note that the helper has nothing to do."""
        self._write(Record(_IDLE, now_usec(), self._pid, self._start_time, "", ""))

    def read_evidence(self) -> Evidence:
        """Where the helper is now."""
        for _ in range(3):  # a helper that is not stuck may be writing at this moment
            with suppress(ValueError):
                return make_evidence(Record.decode(os.pread(self._fd, _RECORD_BYTES, 0)))
        return Evidence(self._pid, "a step between others", read_wchan(self._pid), 0)

    def close(self, *, remove: bool) -> None:
        """Let go of the file; `remove`: the helper is gone or about to go."""
        os.close(self._fd)
        if remove:
            with suppress(FileNotFoundError):
                os.unlink(self._path)

    def _write(self, record: Record) -> None:
        data = record.encode()
        os.pwrite(self._fd, data, 0)
        os.truncate(self._fd, len(data))


class LeftoverWatch:
    """The jobs of a former daemon's helpers that are still in the kernel."""

    def __init__(self) -> None:
        self._watched: dict[int, str] = {}  # pidfd: status file

    def find(self, directory: str, own_pids: frozenset[int]) -> list[Leftover]:
        """Look through `directory`. Files of the dead, and what is no status file, are removed."""
        leftovers = []
        for path, record in _read_records(directory, own_pids):
            pidfd = _open_process(record)
            if pidfd is None or not record.adapter:  # an idle helper ends by itself
                _forget(path, pidfd)
            else:
                finished = self._watch(pidfd, path)
                leftovers.append(Leftover(record.adapter, record.title, make_evidence(record), finished))
        return leftovers

    def close(self) -> None:
        """Stop watching; the files stay for the next daemon."""
        for pidfd in self._watched:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)
        self._watched.clear()

    def _watch(self, pidfd: int, path: str) -> asyncio.Future[None]:
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watched[pidfd] = path
        add_reader(pidfd, self._resolve, pidfd, finished)
        return finished

    def _resolve(self, pidfd: int, finished: asyncio.Future[None]) -> None:
        asyncio.get_running_loop().remove_reader(pidfd)
        _forget(self._watched.pop(pidfd), pidfd)
        if not finished.done():
            finished.set_result(None)


def _read_records(directory: str, own_pids: frozenset[int]) -> Iterator[tuple[str, Record]]:
    for name in sorted(os.listdir(directory)):
        path = f"{directory}/{name}"
        stem = name.removesuffix(".json")
        if stem.isdecimal() and int(stem) in own_pids:
            continue
        try:
            with open(path, "rb") as file:
                record = Record.decode(file.read(_RECORD_BYTES))
            if name != f"{record.pid}.json":
                raise ValueError(f"it describes process {record.pid}")
        except (OSError, ValueError) as error:
            _log.warning("%s is not a helper's status file and is removed: %s", path, error)
            _forget(path, None)
            continue
        yield path, record


def _open_process(record: Record) -> int | None:
    """A pidfd of the very process that `record` describes, or None when it is gone."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except (OSError, OverflowError):  # no such process, or a number that cannot be one
        return None
    if read_start_time(record.pid) != record.start_time:  # the number has been reused
        os.close(pidfd)
        return None
    return pidfd


def _forget(path: str, pidfd: int | None) -> None:
    if pidfd is not None:
        os.close(pidfd)
    try:
        os.unlink(path)
    except OSError as error:
        _log.warning("%s cannot be removed: %s", path, error.strerror)


def make_evidence(record: Record) -> Evidence:
    """What can be said of the step that a helper is in."""
    running_usec = max(0, now_usec() - record.began_usec)
    return Evidence(record.pid, record.step, read_wchan(record.pid), running_usec)


def read_start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat (proc(5)), or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_comm = file.read().rpartition(b")")[2]
    except OSError:
        return None
    return int(after_comm.split()[19])


def read_wchan(pid: int) -> str:
    """The kernel function that process `pid` sleeps in, or the top of its kernel stack where that is not
    told; empty if neither can be seen."""
    wchan = _read_proc(f"/proc/{pid}/wchan").strip()
    if wchan not in ("", "0"):
        return wchan
    top, _, _ = _read_proc(f"/proc/{pid}/stack").partition("\n")  # "[<0>] function+0x5c/0x100"
    return top.partition("] ")[2].partition("+")[0]


def _read_proc(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(_RECORD_BYTES)
    except OSError:
        return ""
