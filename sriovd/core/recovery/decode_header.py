"""The configuration space header and the names of capabilities, in words.

Rule: PCIe 7.5.1; a register is shown with its value, and by name what is on in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sriovd.core.recovery.decode_space import CapabilityList, Space
from sriovd.pci_aer import bit_names
from sriovd.pci_registers import Bridge, Header

_COMMAND = {
    0: "I/O space", 1: "memory space", 2: "bus master", 3: "special cycles",
    4: "memory write and invalidate", 5: "VGA snoop", 6: "parity error response", 7: "stepping", 8: "SERR#",
    9: "fast back-to-back", 10: "INTx disabled",
}  # fmt: skip
_STATUS = {
    0: "immediate readiness", 3: "INTx pending", 4: "capabilities list", 5: "66 MHz", 7: "fast back-to-back",
    8: "master data parity error", 11: "signaled target abort", 12: "received target abort",
    13: "received master abort", 14: "signaled system error", 15: "detected parity error",
}  # fmt: skip
_SECONDARY_STATUS = _STATUS | {14: "received system error"}
_NOT_FLAGS = 0x0600  # DEVSEL timing
_CAPABILITIES = {
    0x01: "power management", 0x03: "vital product data", 0x04: "slot identification", 0x05: "MSI",
    0x09: "vendor specific", 0x0D: "bridge subsystem", 0x10: "PCI Express", 0x11: "MSI-X",
    0x13: "advanced features", 0x14: "enhanced allocation",
}  # fmt: skip
_EXTENDED_CAPABILITIES = {
    0x01: "AER", 0x02: "virtual channel", 0x03: "serial number", 0x04: "power budgeting",
    0x0B: "vendor specific", 0x0D: "ACS", 0x0E: "ARI", 0x0F: "ATS", 0x10: "SR-IOV", 0x12: "multicast",
    0x13: "page requests", 0x15: "resizable BAR", 0x17: "TPH", 0x18: "LTR", 0x19: "secondary PCI Express",
    0x1B: "PASID", 0x1D: "DPC", 0x1E: "L1 substates", 0x1F: "PTM", 0x23: "designated vendor specific",
    0x25: "data link feature", 0x26: "16 GT/s", 0x27: "lane margining", 0x2A: "32 GT/s",
}  # fmt: skip


def name_flags(value: int, table: Mapping[int, str]) -> str:
    """What is set in a register, by name, the lowest bit first."""
    return ", ".join(bit_names(value, table)) or "none"


def is_bridge(space: Space) -> bool:
    """Whether it has a type 1 header. Raises CutOff."""
    return space.read(Header.HEADER_TYPE, 1) & 0x7F == 1


def describe_header(space: Space) -> Iterator[str]:
    """Who it is, what it may do, what its bus has met. Raises CutOff."""
    yield _identify(space)
    command = space.read(Header.COMMAND, 2)
    yield f"command {command:#06x}: {name_flags(command, _COMMAND)}"
    yield f"status {_show_status(space.read(Header.STATUS, 2), _STATUS)}"
    if is_bridge(space):
        first, last = space.read(Bridge.SECONDARY_BUS, 1), space.read(Bridge.SUBORDINATE_BUS, 1)
        yield f"buses {first:02x} to {last:02x} below it"
        yield f"secondary status {_show_status(space.read(Bridge.SECONDARY_STATUS, 2), _SECONDARY_STATUS)}"


def describe_lists(capabilities: CapabilityList, extended: CapabilityList) -> Iterator[str]:
    """Where which capability is, and where a list is broken."""
    yield f"capabilities: {_name_entries(capabilities, _CAPABILITIES)}"
    yield f"extended capabilities: {_name_entries(extended, _EXTENDED_CAPABILITIES)}"


def _identify(space: Space) -> str:
    vendor, device = space.read(Header.VENDOR_ID, 2), space.read(Header.DEVICE_ID, 2)
    text = f"device {vendor:04x}:{device:04x}"
    if vendor == 0xFFFF:
        text = "device ffff:ffff, as VFs show themselves"  # PCIe 9.3.4.1.1
    text += f", revision {space.read(Header.REVISION, 1):02x}, class {space.read(Header.CLASS_CODE, 3):06x}"
    if is_bridge(space):
        return text
    subsystem = space.read(Header.SUBSYSTEM_VENDOR_ID, 2), space.read(Header.SUBSYSTEM_ID, 2)
    return f"{text}, subsystem {subsystem[0]:04x}:{subsystem[1]:04x}"


def _show_status(value: int, table: Mapping[int, str]) -> str:
    return f"{value:#06x}: {name_flags(value & ~_NOT_FLAGS, table)}"


def _name_entries(found: CapabilityList, names: Mapping[int, str]) -> str:
    parts = [
        f"{entry.offset:02x} {names.get(entry.id, f'unknown ({entry.id:#x})')}" for entry in found.entries
    ]
    if found.complaint:
        parts.append(f"then {found.complaint}")
    return ", ".join(parts) or "none"
