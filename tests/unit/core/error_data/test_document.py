"""The document: what kind of error it tells of, the trace that it ends with, and the same as text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.error_data.error_data import ErrorData
from sriovd.core.error_data.text import render
from sriovd.core.errors import LockedOut
from sriovd.core.inspect.inspector import Inspector
from sriovd.core.inspect.site import Site, Subject
from sriovd.core.inspect.vocabulary import Shown
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.bundle import Bundle, BundleKind
from sriovd.core.recovery.record import AdapterPe, Place, VfPe
from sriovd.core.recovery.standing import BundleHead
from sriovd.core.recovery.titles import Concern
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, Record, RecordType, Status

PF, VF = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:10.2")
SUBJECT = Subject(VF, (PF, 1), lease=7)
RECORD = Record(
    RecordType.RECOVERY, Direction.NONE, Status.OK, VF, "locked-out", "its adapter",
    time_nsec=1_500_000_000, latency_nsec=20, transaction=3, parent=2,
)  # fmt: skip
KINDS = [
    (AdapterState.ONLINE, VfState.ONLINE, None, "none"),
    (AdapterState.COLLECTING, VfState.LOCKED_OUT, None, "recoverable"),
    (AdapterState.ONLINE, VfState.FROZEN_OWN, None, "recoverable"),
    (AdapterState.ONLINE, VfState.ONLINE, BundleKind.FREEZE, "recoverable"),
    (AdapterState.ONLINE, VfState.ONLINE, BundleKind.GIVE_UP, "unrecoverable"),
    (AdapterState.ONLINE, VfState.FAILED, BundleKind.FREEZE, "unrecoverable"),
    (AdapterState.QUARANTINED, VfState.LOCKED_OUT, BundleKind.FREEZE, "unrecoverable"),
    (AdapterState.REMOVED, VfState.REMOVED, None, "unrecoverable"),
]


@dataclass(frozen=True)
class FakeSite:
    """Recovery, and the trace, as a test wants them."""

    adapter: AdapterState
    vf_state: VfState
    bundle: BundleKind | None
    kept: Bundle | None = None

    @property
    def desk(self) -> FakeSite:
        return self

    def heads_of(self, _subject: Subject) -> list[tuple[BundleHead, Concern]]:
        return [(BundleHead(4, 17, self.bundle, "x"), Concern.ADAPTER)] if self.bundle else []

    def pes_at(self, place: Place) -> tuple[AdapterPe, VfPe]:
        reason = "0000:01:10.4 met a fatal error"
        return AdapterPe("0000:01:00", self.adapter, reason), VfPe(*place, self.vf_state, reason=reason)

    async def read_bundle(self, number: int, _form: str) -> str:
        if self.kept is not None:
            return json.dumps(self.kept.to_dict())
        assert self.bundle is not None
        return json.dumps(Bundle(number, "0000:01:00", self.bundle, 17, "x", "y").to_dict())

    def tail(self, place: Place, lease: int) -> Sequence[Record]:
        assert (place, lease) == (SUBJECT.place, SUBJECT.lease)
        return [RECORD]


class LockedInspector:
    """Of a VF that nobody may read from."""

    async def inspect(self, _subject: Subject, _name: str) -> Shown:
        raise LockedOut("It is locked out.")


def collect(site: FakeSite, subject: Subject = SUBJECT) -> dict[str, Any]:
    made = ErrorData(cast(Site, site), cast(Inspector, LockedInspector()))
    return asyncio.run(made.collect(subject))


@pytest.mark.parametrize(("adapter", "vf", "bundle", "kind"), KINDS)
def test_what_kind_of_error_it_is(
    adapter: AdapterState, vf: VfState, bundle: BundleKind | None, kind: str
) -> None:
    document = collect(FakeSite(adapter, vf, bundle))
    assert document["kind"] == kind
    assert "0000:01:10.4" not in json.dumps(document)
    assert "0000:01:10.4" not in render(document)


def test_the_trace_and_what_is_missing() -> None:
    document = json.loads(json.dumps(collect(FakeSite(*KINDS[1][:3]))))
    assert document["now"] == {"config": "", "registers": [], "missing": "It is locked out."}
    assert document["trace"] == [
        {
            "transaction": 3, "parent": 2, "time_nsec": 1_500_000_000, "latency_nsec": 20,
            "type": "recovery", "direction": "none", "status": "ok", "operation": "locked-out", "errno": 0,
            "arguments": "its adapter", "lost": 0,
        }
    ]  # fmt: skip
    text = render(document)
    for line in (
        "[1.500000] 3 by 2 recovery locked-out its adapter: ok",
        "  It is locked out.",
        "recoverable",
    ):
        assert line in text, text


def test_names_lose_what_a_terminal_would_obey() -> None:
    document = collect(FakeSite(*KINDS[0][:3])) | {"vf": "\x1b[2J"}
    assert "\x1b" not in render(document)


@pytest.mark.parametrize(
    ("taken_monotonic_usec", "since_usec", "shown"),
    [
        (100_000_000, 970_000_000, 1),  # the lease began 30 s before, at 70 s of that boot
        (100_000_000, 930_000_000, 2),
        (100_000_000, 995_000_000, 0),
        (0, 930_000_000, 0),  # taken by a former release
        (0, 0, 2),  # asked by an operator
    ],
)
def test_what_was_before_the_lease_is_not_its_owners_in_whichever_boot_that_was(
    taken_monotonic_usec: int, since_usec: int, shown: int
) -> None:
    errors = tuple(
        ErrorRecord(address, Severity.NONFATAL, 1 << 12, (), seconds * 1_000_000)
        for address in (VF, PF)
        for seconds in (60, 90)
    )
    bundle = Bundle(
        4, "0000:01:00", BundleKind.FREEZE, 1_000_000_000, "x", "y", records=errors,
        kernel_log=(f"[60.5] vfio-pci {VF}: a", f"[90.5] vfio-pci {VF}: b"),
        actions=(f"[60.5] resetting {VF}: done", f"[90.5] resetting {VF}: done"),
        taken_monotonic_usec=taken_monotonic_usec,
    )  # fmt: skip
    site = FakeSite(AdapterState.ONLINE, VfState.ONLINE, BundleKind.FREEZE, bundle)
    error = collect(site, replace(SUBJECT, since_usec=since_usec))["error"]
    told = [len(error[name]) for name in ("records", "adapter_errors", "kernel_log", "actions")]
    assert told == [shown] * 4
