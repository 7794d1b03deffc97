"""The names of AER's errors, for reading, telling and injecting them.

Rule: one table per status register, by bit. The names are the kernel's (drivers/pci/pcie/aer.c,
aer_correctable_error_string and aer_uncorrectable_error_string), as its counters and its log print them.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def bit_names(status: int, table: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the set bits, lowest first; a bit without a name reads `bitN`."""
    return tuple(table.get(bit, f"bit{bit}") for bit in range(32) if status >> bit & 1)
