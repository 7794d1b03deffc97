"""A flood is counted; whoever does not flood is told line by line."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.driver_events import (
    DeviceReport,
    DriverEvent,
    DriverMessage,
    MessagesLost,
    ReportSource,
)
from sriovd.backend.linux.throttle import SAME_AT_MOST, TEXTS_AT_MOST, Message, Throttle
from sriovd.pci import PciAddress

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import Play, WaitUntil

PF, OTHER = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:02:00.0")


def say(text: str, at_usec: int = 0, address: PciAddress = PF) -> DriverMessage:
    return DriverMessage(address, "igb", text, at_usec)


def pass_on(*messages: Message) -> list[DriverEvent]:
    told: list[DriverEvent] = []

    async def story() -> None:
        throttle = Throttle(told.append)
        for message in messages:
            throttle.take(message)
        throttle.flush()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(story())
    return told


def test_what_is_said_now_and_then_is_told_at_once() -> None:
    messages = [say("a", 1), say("b", 2), say("a", 3)]
    assert pass_on(*messages) == messages


def test_what_floods_is_summed_up_and_hides_nobody() -> None:
    flood = [say("a", at_usec) for at_usec in range(1000)]
    told = pass_on(*flood[:500], say("b", 7), *flood[500:])
    assert told[:-1] == [*flood[:SAME_AT_MOST], say("b", 7)]
    assert told[-1] == DriverMessage(PF, "igb", "a", 999, times=1000 - SAME_AT_MOST)


def test_the_same_about_another_device_is_another() -> None:
    told = pass_on(*[say("a")] * SAME_AT_MOST, say("a", address=OTHER))
    assert told[-1] == say("a", address=OTHER)


def test_who_chooses_the_numbers_in_a_text_floods_all_the_same() -> None:
    flood = [say(f"Unhandled Msg {number * 977:08x}", number) for number in range(5000)]
    told = pass_on(*flood, say("VF 1 is ill"))
    assert told[SAME_AT_MOST] == say("VF 1 is ill")
    assert told[-1] == DriverMessage(PF, "igb", flood[-1].text, 4999, times=5000 - SAME_AT_MOST)
    macs = [say(f"setting MAC 02:00:00:00:00:{number:02x} on VF 1") for number in range(99)]
    assert len(pass_on(*macs)) == SAME_AT_MOST + 1
    vfs = [say(f"VF {number} is ill") for number in range(99)]
    assert pass_on(*vfs) == vfs


def test_reports_that_flood_are_lost_and_counted() -> None:
    report = DeviceReport(PF, ReportSource.HEALTH, "fw: ill", 5)
    told = pass_on(*[report] * 100)
    assert told[SAME_AT_MOST:] == [MessagesLost(PF, 100 - SAME_AT_MOST, 5)]


def test_too_many_texts_are_counted_by_device() -> None:
    told = pass_on(*[say(str(number), number) for number in range(TEXTS_AT_MOST + 5)], say("z", 9999, OTHER))
    assert told[TEXTS_AT_MOST:] == [MessagesLost(PF, 5, 9999), MessagesLost(OTHER, 1, 9999)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([PF, OTHER]))))
def test_nothing_is_lost_without_being_counted(said: list[tuple[str, PciAddress]]) -> None:
    counts: Counter[tuple[str, PciAddress]] = Counter()
    for event in pass_on(*(say(text, address=address) for text, address in said)):
        assert isinstance(event, DriverMessage)
        counts[event.text, event.address] += event.times
    assert counts == Counter(said)


def test_the_window_ends_by_itself_and_wakes_nobody_afterwards(play: Play, wait_until: WaitUntil) -> None:
    told: list[DriverEvent] = []

    async def story() -> None:
        throttle = Throttle(told.append)
        for at_usec in range(20):
            throttle.take(say("a", at_usec))
        await wait_until(lambda: len(told) > SAME_AT_MOST)
        throttle.take(say("a", 99))
        assert told[-1] == say("a", 99)

    play(story())
