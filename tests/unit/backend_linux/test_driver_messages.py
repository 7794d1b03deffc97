"""Messages of drivers from the journal; a list stands for it, because a build machine may have none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.driver_events import DriverEvent, DriverMessage, MessagesLost
from sriovd.backend.linux import driver_messages
from sriovd.backend.linux.driver_messages import DriverMessages, to_message
from sriovd.pci import PciAddress

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import Play, WaitUntil

PF, VF = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:10.2")
DENIED = "VF 1 requested MAC filter but is administratively denied"
OVERRIDE = (
    "VF 1 attempted to override administratively set MAC address\nReload the VF driver to resume operations"
)


def read(message: str, device: str = f"+pci:{PF}") -> DriverMessage | None:
    fields: Mapping[str, str] = {"_KERNEL_DEVICE": device, "MESSAGE": message}
    return to_message(fields.__getitem__, 5)


@pytest.mark.parametrize(
    ("message", "driver", "text"),
    [
        (f"igb {PF}: {DENIED}", "igb", DENIED),
        (f"igb {PF}: {OVERRIDE}\n", "igb", OVERRIDE),
        (f"ixgbe {PF} enp1s0: VF 1 is ill", "ixgbe", "VF 1 is ill"),  # netdev_printk
        (f"igb {PF}: AER: [14] CmpltTO", "igb", "AER: [14] CmpltTO"),
        (f"hello {PF}", "", f"hello {PF}"),
        (f"igb {VF}: not about whom it says", "", f"igb {VF}: not about whom it says"),
        (f"igb {PF}: {'x' * 2000}", "igb", "x" * 512),
        ("", "", ""),
    ],
)
def test_a_message_has_its_driver_and_its_text(message: str, driver: str, text: str) -> None:
    assert read(message) == DriverMessage(PF, driver, text, 5)


@pytest.mark.parametrize("device", ["+usb:1-1", "n3", "c254:0", str(PF), "+pci:0000:01:00", "+pci:", ""])
def test_what_is_not_about_a_pci_function_is_nothing(device: str) -> None:
    assert read(f"igb {PF}: {DENIED}", device) is None


def test_a_message_without_a_device_is_nothing() -> None:
    assert to_message({"MESSAGE": "x"}.__getitem__, 5) is None


class FakeJournal:
    """KernelJournal, as far as it is used; entries are time and text, about the PF."""

    latest: FakeJournal

    def __init__(self) -> None:
        FakeJournal.latest = self
        self.entries: list[tuple[int, str]] = []
        self.at = -1
        self.fails = False
        self._fds = os.pipe2(os.O_NONBLOCK)

    def add(self, *texts: str, age_usec: int = 0) -> None:
        now_usec = time.monotonic_ns() // 1000 - age_usec
        self.entries += [(now_usec, text) for text in texts]
        os.write(self._fds[1], b"x")

    def fileno(self) -> int:
        return self._fds[0]

    def process(self) -> None:
        if self.fails:
            raise OSError("gone")
        with suppress(BlockingIOError):
            os.read(self._fds[0], 4096)

    def step(self) -> bool:
        self.at = min(self.at + 1, len(self.entries))
        if self.at < len(self.entries):
            return True
        self.at -= 1
        return False

    def at_usec(self) -> int:
        return self.entries[self.at][0]

    def field(self, name: str) -> str:
        return {"_KERNEL_DEVICE": f"+pci:{PF}", "MESSAGE": f"igb {PF}: {self.entries[self.at][1]}"}[name]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)


class Ear:
    def __init__(self, known: tuple[PciAddress, ...] = (PF,)) -> None:
        self.told: list[DriverEvent] = []
        self.messages = DriverMessages(self.told.append, lambda address: address in known)

    def texts(self) -> list[str]:
        return [event.text for event in self.told if isinstance(event, DriverMessage)]


@pytest.fixture
def fake_journal(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeJournal]]:
    monkeypatch.setattr(driver_messages, "KernelJournal", FakeJournal)
    yield FakeJournal


def test_messages_are_told_as_they_come(
    fake_journal: type[FakeJournal], play: Play, wait_until: WaitUntil
) -> None:
    async def story() -> None:
        ear = Ear()
        ear.messages.start()
        fake_journal.latest.add(DENIED, OVERRIDE)
        await wait_until(lambda: ear.texts() == [DENIED, OVERRIDE])
        fake_journal.latest.add("one more")
        await wait_until(lambda: ear.texts()[-1] == "one more")
        ear.messages.stop()
        ear.messages.stop()

    play(story())


def test_strangers_messages_are_not_told(
    fake_journal: type[FakeJournal], play: Play, wait_until: WaitUntil
) -> None:
    async def story() -> None:
        ear = Ear(known=(VF,))
        ear.messages.start()
        fake_journal.latest.add(DENIED)
        await wait_until(lambda: fake_journal.latest.at == 0)
        assert ear.told == []
        ear.messages.stop()

    play(story())


def test_a_flood_is_read_in_turns_and_all_of_it_is_counted(
    fake_journal: type[FakeJournal], play: Play, wait_until: WaitUntil
) -> None:
    async def story() -> None:
        ear = Ear()
        ear.messages.start()
        fake_journal.latest.add(*[DENIED] * 300, "in their midst", *[DENIED] * 300)
        await wait_until(lambda: fake_journal.latest.at >= 0)
        assert fake_journal.latest.at < 100  # and others have their turn
        await wait_until(lambda: "in their midst" in ear.texts())
        ear.messages.stop()  # which tells what it has by now
        ear.messages.start()
        assert all(isinstance(event, DriverMessage) for event in ear.told)
        ear.messages.stop()

    play(story())


def test_who_falls_behind_counts_and_catches_up(
    fake_journal: type[FakeJournal], play: Play, wait_until: WaitUntil
) -> None:
    async def story() -> None:
        ear = Ear()
        ear.messages.start()
        fake_journal.latest.add(*[DENIED] * 1500, age_usec=60_000_000)
        await wait_until(lambda: bool(ear.told))
        (lost,) = ear.told
        assert isinstance(lost, MessagesLost)
        assert (lost.address, lost.count) == (None, 1500)
        fake_journal.latest.add("fresh")
        await wait_until(lambda: ear.texts() == ["fresh"])
        ear.messages.stop()

    play(story())


def test_a_journal_that_fails_ends_it_and_the_host_goes_on(
    fake_journal: type[FakeJournal], play: Play, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        ear = Ear()
        ear.messages.start()
        fake_journal.latest.fails = True
        fake_journal.latest.add(DENIED)
        await wait_until(lambda: "any more" in caplog.text)
        (lost,) = ear.told  # what comes from now on
        assert isinstance(lost, MessagesLost)
        assert (lost.address, lost.count) == (None, 0)
        ear.messages.stop()
        assert ear.messages.has_failed
        ear.messages.start()
        assert not ear.messages.has_failed
        fake_journal.latest.add("again")
        await wait_until(lambda: ear.texts() == ["again"])
        ear.messages.stop()

    play(story())


def test_without_a_journal_nothing_is_heard(
    monkeypatch: pytest.MonkeyPatch, play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise PermissionError("no")

    monkeypatch.setattr(driver_messages, "KernelJournal", refuse)

    async def story() -> None:
        ear = Ear()
        ear.messages.start()
        ear.messages.stop()

    play(story())
    assert "cannot be read" in caplog.text
