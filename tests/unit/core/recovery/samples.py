"""Configuration spaces that a real kernel showed, and what an error makes of them.

Rule: the recordings of fixtures-sysfs, changed register by register where a test says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.backend.simulated.fixture import Attribute, read_fixture
from sriovd.core.recovery.bundle import Bundle, BundleKind, FunctionDump, FunctionRole
from sriovd.pci import PciAddress
from tests.conformance.recorded import recording_path

PORT = PciAddress.parse("0000:00:03.0")
PF = PciAddress.parse("0000:01:00.0")  # igb with 7 VFs
VF = PciAddress.parse("0000:01:10.4")  # its third, on vfio-pci
IDLE_VF = PciAddress.parse("0000:01:10.0")  # its first, on no driver
DEAD = b"\xff" * 4096
AER = 0x100  # in all of them
TLP = (0x40000001, 0x0100050F, 0xFEE00000, 0)  # the PF wrote a message-signaled interrupt


@cache
def load_configs(kernel: str = "6.12", state: str = "-vfs") -> Mapping[PciAddress, bytes]:
    """The configuration space of every function of a recording."""
    found = {}
    for path, entries in read_fixture(str(recording_path(kernel, state))).directories.items():
        config = entries.get("config")
        if isinstance(config, Attribute) and config.data is not None:
            found[PciAddress.parse(path.rpartition("/")[2])] = config.data
    return found


def change(config: bytes, registers: Mapping[int, int]) -> bytes:
    """`config` with 32-bit registers by their offset."""
    changed = bytearray(config)
    for offset, value in registers.items():
        changed[offset : offset + 4] = value.to_bytes(4, "little")
    return bytes(changed)


def log_error(config: bytes, status: int, header: tuple[int, ...] = ()) -> bytes:
    """`config` after an uncorrectable error that nothing came before."""
    control = int.from_bytes(config[AER + 0x18 : AER + 0x1C], "little")
    words = {AER + 0x1C + 4 * number: word for number, word in enumerate(header)}
    first = (status & -status).bit_length() - 1
    return change(config, {AER + 4: status, AER + 0x18: control | first, **words})


def make_bundle() -> Bundle:
    """What is taken of the igb when its PF has a nonfatal error."""
    configs = {**load_configs(), PF: log_error(load_configs()[PF], 0x4000, TLP)}
    functions = (
        FunctionDump(PF, FunctionRole.PF, "igb", configs[PF]),
        FunctionDump(PORT, FunctionRole.PORT, "pcieport", configs[PORT]),
        FunctionDump(IDLE_VF, FunctionRole.VF, "", b"", "it could not be read: EIO"),
        FunctionDump(VF, FunctionRole.VF, "vfio-pci", configs[VF]),
    )
    return Bundle(
        number=3,
        slot="0000:01:00",
        kind=BundleKind.FREEZE,
        taken_usec=1_795_297_355_123_456,
        title="Nonfatal error of 0000:01:00.0",
        reason="CmpltTO. All VFs of the adapter are frozen.",
        functions=functions,
        records=(ErrorRecord(PF, Severity.NONFATAL, 0x4000, TLP, 123_456_789),),
        counters_before={PF: {Severity.CORRECTED: {"RxErr": 2, "total": 2}}, VF: {}},
        counters_after={
            PF: {
                Severity.CORRECTED: {"RxErr": 2, "total": 2},
                Severity.NONFATAL: {"total": 1, "CmpltTO": 1},
            },
            VF: {},
        },
        kernel_log=("[123.456800] pcieport 0000:00:03.0: AER: Uncorrectable (Non-Fatal) error",),
        actions=("Set 7 VFs on 0000:01:00.0: done",),
    )
