"""A function's recorded configuration space in words, what matters most first.

Rule: any bytes are described, however wrong; a part that makes no sense says so and spoils no other.
"""

from __future__ import annotations

from collections.abc import Iterator

from sriovd.core.recovery.decode_aer import describe_aer, read_uncorrectable
from sriovd.core.recovery.decode_express import describe_express, describe_sriov, is_root
from sriovd.core.recovery.decode_header import describe_header, describe_lists
from sriovd.core.recovery.decode_space import CutOff, Space
from sriovd.pci_registers import CapabilityId, Command, ExtendedCapabilityId, Header

_DEAD = "nothing answers: its configuration space reads all-ones"
_UNREAD = "its configuration space was not read"


def describe_config(config: bytes) -> tuple[str, ...]:
    """Every line that can be said of it: errors, VFs, the link, the header, where its capabilities are."""
    space = Space(config)
    if not config:
        return (_UNREAD,)
    if space.is_dead:
        return (_DEAD,)
    basic, extended = space.walk(), space.walk_extended()
    express = basic.find(CapabilityId.EXPRESS)
    aer, sriov = extended.find(ExtendedCapabilityId.AER), extended.find(ExtendedCapabilityId.SRIOV)
    lines: list[str] = []
    if aer is not None:
        has_sources = express is not None and _is_root(space, express)
        lines += _until_cut("AER", describe_aer(space, aer, has_sources))
    if sriov is not None:
        lines += _until_cut("SR-IOV", describe_sriov(space, sriov))
    if express is not None:
        lines += _until_cut("PCI Express", describe_express(space, express))
    lines += _until_cut("header", describe_header(space))
    return (*lines, *describe_lists(basic, extended))


def summarize_config(config: bytes) -> str:
    """The least that is worth knowing, in one line."""
    if not config:
        return _UNREAD
    space = Space(config)
    if space.is_dead:
        return _DEAD
    try:
        command = space.read(Header.COMMAND, 2)
    except CutOff as error:
        return str(error)
    memory, master = command & Command.MEMORY_SPACE, command & Command.BUS_MASTER
    return f"answers; memory space {'on' if memory else 'off'}, bus master {'on' if master else 'off'}"


def is_in_trouble(config: bytes) -> bool:
    """Whether it does not answer or has logged an uncorrectable error."""
    space = Space(config)
    aer = space.walk_extended().find(ExtendedCapabilityId.AER)
    if space.is_dead or aer is None:
        return space.is_dead
    try:
        return bool(read_uncorrectable(space, aer))
    except CutOff:
        return False


def _is_root(space: Space, express: int) -> bool:
    try:
        return is_root(space, express)
    except CutOff:
        return False


def _until_cut(part: str, lines: Iterator[str]) -> Iterator[str]:
    """What can be said of one part; the recorded bytes may end in it."""
    try:
        yield from lines
    except CutOff as error:
        yield f"  {part} is cut off: {error}"
