"""The kernel's own uevents, provoked by writing to a device's `uevent` file."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity, Uevent, UeventAction
from sriovd.backend.linux import uevents
from sriovd.backend.linux.pace import DEFERRED_PAUSE_SEC
from sriovd.backend.linux.uevents import UeventMonitor
from sriovd.pci import PciAddress

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import Play, WaitUntil

_DEVICES = Path("/sys/bus/pci/devices")
_STORM = 3000
_PART = 100


@pytest.fixture
def device() -> Iterator[tuple[PciAddress, int]]:
    """A PCI function of this machine, and its `uevent` file, open: a write announces a change of nothing."""
    names = sorted(path.name for path in _DEVICES.iterdir()) if _DEVICES.is_dir() else []
    if not names:
        pytest.skip("this machine has no PCI function to announce")
    try:
        fd = os.open(_DEVICES / names[0] / "uevent", os.O_WRONLY)
    except OSError as error:
        pytest.skip(f"uevents cannot be provoked here: {error.strerror}")
    fcntl.flock(fd, fcntl.LOCK_EX)  # a second run of these tests on this machine would be heard by the first
    yield PciAddress.parse(names[0]), fd
    os.close(fd)


class FakeDevice:
    """A uevent as pyudev gives it; the kernel makes none of an error on demand."""

    subsystem, sys_name, action = "pci", "0000:01:00.0", "change"

    def __init__(self, properties: dict[str, str]) -> None:
        self.properties = properties


async def _take(monitor: UeventMonitor, count: int) -> list[KernelEvent]:
    taken: list[KernelEvent] = []
    async for event in monitor.events():
        taken.append(event)
        if len(taken) == count:
            break
    return taken


def test_events_come_in_order_with_what_recovery_needs(device: tuple[PciAddress, int], play: Play) -> None:
    address, fd = device

    async def story() -> None:
        monitor = UeventMonitor()
        monitor.start()
        for action in (b"add", b"change", b"bind"):
            os.write(fd, action)
        events = [event for event in await _take(monitor, 3) if isinstance(event, Uevent)]
        monitor.stop()
        assert [event.action for event in events] == [
            UeventAction.ADD,
            UeventAction.CHANGE,
            UeventAction.BIND,
        ]
        for event in events:
            assert event.address == address
            assert event.properties["PCI_SLOT_NAME"] == str(address)
            assert event.properties.keys() <= {"PCI_SLOT_NAME", "DRIVER"}

    play(story())


def test_an_overrun_buffer_is_told_after_the_last_event_and_listening_goes_on(
    device: tuple[PciAddress, int], play: Play
) -> None:
    _, fd = device

    async def story() -> None:
        monitor = UeventMonitor(receive_buffer_bytes=1)
        monitor.start()
        for _ in range(2):  # and once more
            for _ in range(_STORM):
                os.write(fd, b"change")
            events: list[KernelEvent] = []
            async for event in monitor.events():
                events.append(event)
                if isinstance(event, EventsLost):
                    assert "bytes overran" in event.reason
                    break
            assert 1 < len(events) < _STORM
            os.write(fd, b"add")
            (after,) = await _take(monitor, 1)
            assert isinstance(after, Uevent)
            assert after.action is UeventAction.ADD
        monitor.stop()

    play(story())


def test_a_storm_waits_while_jobs_run_and_comes_when_they_end(
    device: tuple[PciAddress, int], play: Play
) -> None:
    _, fd = device

    async def story() -> None:
        clock = asyncio.get_running_loop().time
        monitor = UeventMonitor()
        monitor.start()
        monitor.defer(True)
        for _ in range(_PART):
            os.write(fd, b"add")
        await _take(monitor, _PART)
        began_sec = clock()
        for _ in range(_PART):
            os.write(fd, b"add")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DEFERRED_PAUSE_SEC / 4):
                await _take(monitor, 1)
        monitor.defer(False)
        await _take(monitor, _PART)
        assert clock() - began_sec < DEFERRED_PAUSE_SEC
        monitor.stop()

    play(story())


@pytest.mark.parametrize(
    ("severity", "waits"), [(Severity.CORRECTED, True), (Severity.NONFATAL, False), (Severity.FATAL, False)]
)
def test_no_storm_is_waited_out_when_an_error_has_been_recorded(
    device: tuple[PciAddress, int], play: Play, severity: Severity, waits: bool
) -> None:
    address, fd = device
    limit_sec = DEFERRED_PAUSE_SEC / 4

    async def story() -> None:
        monitor = UeventMonitor()
        monitor.start()
        monitor.defer(True)
        for _ in range(_PART):
            os.write(fd, b"add")
        await _take(monitor, _PART)
        monitor.put(ErrorRecord(address, severity, 1, (), 0))
        await _take(monitor, 1)
        for _ in range(3):  # nor is one afterwards
            os.write(fd, b"change")
            try:
                async with asyncio.timeout(limit_sec):
                    await _take(monitor, 1)
                assert not waits
            except TimeoutError:
                assert waits
        monitor.stop()

    play(story())


def test_what_has_to_come_before_a_recovery_does(play: Play) -> None:
    address = PciAddress.parse("0000:01:00.0")
    record = ErrorRecord(address, Severity.NONFATAL, 1, (), 0)
    recovery = {"ERROR_EVENT": "BEGIN_RECOVERY", "DEVICE_ONLINE": "0"}
    devices = iter((FakeDevice({}), FakeDevice(recovery), None))

    async def story() -> None:
        monitor = UeventMonitor(before_recovery=lambda: monitor.put(record))
        monitor._monitor = SimpleNamespace(poll=lambda _timeout: next(devices))
        monitor._receive()
        events = [event async for event in monitor.events()]
        assert events == [
            Uevent(UeventAction.CHANGE, address, {}),
            record,
            Uevent(UeventAction.CHANGE, address, recovery),
        ]

    play(story())


def test_a_few_events_do_not_wait_for_a_job(device: tuple[PciAddress, int], play: Play) -> None:
    _, fd = device
    few = 3  # what an error brings at once

    async def story() -> None:
        monitor = UeventMonitor()
        monitor.start()
        monitor.defer(True)
        async with asyncio.timeout(DEFERRED_PAUSE_SEC / 2):
            for _ in range(few):
                os.write(fd, b"change")
                await _take(monitor, 1)
        os.write(fd, b"change")  # a storm from this one on
        await _take(monitor, 1)
        os.write(fd, b"change")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(DEFERRED_PAUSE_SEC / 4):
                await _take(monitor, 1)
        monitor.stop()

    play(story())


def test_a_large_buffer_holds_a_storm(device: tuple[PciAddress, int], play: Play) -> None:
    address, fd = device

    async def story() -> None:
        monitor = UeventMonitor()
        monitor.start()
        for _ in range(_STORM):
            os.write(fd, b"change")
        events = await _take(monitor, _STORM)
        monitor.stop()
        assert {(event.action, event.address) for event in events if isinstance(event, Uevent)} == {
            (UeventAction.CHANGE, address)
        }
        assert not any(isinstance(event, EventsLost) for event in events)

    play(story())


def test_what_is_no_pci_function_is_ignored(
    device: tuple[PciAddress, int], play: Play, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[Uevent | None] = []
    really_judge = uevents._to_event
    monkeypatch.setattr(uevents, "_to_event", lambda device: judged.append(really_judge(device)))

    async def story() -> None:
        monitor = UeventMonitor(subsystems=("net",))
        monitor.start()
        Path("/sys/class/net/lo/uevent").write_bytes(b"change")
        await wait_until(lambda: bool(judged))
        monitor.stop()
        assert set(judged) == {None}

    play(story())


def test_stop_ends_the_iterator_and_closes_the_socket(play: Play) -> None:
    async def story() -> None:
        UeventMonitor().stop()  # never started: nothing to do
        before = len(os.listdir("/proc/self/fd"))
        monitor = UeventMonitor()
        monitor.start()
        consumer = asyncio.create_task(_take(monitor, 1_000_000))
        await asyncio.sleep(0)
        monitor.stop()
        await consumer
        assert len(os.listdir("/proc/self/fd")) == before

    play(story())
