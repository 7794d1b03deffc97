"""The kernel's records of PCIe errors: tracepoint ras:aer_event.

Rule: rasdaemon may run beside it. The instance outlives the daemon, so that what happens while it restarts
is told by the next one. There may be no records at all (no tracefs, a locked-down kernel, one without RAS);
then sriovd does without, and says so once.

A record is in its buffer before the kernel sends the first uevent of the recovery (drivers/pci/pcie/aer.c
aer_print_error comes before pcie_do_recovery), but whoever waits for the buffer may be woken up later than
for the uevent. So drain() reads what is there, and is asked before a uevent of a recovery is told.
"""

from __future__ import annotations

from collections.abc import Callable

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity
from sriovd.backend.linux.trace_reader import Fields, TraceEvent, TraceReader
from sriovd.pci import PciAddress

_INSTANCE = "sriovd"
_HEADER_WORDS = 4
# drivers/pci/pci.h AER_NONFATAL, AER_FATAL, AER_CORRECTABLE
_SEVERITIES = dict(enumerate((Severity.NONFATAL, Severity.FATAL, Severity.CORRECTED)))


class ErrorRecords(TraceReader[ErrorRecord]):
    """A subscription to the records, from start() to stop(). `put` takes each, as it comes; `root` is where
    sysfs is mounted, and tracefs in it."""

    def __init__(self, put: Callable[[KernelEvent], None], root: str) -> None:
        super().__init__(
            root, _INSTANCE, "PCIe errors", (_AER_EVENT,), put, lambda reason: put(EventsLost(reason))
        )


def to_record(fields: Fields, time_nsec: int, data: bytes) -> ErrorRecord:
    """The record in `data`. Raises ValueError, for what is not about a PCI function too."""
    severity = fields["severity"].read(data)
    if severity not in _SEVERITIES:
        raise ValueError(f"no severity is {severity}")
    return ErrorRecord(
        address=PciAddress.parse(fields["dev_name"].read_text(data)),
        severity=_SEVERITIES[severity],
        status=fields["status"].read(data),
        tlp_header=_read_header(fields, data),
        at_usec=time_nsec // 1000,
    )


def _read_header(fields: Fields, data: bytes) -> tuple[int, ...]:
    """What has been logged of a header: four dwords, or more where a prefix or a flit follows them, for
    which there is room since Linux 6.16."""
    if not fields["tlp_header_valid"].read(data):
        return ()
    words = fields["tlp_header"].read_words(data)
    while len(words) > _HEADER_WORDS and not words[-1]:
        words = words[:-1]
    return words


_AER_EVENT = TraceEvent(
    "ras/aer_event", ("dev_name", "status", "severity", "tlp_header_valid", "tlp_header"), to_record
)
