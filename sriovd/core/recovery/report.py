"""A forensic bundle as text for people: what happened, when and why, and what every function looked like.

Rule: what matters most comes first. Names from outside lose what a terminal would obey.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import product

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.recovery.bundle import Bundle, BundleKind, FunctionDump, FunctionRole
from sriovd.core.recovery.decode import describe_config, is_in_trouble, summarize_config
from sriovd.core.recovery.decode_header import name_flags
from sriovd.core.recovery.decode_tlp import describe_tlp
from sriovd.pci import PciAddress
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENTS = {BundleKind.FREEZE: "when it froze", BundleKind.GIVE_UP: "when sriovd gave up on it"}
_ROLES = (FunctionRole.PF, FunctionRole.PORT, FunctionRole.VF)


def render(bundle: Bundle) -> str:
    """The report, with a newline at its end."""
    taken = (_EPOCH + timedelta(microseconds=bundle.taken_usec)).strftime("%Y-%m-%d %H:%M:%S.%f UTC")
    lines = [
        f"Bundle {bundle.number} of adapter {bundle.slot}, taken {_MOMENTS[bundle.kind]}: {taken}",
        bundle.title,
        bundle.reason,
        *_section("Errors that the kernel told of", _list_records(bundle.records)),
        *_section("Functions", _list_functions(bundle)),
        *_section("Error counters that changed", _list_changes(bundle)),
        *_section("Kernel log", bundle.kernel_log),
        *_section("What sriovd did last", bundle.actions),
        *_section("Left out, to keep the bundle small", bundle.left_out),
    ]
    return "".join(f"{_printable(line)}\n" for line in lines)


def _list_changes(bundle: Bundle) -> Iterator[str]:
    """A line for every function and severity whose counters differ; what was not counted is 0."""
    before, after = bundle.counters_before, bundle.counters_after
    yield from (f"{address}: has no counters any more" for address in sorted(before.keys() - after.keys()))
    for address, severity in product(sorted(after), Severity):
        old, new = before.get(address, {}).get(severity, {}), after[address].get(severity, {})
        names = [name for name in {**old, **new} if old.get(name, 0) != new.get(name, 0)]
        names.sort(key=lambda name: name == "total")  # last, else as they come
        if names:
            changes = (f"{name} {old.get(name, 0)} -> {new.get(name, 0)}" for name in names)
            yield f"{address} {severity}: {', '.join(changes)}"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {line}" for line in [*lines] or ["none"])


def _list_records(records: Iterable[ErrorRecord]) -> Iterator[str]:
    for record in records:
        corrected = record.severity is Severity.CORRECTED
        names = name_flags(record.status, CORRECTABLE_NAMES if corrected else UNCORRECTABLE_NAMES)
        what = f"{names} ({record.status:#010x})" if record.status else "its status could not be read"
        yield f"[{record.at_usec / 1e6:.6f}] {record.address} {record.severity}: {what}"
        if any(record.tlp_header):
            words = " ".join(f"{word:08x}" for word in record.tlp_header)
            yield f"  TLP header {words}: {describe_tlp(record.tlp_header)}"


def _list_functions(bundle: Bundle) -> Iterator[str]:
    """In full what the error names, what is in trouble, and what all depends on; VFs that are well in one
    line each."""
    named = {record.address for record in bundle.records}
    ranked = [(_rank(dump, named), dump) for dump in bundle.functions]
    for (is_well, _role, _address), dump in sorted(ranked, key=lambda each: each[0]):
        head = f"{dump.address} ({dump.role}, {dump.driver or 'no driver'})"
        if is_well and dump.role is FunctionRole.VF:
            yield f"{head}: {summarize_config(dump.config)}{f' ({dump.note})' if dump.note else ''}"
            continue
        yield head
        if dump.note:
            yield f"  note: {dump.note}"
        yield from (f"  {line}" for line in describe_config(dump.config))


def _rank(dump: FunctionDump, named: set[PciAddress]) -> tuple[bool, int, PciAddress]:
    is_well = dump.address not in named and not is_in_trouble(dump.config)
    return is_well, _ROLES.index(dump.role), dump.address


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in line)
