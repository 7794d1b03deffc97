"""What traces say of what comes too densely, and of what is missing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity
from sriovd.backend.driver_events import MessagesLost
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
        assert host.engine.recorder._alarm is None
        assert errors_of(host, 0, second.number) == []
        assert errors_of(host)[-1].arguments == f"corrected RxErr ({50 - ERRORS_AT_MOST} times)"


@on_host
async def test_what_is_counted_when_the_daemon_ends_is_told(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease, recorder = await host.lend(ALICE, "alice"), host.engine.recorder
        for _ in range(50):
            recorder.take(make_error())
        recorder.close()
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
