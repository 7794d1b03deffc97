"""Recorded configuration space: reading it, and walking its capability lists.

Rule: the bytes may be anybody's, cut off or dead. A read past their end is a CutOff, a list that cannot be
right ends where it stops making sense and says so; nothing here loops for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sriovd.pci_registers import FIRST_EXTENDED_CAPABILITY, HEADER_BYTES, LEGACY_CONFIG_BYTES, Header, Status

_MAX_ENTRIES = 96  # of one list: more than any device has


class CutOff(ValueError):
    """The recorded bytes end before what is looked for; the message says where."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A capability: its id and where it begins."""

    id: int
    offset: int


@dataclass(frozen=True, slots=True)
class CapabilityList:
    """The entries in their order, and what is wrong with the rest; empty: nothing."""

    entries: tuple[Entry, ...]
    complaint: str = ""

    def find(self, identity: int) -> int | None:
        """Where the first capability of that id begins."""
        return next((entry.offset for entry in self.entries if entry.id == identity), None)


@dataclass(frozen=True, slots=True)
class Space:
    """The first bytes of a function's configuration space, as many as were recorded."""

    data: bytes

    @property
    def is_dead(self) -> bool:
        """Whether nothing answers: reads are all-ones then (PCIe 2.3.2). A VF's vendor and device are
        all-ones always (9.3.4.1), so the whole header counts."""
        return bool(self.data) and set(self.data[:HEADER_BYTES]) == {0xFF}

    def read(self, offset: int, width: int) -> int:
        """`width` bytes at `offset`. Raises CutOff."""
        if offset + width > len(self.data):
            raise CutOff(f"only {len(self.data)} bytes were recorded, the register is at {offset:#x}")
        return int.from_bytes(self.data[offset : offset + width], "little")

    def walk(self) -> CapabilityList:
        """The list that starts at 34."""
        return _collect(_follow(self))

    def walk_extended(self) -> CapabilityList:
        """The list that starts at 100; empty when none was recorded."""
        return _collect(_follow_extended(self))


def _collect(steps: Iterator[Entry | str]) -> CapabilityList:
    """`steps`: entries, each somewhere else, or a complaint, which ends it."""
    entries: list[Entry] = []
    try:
        for step in steps:
            if isinstance(step, str):
                return CapabilityList(tuple(entries), step)
            if any(step.offset == entry.offset for entry in entries):
                return CapabilityList(tuple(entries), f"the list loops back to {step.offset:#x}")
            if len(entries) == _MAX_ENTRIES:
                return CapabilityList(tuple(entries), f"the list goes on after {_MAX_ENTRIES} entries")
            entries.append(step)
    except CutOff as error:
        return CapabilityList(tuple(entries), f"the list is cut off: {error}")
    return CapabilityList(tuple(entries))


def _follow(space: Space) -> Iterator[Entry | str]:
    """PCIe 7.5.1.1.11: a byte each of id and next; 0 ends it."""
    if not space.read(Header.STATUS, 2) & Status.CAPABILITIES_LIST:
        return
    pointer = int(Header.CAPABILITIES_POINTER)
    while offset := space.read(pointer, 1) & 0xFC:
        if not HEADER_BYTES <= offset < LEGACY_CONFIG_BYTES:
            yield f"the pointer at {pointer:#x} leads to {offset:#x}, into the header"
        yield Entry(space.read(offset, 1), offset)
        pointer = offset + 1


def _follow_extended(space: Space) -> Iterator[Entry | str]:
    """PCIe 7.6.3: id in 15:0, version in 19:16, next in 31:20; a header of zeroes is no capability."""
    offset = FIRST_EXTENDED_CAPABILITY if len(space.data) > FIRST_EXTENDED_CAPABILITY else 0
    while offset:
        if offset < FIRST_EXTENDED_CAPABILITY:
            yield f"a pointer leads to {offset:#x}, out of the extended space"
        header = space.read(offset, 4)
        if header == 0xFFFF_FFFF:
            yield f"{offset:#x} reads all-ones: nothing answers there"
        if header == 0:
            return
        yield Entry(header & 0xFFFF, offset)
        offset = header >> 20 & 0xFFC
