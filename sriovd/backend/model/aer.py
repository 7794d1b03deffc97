"""Advanced error reporting: registers, and what happens when the device meets an error.

Rule: PCIe 6.2 and 7.8.4. Names of the bits are the kernel's (drivers/pci/pcie/aer.c), as its counters and
log print them, so that one table serves reading and injecting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sriovd.backend.model.configspace import ConfigLayout, ConfigSpace
from sriovd.backend.model.registers import AER_FIRST_ERROR_POINTER, Aer, ExtendedCapabilityId

UNCORRECTABLE_NAMES: dict[int, str] = {
    0: "Undefined", 4: "DLP", 5: "SDES", 12: "TLP", 13: "FCP", 14: "CmpltTO", 15: "CmpltAbrt",
    16: "UnxCmplt", 17: "RxOF", 18: "MalfTLP", 19: "ECRC", 20: "UnsupReq", 21: "ACSViol",
    22: "UncorrIntErr", 23: "BlockedTLP", 24: "AtomicOpBlocked", 25: "TLPBlockedErr",
    26: "PoisonTLPBlocked", 27: "DMWrReqBlocked", 28: "IDECheck", 29: "MisIDETLP", 30: "PCRC_CHECK",
    31: "TLPXlatBlocked",
}  # fmt: skip
CORRECTABLE_NAMES: dict[int, str] = {
    0: "RxErr", 6: "BadTLP", 7: "BadDLLP", 8: "Rollover", 12: "Timeout", 13: "NonFatalErr", 14: "CorrIntErr",
    15: "HeaderOF",
}  # fmt: skip
CORRECTABLE_BITS = 0x0000_F1C1
UNCORRECTABLE_BITS = 0x03FF_F030
# 9.4.2: a VF logs only what one function can be blamed for; the rest shows in its PF
VF_UNCORRECTABLE_BITS = (
    0x0031_D000  # poisoned, timeout, abort, unexpected completion, unsupported request, ACS
)
VF_CORRECTABLE_BITS = 0x0000_2000  # advisory non-fatal
HEADER_LOGGED_BITS = 0x07BD_9000  # the errors that a particular TLP causes
SEVERITY_RESET = (
    0x0046_2030  # DLP, SDES, FCP, RxOF, MalfTLP, UncorrIntErr are fatal unless software says otherwise
)
TlpHeader = tuple[int, int, int, int]


class AerSeverity(StrEnum):
    """Which message an error sends: ERR_COR, ERR_NONFATAL or ERR_FATAL."""

    CORRECTED = "corrected"
    NONFATAL = "nonfatal"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class AerRecord:
    """One error as the function signals it: unmasked status bits of one severity.

    reported: whether Device Control (or SERR# Enable) lets the message leave; if not, it is in the registers
    only. tlp_header is None when none was logged for this error.
    """

    severity: AerSeverity
    status: int
    tlp_header: TlpHeader | None
    reported: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The kernel's names of the status bits, lowest bit first."""
        table = CORRECTABLE_NAMES if self.severity is AerSeverity.CORRECTED else UNCORRECTABLE_NAMES
        return bit_names(self.status, table)


def bit_names(status: int, table: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the set bits, lowest first; a bit without a name reads `bitN`."""
    return tuple(table.get(bit, f"bit{bit}") for bit in range(32) if status >> bit & 1)


@dataclass(frozen=True, slots=True)
class AerProfile:
    """Which errors a function can log, and the reset values of its masks.

    A VF's masks and severity are the PF's.
    """

    offset: int
    uncorrectable: int = UNCORRECTABLE_BITS
    correctable: int = CORRECTABLE_BITS
    uncorrectable_mask: int = 0x0040_0000
    correctable_mask: int = 0x0000_E000
    ecrc: bool = False
    is_vf: bool = False

    @property
    def id(self) -> int:
        """The extended capability id."""
        return ExtendedCapabilityId.AER

    def define(self, layout: ConfigLayout) -> None:
        """Define the registers; all that software sets or an error leaves is sticky (7.8.4)."""
        unc, cor = self.uncorrectable, self.correctable
        layout.define(self.offset + Aer.UNCORRECTABLE_STATUS, 4, clearable=unc, sticky=unc)
        layout.define(self.offset + Aer.CORRECTABLE_STATUS, 4, clearable=cor, sticky=cor)
        layout.define(self.offset + Aer.HEADER_LOG, 16, sticky=(1 << 128) - 1)
        enables = 0x140 if self.ecrc and not self.is_vf else 0
        capable = 0xA0 if self.ecrc else 0
        sticky = enables | AER_FIRST_ERROR_POINTER
        layout.define(self.offset + Aer.CONTROL, 4, capable, writable=enables, sticky=sticky)
        if not self.is_vf:
            severity = SEVERITY_RESET & unc
            layout.define(
                self.offset + Aer.UNCORRECTABLE_MASK,
                4,
                self.uncorrectable_mask & unc,
                writable=unc,
                sticky=unc,
            )
            layout.define(self.offset + Aer.UNCORRECTABLE_SEVERITY, 4, severity, writable=unc, sticky=unc)
            layout.define(
                self.offset + Aer.CORRECTABLE_MASK, 4, self.correctable_mask & cor, writable=cor, sticky=cor
            )


class AerCapability:
    """The live capability.

    `reporting` tells whether a message of a severity may leave the function. `masks_from` is the capability
    whose masks and severity count: a VF's are those of its PF (9.4.2), so only a VF passes it.
    """

    def __init__(
        self, config: ConfigSpace, profile: AerProfile, reporting: Callable[[AerSeverity], bool],
        masks_from: AerCapability | None = None,
    ) -> None:  # fmt: skip
        """Look at the registers of one function."""
        self._config = config
        self._profile = profile
        self._reporting = reporting
        self._masks = masks_from or self

    def log_uncorrectable(self, status: int, tlp_header: TlpHeader | None) -> tuple[AerRecord, ...]:
        """Log errors; one record per severity that has an unmasked one, non-fatal first.

        Masked bits are set in the status register but neither pointed at nor reported (6.2.3.2.2). Raises
        ValueError for a bit that this function cannot log.
        """
        _check_bits("uncorrectable", status, self._profile.uncorrectable, UNCORRECTABLE_NAMES)
        earlier = self._register(Aer.UNCORRECTABLE_STATUS)
        self._store(Aer.UNCORRECTABLE_STATUS, earlier | status)
        unmasked = status & ~self._masks._register(Aer.UNCORRECTABLE_MASK)
        logged = 0
        if unmasked and not self._first_error_valid(earlier):
            logged = self._log_first_error(unmasked, tlp_header)
        return tuple(
            AerRecord(severity, bits, tlp_header if bits & logged else None, self._reporting(severity))
            for severity, bits in self.severities(unmasked).items()
        )

    def severities(self, status: int) -> dict[AerSeverity, int]:
        """Uncorrectable bits by the severity that software gave them; only severities that have a bit."""
        fatal = status & self._masks._register(Aer.UNCORRECTABLE_SEVERITY)
        both = {AerSeverity.NONFATAL: status & ~fatal, AerSeverity.FATAL: fatal}
        return {severity: bits for severity, bits in both.items() if bits}

    def log_correctable(self, status: int) -> tuple[AerRecord, ...]:
        """Log correctable errors; one record if any is unmasked. Raises ValueError for a bit not its own."""
        _check_bits("correctable", status, self._profile.correctable, CORRECTABLE_NAMES)
        self._store(Aer.CORRECTABLE_STATUS, self._register(Aer.CORRECTABLE_STATUS) | status)
        unmasked = status & ~self._masks._register(Aer.CORRECTABLE_MASK)
        reported = self._reporting(AerSeverity.CORRECTED)
        return (AerRecord(AerSeverity.CORRECTED, unmasked, None, reported),) if unmasked else ()

    def _first_error_valid(self, status: int) -> bool:
        """The pointer is valid while the bit it points at is set (7.8.4.7).

        Bit 0 is no error, so 0 means none.
        """
        return bool(status >> (self._register(Aer.CONTROL) & AER_FIRST_ERROR_POINTER) & 1)

    def _log_first_error(self, unmasked: int, tlp_header: TlpHeader | None) -> int:
        """Point at the lowest error and log the TLP that caused it; returns that bit if so, else 0."""
        first = unmasked & -unmasked
        control = self._register(Aer.CONTROL) & ~AER_FIRST_ERROR_POINTER
        self._store(Aer.CONTROL, control | first.bit_length() - 1)
        logged = first & HEADER_LOGGED_BITS if tlp_header is not None else 0
        for number, word in enumerate(tlp_header if tlp_header is not None and logged else (0, 0, 0, 0)):
            self._store(Aer.HEADER_LOG + 4 * number, word)
        return logged

    def _register(self, register: int) -> int:
        return self._config.peek(self._profile.offset + register, 4)

    def _store(self, register: int, value: int) -> None:
        self._config.poke(self._profile.offset + register, 4, value)


def _check_bits(kind: str, status: int, supported: int, table: Mapping[int, str]) -> None:
    if status <= 0 or status & ~supported:
        known = ", ".join(bit_names(supported, table))
        raise ValueError(f"{kind} status {status:#x}: this function logs {supported:#010x} only ({known})")
