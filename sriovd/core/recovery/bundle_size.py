"""Making a bundle small enough to be kept, and saying what was left out.

Rule: whatever the adapter, its JSON stays below MAX_BYTES. What the error names comes first, then PFs and
the ports above, then the VFs by address.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from sriovd.backend.base import Severity
from sriovd.core.recovery.bundle import Bundle, FunctionDump, FunctionRole, pack_config
from sriovd.core.recovery.decode_space import Space
from sriovd.core.recovery.standing import Counters
from sriovd.pci import PciAddress
from sriovd.pci_registers import LEGACY_CONFIG_BYTES, ExtendedCapabilityId

MAX_BYTES = 1 << 20
FULL_VFS = 8  # with all of their configuration space
_FUNCTIONS_BYTES = 448 << 10  # of JSON, for all dumps together
_DUMP_BYTES = 240  # of JSON around one dump's configuration space and note
_COUNTERS_BYTES = 192 << 10  # of JSON, before and after together
_AER_BYTES = 0x48  # with the root port's registers and the prefix log (PCIe 7.8.4)
_RECORDS = 64
_LINES = 200  # of the kernel's log, and of actions
_LINE_LENGTH = 400
_NAME_LENGTH = 32
_PARTLY = "only the first 256 bytes and AER were kept"


def fit_bundle(bundle: Bundle) -> Bundle:
    """The bundle without what would make it too large; `left_out` and the notes say what that was."""
    named = {record.address for record in bundle.records}
    functions = _fit_functions(bundle.functions, named)
    counted = _rank_counted(bundle, named)
    chosen = _choose_counted(bundle, counted)
    left_out = (
        *_say("functions", bundle.functions, functions),
        *_say("error records", bundle.records, bundle.records[:_RECORDS]),
        *_say("functions' counters", counted, chosen),
        *_say("lines of the kernel's log", bundle.kernel_log, bundle.kernel_log[:_LINES]),
        *_say("actions", bundle.actions, bundle.actions[-_LINES:]),
    )
    return replace(
        bundle,
        title=_plain(bundle.title),
        reason=_plain(bundle.reason),
        functions=functions,
        records=tuple(replace(each, tlp_header=each.tlp_header[:16]) for each in bundle.records[:_RECORDS]),
        counters_before=_fit_counters(bundle.counters_before, chosen),
        counters_after=_fit_counters(bundle.counters_after, chosen),
        kernel_log=tuple(map(_plain, bundle.kernel_log[:_LINES])),
        actions=tuple(map(_plain, bundle.actions[-_LINES:])),
        left_out=(*bundle.left_out, *left_out),
    )


def trim_config(config: bytes) -> bytes:
    """The first 256 bytes, where the extended capabilities are, and all of AER; zeroes for the rest, so that
    everything stays where it was."""
    space = Space(config)
    kept = bytearray(len(config))
    kept[:LEGACY_CONFIG_BYTES] = config[:LEGACY_CONFIG_BYTES]
    for entry in space.walk_extended().entries:
        size = _AER_BYTES if entry.id == ExtendedCapabilityId.AER else 4
        kept[entry.offset : entry.offset + size] = config[entry.offset : entry.offset + size]
    return bytes(kept)


def _fit_functions(dumps: Sequence[FunctionDump], named: set[PciAddress]) -> tuple[FunctionDump, ...]:
    kept: list[FunctionDump] = []
    room, full_vfs = _FUNCTIONS_BYTES, FULL_VFS
    for dump in sorted(dumps, key=lambda each: _importance(each, named)):
        if dump.role is FunctionRole.VF:
            full_vfs -= 1
        fitting = _fit_dump(dump, is_whole=full_vfs >= 0)
        room -= _DUMP_BYTES + len(pack_config(fitting.config)) + 2 * len(fitting.note)
        if room < 0:
            break
        kept.append(fitting)
    return tuple(kept)


def _importance(dump: FunctionDump, named: set[PciAddress]) -> tuple[bool, bool, PciAddress]:
    return dump.address not in named, dump.role is FunctionRole.VF, dump.address


def _fit_dump(dump: FunctionDump, *, is_whole: bool) -> FunctionDump:
    config, note = dump.config, dump.note
    if not is_whole and len(config) > LEGACY_CONFIG_BYTES:
        config, note = trim_config(config), f"{note}; {_PARTLY}" if note else _PARTLY
    return replace(dump, config=config, note=_plain(note), driver=_plain(dump.driver, _NAME_LENGTH))


def _rank_counted(bundle: Bundle, named: set[PciAddress]) -> list[PciAddress]:
    """The functions with counters, those first whose counters tell most."""
    before, after = bundle.counters_before, bundle.counters_after
    counted = [each for each in {**before, **after} if before.get(each) or after.get(each)]
    return sorted(counted, key=lambda each: (each not in named, before.get(each) == after.get(each), each))


def _choose_counted(bundle: Bundle, counted: Sequence[PciAddress]) -> set[PciAddress]:
    """As many of them as there is room for."""
    chosen: set[PciAddress] = set()
    room = _COUNTERS_BYTES
    for address in counted:
        room -= _count_bytes(bundle.counters_before.get(address, {}))
        room -= _count_bytes(bundle.counters_after.get(address, {}))
        if room < 0:
            break
        chosen.add(address)
    return chosen


def _count_bytes(severities: Mapping[Severity, Mapping[str, int]]) -> int:
    """Of JSON, at most: a number has 19 digits, what stands around a function's numbers 128 bytes."""
    return 128 + sum(2 * _NAME_LENGTH + 25 for names in severities.values() for _ in names)


def _fit_counters(counters: Counters, chosen: set[PciAddress]) -> Counters:
    return {
        address: {
            severity: {_plain(name, _NAME_LENGTH): count for name, count in names.items()}
            for severity, names in severities.items()
        }
        for address, severities in counters.items()
        if address in chosen
    }


def _say(what: str, had: Collection[object], kept: Collection[object]) -> list[str]:
    missing = len(had) - len(kept)
    return [f"{missing} {what}"] if missing else []


def _plain(text: str, length: int = _LINE_LENGTH) -> str:
    """Printable ASCII, which takes two bytes of JSON a character at most."""
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in text[:length])
