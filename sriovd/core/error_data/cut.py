"""A forensic bundle, cut to what concerns one VF. Pure.

Rule: default deny. What is taken over is listed here, field by field; free text only when it is about this
VF and names nobody else (discretion.py). Of PFs and ports there is severity, names of error bits and time,
but no TLP header: that may hold another VF's requester id and addresses. What sriovd wrote about the whole
adapter (title, reason, notes, what was left out) is said anew from the VF's point of view.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.discretion import is_about
from sriovd.core.recovery.bundle import Bundle, BundleKind, FunctionRole
from sriovd.core.recovery.standing import Counters
from sriovd.core.recovery.titles import Concern
from sriovd.pci import PciAddress
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES, bit_names

OwnCounters = Mapping[Severity, Mapping[str, int]]

_NAMES = {
    Severity.CORRECTED: CORRECTABLE_NAMES,
    Severity.NONFATAL: UNCORRECTABLE_NAMES,
    Severity.FATAL: UNCORRECTABLE_NAMES,
}
_TITLES = {
    (BundleKind.FREEZE, Concern.OWN): "frozen by an error of its own",
    (BundleKind.FREEZE, Concern.ADAPTER): "frozen by an error of its adapter",
    (BundleKind.GIVE_UP, Concern.OWN): "given up after an error of its own",
    (BundleKind.GIVE_UP, Concern.ADAPTER): "given up with its adapter",
}
_DRIVER = re.compile(r"[a-z][a-z0-9_-]{0,31}", re.ASCII | re.IGNORECASE)
_STAMP = r"\[ *(?P<seconds>\d+\.\d+)\] "  # core/recovery/bundle.py stamp(); negative: of an earlier boot
# How the kernel logs what is about a device (drivers/base/core.c dev_printk): its driver, its address, text.
_LOGGED = _STAMP + r"(?:[\w-]+ )?{vf}: "
# What sriovd does to one VF: the title of a script (core/scripts.py), and how that ended.
_ACTION = (
    _STAMP
    + r"(?:resetting|unbinding|binding|reading|setting) (?:[a-z-]+ of )?{vf}(?: to [\w-]+)?: [\w ,.:-]*"
)


@dataclass(frozen=True, slots=True)
class AdapterError:
    """An error of the PF, or of a port above it (`of`), as far as a VF's owner is told."""

    of: str
    severity: Severity
    errors: tuple[str, ...]
    at_usec: int


@dataclass(frozen=True, slots=True)
class Cut:
    """What a VF's owner is told of one bundle. `config`: of the VF, when the bundle was taken; empty when it
    could not be read. `records`: its own errors. Times of errors are CLOCK_MONOTONIC, `taken_usec`
    CLOCK_REALTIME."""

    number: int
    kind: BundleKind
    taken_usec: int
    title: str
    driver: str
    config: bytes
    records: tuple[ErrorRecord, ...]
    adapter_errors: tuple[AdapterError, ...]
    counters_before: OwnCounters
    counters_after: OwnCounters
    kernel_log: tuple[str, ...]
    actions: tuple[str, ...]


def cut_bundle(bundle: Bundle, vf: PciAddress, pf: PciAddress, why: Concern, since_usec: int = 0) -> Cut:
    """The part of `bundle` that concerns the VF at the address `vf`, of the PF at `pf`. `why`: it does.
    `since_usec`: CLOCK_MONOTONIC; what was before that is a former owner's."""
    dump = next((each for each in bundle.functions if each.address == vf), None)
    return Cut(
        number=bundle.number,
        kind=bundle.kind,
        taken_usec=bundle.taken_usec,
        title=_TITLES[bundle.kind, why],
        driver=dump.driver if dump is not None and _DRIVER.fullmatch(dump.driver) else "",
        config=dump.config if dump is not None else b"",
        records=tuple(each for each in bundle.records if each.address == vf and each.at_usec >= since_usec),
        adapter_errors=tuple(
            each for each in _list_adapter_errors(bundle, vf, pf) if each.at_usec >= since_usec
        ),
        counters_before=_own_counters(bundle.counters_before, vf),
        counters_after=_own_counters(bundle.counters_after, vf),
        kernel_log=_lines_like(_LOGGED, bundle.kernel_log, vf, since_usec),
        actions=_lines_like(_ACTION, bundle.actions, vf, since_usec, whole=True),
    )


def name_errors(record: ErrorRecord) -> tuple[str, ...]:
    """The kernel's names of what it tells of."""
    return bit_names(record.status, _NAMES[record.severity])


def _list_adapter_errors(bundle: Bundle, vf: PciAddress, pf: PciAddress) -> Iterable[AdapterError]:
    """Those of functions that are known to be PF or port; of what is not known nothing is told."""
    roles = {each.address: each.role for each in bundle.functions} | {pf: FunctionRole.PF}
    for record in bundle.records:
        role = roles.get(record.address, FunctionRole.VF)
        if record.address != vf and role is not FunctionRole.VF:
            yield AdapterError(role.value, record.severity, name_errors(record), record.at_usec)


def _own_counters(counters: Counters, vf: PciAddress) -> OwnCounters:
    """By the names that are the kernel's."""
    return {
        severity: {
            name: count
            for name, count in names.items()
            if name == "total" or name in _NAMES[severity].values()
        }
        for severity, names in counters.get(vf, {}).items()
    }


def _lines_like(
    form: str, lines: Iterable[str], vf: PciAddress, since_usec: int, *, whole: bool = False
) -> tuple[str, ...]:
    """The lines since then that begin like `form`, or are so as a whole, and name nobody else."""
    pattern = re.compile(form.format(vf=re.escape(str(vf))), re.ASCII)
    matches = map(pattern.fullmatch if whole else pattern.match, lines)
    return tuple(
        each.string
        for each in matches
        if each and float(each["seconds"]) * 1e6 >= since_usec and is_about(each.string, vf)
    )
