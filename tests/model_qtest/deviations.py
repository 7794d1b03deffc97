"""Where QEMU's devices differ from the specification and the model does not follow them: one literal row
each.

A row in DEVIATIONS takes bits of one register out of the comparison. UNEXERCISED are writes whose effect
differs and would spread; the sequences leave them out. A unit test covers the model's side of every row.
"""

from __future__ import annotations

from dataclasses import dataclass

from sriovd.pci_registers import Aer, Command, Express, Header, Sriov

ALL = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Deviation:
    """Bits of one register that are not compared.

    Block: "header", "express", "aer"; offset within the block.
    """

    devices: tuple[str, ...]
    function: str
    block: str
    offset: int
    bits: int
    reason: str

    @property
    def dword_bits(self) -> int:
        """`bits` within the aligned dword."""
        return self.bits << 8 * (self.offset % 4) & ALL


BOTH = ("igb", "nvme")
DEVIATIONS = (
    Deviation(BOTH, "pf", "header", Header.COMMAND, int(Command.PARITY_ERROR_RESPONSE),
              "7.5.1.1.3 wants Parity Error Response; QEMU has it hardwired to 0"),
    Deviation(("nvme",), "pf", "header", Header.COMMAND, int(Command.IO_SPACE),
              "I/O Space Enable is hardwired to 0 in a function without I/O BAR; QEMU lets it be written"),
    Deviation(("igb",), "pf", "express", Express.DEVICE_CONTROL, 0xF,
              "error reporting enables are mandatory (7.5.3.4), Linux sets them; QEMU's igb has none"),
    Deviation(("nvme",), "pf", "express", Express.DEVICE_CONTROL, 0xF,
              "an FLR clears the error reporting enables (6.6.2); QEMU's nvme keeps them"),
    Deviation(BOTH, "pf", "express", Express.LINK_CONTROL, 0xCB,
              "ASPM, RCB, common clock, extended synch are RW (7.5.3.7); QEMU hardwires them"),
    Deviation(BOTH, "pf", "express", Express.DEVICE_CONTROL_2, 0x8000,
              "an FLR clears End-End TLP Prefix Blocking (6.6.2); QEMU keeps it"),
    Deviation(BOTH, "vf", "header", Header.COMMAND, 0x0503,
              "a VF's command register has Bus Master Enable only (9.3.4.1.3); QEMU's is a PF's"),
    Deviation(BOTH, "vf", "header", Header.CACHE_LINE_SIZE, 0xFF, "read-only 0 in a VF (9.3.4.1.6)"),
    Deviation(BOTH, "vf", "header", Header.INTERRUPT_LINE, 0xFF, "read-only 0 in a VF (9.3.4.1.14)"),
    Deviation(("nvme",), "vf", "express", Express.DEVICE_CONTROL, 0xF,
              "a VF's error reporting is its PF's (9.3.5.4); QEMU's nvme VF has its own"),
    Deviation(BOTH, "vf", "express", Express.DEVICE_CONTROL_2, 0x8000,
              "reserved in a VF, the PF's setting counts (9.3.5.10)"),
    Deviation(("igb",), "vf", "aer", Aer.UNCORRECTABLE_MASK, ALL, "a VF's masks are its PF's (9.4.2)"),
    Deviation(("igb",), "vf", "aer", Aer.UNCORRECTABLE_SEVERITY, ALL, "a VF's severity is its PF's (9.4.2)"),
    Deviation(("igb",), "vf", "aer", Aer.CORRECTABLE_MASK, ALL, "a VF's masks are its PF's (9.4.2)"),
    Deviation(("igb",), "vf", "aer", Aer.CONTROL, 0x140, "ECRC is the PF's matter (9.4.2)"),
)  # fmt: skip


def deviations_at(device: str, function: str, block: str, offset: int) -> list[Deviation]:
    """The rows for the dword at `offset` of a block."""
    place = (function, block, offset)
    return [
        row
        for row in DEVIATIONS
        if device in row.devices and (row.function, row.block, row.offset & ~3) == place
    ]


@dataclass(frozen=True, slots=True)
class Unexercised:
    """Bytes [first, end) of the SR-IOV capability with writes that are left out.

    While_vfs: only while VF Enable is set.
    """

    first: int
    end: int
    while_vfs: bool
    reason: str


UNEXERCISED = (
    Unexercised(Sriov.SYSTEM_PAGE_SIZE, Sriov.SYSTEM_PAGE_SIZE + 4, True,
                "9.3.3.13 fixes the page size while VFs exist; QEMU lets it change"),
)  # fmt: skip
# several bits at once, or none: undefined by 9.3.3.13, QEMU stores them; above 16 KiB QEMU's VF BARs would
# not grow (9.3.3.14)
COMPARED_PAGE_SIZES = (0x1, 0x2)
# while VFs exist a change of ARI Capable Hierarchy is undefined by 9.3.3.3.5: QEMU takes it, the model does
# not
KEPT_WHILE_VFS = 0x10

INJECTION_DEVIATIONS = (
    "QEMU moves the first error pointer at every error; 6.2.4.2 keeps it while the bit it points at is set",
    "QEMU byte-swaps the header log; 7.8.4.8 puts TLP byte 0 in bits 31:24, as the kernel prints it",
    "error bits of Device Status are write-one-to-clear (7.5.3.5); QEMU's igb never clears them",
    "QEMU zeroes Link Capabilities when it sets Device Status",
)
