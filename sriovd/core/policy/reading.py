"""From a document to its policies. Rule: a file is right as a whole or not at all, and everything that is
wrong with it is said. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from sriovd.core.policy.combine import combine_settings
from sriovd.core.policy.document import Document
from sriovd.core.policy.globs import can_match_address, can_match_slot
from sriovd.core.policy.locate import Path
from sriovd.core.policy.model import PfWish, Policy, Setting, Settings, VfRange
from sriovd.core.policy.problems import Findings, Problem, show, suggest
from sriovd.core.policy.ranges import Span, find_cover, parse_spans
from sriovd.core.policy.schema import FunctionsTable, Match, RecoveryTable, VfTable
from sriovd.core.policy.tables import TableReader
from sriovd.core.policy.wish_rules import check_setting, check_wish
from sriovd.core.recovery.vocabulary import Rung

_PARTS: Mapping[str, object] = dict.fromkeys(("match", "functions", "vf", "recovery"))
_LIST = "policy"
_DEFAULTS = "defaults"
_TABLES_OF_ONE_VF = 16  # more keys than this there are not, so more tables of one VF say nothing new
_GLOBS: Mapping[str, tuple[Callable[[str], bool], str]] = {
    "address": (can_match_address, "0000:01:00.0"),
    "slot": (can_match_slot, "0000:01:00"),
}
# How a value is written that can be written in several ways, so that equal ones are equal.
_ONE_WAY: Mapping[str, Callable[[Any], Any]] = {
    "mac": str.lower,
    "node_guid": str.lower,
    "port_guid": str.lower,
    "rungs": lambda names: ", ".join(rung for rung in Rung if rung in names),
}


def read_policies(document: Document) -> tuple[tuple[Policy, ...], tuple[Problem, ...]]:
    """The policies of `document`, and what is wrong with it; if anything is, the policies must not be
    used."""
    findings = Findings()
    reader = _PolicyReader(document, findings)
    policies = tuple(reader.read_policy(path, table) for path, table in _find_tables(reader))
    return policies, findings.list(document.file)


def _find_tables(reader: _PolicyReader) -> list[tuple[Path, Mapping[str, Any]]]:
    """The table of each policy, with its path: the top of the document, or each of [[policy]]."""
    top = reader.document.table
    if _LIST not in top:
        return [((), top)]
    for key in top:
        if key in _PARTS:
            reader.blame((key,), "stands beside [[policy]]", "move it into one of them")
    reader.check_keys((), top, {**_PARTS, _LIST: None})
    tables = top[_LIST]
    if not isinstance(tables, list) or not tables:
        reader.blame((_LIST,), f"{show(tables)} is not a list of tables", "write [[policy]]")
        return []
    for index, each in enumerate(tables):
        reader.read_table((_LIST, index), each)
    return [((_LIST, index), each) for index, each in enumerate(tables) if isinstance(each, dict)]


class _PolicyReader(TableReader):
    """Reads the parts of a policy. `path` is that of the table that they are in."""

    def read_policy(self, path: Path, table: Mapping[str, Any]) -> Policy:
        """The policy in `table`, as far as it is right."""
        self.unreadable.clear()
        self.check_keys(path, table, _PARTS if path else {**_PARTS, _LIST: None})
        match = self._read_match((*path, "match"), table)
        wish = self._read_wish(path, table)
        for problem in check_wish(wish, self.unreadable):
            self.findings.add(problem)
        return Policy(str(self.document.place(path or ("match",))), match, wish)

    def _read_match(self, path: Path, table: Mapping[str, Any]) -> Match:
        given = table.get("match", {})
        if given == {}:
            what = "is empty" if "match" in table else "is missing"
            self.blame(
                path, f"{what}, so that no PF is meant", 'give a key such as address = "0000:01:00.*"'
            )
        match = Match(**self.read(Match, path, given))
        for name, (can_match, example) in _GLOBS.items():
            for index, glob in enumerate(getattr(match, name)):
                if not can_match(glob):
                    message = f"no {name} can match {show(glob)}"
                    self.blame((*path, name, index), message, f"write it like {example}, with *, ? or [0-3]")
        return match

    def _read_wish(self, path: Path, table: Mapping[str, Any]) -> PfWish:
        functions = self._read_settings(FunctionsTable, (*path, "functions"), table.get("functions", {}))
        vf_path: Path = (*path, "vf")
        vf = self.read_table(vf_path, table.get("vf", {}))
        own = self._read_settings(VfTable, (*vf_path, _DEFAULTS), vf.get(_DEFAULTS, {}))
        driver = {"driver": functions["driver"]} if "driver" in functions else {}
        defaults = {**driver, **own}
        errors = self._read_settings(RecoveryTable, (*path, "recovery"), table.get("recovery", {}))
        return PfWish(functions, defaults, self._read_ranges(vf_path, vf, defaults), errors)

    def _read_settings(self, kind: type[Struct], path: Path, table: object) -> Settings:
        """The table at `path`, each value with its place."""
        settings = {}
        for name, value in self.read(kind, path, table).items():
            place = self.document.place((*path, name.replace("_", "-")))
            settings[name] = Setting(_ONE_WAY[name](value) if name in _ONE_WAY else value, place)
            for problem in check_setting(name, settings[name]):
                self.findings.add(problem)
        return settings

    def _read_ranges(self, path: Path, vf: Mapping[str, Any], defaults: Settings) -> tuple[VfRange, ...]:
        """What is said of VFs by their indexes, taken apart so that nothing overlaps."""
        own = {key: table for key, table in vf.items() if key != _DEFAULTS}
        found = [self._read_range((*path, key), table) for key, table in own.items()]
        try:
            cover = find_cover([spans for spans, _ in found], _TABLES_OF_ONE_VF)
        except ValueError as error:
            self.blame(path, str(error))
            return ()
        places = [self.document.place((*path, key)) for key in own]
        ranges = []
        for part, covering in cover.items():
            said = combine_settings((found[each][1] for each in covering), "the same VF", self.findings.add)
            ranges.append(VfRange(part, {**defaults, **said}, tuple(places[each] for each in covering)))
        return tuple(ranges)

    def _read_range(self, path: Path, table: object) -> tuple[tuple[Span, ...], Settings]:
        """The VFs that the table at `path` is for, and what it says of them."""
        try:
            spans = parse_spans(str(path[-1]))
        except ValueError as error:
            self.blame(path, str(error), "" if self.findings.full else _suggest_span(str(path[-1])))
            spans = ()
            table = table if isinstance(table, dict) else {}  # a key of [vf.defaults]; enough is said
        return spans, self._read_settings(VfTable, path, table)


def _suggest_span(name: str) -> str:
    if name in (each.replace("_", "-") for each in VfTable.__struct_fields__):
        return f"{name} belongs in [vf.defaults]"
    return suggest(name, [_DEFAULTS]) or 'write [vf.defaults], or indexes like [vf."0,2,4-6"]'
