"""Advanced error reporting in words: what a function has logged, and what it would say of it.

Rule: PCIe 7.8.4; errors have the kernel's names (sriovd/pci_aer.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from sriovd.core.recovery.decode_header import name_flags
from sriovd.core.recovery.decode_space import Space
from sriovd.core.recovery.decode_tlp import describe_tlp, show_routing_id
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES
from sriovd.pci_registers import AER_FIRST_ERROR_POINTER, Aer

_ROOT_STATUS = {
    0: "ERR_COR received", 1: "several ERR_COR", 2: "ERR_NONFATAL or ERR_FATAL received",
    3: "several ERR_NONFATAL or ERR_FATAL", 4: "the first was fatal", 5: "nonfatal received",
    6: "fatal received",
}  # fmt: skip
_ROOT_STATUS_FLAGS = 0x7F
_HEADER_DWORDS = 4


def read_uncorrectable(space: Space, offset: int) -> int:
    """The uncorrectable errors that are logged. `offset`: of the capability. Raises CutOff."""
    return space.read(offset + Aer.UNCORRECTABLE_STATUS, 4)


def describe_aer(space: Space, offset: int, is_root: bool) -> Iterator[str]:
    """The errors first, then masks and severities. `is_root`: error messages end here. Raises CutOff."""
    yield "AER"
    if is_root:
        yield from _describe_root(space, offset)
    status = read_uncorrectable(space, offset)
    yield f"  uncorrectable {_show(status, UNCORRECTABLE_NAMES)}"
    yield from _describe_first(space, offset, status)
    correctable = space.read(offset + Aer.CORRECTABLE_STATUS, 4)
    yield f"  correctable {_show(correctable, CORRECTABLE_NAMES)}"
    for label, register, names in (
        ("uncorrectable masked", Aer.UNCORRECTABLE_MASK, UNCORRECTABLE_NAMES),
        ("fatal if they come", Aer.UNCORRECTABLE_SEVERITY, UNCORRECTABLE_NAMES),
        ("correctable masked", Aer.CORRECTABLE_MASK, CORRECTABLE_NAMES),
    ):
        yield f"  {label} {_show(space.read(offset + register, 4), names)}"


def _describe_first(space: Space, offset: int, status: int) -> Iterator[str]:
    """The pointer is valid while the bit that it points at is set, and so is the header (7.8.4.7)."""
    first = space.read(offset + Aer.CONTROL, 4) & AER_FIRST_ERROR_POINTER
    if not status >> first & 1:
        return
    yield f"  first error: {name_flags(1 << first, UNCORRECTABLE_NAMES)}"
    log = offset + Aer.HEADER_LOG
    words = tuple(space.read(log + 4 * number, 4) for number in range(_HEADER_DWORDS))
    if any(words):
        yield f"  TLP header {' '.join(f'{word:08x}' for word in words)}: {describe_tlp(words)}"


def _describe_root(space: Space, offset: int) -> Iterator[str]:
    """What the root port was told, and by whom; the sources count only while the status says so."""
    status = space.read(offset + Aer.ROOT_ERROR_STATUS, 4) & _ROOT_STATUS_FLAGS
    yield f"  messages {_show(status, _ROOT_STATUS)}"
    source = space.read(offset + Aer.ERROR_SOURCE, 4)
    if status & 0x1:
        yield f"  correctable error sent by {show_routing_id(source & 0xFFFF)}"
    if status & 0x4:
        yield f"  uncorrectable error sent by {show_routing_id(source >> 16)}"


def _show(value: int, names: dict[int, str]) -> str:
    return f"{value:#010x}: {name_flags(value, names)}"
