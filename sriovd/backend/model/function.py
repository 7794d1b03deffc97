"""One PCI function of the model: what a PF and a VF have in common.

Rule: a function that cannot be reached reads all-ones and loses writes, and never raises for it: that is
what software sees of a dead, frozen or absent device. Bad offsets and widths are the caller's mistake and do
raise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TypeVar

from sriovd.backend.model.aer import AerCapability, AerProfile, AerRecord, AerSeverity, TlpHeader
from sriovd.backend.model.configspace import ConfigLayout, ConfigSpace, Reset
from sriovd.backend.model.express import ExpressCapability, ExpressProfile
from sriovd.backend.model.msi import MsixCapability, MsixProfile
from sriovd.backend.model.power import PowerManagement, PowerProfile, PowerState
from sriovd.backend.model.profiles import FunctionProfile
from sriovd.pci import PciAddress
from sriovd.pci_registers import Command, DeviceControl, DeviceStatus, Header, Status

Kind = TypeVar("Kind")
# what a severity sets in Device Status, and which Device Control bit and whether SERR# Enable lets it out
# (6.2.6)
DETECTED = {
    AerSeverity.CORRECTED: DeviceStatus.CORRECTABLE_DETECTED,
    AerSeverity.NONFATAL: DeviceStatus.NONFATAL_DETECTED,
    AerSeverity.FATAL: DeviceStatus.FATAL_DETECTED,
}
REPORTING = {
    AerSeverity.CORRECTED: (DeviceControl.CORRECTABLE_REPORTING, Command(0)),
    AerSeverity.NONFATAL: (DeviceControl.NONFATAL_REPORTING, Command.SERR_ENABLE),
    AerSeverity.FATAL: (DeviceControl.FATAL_REPORTING, Command.SERR_ENABLE),
}
UNSUPPORTED_REQUEST_BIT = 1 << 20


def find_profile(capabilities: Iterable[object], kind: type[Kind]) -> Kind | None:
    """The capability profile of that kind in a list, or None."""
    return next((item for item in capabilities if isinstance(item, kind)), None)


class FunctionModel(ABC):
    """A PF or VF.

    `frozen` cuts it off as a frozen partitionable endpoint is: it alone, not what hangs below it.
    """

    def __init__(self, address: PciAddress, profile: FunctionProfile, layout: ConfigLayout) -> None:
        """A function just out of power-on."""
        self.address = address
        self.profile = profile
        self.frozen = False
        self.config = ConfigSpace(layout)
        self.msix = self._build(MsixProfile, MsixCapability)
        express = find_profile(profile.capabilities, ExpressProfile)
        if express is None:
            raise ValueError("a function profile without PCI Express capability: SR-IOV needs it")
        self.express = ExpressCapability(self.config, express, self.function_level_reset)
        power = find_profile(profile.capabilities, PowerProfile)
        self.power = PowerManagement(self.config, power, self._soft_reset) if power else None
        aer = find_profile(profile.extended, AerProfile)
        self.aer = AerCapability(self.config, aer, self._may_report, self._aer_masks()) if aer else None
        self.flr_count = 0

    @property
    def rid(self) -> int:
        """The routing id."""
        return self.address.rid

    @property
    @abstractmethod
    def present(self) -> bool:
        """Whether the function exists on the bus at all."""

    @property
    def reachable(self) -> bool:
        """Whether configuration accesses get to it: it is present and not frozen."""
        return self.present and not self.frozen

    @property
    def may_dma(self) -> bool:
        """Whether a memory request of the function, an interrupt message included, gets anywhere: it is
        reachable, in D0 and Bus Master Enable is set (7.5.1.1.3). Whatever of the model does DMA asks it."""
        return self.reachable and self.bus_master and self.power_state is PowerState.D0

    @property
    def bus_master(self) -> bool:
        """Bus Master Enable, whether or not anything gets out."""
        return bool(self.config.peek(Header.COMMAND, 2) & Command.BUS_MASTER)

    @property
    @abstractmethod
    def memory_space(self) -> bool:
        """Whether the function decodes its memory."""

    @property
    def power_state(self) -> PowerState:
        """D0 or D3hot; a function without the capability is in D0."""
        return self.power.state if self.power else PowerState.D0

    @property
    def transactions_pending(self) -> bool:
        """What Transactions Pending of Device Status shows; set it to model a busy device."""
        return self.express.transactions_pending

    @transactions_pending.setter
    def transactions_pending(self, pending: bool) -> None:
        self.express.transactions_pending = pending

    def read(self, offset: int, width: int) -> int:
        """A configuration read of 1, 2 or 4 aligned bytes.

        All-ones if unreachable. Raises ValueError for a bad access.
        """
        value = self.config.read(offset, width)
        return value if self.reachable else (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """A configuration write, lost if unreachable.

        Raises ValueError for a bad access or a value that does not fit.
        """
        self.config.check_write(offset, width, value)
        if self.reachable:
            self.config.write(offset, width, value)

    def config_bytes(self) -> bytes:
        """The whole configuration space as software reads it now."""
        return self.config.to_bytes() if self.reachable else b"\xff" * self.config.size

    def put_back(self, saved: bytes) -> None:
        """Software writes back what it has saved before a reset."""
        self.config.put_back(saved)

    def function_level_reset(self) -> None:
        """Reset the function as Initiate FLR does (6.6.2). Nothing happens without the capability."""
        if self.express.profile.has_flr:
            self.flr_count += 1
            self.reset(Reset.FUNCTION)

    def reset(self, kind: Reset) -> None:
        """Put the registers back, as deep as `kind` says."""
        self.config.reset(kind)
        self.transactions_pending = False

    def inject_uncorrectable(
        self, status: int, tlp_header: TlpHeader | None = None
    ) -> tuple[AerRecord, ...]:
        """Let the function meet uncorrectable errors (bits of the AER status register; four header dwords).

        Returns what it signals: one record per severity, empty when all bits are masked or the function is
        not reachable. Raises ValueError for a function without AER or a bit that it cannot log.
        """
        aer = self._require_aer()
        if not self.reachable:
            return ()
        records = aer.log_uncorrectable(status, tlp_header)
        detected = DeviceStatus(0)
        for severity in aer.severities(status):
            detected |= DETECTED[severity]
        if status & UNSUPPORTED_REQUEST_BIT:
            detected |= DeviceStatus.UNSUPPORTED_REQUEST_DETECTED
        self._record(detected, records)
        return records

    def inject_correctable(self, status: int) -> tuple[AerRecord, ...]:
        """Let the function meet correctable errors. Returns and raises as inject_uncorrectable does."""
        aer = self._require_aer()
        if not self.reachable:
            return ()
        records = aer.log_correctable(status)
        self._record(DETECTED[AerSeverity.CORRECTED], records)
        return records

    def _build(self, profile_kind: type[MsixProfile], kind: type[MsixCapability]) -> MsixCapability | None:
        profile = find_profile(self.profile.capabilities, profile_kind)
        return kind(self.config, profile) if profile else None

    def _soft_reset(self) -> None:
        self.reset(Reset.FUNCTION)

    def _aer_masks(self) -> AerCapability | None:
        """Whose AER masks and severity count, if not the function's own."""
        return None

    def _reporting_registers(self) -> tuple[int, int]:
        """Device Control and Command, which say what errors may leave; for a VF its PF's (9.4.2)."""
        return self.express.control, self.config.peek(Header.COMMAND, 2)

    def _may_report(self, severity: AerSeverity) -> bool:
        device_control, command = self._reporting_registers()
        enable, serr = REPORTING[severity]
        return bool(device_control & enable or command & serr)

    def _record(self, detected: DeviceStatus, records: tuple[AerRecord, ...]) -> None:
        """Device Status tells what was detected, whether masked, reported or neither (7.5.3.5)."""
        self.express.record_error(detected)
        if any(record.reported and record.severity is not AerSeverity.CORRECTED for record in records):
            self._signal_system_error()

    def _signal_system_error(self) -> None:
        """Signaled System Error is set when the message left with SERR# Enable set (7.5.1.1.4)."""
        if self._reporting_registers()[1] & Command.SERR_ENABLE:
            status = self.config.peek(Header.STATUS, 2) | Status.SIGNALED_SYSTEM_ERROR
            self.config.poke(Header.STATUS, 2, status)

    def _require_aer(self) -> AerCapability:
        if self.aer is None:
            raise ValueError(f"{self.address} has no AER capability, so no error can be injected")
        return self.aer
