"""The PCI Express capability: device control with FLR, device status, the link of an endpoint.

Rule: PCIe 7.5.3 for a PF; 9.3.5 for a VF, whose device control has the FLR bit only and whose link control
is the PF's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sriovd.backend.model.configspace import Behaviour, ConfigLayout, ConfigSpace
from sriovd.pci_registers import (
    CapabilityId,
    DeviceCapabilities,
    DeviceControl,
    DeviceStatus,
    Express,
)

ERROR_REPORTING = 0x000F
ERROR_DETECTED = 0x000F
ASPM_RCB_CLOCK_SYNC = 0x00CB  # ASPM 1:0, read completion boundary, common clock, extended synch


@dataclass(frozen=True, slots=True)
class ExpressProfile:
    """Read-only words of the capability, and the optional control bits that the device has.

    device_control: reset value and device_control_writable: mask, both without error reporting and FLR,
    which follow from the specification.
    """

    offset: int
    device_capabilities: int
    link_capabilities: int
    link_status: int
    device_capabilities_2: int = 0
    device_control: int = 0
    device_control_writable: int = 0
    device_control_2_writable: int = 0
    is_vf: bool = False

    @property
    def id(self) -> int:
        """The capability id."""
        return CapabilityId.EXPRESS

    @property
    def has_flr(self) -> bool:
        """Function Level Reset Capability; a VF must have it (9.3.5.3)."""
        return bool(self.device_capabilities & DeviceCapabilities.FUNCTION_LEVEL_RESET)

    def define(self, layout: ConfigLayout) -> None:
        """Define the registers. Max Payload Size and the link's settings survive an FLR (6.6.2)."""
        layout.define(self.offset + Express.FLAGS, 2, 0x0002)
        layout.define(self.offset + Express.DEVICE_CAPABILITIES, 4, self.device_capabilities)
        layout.define(
            self.offset + Express.DEVICE_CONTROL, 2, self.device_control,
            writable=self._control_writable, kept_by_flr=DeviceControl.MAX_PAYLOAD_SIZE,
        )  # fmt: skip
        layout.define(self.offset + Express.DEVICE_STATUS, 2, clearable=ERROR_DETECTED)
        layout.define(self.offset + Express.LINK_CAPABILITIES, 4, self.link_capabilities)
        link_control = 0 if self.is_vf else ASPM_RCB_CLOCK_SYNC
        layout.define(self.offset + Express.LINK_CONTROL, 2, writable=link_control, kept_by_flr=link_control)
        layout.define(self.offset + Express.LINK_STATUS, 2, self.link_status)
        layout.define(self.offset + Express.DEVICE_CAPABILITIES_2, 4, self.device_capabilities_2)
        control_2 = 0 if self.is_vf else self.device_control_2_writable
        layout.define(self.offset + Express.DEVICE_CONTROL_2, 2, writable=control_2)

    @property
    def _control_writable(self) -> int:
        flr = DeviceControl.INITIATE_FLR if self.has_flr else 0
        return flr if self.is_vf else flr | ERROR_REPORTING | self.device_control_writable


class ExpressCapability:
    """The live capability. `initiate_flr` is called when software writes Initiate Function Level Reset."""

    def __init__(
        self, config: ConfigSpace, profile: ExpressProfile, initiate_flr: Callable[[], None]
    ) -> None:
        """Attach to the registers; no transactions are pending."""
        self.transactions_pending = False
        self.profile = profile
        self._config = config
        self._initiate_flr = initiate_flr
        config.attach(Behaviour(profile.offset + Express.DEVICE_CONTROL, 2, commit=self._start_flr))
        config.attach(Behaviour(profile.offset + Express.DEVICE_STATUS, 2, view=self._show_status))

    @property
    def control(self) -> int:
        """Device Control."""
        return self._config.peek(self.profile.offset + Express.DEVICE_CONTROL, 2)

    def record_error(self, detected: DeviceStatus) -> None:
        """Set error bits of Device Status, as a detected error does whether it is reported or not (6.2)."""
        offset = self.profile.offset + Express.DEVICE_STATUS
        self._config.poke(offset, 2, self._config.peek(offset, 2) | detected)

    def _start_flr(self, _old: int, proposed: int) -> None:
        """The bit always reads 0: the reset that it starts clears it along with the register."""
        if proposed & DeviceControl.INITIATE_FLR:
            self._initiate_flr()

    def _show_status(self, stored: int) -> int:
        return stored | (DeviceStatus.TRANSACTIONS_PENDING if self.transactions_pending else 0)
