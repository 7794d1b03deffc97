"""The kernel's records of PCIe errors (tracepoint ras:aer_event), from a trace instance of sriovd's own.

Rule: nobody else's tracing is touched, and nobody's touches this: rasdaemon may run beside it. The instance
outlives the daemon, so that what happens while it restarts is told by the next one. There may be no records
at all (no tracefs, a locked-down kernel, one without RAS); then sriovd does without, and says so once.

A record is in its buffer before the kernel sends the first uevent of the recovery (drivers/pci/pcie/aer.c
aer_print_error comes before pcie_do_recovery), but whoever waits for the buffer may be woken up later than
for the uevent. So drain() reads what is there, and is asked before a uevent of a recovery is told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity
from sriovd.backend.linux.ring_buffer import EventFormat, Field, parse_fields, parse_format, split_page
from sriovd.pci import AddressError, PciAddress

_log = logging.getLogger(__name__)
_TRACING = "kernel/tracing"
_INSTANCE = f"{_TRACING}/instances/sriovd"
_EVENT = "events/ras/aer_event"
# Documentation/trace/ftrace.rst. The buffer holds some 500 records for each CPU, and would have megabytes;
# with another buffer_percent nobody is woken up before that much of it is full.
_SETTINGS = {"buffer_size_kb": "64", "trace_clock": "mono", "buffer_percent": "0", "tracing_on": "1"}
_PAGES = 32  # more than a buffer holds
_READ_BYTES = 1 << 16  # more than a page of the buffer has, on any architecture
_PAGE_FIELDS = ("timestamp", "commit", "data")
_FIELDS = ("common_type", "dev_name", "status", "severity", "tlp_header_valid", "tlp_header")
_HEADER_WORDS = 4
# drivers/pci/pci.h AER_NONFATAL, AER_FATAL, AER_CORRECTABLE
_SEVERITIES = (Severity.NONFATAL, Severity.FATAL, Severity.CORRECTED)


class ErrorRecords:
    """A subscription to the records, from start() to stop(). `put` takes each, as it comes; `root` is where
    sysfs is mounted, and tracefs in it."""

    def __init__(self, put: Callable[[KernelEvent], None], root: str) -> None:
        self._put = put
        self._root = root
        self._layout: Mapping[str, Field] = {}
        self._format = EventFormat(0, {})
        self._buffers: list[int] = []  # one for each CPU
        self._poll = select.poll()

    @property
    def is_recorded(self) -> bool:
        """Whether errors are recorded for us."""
        return bool(self._buffers)

    def start(self) -> None:
        """Subscribe. What has been recorded since the last daemon is told at once."""
        try:
            self._open(f"{self._root}/{_INSTANCE}")
        except (OSError, ValueError) as error:
            _log.warning("The kernel's records of PCIe errors cannot be had: %s", error)
            self.stop()
            return
        for buffer in self._buffers:
            self._poll.register(buffer, select.POLLIN)
        # The buffer of a CPU that has never been online is always in error (ring_buffer_poll_wait): nobody
        # could wait for it. What such a CPU records later is told with the next record of another one, or
        # when a recovery begins.
        absent = {buffer for buffer, state in self._poll.poll(0) if not state & select.POLLIN}
        for buffer in self._buffers:
            if buffer not in absent:
                asyncio.get_running_loop().add_reader(buffer, self.drain)
        self.drain()

    def stop(self) -> None:
        """Unsubscribe. The kernel goes on recording."""
        for buffer in self._buffers:
            asyncio.get_running_loop().remove_reader(buffer)
            os.close(buffer)
        self._buffers = []
        self._poll = select.poll()

    def drain(self) -> None:
        """Tell every record that is there. Never waits, and looks at the buffers of all CPUs at once."""
        try:
            filled = [buffer for buffer, state in self._poll.poll(0) if state & select.POLLIN]
            pages = [page for buffer in filled for page in _read_pages(buffer)]
        except OSError as error:
            _log.warning("The kernel's records of PCIe errors cannot be read any more: %s", error)
            self.stop()
            return
        for time_nsec, data in sorted(record for page in pages for record in self._split(page)):
            if (record := to_record(self._format, time_nsec, data)) is not None:
                self._put(record)

    def _split(self, page: bytes) -> list[tuple[int, bytes]]:
        """The records of a page; tells of those that are lost."""
        try:
            records, lost = split_page(self._layout, page)
        except ValueError as error:
            self._report_loss(f"a page of records of PCIe errors makes no sense: {error}")
            return []
        if lost:
            self._report_loss("the buffer for records of PCIe errors overran")
        return records

    def _report_loss(self, reason: str) -> None:
        _log.warning("Events were lost: %s", reason)
        self._put(EventsLost(reason))

    def _open(self, instance: str) -> None:
        with suppress(FileExistsError):
            os.mkdir(instance)
        self._layout = parse_fields(_read(f"{self._root}/{_TRACING}/events/header_page"))
        self._format = parse_format(_read(f"{instance}/{_EVENT}/format"))
        _demand(self._layout, _PAGE_FIELDS)
        _demand(self._format.fields, _FIELDS)
        for name, value in _SETTINGS.items():
            _set(f"{instance}/{name}", value)
        for name in sorted(os.listdir(f"{instance}/per_cpu")):
            path = f"{instance}/per_cpu/{name}/trace_pipe_raw"
            self._buffers.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        _set(f"{instance}/{_EVENT}/enable", "1")


def to_record(event: EventFormat, time_nsec: int, data: bytes) -> ErrorRecord | None:
    """The record in `data`, or None for what is something else or not about a PCI function."""
    fields = event.fields
    try:
        if fields["common_type"].read(data) != event.number:  # somebody has written to trace_marker
            return None
        return ErrorRecord(
            address=PciAddress.parse(fields["dev_name"].read_text(data)),
            severity=_SEVERITIES[fields["severity"].read(data)],
            status=fields["status"].read(data),
            tlp_header=_read_header(fields, data),
            at_usec=time_nsec // 1000,
        )
    except (AddressError, IndexError, ValueError) as error:
        _log.warning("A record of a PCIe error makes no sense: %s", error)
        return None


def _read_header(fields: Mapping[str, Field], data: bytes) -> tuple[int, ...]:
    """What has been logged of a header: four dwords, or more where a prefix or a flit follows them, for
    which there is room since Linux 6.16."""
    if not fields["tlp_header_valid"].read(data):
        return ()
    words = fields["tlp_header"].read_words(data)
    while len(words) > _HEADER_WORDS and not words[-1]:
        words = words[:-1]
    return words


def _demand(fields: Mapping[str, Field], names: tuple[str, ...]) -> None:
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
