"""Capability lists: walking bytes that may come from anywhere, and linking the lists of the model's own
functions.

Rule: a list from outside is hostile until walked. Every way in which it can be wrong is a CapabilityError
that names the offset; nothing here loops for ever or reads past the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from sriovd.backend.model.configspace import ConfigLayout, ConfigSpace
from sriovd.pci_registers import (
    CAPABILITY_BYTES,
    EXTENDED_CAPABILITY_BYTES,
    FIRST_EXTENDED_CAPABILITY,
    HEADER_BYTES,
    LEGACY_CONFIG_BYTES,
    Header,
    Status,
)

ALL_ONES_32 = 0xFFFF_FFFF


class CapabilityError(ValueError):
    """A capability list that cannot be right; the message names the offset."""


@dataclass(frozen=True, slots=True)
class Capability:
    """One entry of either list: id, offset in bytes, and for extended ones the version (0 otherwise)."""

    id: int
    offset: int
    version: int = 0


class CapabilityProfile(Protocol):
    """A capability as profile data: where it is and which registers it defines."""

    @property
    def offset(self) -> int: ...

    @property
    def id(self) -> int: ...

    def define(self, layout: ConfigLayout) -> None:
        """Define the capability's registers, its header excepted."""


def walk_capabilities(config: ConfigSpace) -> list[Capability]:
    """The list that starts at 34, in its order; empty if Status says that there is none.

    Raises CapabilityError for a loop, a pointer into the header or past byte 255, or a cut-off dump.
    """
    if not config.read(Header.STATUS, 2) & Status.CAPABILITIES_LIST:
        return []
    return list(_follow_legacy(config, Header.CAPABILITIES_POINTER))


def walk_extended_capabilities(config: ConfigSpace) -> list[Capability]:
    """The list that starts at 100, in its order; empty if there is none or the dump stops before it.

    Raises CapabilityError for a loop, a pointer out of range or not aligned, an all-ones header, a cut-off
    capability.
    """
    if config.size <= FIRST_EXTENDED_CAPABILITY or config.read(FIRST_EXTENDED_CAPABILITY, 4) == 0:
        return []
    return list(_follow_extended(config))


def link_capabilities(layout: ConfigLayout, capabilities: Sequence[CapabilityProfile]) -> None:
    """Define `capabilities` and chain them at 34 in the order given."""
    pointer = int(Header.CAPABILITIES_POINTER)
    for capability in capabilities:
        layout.define(pointer, 1, capability.offset)
        layout.define(capability.offset, 1, capability.id)
        capability.define(layout)
        pointer = capability.offset + 1


def link_extended_capabilities(layout: ConfigLayout, capabilities: Sequence[CapabilityProfile]) -> None:
    """Define `capabilities` and chain them in the order given.

    The first has to be at 100. All are version 1.
    """
    if capabilities and capabilities[0].offset != FIRST_EXTENDED_CAPABILITY:
        raise ValueError(
            f"the first extended capability is at {capabilities[0].offset:#x}, must be at 0x100"
        )
    following = [item.offset for item in capabilities[1:]] + [0]
    for capability, next_offset in zip(capabilities, following, strict=True):
        layout.define(capability.offset, 4, next_offset << 20 | 1 << 16 | capability.id)
        capability.define(layout)


def _follow_legacy(config: ConfigSpace, pointer: int) -> Iterator[Capability]:
    seen: set[int] = set()
    while offset := config.read(pointer, 1) & 0xFC:
        _check_step(offset, pointer, seen, HEADER_BYTES, LEGACY_CONFIG_BYTES)
        _check_end(config, offset, 2, "capability")
        identity = config.read(offset, 1)
        _check_end(config, offset, CAPABILITY_BYTES.get(identity, 2), f"capability {identity:#04x}")
        yield Capability(identity, offset)
        pointer = offset + 1


def _follow_extended(config: ConfigSpace) -> Iterator[Capability]:
    seen: set[int] = set()
    offset, pointer = FIRST_EXTENDED_CAPABILITY, 0
    while offset:
        _check_step(offset, pointer, seen, FIRST_EXTENDED_CAPABILITY, config.size)
        header = config.read(offset, 4)
        if header == ALL_ONES_32:
            raise CapabilityError(
                f"extended capability at {offset:#x} reads all-ones: the device does not answer"
            )
        identity = header & 0xFFFF
        _check_end(
            config,
            offset,
            EXTENDED_CAPABILITY_BYTES.get(identity, 4),
            f"extended capability {identity:#06x}",
        )
        yield Capability(identity, offset, header >> 16 & 0xF)
        pointer, offset = offset, header >> 20
        if offset % 4:
            raise CapabilityError(
                f"extended capability pointer at {pointer:#x} is {offset:#x}: not aligned to 4"
            )


def _check_step(offset: int, pointer: int, seen: set[int], first: int, end: int) -> None:
    if not first <= offset < end:
        raise CapabilityError(
            f"capability pointer at {pointer:#x} is {offset:#x}: outside {first:#x} to {end - 1:#x}"
        )
    if offset in seen:
        raise CapabilityError(f"capability list loops: the pointer at {pointer:#x} goes back to {offset:#x}")
    seen.add(offset)


def _check_end(config: ConfigSpace, offset: int, length: int, name: str) -> None:
    if offset + length > config.size:
        raise CapabilityError(
            f"{name} at {offset:#x} needs {length} bytes, the configuration space ends at {config.size:#x}"
        )
