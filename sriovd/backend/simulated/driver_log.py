"""What the simulated kernel's drivers print about their devices: into its log, and to whoever listens.

Rule: drivers/base/core.c dev_printk: the line begins with the driver's and the device's name, and the
device's name goes along as a field.
"""

from __future__ import annotations

from sriovd.backend.driver_events import DriverMessage
from sriovd.backend.simulated.device import Device
from sriovd.backend.simulated.error_news import now_usec
from sriovd.backend.simulated.host import Host


def print_message(host: Host, dev: Device, text: str) -> None:
    """dev_warn, dev_info, dev_err."""
    host.errors.note(f"{dev.log_name}: {text}")
    host.uevents.emit_driver(DriverMessage(dev.address, dev.driver_name or "pci", text, now_usec()))
