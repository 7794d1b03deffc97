"""Which VF a lease gets: the one of the free VFs that fits the wish and spreads the leases as asked.

Rule: the same candidates, wish and leases give the same VF, whatever their order; a refusal says what was
asked and what stands in the way.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from sriovd.core.errors import InvalidArgument, PoolExhausted
from sriovd.core.scripts import NONE
from sriovd.pci import PciAddress, PciSlot

_CLASS_WORDS = {"network": "02", "nvme": "010802"}  # PCI Code and ID Assignment specification
_NETDEV_GLOB_AT_MOST = 64  # as in policies; matching takes time that grows with the square
_CLASS_PREFIX = re.compile(r"(?:0x)?((?:[0-9a-f]{2}){1,3})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Candidate:
    """What of a VF matters for the choice."""

    address: PciAddress
    pf: PciAddress
    index: int  # 0-based
    numa_node: int  # -1: unknown
    driver: str  # empty: none
    vendor_id: int
    device_id: int
    class_code: int  # 24 bits: base class, subclass, programming interface
    pf_driver: str
    pf_netdevs: tuple[str, ...]


class Spread(StrEnum):
    """How leases are laid over PFs."""

    PF = "pf"  # the PF with the fewest leases first
    PACK = "pack"  # the PF with the most leases first, until it is full
    NUMA = "numa"  # the NUMA node with the fewest leases first, then the PF


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of the VF; None: does not matter. Raises InvalidArgument for a class that is none, and
    for a glob longer than any that is meant."""

    address: PciAddress | None = None
    pf: PciAddress | None = None
    slot: PciSlot | None = None  # of the adapter
    vendor: int | None = None
    device: int | None = None
    pci_class: str | None = None  # "network", "nvme", or the first 2, 4 or 6 hexadecimal digits
    driver: str | None = None  # bound now; "none": no driver
    pf_driver: str | None = None
    netdev: str | None = None  # of the PF, as a glob
    numa_node: int | None = None
    spread: Spread = Spread.PF

    def __post_init__(self) -> None:
        if self.pci_class is not None:
            class_digits(self.pci_class)
        if self.netdev is not None and len(self.netdev) > _NETDEV_GLOB_AT_MOST:
            raise InvalidArgument(
                f"{len(self.netdev)} characters are too many for a network interface.",
                f"Give a name or a glob of at most {_NETDEV_GLOB_AT_MOST}.",
            )


# Field of Wish -> what is compared. A new criterion is a field and a row.
_CRITERIA: dict[str, Callable[[Candidate, Any], bool]] = {
    "address": lambda vf, wanted: vf.address == wanted,
    "pf": lambda vf, wanted: vf.pf == wanted,
    "slot": lambda vf, wanted: vf.pf.slot == wanted,
    "vendor": lambda vf, wanted: vf.vendor_id == wanted,
    "device": lambda vf, wanted: vf.device_id == wanted,
    "pci_class": lambda vf, wanted: f"{vf.class_code:06x}".startswith(class_digits(wanted)),
    "driver": lambda vf, wanted: (vf.driver or NONE) == wanted,
    "pf_driver": lambda vf, wanted: (vf.pf_driver or NONE) == wanted,
    "netdev": lambda vf, wanted: any(fnmatchcase(name, wanted) for name in vf.pf_netdevs),
    "numa_node": lambda vf, wanted: vf.numa_node == wanted,
}
_HEXADECIMAL = ("vendor", "device")


def class_digits(text: str) -> str:
    """The hexadecimal digits that a PCI class asked for as `text` begins with. Raises InvalidArgument."""
    match = _CLASS_PREFIX.fullmatch(_CLASS_WORDS.get(text, text.lower()))
    if match is None:
        raise InvalidArgument(
            f"{text[:64]!r} is not a PCI class.",
            "Give 'network', 'nvme' or the first 2, 4 or 6 hexadecimal digits of the class, e.g. 0200.",
        )
    return match[1]


def choose(
    candidates: Sequence[Candidate],
    wish: Wish,
    pf_load: Mapping[PciAddress, int],
    taken: Sequence[Candidate] = (),
    explain: bool = True,
) -> PciAddress:
    """The VF of `candidates`, which are all free, that fits `wish` best. `pf_load`: PF -> leases on it.
    `taken`: the VFs that are leased, in use or quarantined, for the load of NUMA nodes and for the refusal,
    which says nothing of them, and takes no time for it, unless it is to `explain`. Raises PoolExhausted."""
    asked = _asked(wish)
    matching = [vf for vf in candidates if _fits(vf, asked)]
    if not matching:
        raise _explain(candidates, asked, taken) if explain else refuse(wish)
    node_load = _count_by_node([*candidates, *taken], pf_load)

    def rank(vf: Candidate) -> tuple[int, int, PciAddress]:
        load = pf_load.get(vf.pf, 0)
        if wish.spread is Spread.NUMA:
            return node_load[vf.numa_node], load, vf.address
        return (-load if wish.spread is Spread.PACK else load), 0, vf.address

    return min(matching, key=rank).address


def matches(vf: Candidate, wish: Wish) -> bool:
    """Whether `vf` is what `wish` asks for."""
    return _fits(vf, _asked(wish))


def _fits(vf: Candidate, asked: Mapping[str, object]) -> bool:
    return all(_CRITERIA[field](vf, wanted) for field, wanted in asked.items())


def _count_by_node(vfs: Iterable[Candidate], pf_load: Mapping[PciAddress, int]) -> Counter[int]:
    load: Counter[int] = Counter()
    for pf, node in {vf.pf: vf.numa_node for vf in vfs}.items():  # a VF sits where its PF does
        load[node] += pf_load.get(pf, 0)
    return load


def _asked(wish: Wish) -> dict[str, object]:
    """What matters to `wish`, by field."""
    return {field: wanted for field in _CRITERIA if (wanted := getattr(wish, field)) is not None}


def refuse(wish: Wish) -> PoolExhausted:
    """There is no VF for that, and no more to be told."""
    return PoolExhausted(f"{_say_none_free(_asked(wish))}.", "Ask for less, or later.")


def _say_none_free(asked: Mapping[str, object]) -> str:
    words = ", ".join(_describe(field, wanted) for field, wanted in asked.items())
    return f"No VF is free for a lease with {words}" if words else "No VF is free for a lease"


def _explain(
    candidates: Sequence[Candidate], asked: Mapping[str, object], taken: Sequence[Candidate]
) -> PoolExhausted:
    none_free = _say_none_free(asked)
    known = [*candidates, *taken]
    if not known:
        return PoolExhausted(f"{none_free}: there are no VFs.", "Create some with SetNumVFs.")
    busy = sum(_fits(vf, asked) for vf in taken)
    if busy:
        is_are = "VF that matches is" if busy == 1 else "VFs that match are"
        return PoolExhausted(f"{none_free}: the {busy} {is_are} taken.", "Release one, or create more VFs.")
    excluding = [f for f, wanted in asked.items() if not any(_CRITERIA[f](vf, wanted) for vf in known)]
    if excluding:
        nobody = " and none has ".join(_describe(field, asked[field]) for field in excluding)
        return PoolExhausted(f"{none_free}: of {len(known)} VFs none has {nobody}.", "Ask for less.")
    return PoolExhausted(f"{none_free}: of {len(known)} VFs none has all of that.", "Ask for less.")


def _describe(field: str, wanted: object) -> str:
    name = field.removeprefix("pci_").replace("_", "-")
    return f"{name} {f'{wanted:#06x}' if field in _HEXADECIMAL else wanted}"
