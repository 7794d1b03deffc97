"""What a policy says: the values that the rest of the daemon reads, each with the place where it is written.

Rule: None means that nobody wishes anything, and that it is left alone. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sriovd.backend.vf_attributes import FIELD_NAMES, Value, VfAttributes
from sriovd.core.policy.problems import Place
from sriovd.core.policy.ranges import Span
from sriovd.core.policy.schema import Match, Repair
from sriovd.core.recovery.vocabulary import Permission, Response, Rung, Storm
from sriovd.core.recovery.wish import RecoveryWish

STABLE = "stable"
ADDRESSES = ("mac", "node_guid", "port_guid")  # no two VFs may have the same


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and where it is written. A list is one text, its elements with commas between."""

    value: Value
    place: Place


# What the values of RecoveryTable stand for.
_FROM_TEXT: Mapping[str, Callable[[Any], Any]] = {
    "correctable_storm": Storm,
    "storm_threshold": int,
    "non_fatal": Response,
    "fatal": Response,
    "rungs": lambda names: tuple(rung for rung in Rung if rung in names.split(", ")),
    "permission": Permission,
    "grace_sec": int,
    "close_sec": int,
}

# By the names of FunctionsTable, VfTable or RecoveryTable in the schema.
Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class VfWish:
    """What one VF shall look like. `driver`: a name, `default` or `none`. `stable_mac`: it shall have the
    address that sriovd keeps for it; `attributes.mac` is None then."""

    attributes: VfAttributes
    driver: str | None
    stable_mac: bool


@dataclass(frozen=True, slots=True)
class VfRange:
    """What is wished for the VFs of `span`, the defaults included. `tables`: where they are named."""

    span: Span
    settings: Settings
    tables: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class PfWish:
    """What one PF shall look like. `ranges`: in order, none overlapping; `defaults`: all other VFs, the
    driver of [functions] included; `errors`: what is done about them."""

    functions: Settings = field(default_factory=dict)
    defaults: Settings = field(default_factory=dict)
    ranges: tuple[VfRange, ...] = ()
    errors: Settings = field(default_factory=dict)

    @property
    def recovery(self) -> RecoveryWish:
        """What is done about errors, with the defaults of what nothing is said of."""
        values = {name: _FROM_TEXT[name](setting.value) for name, setting in self.errors.items()}
        return RecoveryWish(**values)

    @property
    def num_vfs(self) -> int | None:
        """How many VFs."""
        setting = self.functions.get("num_vfs")
        return None if setting is None else int(setting.value)

    @property
    def driver(self) -> str | None:
        """The driver of VFs of which nothing else is said."""
        return _driver_of(self.defaults)

    @property
    def repair(self) -> Repair:
        """Whether a difference that came later is repaired or only reported."""
        setting = self.functions.get("repair")
        return Repair.ALWAYS if setting is None else Repair(str(setting.value))

    @property
    def reaches_defaults(self) -> bool:
        """Whether there can be a VF of which nothing but the defaults is said."""
        named = sum(each.span.last - each.span.first + 1 for each in self.ranges)
        return self.num_vfs is None or named < self.num_vfs

    def fixed_addresses(self) -> Mapping[tuple[str, str], Place]:
        """The addresses that VFs shall have by name and value, and where that is written."""
        settings = ((name, kind[name]) for kind in self.kinds() for name in ADDRESSES if name in kind)
        return {
            (name, str(setting.value).lower()): setting.place
            for name, setting in settings
            if setting.value != STABLE
        }

    def kinds(self) -> Iterator[Settings]:
        """The settings of every VF that there can be, once for those that are alike."""
        if self.reaches_defaults:
            yield self.defaults
        yield from (each.settings for each in self.ranges)

    def vf(self, index: int) -> VfWish:
        """What VF `index` shall look like."""
        return make_vf_wish(self.settings_of(index))

    def settings_of(self, index: int) -> Settings:
        """What is written about VF `index`."""
        after = bisect_right(self.ranges, index, key=lambda each: each.span.first)
        if after and index <= self.ranges[after - 1].span.last:
            return self.ranges[after - 1].settings
        return self.defaults


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy. `source`: file and line of it."""

    source: str
    match: Match
    wish: PfWish


def make_vf_wish(settings: Settings) -> VfWish:
    """The wish that `settings` of a VF amount to."""
    values = {name: settings[name].value for name in FIELD_NAMES if name in settings}
    stable = values.get("mac") == STABLE
    if stable:
        del values["mac"]
    return VfWish(VfAttributes(**values), _driver_of(settings), stable)  # type: ignore[arg-type]


def _driver_of(settings: Settings) -> str | None:
    setting = settings.get("driver")
    return None if setting is None else str(setting.value)
