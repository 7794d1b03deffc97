"""The forensic bundle: everything that could be learned of an error before anything was done about it.

Rule: a bundle is a value, taken once and never changed. It is kept as JSON, in which configuration space is
compressed; what comes back is believed as little as any record. bundle_size.py keeps it small, report.py
tells it to people.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core import fields
from sriovd.core.recovery.standing import Counters
from sriovd.pci import PciAddress, PciSlot
from sriovd.pci_registers import CONFIG_SPACE_BYTES

_LARGEST_USEC = 253_402_300_799_999_999  # the end of the year 9999, with which calendars end
_LARGEST_DWORD = 2**32 - 1


class BundleKind(StrEnum):
    """When a bundle is taken."""

    FREEZE = "freeze"  # at the error, before anything is reset
    GIVE_UP = "give-up"  # when no rung is left


class FunctionRole(StrEnum):
    """What a function is to the adapter."""

    PF = "PF"
    VF = "VF"
    PORT = "port"  # a bridge above it, up to the root port


@dataclass(frozen=True, slots=True)
class FunctionDump:
    """One function as it was found. `driver`: empty for none. `config`: the first bytes of its configuration
    space, at most 4096; empty when it could not be read. `note`: what is missing of it, and why."""

    address: PciAddress
    role: FunctionRole
    driver: str
    config: bytes
    note: str = ""

    def to_dict(self) -> dict[str, str]:
        """As JSON has it."""
        return {
            "address": str(self.address),
            "role": self.role.value,
            "driver": self.driver,
            "config": pack_config(self.config),
            "note": self.note,
        }

    @classmethod
    def from_dict(cls, data: object) -> FunctionDump:
        """The inverse. Raises ValueError naming the field."""
        return cls(**fields.parse_fields("a function dump", _DUMP_FIELDS, data))


@dataclass(frozen=True, slots=True)
class Bundle:
    """`number`: the store's, 0 before it is kept. `slot`: the adapter. `taken_usec`: CLOCK_REALTIME.
    `title`, `reason`: what has happened, in a few words and in full. `records`: the errors that the kernel
    has told. `counters_before`: when the adapter was last known to be well. `actions`: what sriovd did last.
    Lines of `kernel_log` and `actions` begin with their stamp(), negative for what was before this boot.
    `left_out`: what did not fit, in words. `taken_monotonic_usec`: `taken_usec` by CLOCK_MONOTONIC, by which
    records and lines are told; 0: not known, in what a former release has kept."""

    number: int
    slot: str
    kind: BundleKind
    taken_usec: int
    title: str
    reason: str
    functions: tuple[FunctionDump, ...] = ()
    records: tuple[ErrorRecord, ...] = ()
    counters_before: Counters = field(default_factory=dict)
    counters_after: Counters = field(default_factory=dict)
    kernel_log: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    taken_monotonic_usec: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "number": self.number,
            "slot": self.slot,
            "kind": self.kind.value,
            "taken_usec": self.taken_usec,
            "title": self.title,
            "reason": self.reason,
            "functions": [each.to_dict() for each in self.functions],
            "records": [_record_to_dict(each) for each in self.records],
            "counters_before": _counters_to_dict(self.counters_before),
            "counters_after": _counters_to_dict(self.counters_after),
            "kernel_log": list(self.kernel_log),
            "actions": list(self.actions),
            "left_out": list(self.left_out),
            "taken_monotonic_usec": self.taken_monotonic_usec,
        }

    @classmethod
    def from_dict(cls, data: object) -> Bundle:
        """The inverse. Raises ValueError naming the field when one is missing, unknown, of the wrong type or
        out of its range."""
        if isinstance(data, dict):
            data = {"taken_monotonic_usec": 0, **data}
        return cls(**fields.parse_fields("a bundle", _BUNDLE_FIELDS, data))


def stamp(at_usec: int) -> str:
    """How a line begins that tells of that time (CLOCK_MONOTONIC): as in the kernel's log."""
    return f"[{at_usec / 1e6:.6f}]"


def pack_config(config: bytes) -> str:
    """Configuration space as JSON has it: zlib and base64."""
    return base64.b64encode(zlib.compress(config)).decode()


def unpack_config(value: object) -> bytes:
    """The inverse. Raises ValueError, also for what would become longer than a configuration space."""
    packed = base64.b64decode(fields.text(value), validate=True)
    unpacker = zlib.decompressobj()
    try:
        config = unpacker.decompress(packed, CONFIG_SPACE_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"it cannot be unpacked: {error}") from error
    if len(config) > CONFIG_SPACE_BYTES:
        raise ValueError(f"it is longer than {CONFIG_SPACE_BYTES} bytes")
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("it is cut off, or something follows it")
    return config


def _record_to_dict(record: ErrorRecord) -> dict[str, Any]:
    return {
        "address": str(record.address),
        "severity": record.severity.value,
        "status": record.status,
        "tlp_header": list(record.tlp_header),
        "at_usec": record.at_usec,
    }


def _record_from_dict(data: object) -> ErrorRecord:
    return ErrorRecord(**fields.parse_fields("an error record", _RECORD_FIELDS, data))


def _counters_to_dict(counters: Counters) -> dict[str, Any]:
    return {
        str(address): {severity.value: dict(names) for severity, names in severities.items()}
        for address, severities in counters.items()
    }


def _check_slot(slot: str) -> None:
    PciSlot.parse(slot)


_COUNTERS = fields.table_of(
    fields.address,
    fields.table_of(
        fields.converted(Severity), fields.table_of(fields.text, fields.whole(0, fields.LARGEST_NUMBER))
    ),
)
_RECORD_FIELDS: dict[str, fields.Parser] = {
    "address": fields.address,
    "severity": fields.converted(Severity),
    "status": fields.whole(0, _LARGEST_DWORD),
    "tlp_header": fields.list_of(fields.whole(0, _LARGEST_DWORD)),
    "at_usec": fields.whole(0, fields.LARGEST_NUMBER),
}
_DUMP_FIELDS: dict[str, fields.Parser] = {
    "address": fields.address,
    "role": fields.converted(FunctionRole),
    "driver": fields.text,
    "config": unpack_config,
    "note": fields.text,
}
_BUNDLE_FIELDS: dict[str, fields.Parser] = {
    "number": fields.whole(0, fields.LARGEST_NUMBER),
    "slot": fields.checked(_check_slot),
    "kind": fields.converted(BundleKind),
    "taken_usec": fields.whole(0, _LARGEST_USEC),
    "title": fields.text,
    "reason": fields.text,
    "functions": fields.list_of(FunctionDump.from_dict),
    "records": fields.list_of(_record_from_dict),
    "counters_before": _COUNTERS,
    "counters_after": _COUNTERS,
    "kernel_log": fields.list_of(fields.text),
    "actions": fields.list_of(fields.text),
    "left_out": fields.list_of(fields.text),
    "taken_monotonic_usec": fields.whole(0, fields.LARGEST_NUMBER),
}
