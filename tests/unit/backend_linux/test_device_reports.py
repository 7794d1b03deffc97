"""Reports of devlink, on a tree that stands for tracefs; no device of the lab makes any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.driver_events import DeviceReport, DriverEvent, MessagesLost, ReportSource
from sriovd.backend.linux import trace_reader
from sriovd.backend.linux.device_reports import DeviceReports
from sriovd.pci import PciAddress
from tests.unit.backend_linux.trace_pages import (
    HEADER_PAGE,
    HEALTH_FORMAT,
    HWMSG_FORMAT,
    make_health_report,
    make_hwmsg,
    make_page,
)

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import Play, WaitUntil

PF = PciAddress.parse("0000:01:00.0")
MISSED_EVENTS = 1 << 31
SETTINGS = {"buffer_size_kb": "7", "trace_clock": "[local] mono", "buffer_percent": "50", "tracing_on": "1"}
MISSING = "devlink_health_report"


class Tracefs:
    """Below `root`, with one CPU; the instance is there, because no kernel fills it when it is made."""

    def __init__(self, root: Path, *, with_health: bool = True) -> None:
        self.instance = root / "kernel/tracing/instances/sriovd-devlink"
        formats = {"devlink_hwmsg": HWMSG_FORMAT}
        formats |= {MISSING: HEALTH_FORMAT} if with_health else {}
        files = {f"{self.instance}/{name}": text for name, text in SETTINGS.items()}
        files[f"{root}/kernel/tracing/events/header_page"] = HEADER_PAGE
        for name, text in formats.items():
            files[f"{self.instance}/events/devlink/{name}/format"] = text
            files[f"{self.instance}/events/devlink/{name}/enable"] = "0"
        for path, text in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text(text)
        buffer = self.instance / "per_cpu/cpu0/trace_pipe_raw"
        buffer.parent.mkdir(parents=True)
        os.mkfifo(buffer)
        self._writer = os.open(buffer, os.O_RDWR)
        self.told: list[DriverEvent] = []
        self.reports = DeviceReports(self.told.append, str(root))

    def record(self, *records: bytes, flags: int = 0) -> None:
        page = make_page(7_000_000, [(0, record) for record in records], flags=flags)
        os.write(self._writer, page)

    def close(self) -> None:
        os.close(self._writer)


def test_a_health_report_and_messages_are_told(tmp_path: Path, play: Play, wait_until: WaitUntil) -> None:
    tracefs = Tracefs(tmp_path)

    async def story() -> None:
        tracefs.reports.start()
        assert tracefs.reports.is_open
        assert (tracefs.instance / "events/devlink/devlink_hwmsg/enable").read_text() == "1"
        tracefs.record(
            make_health_report("pci", str(PF), "fw_fatal", "device is unwell"),
            make_hwmsg("pci", str(PF), 3, bytes(range(40)), incoming=True, length=40),
            make_hwmsg("pci", str(PF), 4, b"\xff", incoming=False, length=1),
        )
        await wait_until(lambda: len(tracefs.told) == 3)
        shown = bytes(range(32)).hex()
        hardware = ReportSource.HARDWARE_MESSAGE
        assert tracefs.told == [
            DeviceReport(PF, ReportSource.HEALTH, "fw_fatal: device is unwell", 7000),
            DeviceReport(PF, hardware, f"from device: type 3, 40 bytes: {shown}..", 7000),
            DeviceReport(PF, hardware, "to device: type 4, 1 bytes: ff", 7000),
        ]
        tracefs.reports.stop()
        assert not tracefs.reports.is_open

    play(story())
    tracefs.close()


@pytest.mark.parametrize(
    ("bus", "name"),
    [("auxiliary", "mlx5_core.sf.1"), ("netdevsim", "netdevsim1"), ("pci", "x"), ("", str(PF))],
)
def test_devices_on_other_buses_are_passed_over(tmp_path: Path, play: Play, bus: str, name: str) -> None:
    tracefs = Tracefs(tmp_path)
    tracefs.record(
        make_health_report(bus, name, "fw", "ill"), make_health_report("pci", str(PF), "fw", "ill")
    )

    async def story() -> None:
        tracefs.reports.start()
        assert tracefs.told == [DeviceReport(PF, ReportSource.HEALTH, "fw: ill", 7000)]
        tracefs.reports.stop()

    play(story())
    tracefs.close()


def test_an_overrun_is_told_and_is_no_reason_to_look_at_everything(tmp_path: Path, play: Play) -> None:
    tracefs = Tracefs(tmp_path)
    tracefs.record(make_health_report("pci", str(PF), "fw", "ill"), flags=MISSED_EVENTS)

    async def story() -> None:
        tracefs.reports.start()
        lost, report = tracefs.told
        assert isinstance(lost, MessagesLost)
        assert (lost.address, lost.count) == (None, 0)
        assert isinstance(report, DeviceReport)
        tracefs.reports.stop()

    play(story())
    tracefs.close()


def test_a_buffer_that_cannot_be_read_any_more_ends_it_and_is_told_once(
    tmp_path: Path, play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracefs = Tracefs(tmp_path)

    def fail(_buffer: int) -> list[bytes]:
        raise OSError("gone")

    async def story() -> None:
        tracefs.reports.start()
        monkeypatch.setattr(trace_reader, "_read_pages", fail)
        tracefs.record(make_health_report("pci", str(PF), "fw", "ill"))
        for _ in range(2):
            tracefs.reports.drain()
        (lost,) = tracefs.told
        assert isinstance(lost, MessagesLost)
        assert (lost.address, lost.count) == (None, 0)
        assert not tracefs.reports.is_open
        assert tracefs.reports.has_failed
        monkeypatch.setattr(trace_reader, "_read_pages", lambda _buffer: [])
        tracefs.reports.start()
        assert tracefs.reports.is_open and not tracefs.reports.has_failed
        tracefs.reports.stop()

    play(story())
    assert caplog.text.count("any more: gone") == 1
    tracefs.close()


def test_a_record_that_is_cut_off_is_nothing(
    tmp_path: Path, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    tracefs = Tracefs(tmp_path)
    whole = make_hwmsg("pci", str(PF), 3, b"", incoming=True, length=0)
    tracefs.record(whole[:24], b"\0\0\0\0")

    async def story() -> None:
        tracefs.reports.start()
        assert tracefs.told == []
        tracefs.reports.stop()

    play(story())
    assert "makes no sense" in caplog.text
    tracefs.close()


def test_a_kernel_without_them_has_none(
    tmp_path: Path, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    tracefs = Tracefs(tmp_path, with_health=False)

    async def story() -> None:
        tracefs.reports.start()
        assert not tracefs.reports.is_open
        tracefs.reports.stop()

    play(story())
    assert "devlink cannot be had" in caplog.text
    tracefs.close()


def test_an_instance_that_was_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "kernel/tracing/instances/sriovd-devlink"
    left.mkdir(parents=True)
    reports = DeviceReports(lambda _: None, str(tmp_path))
    reports.discard()
    assert not left.exists()
    reports.discard()
