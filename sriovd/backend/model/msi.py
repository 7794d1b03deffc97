"""MSI and MSI-X.

The capabilities only. The vectors' table lives in memory space, which the model does not have.
"""

from __future__ import annotations

from dataclasses import dataclass

from sriovd.backend.model.configspace import ConfigLayout, ConfigSpace
from sriovd.pci_registers import CapabilityId, Msi, Msix, MsixControl

MSI_ENABLE = 0x0001
MSI_64BIT_MASKABLE = 0x0180
MAX_MSIX_VECTORS = 2048


@dataclass(frozen=True, slots=True)
class MsiProfile:
    """One MSI vector, 64-bit address, per-vector masking."""

    offset: int

    @property
    def id(self) -> int:
        """The capability id."""
        return CapabilityId.MSI

    def define(self, layout: ConfigLayout) -> None:
        """Define the registers."""
        layout.define(self.offset + Msi.CONTROL, 2, MSI_64BIT_MASKABLE, writable=MSI_ENABLE)
        layout.define(self.offset + Msi.ADDRESS, 4, writable=0xFFFF_FFFC)
        layout.define(self.offset + Msi.UPPER_ADDRESS, 4, writable=0xFFFF_FFFF)
        layout.define(self.offset + Msi.DATA, 2, writable=0xFFFF)
        layout.define(self.offset + Msi.MASK, 4, writable=1)
        layout.define(self.offset + Msi.PENDING, 4)


@dataclass(frozen=True, slots=True)
class MsixProfile:
    """MSI-X with `vectors` (1-2048); table and pending bits as BAR number and 8-aligned offset in it."""

    offset: int
    vectors: int
    table_bar: int
    table_offset: int
    pending_bar: int
    pending_offset: int

    def __post_init__(self) -> None:
        """Raises ValueError for a vector count that the field cannot hold or a misaligned table."""
        if not 1 <= self.vectors <= MAX_MSIX_VECTORS:
            raise ValueError(f"MSI-X with {self.vectors} vectors: 1 to {MAX_MSIX_VECTORS} are possible")
        for name, offset in (("table", self.table_offset), ("pending bits", self.pending_offset)):
            if offset % 8:
                raise ValueError(f"MSI-X {name} at {offset:#x}: not a multiple of 8")

    @property
    def id(self) -> int:
        """The capability id."""
        return CapabilityId.MSIX

    def define(self, layout: ConfigLayout) -> None:
        """Define the registers."""
        control = MsixControl.ENABLE | MsixControl.FUNCTION_MASK
        layout.define(self.offset + Msix.CONTROL, 2, self.vectors - 1, writable=control)
        layout.define(self.offset + Msix.TABLE, 4, self.table_offset | self.table_bar)
        layout.define(self.offset + Msix.PENDING_BITS, 4, self.pending_offset | self.pending_bar)


class MsixCapability:
    """What the MSI-X registers say at the moment."""

    def __init__(self, config: ConfigSpace, profile: MsixProfile) -> None:
        """Look at the registers of one function."""
        self._config = config
        self._offset = profile.offset + Msix.CONTROL

    @property
    def vectors(self) -> int:
        """How many vectors the table has."""
        return (self._config.peek(self._offset, 2) & MsixControl.TABLE_SIZE) + 1

    @property
    def enabled(self) -> bool:
        """MSI-X Enable."""
        return bool(self._config.peek(self._offset, 2) & MsixControl.ENABLE)

    @property
    def masked(self) -> bool:
        """Function Mask."""
        return bool(self._config.peek(self._offset, 2) & MsixControl.FUNCTION_MASK)
