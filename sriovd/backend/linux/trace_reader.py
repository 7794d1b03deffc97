"""Events of the kernel's tracepoints, from a trace instance of sriovd's own.

Rule: nobody else's tracing is touched, and nobody's touches this. Which events, and what each means, is a
table; here is how they are had: the instance, its buffer for each CPU, their pages and their order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import itemgetter
from typing import Generic, TypeVar

from sriovd.backend.linux.ring_buffer import EventFormat, Field, parse_fields, parse_format, split_page
from sriovd.outside import add_reader

T = TypeVar("T")
Fields = Mapping[str, Field]

_log = logging.getLogger(__name__)
_TRACING = "kernel/tracing"
DEVLINK_INSTANCE = "sriovd-devlink"
# Documentation/trace/ftrace.rst. The buffer holds some 500 records for each CPU, and would have megabytes;
# with another buffer_percent nobody is woken up before that much of it is full.
_SETTINGS = {"buffer_size_kb": "64", "trace_clock": "mono", "buffer_percent": "0", "tracing_on": "1"}
_PAGES = 32  # more than a buffer holds
_READ_BYTES = 1 << 16  # more than a page of the buffer has, on any architecture
_PAGE_FIELDS = ("timestamp", "commit", "data")
_KIND = "common_type"  # in every event, at the same place


@dataclass(frozen=True, slots=True)
class TraceEvent(Generic[T]):
    """A tracepoint. `path`: below events/. `fields`: those that `decode` needs, which makes something of a
    record's fields, time in nanoseconds and bytes; it raises ValueError for what makes no sense, and gives
    None for what is of no interest."""

    path: str
    fields: tuple[str, ...]
    decode: Callable[[Fields, int, bytes], T | None]


class TraceReader(Generic[T]):
    """A subscription to `events`, all or none, from start() to stop(), in the instance `name` of the tracefs
    below sysfs's `root`. `title`: what they are, for the log. `put` takes each, in the order of
    time as far as it can be told; `on_loss` is told why some are missing. `has_failed`: it has ended by
    itself, and was not started since."""

    def __init__(
        self,
        root: str,
        name: str,
        title: str,
        events: Sequence[TraceEvent[T]],
        put: Callable[[T], None],
        on_loss: Callable[[str], None],
    ) -> None:
        self._tracing = f"{root}/{_TRACING}"
        self._instance = f"{self._tracing}/instances/{name}"
        self._title = title
        self._events = events
        self._put = put
        self._on_loss = on_loss
        self._layout: Fields = {}
        self._kinds: dict[int, tuple[TraceEvent[T], EventFormat]] = {}
        self._buffers: list[int] = []  # one for each CPU
        self._poll = select.poll()
        self.has_failed = False

    @property
    def is_open(self) -> bool:
        """Whether anything is recorded for us."""
        return bool(self._buffers)

    def start(self) -> None:
        """Subscribe. What the instance has recorded before is told at once."""
        try:
            self._open()
        except (OSError, ValueError) as error:
            _log.warning("The kernel's records of %s cannot be had: %s", self._title, error)
            self.stop()
            return
        self.has_failed = False
        for buffer in self._buffers:
            self._poll.register(buffer, select.POLLIN)
        # The buffer of a CPU that has never been online is always in error (ring_buffer_poll_wait): nobody
        # could wait for it. What such a CPU records later is told with the next record of another one.
        absent = {buffer for buffer, state in self._poll.poll(0) if not state & select.POLLIN}
        for buffer in self._buffers:
            if buffer not in absent:
                add_reader(buffer, self.drain)
        self.drain()

    def stop(self) -> None:
        """Unsubscribe. The kernel goes on recording."""
        for buffer in self._buffers:
            asyncio.get_running_loop().remove_reader(buffer)
            os.close(buffer)
        self._buffers = []
        self._kinds = {}
        self._poll = select.poll()

    def discard(self) -> None:
        """Let the kernel record no more, and forget what it has."""
        _discard(self._instance)

    def drain(self) -> None:
        """Tell every record that is there. Never waits, and looks at the buffers of all CPUs at once."""
        try:
            filled = [buffer for buffer, state in self._poll.poll(0) if state & select.POLLIN]
            pages = [page for buffer in filled for page in _read_pages(buffer)]
        except OSError as error:
            self.stop()
            self.has_failed = True
            self._report_loss(f"the records of {self._title} cannot be read any more: {error}")
            return
        records = [record for page in pages for record in self._split(page)]
        for time_nsec, data in sorted(records, key=itemgetter(0)):
            if (event := self._decode(time_nsec, data)) is not None:
                self._put(event)

    def _split(self, page: bytes) -> list[tuple[int, bytes]]:
        """The records of a page; tells of those that are lost."""
        try:
            records, lost = split_page(self._layout, page)
        except ValueError as error:
            self._report_loss(f"a page of records of {self._title} makes no sense: {error}")
            return []
        if lost:
            self._report_loss(f"the buffer for records of {self._title} overran")
        return records

    def _decode(self, time_nsec: int, data: bytes) -> T | None:
        try:
            number = self._layout[_KIND].read(data)
            if number not in self._kinds:  # somebody has written to trace_marker
                return None
            event, form = self._kinds[number]
            return event.decode(form.fields, time_nsec, data)
        except ValueError as error:
            _log.warning("A record of %s makes no sense: %s", self._title, error)
            return None

    def _report_loss(self, reason: str) -> None:
        _log.warning("Events were lost: %s", reason)
        self._on_loss(reason)

    def _open(self) -> None:
        with suppress(FileExistsError):
            os.mkdir(self._instance)
        layout = parse_fields(_read(f"{self._tracing}/events/header_page"))
        _demand(layout, _PAGE_FIELDS)
        for event in self._events:
            form = parse_format(_read(f"{self._instance}/events/{event.path}/format"))
            _demand(form.fields, (_KIND, *event.fields))
            self._kinds[form.number] = event, form
            self._layout = {**layout, _KIND: form.fields[_KIND]}
        for name, value in _SETTINGS.items():
            _set(f"{self._instance}/{name}", value)
        for name in sorted(os.listdir(f"{self._instance}/per_cpu")):
            path = f"{self._instance}/per_cpu/{name}/trace_pipe_raw"
            self._buffers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        for event in self._events:
            _set(f"{self._instance}/events/{event.path}/enable", "1")


def discard_instance(root: str, name: str) -> None:
    """Let the kernel record no more in that instance, and forget what it has; one that is not there is
    fine."""
    _discard(f"{root}/{_TRACING}/instances/{name}")


def _discard(instance: str) -> None:
    with suppress(OSError):
        os.rmdir(instance)


def _demand(fields: Fields, names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in fields]
    if missing:
        raise ValueError(f"this kernel's have no {', '.join(missing)}")


def _read_pages(buffer: int) -> Iterator[bytes]:
    """What is there now, at least; not for ever in a storm."""
    with suppress(BlockingIOError):
        for _ in range(_PAGES):
            if not (page := os.read(buffer, _READ_BYTES)):  # empty: Linux 7.2 says it so
                return
            yield page


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _set(path: str, value: str) -> None:
    """Write a setting unless it is so already, because setting the clock empties the buffer. Of the clocks,
    all of which the file lists, the one in use is in brackets."""
    now = _read(path)
    if now.strip() != value and f"[{value}]" not in now:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
