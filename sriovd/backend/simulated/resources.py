"""Where BARs are: what firmware and kernel assign to functions, and the lines of the `resource` attribute.

Rule: addresses grow from fixed windows, aligned to size; nothing is ever given back, as a host bridge's
window is large.
"""

from __future__ import annotations

from sriovd.backend.model import PhysicalFunctionModel
from sriovd.backend.model.header import Bar
from sriovd.backend.simulated.device import Resource
from sriovd.pci_registers import Header, Sriov

BARS = 6
_IOV_FIRST = 7  # include/linux/pci.h PCI_IOV_RESOURCES, after six BARs and the ROM
_LINES = 13
# include/linux/ioport.h: IORESOURCE_IO 0x100, MEM 0x200, PREFETCH 0x2000, SIZEALIGN 0x40000, MEM_64
# 0x100000; the low four bits are the BAR's own
_FLAGS = {"io": 0x40100, "mem": 0x40200, "mem64": 0x140200, "prefetch": 0x2000}


class AddressSpace:
    """The windows of a host bridge: I/O ports, 32-bit memory, 64-bit prefetchable memory."""

    def __init__(self) -> None:
        self._next = {"io": 0xD000, "low": 0xC000_0000, "high": 0xC0_0000_0000}

    def take(self, bar: Bar, size: int) -> int:
        """An address for `size` bytes, aligned to the size of one BAR."""
        window = "io" if bar.is_io else "high" if bar.is_64bit and bar.prefetchable else "low"
        align = max(bar.size, 4096) if not bar.is_io else bar.size
        start = -(-self._next[window] // align) * align
        self._next[window] = start + size
        return start


def assign_resources(model: PhysicalFunctionModel, space: AddressSpace) -> tuple[Resource, ...]:
    """Give every BAR of a PF, and every VF BAR for TotalVFs, an address; write it; return the resource
    lines."""
    lines = [Resource()] * _LINES
    for bar in model.profile.bars:
        lines[bar.index] = _assign(model, space, bar, Header.BAR0, bar.size)
    sriov = model.sriov.profile
    for bar in sriov.vf_bars:
        aperture = max(bar.size, model.sriov.page_size) * sriov.total_vfs
        lines[_IOV_FIRST + bar.index] = _assign(model, space, bar, sriov.offset + Sriov.VF_BAR0, aperture)
    return tuple(lines)


def vf_resources(pf: tuple[Resource, ...], total_vfs: int, index: int) -> tuple[Resource, ...]:
    """drivers/pci/iov.c pci_iov_add_virtfn: VF BAR n is slice `index` of the PF's IOV resource n."""
    lines = [Resource()] * _LINES
    for number, aperture in enumerate(pf[_IOV_FIRST : _IOV_FIRST + BARS]):
        size = aperture.size // total_vfs
        if size:
            start = aperture.start + size * index
            lines[number] = Resource(start, start + size - 1, aperture.flags)
    return tuple(lines)


def write_bars(model: PhysicalFunctionModel, resources: tuple[Resource, ...]) -> None:
    """Put assigned addresses into the registers of a function that has lost them."""
    for bar in model.profile.bars:
        _write_bar(model, Header.BAR0 + 4 * bar.index, bar, resources[bar.index].start)
    write_vf_bars(model, resources)


def write_vf_bars(model: PhysicalFunctionModel, resources: tuple[Resource, ...]) -> None:
    """Only those that its VFs share."""
    sriov = model.sriov.profile
    for bar in sriov.vf_bars:
        base = sriov.offset + Sriov.VF_BAR0
        _write_bar(model, base + 4 * bar.index, bar, resources[_IOV_FIRST + bar.index].start)


def _assign(model: PhysicalFunctionModel, space: AddressSpace, bar: Bar, base: int, size: int) -> Resource:
    start = space.take(bar, size)
    _write_bar(model, base + 4 * bar.index, bar, start)
    kind = "io" if bar.is_io else "mem64" if bar.is_64bit else "mem"
    flags = _FLAGS[kind] | bar.flags | (_FLAGS["prefetch"] if bar.prefetchable else 0)
    return Resource(start, start + size - 1, flags)


def _write_bar(model: PhysicalFunctionModel, offset: int, bar: Bar, start: int) -> None:
    model.write(offset, 4, start & 0xFFFF_FFFF)
    if bar.is_64bit:
        model.write(offset + 4, 4, start >> 32)
