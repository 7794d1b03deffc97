"""The power management capability: D0 and D3hot, with and without the soft reset on the way back.

Rule: PCI power management 1.2, 3.2.4; PCIe 5.3. Writing an unsupported state completes and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from sriovd.backend.model.configspace import Behaviour, ConfigLayout, ConfigSpace
from sriovd.pci_registers import CapabilityId, Power, PowerControl


class PowerState(IntEnum):
    """The states that the model's functions have; D1 and D2 are optional and absent."""

    D0 = 0
    D3HOT = 3


SUPPORTED_STATES = frozenset(state.value for state in PowerState)


@dataclass(frozen=True, slots=True)
class PowerProfile:
    """Where the capability is, its read-only Capabilities word and which control bits exist beyond the
    state.
    """

    offset: int
    capabilities: int = 0x0003
    no_soft_reset: bool = False
    control_writable: int = 0

    @property
    def id(self) -> int:
        """The capability id."""
        return CapabilityId.POWER_MANAGEMENT

    def define(self, layout: ConfigLayout) -> None:
        """Define the registers."""
        layout.define(self.offset + Power.CAPABILITIES, 2, self.capabilities)
        reset_value = PowerControl.NO_SOFT_RESET if self.no_soft_reset else 0
        layout.define(
            self.offset + Power.CONTROL, 2, reset_value, writable=PowerControl.STATE | self.control_writable
        )


class PowerManagement:
    """The live capability. `soft_reset` is called when the function leaves D3hot without No_Soft_Reset."""

    def __init__(self, config: ConfigSpace, profile: PowerProfile, soft_reset: Callable[[], None]) -> None:
        """Attach to the registers."""
        self._config = config
        self._profile = profile
        self._soft_reset = soft_reset
        config.attach(Behaviour(profile.offset + Power.CONTROL, 2, decide=self._decide, commit=self._commit))

    @property
    def state(self) -> PowerState:
        """The power state at the moment."""
        return PowerState(_state_bits(self._config.peek(self._profile.offset + Power.CONTROL, 2)))

    def _decide(self, old: int, proposed: int) -> int:
        if _state_bits(proposed) in SUPPORTED_STATES:
            return proposed
        return proposed & ~PowerControl.STATE | _state_bits(old)

    def _commit(self, old: int, _proposed: int) -> None:
        left_d3hot = _state_bits(old) == PowerState.D3HOT.value and self.state is PowerState.D0
        if left_d3hot and not self._profile.no_soft_reset:
            self._soft_reset()


def _state_bits(control: int) -> int:
    return control & int(PowerControl.STATE)
