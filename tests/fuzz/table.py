"""Every parser, by name; and the modules that parse and have none, each with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz import (
    entries_bus,
    entries_core,
    entries_events,
    entries_host,
    entries_kernel,
    entries_records,
    entries_tenants,
    entries_trace,
)
from tests.fuzz.entry import Entry

TABLE: Mapping[str, Entry] = {
    entry.name: entry
    for module in (
        entries_bus,
        entries_kernel,
        entries_events,
        entries_core,
        entries_records,
        entries_tenants,
        entries_host,
        entries_trace,
    )
    for entry in module.ENTRIES
}

_OWN_FILE = "reads a file that comes with sriovd, whose every line has tests"
EXCEPTIONS: Mapping[str, str] = {
    "sriovd.backend.linux.process": "marshal and descriptors, from a helper of our own",
    "sriovd.backend.simulated.runner": "what the simulated kernel reads; see simulated-write",
    "sriovd.bus.contract": _OWN_FILE,
    "sriovd.bus.private": "the address that a dbus-daemon of our own prints; demo and tests only",
    "sriovd.bus.xmltree": _OWN_FILE,
    "sriovd.generated_code": "root's own file, as a .pyc; its checksum comes before its contents",
    "sriovd.trace.header": "writes C and takes nothing in but constants",
}
