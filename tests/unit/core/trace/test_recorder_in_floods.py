"""What traces say of what comes too densely, and of what is missing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity
from sriovd.backend.driver_events import MessagesLost
from sriovd.core.lease.choose import Wish
from sriovd.core.trace import tally
from sriovd.core.trace.joining import Telling
from sriovd.core.trace.notes import Note, note_telling
from sriovd.core.trace.tally import ERRORS_AT_MOST
from sriovd.pci import PciAddress
from sriovd.trace.record import Record, RecordType, Status

from ..lease.leasehost import ALICE, BOB, IGB, VF0, World, on_host, until, world
from .test_recorder import operations
from .test_stream import Sink

SOON_NSEC = 300_000_000


def make_error(address: PciAddress = IGB, severity: Severity = Severity.CORRECTED) -> ErrorRecord:
    return ErrorRecord(address, severity, 1, (), time.monotonic_ns() // 1000)


def errors_of(host: World, index: int = 0, lease: int = 0) -> list[Record]:
    records = host.engine.recorder.tail((IGB, index), lease)
    return [each for each in records if each.type is RecordType.ERROR]


@pytest.mark.parametrize(("address", "told"), [(IGB, (True, True)), (VF0, (True, False))])
@on_host
async def test_corrected_errors_that_flood_are_counted_and_push_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: PciAddress, told: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(tally, "WINDOW_NSEC", SOON_NSEC)
    async with world(tmp_path) as host:
        before = [host.engine.recorder.tail((IGB, index)) for index in (0, 1)]
        for _ in range(500):
            host.engine.recorder.take(make_error(address))
        await until(lambda: len(errors_of(host)) > ERRORS_AT_MOST)  # nothing comes that would end it
        for index in (0, 1):
            assert host.engine.recorder.tail((IGB, index))[: len(before[index])] == before[index]
            errors = errors_of(host, index)
            assert len(errors) == (ERRORS_AT_MOST + 1 if told[index] else 0)
        assert errors_of(host)[-1].arguments == f"corrected RxErr ({500 - ERRORS_AT_MOST} times)"
        assert host.engine.recorder._alarm is None  # and nobody is woken up any more


@on_host
async def test_nobody_is_woken_up_for_an_error_now_and_then(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        for _ in range(ERRORS_AT_MOST):
            host.engine.recorder.take(make_error())
        assert host.engine.recorder._alarm is None
        assert len(errors_of(host)) == ERRORS_AT_MOST


@on_host
async def test_errors_that_were_not_corrected_are_told_one_by_one(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        for _ in range(50):
            host.engine.recorder.take(make_error(severity=Severity.NONFATAL))
        assert len(errors_of(host)) == 50


@on_host
async def test_recovery_is_told_of_every_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as host:
        taken: list[KernelEvent] = []
        monkeypatch.setattr(host.engine.recovery._watch, "take", taken.append)
        for _ in range(50):
            host.engine.picture.on_event(make_error())
        assert len(taken) == 50


@on_host
async def test_an_error_of_a_pf_is_put_into_words_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Telling] = []

    def note(telling: Telling, times: int) -> Note:
        made.append(telling)
        return note_telling(telling, times)

    monkeypatch.setattr("sriovd.core.trace.recorder.note_telling", note)
    async with world(tmp_path, vfs=4) as host:
        host.engine.recorder.take(make_error())
        assert [len(errors_of(host, index)) for index in range(4)] == [1] * 4
        assert len(made) == 1


@on_host
async def test_errors_that_were_counted_in_a_lease_are_not_told_in_the_next(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        first = await host.lend(ALICE, "alice")
        for _ in range(50):
            host.engine.recorder.take(make_error())
        await host.leases.release(first.number, force=False)
        second = await host.lend(BOB, "bob")
        host.engine.recorder.flush()
        assert errors_of(host, 0, second.number) == []
        assert errors_of(host)[-1].arguments == f"corrected RxErr ({50 - ERRORS_AT_MOST} times)"


@pytest.mark.parametrize("address", [IGB, VF0])
@on_host
async def test_leases_that_end_all_the_time_undo_no_counting(tmp_path: Path, address: PciAddress) -> None:
    """Each owner is told his own share, and nobody else is told more often for it."""
    async with world(tmp_path, vfs=2) as host:
        recorder, counts = host.engine.recorder, []
        for _ in range(8):
            lease = await host.lend(ALICE, "alice", Wish(address=VF0))
            sink = Sink()
            recorder.attach(lease.number, sink, False)
            for _ in range(10):
                recorder.take(make_error(address))
            recorder.end_lease(lease.number)
            counts.append([each.arguments for each in sink.written if each.type is RecordType.ERROR])
            await host.leases.release(lease.number, force=False)
        corrected = "corrected RxErr"
        assert counts[0] == [corrected] * ERRORS_AT_MOST + [f"{corrected} ({10 - ERRORS_AT_MOST} times)"]
        assert counts[1:] == [[f"{corrected} (10 times)"]] * 7
        recorder.flush()
        others = [f"{corrected} ({80 - ERRORS_AT_MOST} times)"] if address == IGB else []
        assert [each.arguments for each in errors_of(host, 1)][ERRORS_AT_MOST:] == others


@on_host
async def test_a_trace_that_is_stopped_ends_with_what_was_counted(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease, recorder, sink = await host.lend(), host.engine.recorder, Sink()
        for _ in range(3):
            recorder.take(EventsLost("x"))  # before anybody traces
        recorder.attach(lease.number, sink, False)
        for _ in range(10):
            recorder.take(make_error())
            recorder.take(EventsLost("x"))
        recorder.detach(lease.number)
        assert sorted(each.arguments for each in sink.written[-2:]) == [
            f"corrected RxErr ({10 - ERRORS_AT_MOST} times)", "perhaps of this VF (10 times)",
        ]  # fmt: skip
        recorder.attach(lease.number, later := Sink(), False)
        recorder.flush()
        assert later.written == []


@on_host
async def test_what_was_counted_is_told_when_the_adapter_is_gone(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease, recorder, sink = await host.lend(), host.engine.recorder, Sink()
        recorder.attach(lease.number, sink, False)
        for _ in range(10):
            recorder.take(make_error())
        for vf_or_pf in (VF0, IGB):
            host.inventory.drop(vf_or_pf)
        recorder.flush()
        counted = [each.arguments for each in sink.written if each.type is RecordType.ERROR]
        assert counted[-1] == f"corrected RxErr ({10 - ERRORS_AT_MOST} times)"


@on_host
async def test_a_vf_is_not_told_what_was_counted_before_it_was_made(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        for _ in range(10):
            host.engine.recorder.take(make_error())
        await host.set_num_vfs(0)
        await host.set_num_vfs(1)
        await until(lambda: host.engine.recorder.tail((IGB, 0)))
        host.engine.recorder.flush()
        assert errors_of(host) == []


@on_host
async def test_what_was_counted_is_told_before_an_error_that_was_not_corrected(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        for _ in range(10):
            host.engine.recorder.take(make_error())
        host.engine.recorder.take(make_error(severity=Severity.FATAL))
        assert [each.arguments.split()[0] for each in errors_of(host)][-2:] == ["corrected", "fatal"]
        assert host.engine.recorder._alarm is None


@on_host
async def test_what_the_host_has_lost_is_told_to_an_owner_whose_vf_was_just_another_ones(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, vfs=1) as host:
        first, recorder = await host.lend(ALICE, "alice"), host.engine.recorder
        await host.leases.release(first.number, force=False)
        second = await host.lend(BOB, "bob")
        recorder.attach(second.number, sink := Sink(), False)
        recorder.take(MessagesLost(None, 7, time.monotonic_ns() // 1000))
        assert operations(sink.written) == ["messages-lost"]


@on_host
async def test_what_is_counted_when_the_daemon_ends_is_told(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease, recorder = await host.lend(ALICE, "alice"), host.engine.recorder
        for _ in range(50):
            recorder.take(make_error())
        recorder.flush()
        assert recorder._alarm is None
        assert errors_of(host, 0, lease.number)[-1].arguments.endswith(f"({50 - ERRORS_AT_MOST} times)")


@pytest.mark.parametrize(
    ("event", "operation"), [(MessagesLost(None, 7, 0), "messages-lost"), (EventsLost("x"), "events-lost")]
)
@on_host
async def test_what_the_host_has_lost_is_told_to_who_reads_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, event: KernelEvent, operation: str
) -> None:
    monkeypatch.setattr(tally, "WINDOW_NSEC", SOON_NSEC)
    async with world(tmp_path) as host:
        leases, recorder = [await host.lend(), await host.lend()], host.engine.recorder
        recorder.attach(leases[0].number, sink := Sink(), False)
        for _ in range(10):
            recorder.take(event)
        (lost,) = (each for each in sink.written if each.operation == operation)
        assert (lost.type, lost.status) == (RecordType.NOTE, Status.FAILED)
        assert lost.arguments == "perhaps of this VF"
        await until(lambda: operations(sink.written).count(operation) == 2)
        assert sink.written[-1].arguments == "perhaps of this VF (9 times)"
        assert operation not in operations(recorder.tail((IGB, 1), leases[1].number))
