"""Values of the PCI bus that every layer shares. Pure: nothing here reads a file or knows a kernel.

Rule: only facts of the PCI specifications live here, never of Linux (its paths, its errno) nor of a device.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.ASCII)
_SLOT = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])", re.ASCII)
_PARSED_KEPT = 32768  # twice the most VFs that a host is measured with


class AddressError(ValueError):
    """A text that is not a full BDF address; its message names the text and the right form."""


class PciAddress(NamedTuple):
    """The address of one PCI function: domain, bus (0-255), device (0-31), function (0-7).

    With ARI the device and function fields are one 8-bit number; Linux prints them split all the same. A
    tuple, because addresses are the keys of everything, and a dataclass computes its hash in Python.
    """

    domain: int
    bus: int
    device: int
    function: int

    @classmethod
    @lru_cache(maxsize=_PARSED_KEPT)
    def parse(cls, text: str) -> PciAddress:
        """The address written as `dddd:bb:dd.f` in hexadecimal, e.g. `0000:01:10.2`.

        Raises AddressError for anything else: short forms are refused because a domain guessed wrong
        would reach another tenant's device. Remembered, because a host has few addresses, and each is met
        in every event and link.
        """
        match = _ADDRESS.fullmatch(text.lower())
        if match is None:
            raise AddressError(f"{text[:64]!r} is not a PCI address; write it like 0000:01:00.0")
        domain, bus, device, function = (int(part, 16) for part in match.groups())
        return cls(domain, bus, device, function)

    @classmethod
    def from_rid(cls, domain: int, rid: int) -> PciAddress:
        """The address of routing id `rid` (0-0xffff: bus 15:8, device 7:3, function 2:0) in `domain`."""
        if not 0 <= rid <= 0xFFFF:
            raise AddressError(f"routing id {rid:#x} is outside 0 to 0xffff")
        return cls(domain, rid >> 8, rid >> 3 & 0x1F, rid & 7)

    @property
    def rid(self) -> int:
        """The routing id: bus, device and function in 16 bits."""
        return self.bus << 8 | self.device << 3 | self.function

    @property
    def slot(self) -> PciSlot:
        """The slot that this function sits in."""
        return PciSlot(self.domain, self.bus, self.device)

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}.{self.function}"


@dataclass(frozen=True, slots=True, order=True)
class PciSlot:
    """A card's place: domain, bus and device. The PFs that share it are one adapter."""

    domain: int
    bus: int
    device: int

    @classmethod
    def parse(cls, text: str) -> PciSlot:
        """The slot written as `dddd:bb:dd`, e.g. `0000:01:00`. Raises AddressError."""
        match = _SLOT.fullmatch(text.lower())
        if match is None:
            raise AddressError(f"{text[:64]!r} is not a PCI slot; write it like 0000:01:00")
        domain, bus, device = (int(part, 16) for part in match.groups())
        return cls(domain, bus, device)

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.device:02x}"


def vf_address(pf: PciAddress, offset: int, stride: int, index: int) -> PciAddress:
    """The address of VF `index` (0-based) of `pf`: PF + First VF Offset + VF Stride x index.

    PCIe base specification 9.2.1.2; the sum carries into the bus number. Raises AddressError when it
    leaves the domain's last bus.
    """
    return PciAddress.from_rid(pf.domain, pf.rid + offset + stride * index)


def vf_index(pf: PciAddress, offset: int, stride: int, vf: PciAddress) -> int | None:
    """Which VF (0-based) of `pf` sits at `vf`, or None if none does. The inverse of vf_address."""
    distance = vf.rid - pf.rid - offset
    if vf.domain != pf.domain or distance < 0:
        return None
    if stride == 0:
        return 0 if distance == 0 else None
    index, rest = divmod(distance, stride)
    return None if rest else index
