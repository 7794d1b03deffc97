"""The ARI extended capability.

The next function's number, read-only. VFs have it with next function 0 (PCIe 9.3.7).
"""

from __future__ import annotations

from dataclasses import dataclass

from sriovd.backend.model.configspace import ConfigLayout
from sriovd.pci_registers import Ari, ExtendedCapabilityId


@dataclass(frozen=True, slots=True)
class AriProfile:
    """Where the capability is, and the number of the next PF (0 ends the list)."""

    offset: int
    next_function: int = 0

    @property
    def id(self) -> int:
        """The extended capability id."""
        return ExtendedCapabilityId.ARI

    def define(self, layout: ConfigLayout) -> None:
        """Define the registers."""
        layout.define(self.offset + Ari.CAPABILITY, 4, self.next_function << 8)
