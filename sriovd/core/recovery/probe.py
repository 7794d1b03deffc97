"""Whether a function lives, told from its configuration space. Pure.

Rule: a VF's vendor and device id read all-ones by specification (PCIe 9.3.4.1), so life is told by the
command and status registers. A PF whose SR-IOV Control has lost VF Enable has no VFs, whatever sysfs
says.
"""

from __future__ import annotations

from dataclasses import dataclass

from sriovd.backend.steps import Step, Verb
from sriovd.pci import PciAddress
from sriovd.pci_registers import (
    CONFIG_SPACE_BYTES,
    FIRST_EXTENDED_CAPABILITY,
    Command,
    ExtendedCapabilityId,
    Header,
    Sriov,
    SriovControl,
)

_DECODES = Command.IO_SPACE | Command.MEMORY_SPACE
_BARS = range(Header.BAR0, Header.BAR0 + 6 * 4, 4)
_LINKS_AT_MOST = 64  # of a list that is a loop
_ONES = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Signs:
    """Of a PF. `answers`: something is there. `keeps_registers`: its addresses are programmed. `vf_enable`,
    `num_vfs`: as its SR-IOV capability has them."""

    answers: bool = False
    keeps_registers: bool = False
    vf_enable: bool = False
    num_vfs: int = 0


def read_config_step(address: PciAddress, length: int = CONFIG_SPACE_BYTES) -> Step:
    """The first bytes of configuration space, all of it unless told."""
    return Step(Verb.READ_CONFIG, address, f"0 {length}")


def read_command_step(address: PciAddress) -> Step:
    """Command and status."""
    return Step(Verb.READ_CONFIG, address, f"{Header.COMMAND:d} 4")


def master_step(address: PciAddress, on: bool) -> Step:
    """Let a function do DMA, or not."""
    return Step(
        Verb.UPDATE_CONFIG,
        address,
        f"{Header.COMMAND:d} 2 {Command.BUS_MASTER:d} {Command.BUS_MASTER if on else 0:d}",
    )


def is_alive(value: str) -> bool:
    """Whether what read_command_step has read is an answer."""
    return len(value) == 8 and int(value, 16) != _ONES


def is_bus_master(value: str) -> bool:
    """Bus Master Enable in what read_command_step has read."""
    return is_alive(value) and bool(bytes.fromhex(value)[0] & Command.BUS_MASTER)


def read_signs(value: str) -> Signs:
    """What read_all_step has read of a PF."""
    config = bytes.fromhex(value)
    if len(config) < FIRST_EXTENDED_CAPABILITY or _long(config, Header.COMMAND) == _ONES:
        return Signs()
    decodes = config[Header.COMMAND] & _DECODES
    keeps = bool(decodes) and any(_long(config, bar) & ~0xF for bar in _BARS)
    place = _find_sriov(config)
    if not place:
        return Signs(True, keeps)
    control = _word(config, place + Sriov.CONTROL)
    return Signs(True, keeps, bool(control & SriovControl.VF_ENABLE), _word(config, place + Sriov.NUM_VFS))


def _find_sriov(config: bytes) -> int:
    """Where the SR-IOV capability is; 0 for nowhere."""
    place = FIRST_EXTENDED_CAPABILITY
    for _ in range(_LINKS_AT_MOST):
        if place < FIRST_EXTENDED_CAPABILITY or place + 0x40 > len(config):
            return 0
        header = _long(config, place)
        if header & 0xFFFF == ExtendedCapabilityId.SRIOV:
            return place
        place = header >> 20 & 0xFFC
    return 0


def _long(config: bytes, place: int) -> int:
    return int.from_bytes(config[place : place + 4], "little")


def _word(config: bytes, place: int) -> int:
    return int.from_bytes(config[place : place + 2], "little")
