"""Which policies a PF has, and what they amount to.

Rule: all policies that match a PF count alike, whatever their files' names; where two differ, neither
counts for that PF, and the problem names both. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sriovd.core.inventory import Function
from sriovd.core.policy.combine import combine_wishes
from sriovd.core.policy.globs import matches_glob
from sriovd.core.policy.model import PfWish, Policy
from sriovd.core.policy.problems import Findings, Problem
from sriovd.core.policy.schema import Match
from sriovd.core.policy.wish_rules import check_wish

_CLASSES: Mapping[str, str] = {
    "network": "02",
    "nvme": "010802",
}  # the PCI Code and ID Assignment specification


@dataclass(frozen=True, slots=True)
class Decision:
    """What a PF shall look like. `wish`: None when no policy matches it, or when they contradict each other.
    `sources`: those that match. `conflicts`: how they contradict."""

    wish: PfWish | None = None
    sources: tuple[str, ...] = ()
    conflicts: tuple[Problem, ...] = ()


def decide(policies: Iterable[Policy], pf: Function) -> Decision:
    """What `policies` amount to for `pf`."""
    matching = [policy for policy in policies if matches(policy.match, pf)]
    sources = tuple(policy.source for policy in matching)
    if len(matching) <= 1:
        return Decision(next((policy.wish for policy in matching), None), sources)
    conflicts = Findings()
    wish = combine_wishes([policy.wish for policy in matching], str(pf), conflicts.add)
    for problem in check_wish(wish):
        conflicts.add(problem)
    found = conflicts.list(matching[0].source.rpartition(":")[0])
    return Decision(None if found else wish, sources, found)


def matches(match: Match, pf: Function) -> bool:
    """Whether `pf` is a PF that `match` means."""
    if pf.physical is None:
        return False
    return all(not choices or any(fits(pf, each) for each in choices) for choices, fits in _pair(match))


Fits = Callable[[Function, str | int], bool]


def _pair(match: Match) -> Iterable[tuple[tuple[str | int, ...], Fits]]:
    """What is asked for, with how it is looked up."""
    return (
        (match.address, lambda pf, glob: matches_glob(str(pf.address), str(glob))),
        (match.vendor, lambda pf, number: pf.facts.vendor_id == _to_number(number)),
        (match.device, lambda pf, number: pf.facts.device_id == _to_number(number)),
        (
            match.device_class,
            lambda pf, text: f"{pf.facts.class_code:06x}".startswith(_to_prefix(str(text))),
        ),
        (match.driver, lambda pf, glob: bool(pf.facts.driver) and fnmatchcase(pf.facts.driver, str(glob))),
        (
            match.netdev,
            lambda pf, glob: any(fnmatchcase(each, str(glob)) for each in pf.facts.net_interfaces),
        ),
        (match.slot, lambda pf, glob: matches_glob(pf.adapter, str(glob))),
    )


def _to_number(number: str | int) -> int:
    return number if isinstance(number, int) else int(number, 16)


def _to_prefix(device_class: str) -> str:
    return _CLASSES.get(device_class) or device_class.lower().removeprefix("0x")
