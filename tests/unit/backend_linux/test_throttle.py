"""A flood is counted; whoever does not flood is told line by line."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.driver_events import (
    TEXT_LIMIT,
    DeviceReport,
    DriverEvent,
    DriverMessage,
    MessagesLost,
    ReportSource,
)
from sriovd.backend.linux.throttle import ALL_TEXTS_AT_MOST, SAME_AT_MOST, TEXTS_AT_MOST, Message, Throttle
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


@pytest.mark.parametrize("text", ["VF {} asks for 5", "VF Reset msg received from vf {}"])
def test_the_number_of_a_vf_makes_a_text_another(text: str) -> None:
    messages = [DriverMessage(PF, "ixgbe", text.format(index), 0) for index in range(99) for _ in range(9)]
    told = pass_on(*messages)
    assert len(told) == 99 * (SAME_AT_MOST + 1)


@pytest.mark.parametrize(
    "text",
    ["opcode {n}, len 22", "error -{n}", "type {n:x}f", "word {n:#x}", "queue{n}", "q_{n}_", "Q{n}.{n}"],
)
def test_no_other_number_makes_a_text_another(text: str) -> None:
    told = pass_on(*[say(f"Invalid message from VF 3, {text.format(n=number)}") for number in range(1000)])
    assert len(told) == SAME_AT_MOST + 1


def make_words(count: int) -> list[str]:
    """So many that differ in more than numbers."""
    return ["".join("ghijklmnop"[int(digit)] for digit in str(number)) for number in range(count)]


def test_who_makes_many_texts_hides_his_own_and_they_are_counted_for_him() -> None:
    words = make_words(TEXTS_AT_MOST + 5)
    flood = [say(f"VF 3 is {word}", 9) for word in words]
    others = [say("VF 1 is ill"), say("link is up"), say("VF 3 is ill", address=OTHER)]
    told = pass_on(*flood, *others)
    assert told == [*flood[:TEXTS_AT_MOST], *others, MessagesLost(PF, 5, 9, vf=3)]


@pytest.mark.parametrize(
    "text", ["VF 3 and VF 4 are", "VF# 3 is", "VF 3 at 0000:01:10.6 is", "it is", f"VF 3 is {'x' * 600}"]
)
def test_what_names_no_vf_for_sure_is_counted_by_device(text: str) -> None:
    flood = [say(f"{word} says {text}"[:TEXT_LIMIT]) for word in make_words(TEXTS_AT_MOST + 5)]
    assert pass_on(*flood, say("VF 3 is ill"))[TEXTS_AT_MOST:] == [
        say("VF 3 is ill"),
        MessagesLost(PF, 5, 0),
    ]


def test_what_is_kept_in_a_window_is_bounded() -> None:
    words = make_words(TEXTS_AT_MOST)
    messages = [say(f"VF {vf} is {word}") for vf in range(200) for word in words]
    told = pass_on(*messages)
    assert told[:ALL_TEXTS_AT_MOST] == messages[:ALL_TEXTS_AT_MOST]
    lost = told[ALL_TEXTS_AT_MOST:]
    assert sum(each.count for each in lost if isinstance(each, MessagesLost)) == 200 * 32 - ALL_TEXTS_AT_MOST


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
