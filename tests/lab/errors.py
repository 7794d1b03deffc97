"""PCIe errors in a guest, by the kernel's own aer_inject: it hands the AER driver an error as the root port
would, without the device knowing of it.

Rule of this module: the kernel decides whether an uncorrectable error is fatal, by the device's register
Uncorrectable Error Severity, so the usual errors here are those that have that severity by default.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from sriovd.backend.base import Severity
from sriovd.pci import PciAddress
from tests.lab.guest import Guest

# PCIe base specification, 7.8.4.2 to 7.8.4.5: what is injected unless the caller says otherwise
RECEIVER_ERROR = 1 << 0
COMPLETION_TIMEOUT = 1 << 14
MALFORMED_TLP = 1 << 18
USUAL_STATUS = {
    Severity.CORRECTED: RECEIVER_ERROR,
    Severity.NONFATAL: COMPLETION_TIMEOUT,
    Severity.FATAL: MALFORMED_TLP,
}
# for setpci(8): Uncorrectable Error Mask and Severity as they are after a reset
DEFAULTS = "ECAP_AER+08.l=0 ECAP_AER+0c.l=00462030"
# drivers/pci/pcie/aer_inject.c struct aer_error_inj: bus, device, function, padding, uncorrectable and
# correctable status, header, domain
ERROR = struct.Struct("=4BII4II")


def inject_error(
    guest: Guest,
    address: str,
    severity: Severity,
    status: int | None = None,
    tlp_header: Sequence[int] = (0, 0, 0, 0),
) -> None:
    """Let the function at `address` meet an error. Returns once the kernel knows of it, which is before it
    has recovered. `status`: bits of the AER status register of that severity. CommandFailed when the kernel
    refuses: the function has no AER capability.

    A VF has its masks and severities from its PF in truth (PCIe 9.4.2), but QEMU's VFs have their own, which
    outlast VF Enable, and after some tests are all-ones: every error masked, and fatal. Put back first.
    """
    bits = USUAL_STATUS[severity] if status is None else status
    both = (0, bits) if severity is Severity.CORRECTED else (bits, 0)
    at = PciAddress.parse(address)
    error = ERROR.pack(at.bus, at.device, at.function, 0, *both, *tlp_header, at.domain)
    if severity is not Severity.CORRECTED:
        guest.run(f"test ! -e /sys/bus/pci/devices/{address}/physfn || setpci -s {address} {DEFAULTS}")
    guest.run("modprobe aer_inject && dd of=/dev/aer_inject bs=32 count=1 iflag=fullblock", stdin=error)
