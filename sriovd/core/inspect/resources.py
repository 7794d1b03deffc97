"""What a VF has of its adapter, told from its configuration space and the kernel's list of its BARs. Pure.

Rule: sizes and kinds, no addresses: where a VF's BARs are tells how many VFs come before it. The BARs in a
VF's configuration space read 0 (PCIe 9.3.4.1.11), so they are the kernel's.
Linux: drivers/pci/pci-sysfs.c resource_show, include/linux/ioport.h.
"""

from __future__ import annotations

from sriovd.core.inspect.vocabulary import Value
from sriovd.core.recovery.decode_space import CutOff, Space
from sriovd.pci_registers import CapabilityId, Msix, MsixControl

_BARS = 6
_IO, _PREFETCH, _MEM_64 = 0x100, 0x2000, 0x100000  # IORESOURCE_*
_TABLE_BAR = 0x7
_ADDRESSES = 1 << 64


def read_bars(text: str) -> dict[str, Value]:
    """Size in bytes and kind of each BAR that there is. `text`: lines of start, end and flags. Raises
    ValueError."""
    shown: dict[str, Value] = {}
    for number, line in enumerate(text.splitlines()[:_BARS]):
        start, end, flags = (int(word, 16) for word in line.split())
        if flags:
            if not 0 <= start <= end < _ADDRESSES:
                raise ValueError(f"a BAR from {start:#x} to {end:#x}")
            shown[f"bar{number}-bytes"] = end - start + 1
            shown[f"bar{number}-kind"] = _name_kind(flags)
    return shown


def _name_kind(flags: int) -> str:
    if flags & _IO:
        return "I/O ports"
    width = "64-bit" if flags & _MEM_64 else "32-bit"
    return f"{width} {'prefetchable ' if flags & _PREFETCH else ''}memory"


def read_msix(config: bytes) -> dict[str, Value]:
    """How many MSI-X vectors its table has, and in which BAR that is; 0 vectors: it has no MSI-X."""
    space = Space(config)
    place = space.walk().find(CapabilityId.MSIX)
    if place is None:
        return {"msix-vectors": 0}
    try:
        control, table = space.read(place + Msix.CONTROL, 2), space.read(place + Msix.TABLE, 4)
    except CutOff:
        return {"msix-vectors": 0}
    return {
        "msix-vectors": (control & MsixControl.TABLE_SIZE) + 1,
        "msix-bar": table & _TABLE_BAR,
        "msix-enabled": bool(control & MsixControl.ENABLE),
    }
