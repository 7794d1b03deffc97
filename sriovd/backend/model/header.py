"""The type 0 header: identity, command and status, base address registers, for a PF and for a VF.

Rule: the PF half follows PCIe 7.5.1, the VF half 9.3.4: a VF's identity reads ffff, its only writable
command bit is Bus Master Enable, and it has no BARs; the PF's SR-IOV capability decodes its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sriovd.backend.model.configspace import ConfigLayout
from sriovd.pci_registers import Command, Header, Status

BARS = 6
PF_COMMAND = (
    Command.MEMORY_SPACE
    | Command.BUS_MASTER
    | Command.PARITY_ERROR_RESPONSE
    | Command.SERR_ENABLE
    | Command.INTX_DISABLE
)
ALL_ONES_16 = 0xFFFF


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a function says it is; class_code is 24 bits (class, subclass, interface)."""

    vendor_id: int
    device_id: int
    class_code: int
    revision: int = 0
    subsystem_vendor_id: int = 0
    subsystem_id: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """One base address register.

    `size` in bytes (a power of two), number of the first of its one or two dwords.
    """

    index: int
    size: int
    is_64bit: bool = False
    prefetchable: bool = False
    is_io: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a BAR that no hardware could have."""
        if self.size < 16 or self.size & self.size - 1:
            raise ValueError(f"BAR {self.index}: size {self.size:#x} is not a power of two of at least 16")
        if not 0 <= self.index < BARS - self.is_64bit:
            raise ValueError(f"BAR {self.index}: outside 0 to {BARS - 1 - self.is_64bit}")

    @property
    def flags(self) -> int:
        """The read-only low bits: bit 0 I/O, bits 2:1 = 2 for 64 bits, bit 3 prefetchable."""
        return self.is_io | self.is_64bit << 2 | self.prefetchable << 3

    @property
    def width(self) -> int:
        """Bytes that the register takes: 4, or 8 for a 64-bit BAR."""
        return 8 if self.is_64bit else 4

    @property
    def address_bits(self) -> int:
        """The writable bits: writing all-ones and reading them back tells the size."""
        return ~(self.size - 1) & ((1 << 8 * self.width) - 1)

    def define(self, layout: ConfigLayout, bar0: int) -> None:
        """Define the register in a row of six that starts at `bar0`."""
        layout.define(bar0 + 4 * self.index, self.width, self.flags, writable=self.address_bits)


@dataclass(frozen=True, slots=True)
class BarWindow:
    """Where a BAR decodes at the moment: `address` as programmed, `size` in bytes."""

    bar: Bar
    address: int
    size: int


def define_pf_header(
    layout: ConfigLayout, identity: Identity, bars: Sequence[Bar], multifunction: bool
) -> None:
    """The header of a PF."""
    _define_identity(layout, identity, identity.vendor_id, identity.device_id)
    io_space = Command.IO_SPACE if any(bar.is_io for bar in bars) else 0
    layout.define(Header.COMMAND, 2, writable=PF_COMMAND | io_space)
    layout.define(Header.CACHE_LINE_SIZE, 1, writable=0xFF)
    layout.define(Header.HEADER_TYPE, 1, multifunction << 7)
    layout.define(Header.INTERRUPT_LINE, 1, writable=0xFF)
    layout.define(Header.INTERRUPT_PIN, 1, 1)
    for bar in bars:
        bar.define(layout, Header.BAR0)


def define_vf_header(layout: ConfigLayout, identity: Identity) -> None:
    """The header of a VF: BARs, cache line size and interrupt registers are read-only zero."""
    _define_identity(layout, identity, ALL_ONES_16, ALL_ONES_16)
    layout.define(Header.COMMAND, 2, writable=Command.BUS_MASTER)


def _define_identity(layout: ConfigLayout, identity: Identity, vendor_id: int, device_id: int) -> None:
    layout.define(Header.VENDOR_ID, 2, vendor_id)
    layout.define(Header.DEVICE_ID, 2, device_id)
    layout.define(Header.STATUS, 2, Status.CAPABILITIES_LIST, clearable=Status.ERRORS)
    layout.define(Header.REVISION, 1, identity.revision)
    layout.define(Header.CLASS_CODE, 3, identity.class_code)
    layout.define(Header.SUBSYSTEM_VENDOR_ID, 2, identity.subsystem_vendor_id)
    layout.define(Header.SUBSYSTEM_ID, 2, identity.subsystem_id)
