"""The trace of one VF: ids, causes, and what is kept."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.steps import Chain, ChainResult, Step, StepResult, Verb
from sriovd.core.errors import BindFailed, LockedOut
from sriovd.core.trace.notes import Mark, Note
from sriovd.core.trace.stream import Stream
from sriovd.core.trace.transaction import CURRENT, outcome_of, transaction
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, Record, RecordType, Status

VF = PciAddress.parse("0000:01:10.2")


def make_note(operation: str = "something", mark: Mark | None = None) -> Note:
    return Note(RecordType.NOTE, Direction.NONE, Status.OK, operation, mark=mark)


def make_stream(kept: int = 100) -> Stream:
    return Stream(VF, kept)


def make_chain(*steps: tuple[Verb, int]) -> ChainResult:
    results = tuple(StepResult(Step(verb, VF, "vfio-pci"), errno, "", 100) for verb, errno in steps)
    return ChainResult(Chain(VF, tuple(each.step for each in results)), results)


def find(records: Sequence[Record], operation: str) -> Record:
    return next(each for each in records if each.operation == operation)


def test_the_first_record_is_the_vf_and_everything_hangs_below_it() -> None:
    stream = make_stream()
    stream.put(make_note("one"))
    root, one = stream.read()
    assert (root.type, root.transaction, root.parent, root.arguments) == (RecordType.BEGIN, 1, 0, str(VF))
    assert (one.transaction, one.parent) == (2, 1)


def test_a_job_within_a_call_is_below_it_and_its_steps_below_the_job() -> None:
    stream = make_stream()
    with transaction("Lease", "uid 7 (:1.1)"), transaction("PrepareLease", "alice"):
        stream.put(make_chain((Verb.UNBIND, 0), (Verb.BIND, 19)))
    records = stream.read()
    call, job = find(records, "Lease"), find(records, "PrepareLease")
    unbind, bind = find(records, "unbind"), find(records, "bind")
    assert (call.parent, job.parent, unbind.parent, bind.parent) == (
        1, call.transaction, job.transaction, job.transaction,
    )  # fmt: skip
    assert (bind.status, bind.errno, bind.latency_nsec) == (Status.FAILED, 19, 100_000)
    assert bind.time_nsec - unbind.time_nsec == 100_000
    ends = [each for each in records if each.type is RecordType.END]
    assert [each.transaction for each in ends] == [job.transaction, call.transaction]
    assert [each.parent for each in ends] == [job.parent, call.parent]


def test_a_transaction_that_does_nothing_to_the_vf_is_not_in_its_trace() -> None:
    stream = make_stream()
    with transaction("SetNumVFs", "uid 0"):
        pass
    stream.put(make_note())
    assert [each.operation for each in stream.read()] == ["vf", "something"]


def test_what_an_error_says_is_told_to_who_asked_only() -> None:
    stream = make_stream()
    for own in (True, False):
        with pytest.raises(LockedOut), transaction("Unfreeze", "uid 7") as call:
            if own:
                call.spoken_for.add(stream)
            stream.put(None)
            raise LockedOut("another VF's address is in here")
    first, second = (each for each in stream.read() if each.type is RecordType.END)
    assert (first.direction, first.arguments) == (
        Direction.TO_OWNER, "LockedOut: another VF's address is in here",
    )  # fmt: skip
    assert (second.direction, second.arguments) == (Direction.NONE, "")
    assert (first.status, second.status) == (Status.REFUSED, Status.OK)
    assert outcome_of(BindFailed("x")).status is Status.FAILED
    assert outcome_of(RuntimeError("x")).status is Status.FAILED


def test_who_asks_is_told_where_the_owner_has_asked_only() -> None:
    stream = make_stream()
    with transaction("SetNumVFs", "uid 0 (:1.5)"), transaction("Apply", "bob (uid 8)"):
        stream.put(make_note())
    with transaction("Release", "uid 7 (:1.7)") as call, transaction("CleanLease", "alice (uid 7)"):
        call.spoken_for.add(stream)
        stream.put(make_note())
    begun = {each.operation: each.arguments for each in stream.read() if each.type is RecordType.BEGIN}
    assert (begun["SetNumVFs"], begun["Apply"]) == ("", "")
    assert (begun["Release"], begun["CleanLease"]) == ("for uid 7 (:1.7)", "for alice (uid 7)")


def test_a_transaction_has_begun_where_its_end_follows_whenever_that_is_read() -> None:
    streams = make_stream(), make_stream()
    streams[0].sink = Sink()
    for stream in streams:
        with transaction("Reset", "x"):
            stream.put(make_note())
    told, read = (find(stream.read(), "Reset").status for stream in streams)
    assert told is read is Status.BEGUN


def test_what_follows_an_error_hangs_below_the_freeze_until_the_vf_is_online() -> None:
    stream = make_stream()
    stream.put(make_note("lease", Mark.LEASE))
    stream.put(make_note("error", Mark.ERROR))
    stream.put(make_note("frozen", Mark.INCIDENT))
    stream.put(make_note("frozen again", Mark.INCIDENT))
    with transaction("Unfreeze", "alice"):
        stream.put(None)
    stream.put(make_note("online", Mark.END_OF_INCIDENT))
    stream.put(make_note("later"))
    records = stream.read()
    lease, error, frozen = (find(records, name) for name in ("lease", "error", "frozen"))
    assert (error.parent, frozen.parent) == (lease.transaction, error.transaction)
    for name in ("frozen again", "Unfreeze", "online"):
        assert find(records, name).parent == frozen.transaction, name
    assert find(records, "later").parent == lease.transaction


def test_a_task_that_outlives_its_call_is_below_it_all_the_same() -> None:
    stream = make_stream()

    async def play() -> None:
        async def later() -> None:
            await asyncio.sleep(0)
            stream.put(make_note("later"))

        with transaction("Lease", "alice"):
            task = asyncio.create_task(later())
        assert CURRENT.get() is None
        await task

    asyncio.run(play())
    _, call, later = stream.read()
    assert (call.operation, call.status, later.parent) == ("Lease", Status.OK, call.transaction)


class Sink:
    def __init__(self) -> None:
        self.written: list[Record] = []

    def write(self, record: Record) -> None:
        self.written.append(record)


KINDS = st.lists(
    st.sampled_from(["note", "chain", "call", "nested", "read", "sink", "error", "frozen", "online"])
)


@given(KINDS)
def test_ids_rise_by_one_and_causes_come_first_whenever_it_is_read(kinds: list[str]) -> None:
    stream, sink = make_stream(1000), Sink()
    marks = {"error": Mark.ERROR, "frozen": Mark.INCIDENT, "online": Mark.END_OF_INCIDENT}
    for kind in kinds:
        match kind:
            case "note" | "error" | "frozen" | "online":
                stream.put(make_note(kind, marks.get(kind)))
            case "chain":
                stream.put(make_chain((Verb.BIND, 0), (Verb.READ_DRIVER, 0)))
            case "call" | "nested":
                with transaction("outer", "x"):
                    with transaction("inner", "x"):
                        stream.put(make_note())
                    stream.put(make_note() if kind == "nested" else None)
            case "read":
                stream.read()
            case "sink" if stream.sink is None:
                sink.written += stream.read()
                stream.sink = sink
    records = list(stream.read())
    fresh = [each.transaction for each in records if each.type is not RecordType.END]
    assert fresh == list(range(1, len(fresh) + 1))
    for place, record in enumerate(records):
        known = {each.transaction for each in records[:place]}
        assert record.parent in known or place == 0
        assert record.type is not RecordType.END or record.transaction in known
    assert stream.sink is None or sink.written == records


def test_what_was_told_before_the_vf_was_known_ends_with_the_rest() -> None:
    early, stream = make_stream(), make_stream()
    stream.put(make_note("first"))
    with transaction("SetNumVFs", "x"), transaction("Apply", "x"):
        early.put(make_note("bind"))
        stream.adopt(early)
    records = stream.read()
    told = [(each.type, each.operation) for each in records]
    assert told[1:] == [
        (RecordType.NOTE, "first"), (RecordType.BEGIN, "SetNumVFs"), (RecordType.BEGIN, "Apply"),
        (RecordType.NOTE, "bind"), (RecordType.END, "Apply"), (RecordType.END, "SetNumVFs"),
    ]  # fmt: skip


def test_an_error_is_told_and_not_kept() -> None:
    """It holds the frames that it came through, and all that is in them."""
    stream = make_stream()
    try:
        with transaction("Unfreeze", "x") as call:
            call.spoken_for.add(stream)
            stream.put(None)
            raise LockedOut("not yet")
    except LockedOut as error:
        kept = weakref.ref(error)
    gc.collect()
    assert kept() is None
    assert stream.read()[-1].arguments == "LockedOut: not yet"


def test_the_oldest_are_dropped_and_counted() -> None:
    stream = make_stream(kept=5)
    for _ in range(9):
        stream.put(make_note())
    assert stream.dropped == 4
    assert [each.transaction for each in stream.read()] == [2, 3, 4, 5, 6]  # the VF itself is the fifth
    assert stream.dropped == 5


def test_after_a_restart_ids_go_on_below_the_same_vf() -> None:
    stream = make_stream()
    stream.put(make_note("lease", Mark.LEASE))
    stream.resume(41)
    stream.put(make_note("later"))
    lease, later = stream.read()
    assert (lease.transaction, lease.parent) == (41, 1)
    assert (later.transaction, later.parent) == (42, 41)
    stream.resume(7)
    assert stream.next_id == 43
