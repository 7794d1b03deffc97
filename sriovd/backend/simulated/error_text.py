"""What the kernel's log says of an error: drivers/pci/pcie/aer.c of Linux 6.12. Pure.

Rule: the kernel's words and its layout, because people and programs search for them.
"""

from __future__ import annotations

from collections.abc import Iterator

from sriovd.backend.base import Severity
from sriovd.backend.simulated.device import Device
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES

_SEVERITIES = {  # aer_error_severity_string
    Severity.CORRECTED: "Correctable",
    Severity.NONFATAL: "Uncorrectable (Non-Fatal)",
    Severity.FATAL: "Uncorrectable (Fatal)",
}
# AER_GET_LAYER_ERROR and AER_GET_AGENT: the first row with any of its bits wins; 0 is for the rest
_CORRECTABLE_LAYERS = ((0x0001, "Physical"), (0x11C0, "Data Link"), (0, "Transaction"))
_UNCORRECTABLE_LAYERS = ((0x0010, "Data Link"), (0, "Transaction"))
_CORRECTABLE_AGENTS = ((0x1100, "Transmitter"), (0, "Receiver"))
_UNCORRECTABLE_AGENTS = ((0x8000, "Completer"), (0x10_4000, "Requester"), (0, "Receiver"))


def describe_message(port: Device, source: str, severity: Severity) -> str:
    """aer_print_port_info."""
    return f"{port.log_name}: AER: {_SEVERITIES[severity]} error message received from {source}"


def describe_error(
    dev: Device, severity: Severity, status: int, mask: int, first_error: int, tlp_header: tuple[int, ...]
) -> Iterator[str]:
    """aer_print_error and __aer_print_error."""
    if not status:
        yield (
            f"{dev.log_name}: AER: PCIe Bus Error: severity={_SEVERITIES[severity]}, type=Inaccessible, "
            "(Unregistered Agent ID)"
        )
        return
    is_corrected = severity is Severity.CORRECTED
    layer = _pick(_CORRECTABLE_LAYERS if is_corrected else _UNCORRECTABLE_LAYERS, status)
    agent = _pick(_CORRECTABLE_AGENTS if is_corrected else _UNCORRECTABLE_AGENTS, status)
    yield (
        f"{dev.log_name}: PCIe Bus Error: severity={_SEVERITIES[severity]}, type={layer} Layer, ({agent} ID)"
    )
    ids = f"{dev.ids.vendor:04x}:{dev.ids.device:04x}"
    yield f"{dev.log_name}:   device [{ids}] error status/mask={status:08x}/{mask:08x}"
    names = CORRECTABLE_NAMES if is_corrected else UNCORRECTABLE_NAMES
    for bit in range(32):
        if status & ~mask & 1 << bit:
            first = " (First)" if bit == first_error else ""
            yield f"{dev.log_name}:    [{bit:2d}] {names.get(bit, 'Unknown Error Bit'):<22s}{first}"
    if tlp_header:
        yield f"{dev.log_name}: AER:   TLP Header: " + " ".join(f"{word:08x}" for word in tlp_header)


def _pick(rows: tuple[tuple[int, str], ...], status: int) -> str:
    return next(name for bits, name in rows if status & bits or not bits)
