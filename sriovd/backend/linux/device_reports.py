"""What devices and their drivers report through devlink: tracepoints devlink:devlink_hwmsg (messages between
driver and device) and devlink:devlink_health_report.

Rule: an instance of its own, which exists only while somebody listens: no flood of messages can push an
error's record out of the other one's buffer, and while nobody listens the tracepoints are off. Of a message
to or from a device its kind, its length and its first bytes are told; who wrote those knows what they mean.

The tracepoints belong to devlink (CONFIG_NET_DEVLINK), which a kernel has with the first driver that uses
it; fields as in Linux 6.1 to 7.2 (include/trace/events/devlink.h).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sriovd.backend.driver_events import TEXT_LIMIT, DeviceReport, DriverEvent, MessagesLost, ReportSource
from sriovd.backend.linux.throttle import Throttle
from sriovd.backend.linux.trace_reader import DEVLINK_INSTANCE, Fields, TraceEvent, TraceReader
from sriovd.pci import AddressError, PciAddress

_BUS = "pci"
_SHOWN_BYTES = 32


class DeviceReports(TraceReader[DeviceReport]):
    """A subscription to the reports, from start() to stop(). `put` takes each; `root`: of sysfs."""

    def __init__(self, put: Callable[[DriverEvent], None], root: str) -> None:
        self._throttle = Throttle(put)
        super().__init__(
            root, DEVLINK_INSTANCE, "devlink", (_HARDWARE, _HEALTH), self._throttle.take,
            lambda _: put(MessagesLost(None, 0, time.monotonic_ns() // 1000)),
        )  # fmt: skip

    def stop(self) -> None:
        """Unsubscribe, and let the kernel record no more."""
        super().stop()
        self._throttle.flush()
        self.discard()


def to_hardware_message(fields: Fields, time_nsec: int, data: bytes) -> DeviceReport | None:
    """`from device: type 3, 64 bytes: 0011..`. Raises ValueError."""
    whole = fields["buf"].read_bytes(data)
    origin = "from" if fields["incoming"].read(data) else "to"
    kind, length = fields["type"].read(data), fields["len"].read(data)
    shown = whole[:_SHOWN_BYTES].hex() + (".." if len(whole) > _SHOWN_BYTES else "")
    text = f"{origin} device: type {kind}, {length} bytes: {shown}"
    return _make_report(ReportSource.HARDWARE_MESSAGE, fields, time_nsec, data, text)


def to_health_report(fields: Fields, time_nsec: int, data: bytes) -> DeviceReport | None:
    """`reporter: message`. Raises ValueError."""
    text = f"{fields['reporter_name'].read_text(data)}: {fields['msg'].read_text(data)}"
    return _make_report(ReportSource.HEALTH, fields, time_nsec, data, text)


def _make_report(
    source: ReportSource, fields: Fields, time_nsec: int, data: bytes, text: str
) -> DeviceReport | None:
    """None for a device that is on no PCI bus: an auxiliary device, a simulated one."""
    if fields["bus_name"].read_text(data) != _BUS:
        return None
    try:
        address = PciAddress.parse(fields["dev_name"].read_text(data))
    except AddressError:
        return None
    return DeviceReport(address, source, text[:TEXT_LIMIT], time_nsec // 1000)


_HARDWARE = TraceEvent(
    "devlink/devlink_hwmsg",
    ("bus_name", "dev_name", "incoming", "type", "buf", "len"),
    to_hardware_message,
)
_HEALTH = TraceEvent(
    "devlink/devlink_health_report", ("bus_name", "dev_name", "reporter_name", "msg"), to_health_report
)
