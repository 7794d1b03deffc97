"""The error data of one VF: the document that its owner gets.

Rule: it can be had at any time: of a VF that is locked out, given up or away it is made of what is kept in
memory and in the store, and only of one that is in service something is read. README.md, section Error data,
documents the fields; a change that breaks readers makes FORMAT another.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from sriovd.backend.base import ErrorRecord
from sriovd.core.discretion import is_discreet
from sriovd.core.error_data.cut import Cut, OwnCounters, cut_bundle, name_errors
from sriovd.core.errors import InvalidArgument, SriovdError
from sriovd.core.fields import LARGEST_NUMBER
from sriovd.core.inspect.inspector import Inspector
from sriovd.core.inspect.site import Site, Subject
from sriovd.core.inspect.vocabulary import Inspection
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.bundle import Bundle, BundleKind
from sriovd.core.recovery.decode import describe_config
from sriovd.core.recovery.decode_tlp import describe_tlp
from sriovd.core.recovery.record import AdapterPe, VfPe
from sriovd.core.recovery.standing import BundleHead
from sriovd.core.recovery.titles import Concern
from sriovd.trace.record import Record

FORMAT = 1
_GONE = (AdapterState.QUARANTINED, AdapterState.REMOVED)
_LOST = (VfState.FAILED, VfState.REMOVED)

Document = dict[str, Any]


class ErrorData:
    """Makes the documents."""

    def __init__(self, site: Site, inspector: Inspector) -> None:
        self._site = site
        self._inspector = inspector

    async def collect(self, subject: Subject, number: int = 0) -> Document:
        """What is known of the VF's errors. `number`: of the bundle that is meant, 0 for the newest that
        concerns it. Raises InvalidArgument when that is kept of nobody or of others, BackendFailed."""
        heads = self._site.heads_of(subject)
        chosen = _choose(heads, number)
        cut = None if chosen is None else await self._cut(subject, *chosen)
        adapter, vf = self._site.desk.pes_at(subject.place)  # as it is when all of that is read
        return {
            "format": FORMAT,
            "vf": str(subject.address),
            "lease": subject.lease,
            "taken_usec": _now_usec(),
            "kind": _name_kind(adapter, vf, cut),
            "state": _show_state(adapter, vf, subject),
            "bundles": [
                {"number": head.number, "taken_usec": head.taken_usec, "kind": head.kind, "cause": why.value}
                for head, why in heads
            ],
            "error": None if cut is None else _show_cut(cut),
            "trace": [_show_record(each) for each in self._site.tail(subject.place, subject.lease)],
            "now": await self._look(subject),
        }

    async def _cut(self, subject: Subject, head: BundleHead, why: Concern) -> Cut:
        record = json.loads(await self._site.desk.read_bundle(head.number, "json"))
        bundle = Bundle.from_dict(record)
        return cut_bundle(bundle, subject.address, subject.place[0], why, _since_usec(subject, bundle))

    async def _look(self, subject: Subject) -> Document:
        """Its configuration space now, or why that is not read."""
        try:
            shown = await self._inspector.inspect(subject, Inspection.REGISTERS)
        except SriovdError as error:
            return {"config": "", "registers": [], "missing": error.message}
        config = shown["config"]
        assert isinstance(config, bytes)
        return _show_config(config) | {"missing": ""}


def _choose(heads: Sequence[tuple[BundleHead, Concern]], number: int) -> tuple[BundleHead, Concern] | None:
    """A bundle that concerns the VF. One that concerns others only is refused as one that there is not."""
    if not number:
        return heads[-1] if heads else None
    for head, why in heads:
        if head.number == number:
            return head, why
    known = ", ".join(str(head.number) for head, _ in heads) or "none"
    raise InvalidArgument(f"No bundle {number} that concerns this VF is kept.", f"There are: {known}.")


def _since_usec(subject: Subject, bundle: Bundle) -> int:
    """When the lease began by the CLOCK_MONOTONIC of the boot in which the bundle was taken, by which errors
    are told; of a bundle that does not know that, all may have been before."""
    if not subject.since_usec:
        return 0
    if not bundle.taken_monotonic_usec:
        return LARGEST_NUMBER
    return bundle.taken_monotonic_usec - (bundle.taken_usec - subject.since_usec)


def _name_kind(adapter: AdapterPe, vf: VfPe, cut: Cut | None) -> str:
    """'unrecoverable' when sriovd has given up; 'none' when nothing has happened."""
    if adapter.state in _GONE or vf.state in _LOST or (cut and cut.kind is BundleKind.GIVE_UP):
        return "unrecoverable"
    return "recoverable" if cut or vf.state is not VfState.ONLINE else "none"


def _show_state(adapter: AdapterPe, vf: VfPe, subject: Subject) -> Document:
    """`reason` only where it names nobody else: an adapter's may be another VF's error."""
    waits = vf.state in (VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT)
    return {
        "state": vf.state.word,
        "cause": "" if vf.state is VfState.ONLINE else ("own" if vf.own else "propagated"),
        "reason": vf.reason if vf.own and is_discreet(vf.reason, subject.address) else "",
        "since_usec": max(vf.since_usec, subject.since_usec),
        "freezes": vf.budget.counted(_now_usec()),
        "adapter": str(adapter.state),
        "waits_for": "its adapter" if waits else "",
    }


def _show_cut(cut: Cut) -> Document:
    return {
        "number": cut.number,
        "kind": cut.kind.value,
        "taken_usec": cut.taken_usec,
        "title": cut.title,
        "driver": cut.driver,
        **_show_config(cut.config),
        "records": [_show_error(each) for each in cut.records],
        "adapter_errors": [
            {"of": each.of, "severity": each.severity.value, "errors": each.errors, "at_usec": each.at_usec}
            for each in cut.adapter_errors
        ],
        "counters_before": _show_counters(cut.counters_before),
        "counters_after": _show_counters(cut.counters_after),
        "kernel_log": cut.kernel_log,
        "actions": cut.actions,
    }


def _show_config(config: bytes) -> Document:
    return {"config": config.hex(), "registers": describe_config(config)}


def _show_error(record: ErrorRecord) -> Document:
    logged = any(record.tlp_header)
    return {
        "severity": record.severity.value,
        "status": record.status,
        "errors": name_errors(record),
        "tlp_header": [f"{word:08x}" for word in record.tlp_header],
        "tlp": describe_tlp(record.tlp_header) if logged else "",
        "at_usec": record.at_usec,
    }


def _show_counters(counters: OwnCounters) -> Document:
    return {severity.value: dict(names) for severity, names in counters.items()}


def _show_record(record: Record) -> Document:
    return {
        "transaction": record.transaction,
        "parent": record.parent,
        "time_nsec": record.time_nsec,
        "latency_nsec": record.latency_nsec,
        "type": record.type.name.lower(),
        "direction": record.direction.name.lower(),
        "status": record.status.name.lower(),
        "operation": record.operation,
        "errno": record.errno,
        "arguments": record.arguments,
        "lost": record.lost,
    }


def _now_usec() -> int:
    return time.time_ns() // 1000
