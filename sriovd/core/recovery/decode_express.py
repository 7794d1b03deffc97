"""The PCI Express and SR-IOV capabilities in words.

Rule: PCIe 7.5.3 and 9.3.3; only what tells of errors, resets, the link and the VFs.
"""

from __future__ import annotations

from collections.abc import Iterator

from sriovd.core.recovery.decode_header import name_flags
from sriovd.core.recovery.decode_space import Space
from sriovd.pci_registers import Express, Sriov, SriovControl

_PORT_TYPES = {
    0: "endpoint", 1: "legacy endpoint", 4: "root port", 5: "switch upstream port",
    6: "switch downstream port", 7: "bridge to PCI", 8: "bridge from PCI", 9: "integrated endpoint",
    10: "root complex event collector",
}  # fmt: skip
_ROOT_TYPES = (4, 10)  # those with Root Error Status
_DEVICE_CONTROL = {
    0: "reports correctable", 1: "reports nonfatal", 2: "reports fatal", 3: "reports unsupported requests",
    4: "relaxed ordering", 8: "extended tags", 9: "phantom functions", 10: "auxiliary power", 11: "no snoop",
}  # fmt: skip
_DEVICE_CONTROL_FLAGS = 0x0F1F
_DEVICE_STATUS = {
    0: "correctable error", 1: "nonfatal error", 2: "fatal error", 3: "unsupported request",
    4: "auxiliary power", 5: "transactions pending", 6: "emergency power reduction",
}  # fmt: skip
_SPEEDS = {1: "2.5", 2: "5", 3: "8", 4: "16", 5: "32", 6: "64"}  # GT/s; the vector of 7.5.3.18
_LINK_STATUS = {
    11: "training",
    12: "slot clock",
    13: "active",
    14: "bandwidth managed",
    15: "bandwidth changed",
}
_LINK_STATUS_FLAGS = 0xF800
_SRIOV_CONTROL = {
    0: "VF Enable", 1: "VF migration", 2: "VF migration interrupt", 3: "VF memory space (MSE)",
    4: "ARI hierarchy", 5: "10-bit tags",
}  # fmt: skip


def is_root(space: Space, offset: int) -> bool:
    """Whether error messages end here. `offset`: of the PCI Express capability. Raises CutOff."""
    return space.read(offset + Express.FLAGS, 2) >> 4 & 0xF in _ROOT_TYPES


def describe_express(space: Space, offset: int) -> Iterator[str]:
    """What it is, what it reports, what it has met. Raises CutOff."""
    kind = space.read(offset + Express.FLAGS, 2) >> 4 & 0xF
    yield f"PCI Express: {_PORT_TYPES.get(kind, f'type {kind:#x}')}"
    status = space.read(offset + Express.DEVICE_STATUS, 2)
    yield f"  device status {status:#06x}: {name_flags(status, _DEVICE_STATUS)}"
    control = space.read(offset + Express.DEVICE_CONTROL, 2)
    names = name_flags(control & _DEVICE_CONTROL_FLAGS, _DEVICE_CONTROL)
    payload, request = 128 << (control >> 5 & 7), 128 << (control >> 12 & 7)
    yield f"  device control {control:#06x}: {names}; payload {payload}, read request {request} bytes"
    link = space.read(offset + Express.LINK_STATUS, 2)
    if link:  # a VF has none of its own (PCIe 9.3.5)
        speed, width = _SPEEDS.get(link & 0xF, "unknown"), link >> 4 & 0x3F
        yield f"  link {speed} GT/s x{width}: {name_flags(link & _LINK_STATUS_FLAGS, _LINK_STATUS)}"


def describe_sriov(space: Space, offset: int) -> Iterator[str]:
    """How many VFs there are and where. Raises CutOff."""

    def word(register: Sriov) -> int:
        return space.read(offset + register, 2)

    control = word(Sriov.CONTROL)
    yield f"SR-IOV: {'enabled' if control & SriovControl.VF_ENABLE else 'VF Enable is off'}"
    yield f"  control {control:#06x}: {name_flags(control, _SRIOV_CONTROL)}"
    yield (
        f"  NumVFs {word(Sriov.NUM_VFS)}, InitialVFs {word(Sriov.INITIAL_VFS)}, TotalVFs"
        f" {word(Sriov.TOTAL_VFS)}; first VF offset {word(Sriov.FIRST_VF_OFFSET):#x}, stride"
        f" {word(Sriov.VF_STRIDE)}, VF device {word(Sriov.VF_DEVICE_ID):04x}"
    )
    supported = space.read(offset + Sriov.SUPPORTED_PAGE_SIZES, 4)
    current = space.read(offset + Sriov.SYSTEM_PAGE_SIZE, 4)
    yield f"  system page size {_show_page_sizes(current)} of {_show_page_sizes(supported)}"


def _show_page_sizes(bits: int) -> str:
    """Bit n: 2^(n+12) bytes."""
    sizes = (4 << bit for bit in range(32) if bits >> bit & 1)
    return "/".join(f"{size >> 10}M" if size >= 1 << 10 else f"{size}K" for size in sizes) or "none"
