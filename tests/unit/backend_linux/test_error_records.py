"""The subscription to error records, on a tree that stands for tracefs. Buffers are FIFOs."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity
from sriovd.backend.linux.error_records import ErrorRecords
from sriovd.pci import PciAddress
from tests.unit.backend_linux.trace_pages import (
    AER_FORMAT,
    AER_FORMAT_7_2,
    CORRECTED_7_2,
    HEADER_PAGE,
    NONFATAL_7_2,
    RECORDED_NSEC,
    make_page,
    make_record,
)

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import Play, WaitUntil

VF = PciAddress.parse("0000:01:10.2")
TLP = (1, 2, 3, 0xFFFFFFFF)
MISSED_EVENTS = 1 << 31
FRESH = {
    "buffer_size_kb": "1410",
    "trace_clock": "[local] global mono",
    "buffer_percent": "50",
    "tracing_on": "1",
}


class Tracefs:
    """Below `root`, with two CPUs and an instance as a former daemon has left it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.instance = root / "kernel/tracing/instances/sriovd"
        self.add("events/header_page", HEADER_PAGE)
        self.add("instances/sriovd/events/ras/aer_event/format", AER_FORMAT)
        self.add("instances/sriovd/events/ras/aer_event/enable", "0\n")
        for name, text in FRESH.items():
            self.add(f"instances/sriovd/{name}", f"{text}\n")
        self._writers = [self._add_buffer(cpu) for cpu in range(2)]
        self.events: list[KernelEvent] = []
        self.records = ErrorRecords(self.events.append, str(root))

    def add(self, name: str, text: str) -> Path:
        path = self.root / "kernel/tracing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def _add_buffer(self, cpu: int) -> int:
        path = self.instance / f"per_cpu/cpu{cpu}/trace_pipe_raw"
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
        return os.open(path, os.O_RDWR)

    def record(self, cpu: int, page: bytes) -> None:
        os.write(self._writers[cpu], page)

    def setting(self, name: str) -> str:
        return (self.instance / name).read_text()

    def close(self) -> None:
        for fd in self._writers:
            os.close(fd)


@pytest.fixture
def tracefs(tmp_path: Path) -> Tracefs:
    return Tracefs(tmp_path)


def test_records_are_told_as_they_come(tracefs: Tracefs, play: Play, wait_until: WaitUntil) -> None:
    async def story() -> None:
        tracefs.records.start()
        assert tracefs.records.is_open
        assert tracefs.events == []
        tracefs.record(1, make_page(5_000_000, [(7999, make_record(str(VF), 0, 0x4000, TLP))]))
        await wait_until(lambda: bool(tracefs.events))
        tracefs.records.stop()
        assert not tracefs.records.is_open
        assert tracefs.events == [ErrorRecord(VF, Severity.NONFATAL, 0x4000, TLP, 5007)]

    play(story())
    tracefs.close()


@pytest.mark.parametrize("severity", [(1, Severity.FATAL), (2, Severity.CORRECTED)])
def test_a_header_that_was_not_logged_is_not_told(
    tracefs: Tracefs, play: Play, severity: tuple[int, Severity]
) -> None:
    tracefs.record(0, make_page(1000, [(0, make_record(str(VF), severity[0]))]))

    async def story() -> None:
        tracefs.records.start()
        assert tracefs.events == [ErrorRecord(VF, severity[1], 0, (), 1)]
        tracefs.records.stop()

    play(story())


def test_what_linux_7_2_recorded_is_understood(tracefs: Tracefs, play: Play) -> None:
    tracefs.add("instances/sriovd/events/ras/aer_event/format", AER_FORMAT_7_2)
    tracefs.record(0, make_page(RECORDED_NSEC, raw=bytes.fromhex(CORRECTED_7_2)))
    tracefs.record(1, make_page(RECORDED_NSEC, raw=bytes.fromhex(NONFATAL_7_2)))
    pf = PciAddress.parse("0000:01:00.0")
    header = (0x40000001, 0x220F, 0x10000000, 0)

    async def story() -> None:
        tracefs.records.start()
        first, second = tracefs.events
        assert first == ErrorRecord(pf, Severity.CORRECTED, 0x41, (), RECORDED_NSEC // 1000)
        assert isinstance(second, ErrorRecord)
        assert second == ErrorRecord(pf, Severity.NONFATAL, 0x100000, header, second.at_usec)
        assert 0 < second.at_usec - first.at_usec < 1_000_000
        tracefs.records.stop()

    play(story())


def test_records_of_all_cpus_come_in_the_order_of_time(tracefs: Tracefs, play: Play) -> None:
    for cpu, at_usec in ((0, 3), (1, 1)):
        record = make_record(str(VF), 2, at_usec)
        tracefs.record(cpu, make_page(at_usec * 1000, [(0, record), (1_000_000, record)]))

    async def story() -> None:
        tracefs.records.start()  # what was there before is told at once
        assert [event.at_usec for event in tracefs.events if isinstance(event, ErrorRecord)] == [
            1, 3, 1001, 1003,
        ]  # fmt: skip
        tracefs.records.drain()  # nothing there: it does not wait
        assert len(tracefs.events) == 4
        tracefs.records.stop()
        tracefs.records.drain()

    play(story())


def test_lost_records_are_told_before_those_that_follow(tracefs: Tracefs, play: Play) -> None:
    tracefs.record(0, make_page(0, [(0, make_record(str(VF), 2))], flags=MISSED_EVENTS))

    async def story() -> None:
        tracefs.records.start()
        assert [type(event) for event in tracefs.events] == [EventsLost, ErrorRecord]
        tracefs.records.stop()

    play(story())


def test_what_is_not_about_a_function_is_passed_over(
    tracefs: Tracefs, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [
        make_record(str(VF), 2, event=5),
        make_record("mem0", 2),
        make_record(str(VF), 3),
        b"\x44\x05\0\0",
    ]
    tracefs.record(0, make_page(0, [(0, data) for data in (*odd, make_record(str(VF), 2))]))

    async def story() -> None:
        tracefs.records.start()
        assert tracefs.events == [ErrorRecord(VF, Severity.CORRECTED, 0, (), 0)]
        tracefs.records.stop()

    play(story())
    assert len(caplog.records) == 3  # the first is another event's, which is nothing odd


def test_the_end_of_a_buffer_is_no_page(tracefs: Tracefs, play: Play) -> None:
    """Linux 7.2 says of an empty buffer that it is at its end, as a FIFO that nobody writes to."""

    async def story() -> None:
        tracefs.records.start()
        tracefs.record(0, make_page(0, [(0, make_record(str(VF), 2))]))
        tracefs.close()
        tracefs.records.drain()
        assert [type(event) for event in tracefs.events] == [ErrorRecord]
        tracefs.records.stop()

    play(story())


def test_a_page_that_makes_no_sense_ends_nothing(
    tracefs: Tracefs, play: Play, wait_until: WaitUntil
) -> None:
    async def story() -> None:
        tracefs.records.start()
        tracefs.record(0, make_page(0, size=5000))
        await wait_until(lambda: bool(tracefs.events))
        tracefs.record(0, make_page(0, [(0, make_record(str(VF), 2))]))
        await wait_until(lambda: len(tracefs.events) == 2)
        tracefs.records.stop()
        assert [type(event) for event in tracefs.events] == [EventsLost, ErrorRecord]

    play(story())


def test_the_instance_is_set_up_once(tracefs: Tracefs, play: Play) -> None:
    async def story() -> None:
        tracefs.records.start()
        assert tracefs.setting("trace_clock") == "mono"
        assert tracefs.setting("buffer_percent") == "0"
        assert int(tracefs.setting("buffer_size_kb")) < 100
        assert tracefs.setting("events/ras/aer_event/enable") == "1"
        tracefs.records.stop()
        clock = tracefs.add("instances/sriovd/trace_clock", "local global [mono]\n")
        tracefs.records.start()
        assert clock.read_text() == "local global [mono]\n"  # setting it would empty the buffer
        tracefs.records.stop()

    play(story())


@pytest.mark.parametrize("missing", ["kernel", "kernel/tracing/instances/sriovd/events"])
def test_without_records_it_is_said_once(
    tracefs: Tracefs, play: Play, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    (tracefs.root / missing).rename(tracefs.root / "elsewhere")

    async def story() -> None:
        tracefs.records.start()
        assert not tracefs.records.is_open
        tracefs.records.drain()
        await asyncio.sleep(0)
        tracefs.records.stop()

    play(story())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "cannot be had" in caplog.text


def test_a_kernel_with_other_fields_is_not_guessed_at(
    tracefs: Tracefs, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    tracefs.add("instances/sriovd/events/ras/aer_event/format", AER_FORMAT.replace("severity;", "gravity;"))

    async def story() -> None:
        tracefs.records.start()
        assert not tracefs.records.is_open
        tracefs.records.stop()

    play(story())
    assert "no severity" in caplog.text
