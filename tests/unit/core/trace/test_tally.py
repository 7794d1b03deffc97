"""What keeps coming is counted, and nothing goes missing by it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, LinkChanged, Severity
from sriovd.backend.driver_events import MessagesLost
from sriovd.core.trace.tally import (
    ERRORS_AT_MOST,
    LONGEST_NSEC,
    LOSSES_AT_MOST,
    WINDOW_NSEC,
    Counted,
    Missed,
    Scope,
    Tally,
)
from sriovd.pci import PciAddress

PF, OTHER = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:02:00.0")
RX_ERR, BAD_TLP = 1, 1 << 6
PLACE = PF, 0


def find_scope(address: PciAddress) -> Scope:
    return frozenset({address})


def meet(
    status: int = RX_ERR, severity: Severity = Severity.CORRECTED, address: PciAddress = PF, at_usec: int = 0
) -> ErrorRecord:
    return ErrorRecord(address, severity, status, (), at_usec)


def take(tally: Tally, now_nsec: int, *events: KernelEvent) -> list[Counted]:
    return [each for event in events for each in tally.take(event, now_nsec)]


def test_a_few_are_told_at_once_and_the_rest_when_the_window_ends() -> None:
    tally = Tally(find_scope)
    errors = [meet(at_usec=number) for number in range(60)]
    assert take(tally, 0, *errors) == [Counted(each) for each in errors[:ERRORS_AT_MOST]]
    assert tally.due_nsec == WINDOW_NSEC
    assert tally.flush(tally.due_nsec) == [Counted(errors[-1], 60 - ERRORS_AT_MOST)]


def test_nothing_is_due_while_nothing_is_held() -> None:
    tally = Tally(find_scope)
    take(tally, 0, *[meet()] * ERRORS_AT_MOST, EventsLost("x"))
    assert tally.due_nsec == 0
    assert tally.flush(5 * WINDOW_NSEC) == []


def test_a_window_that_nobody_ended_ends_with_the_next_event() -> None:
    tally = Tally(find_scope)
    take(tally, 0, *[meet()] * 10)
    late = meet(BAD_TLP)
    assert take(tally, WINDOW_NSEC, late) == [Counted(meet(), 10 - ERRORS_AT_MOST), Counted(late)]


def test_each_kind_has_its_own_few() -> None:
    tally = Tally(find_scope)
    take(tally, 0, *[meet()] * 99)
    others = meet(BAD_TLP), meet(address=OTHER), EventsLost("x"), MessagesLost(None, 3, 0)
    assert take(tally, 0, *others) == [Counted(each) for each in others]


def test_what_has_failed_and_what_is_known_whose_it_is_is_always_told() -> None:
    tally = Tally(find_scope)
    kinds = (
        meet(severity=Severity.NONFATAL), meet(severity=Severity.FATAL), MessagesLost(PF, 1, 0),
        LinkChanged(PF),
    )  # fmt: skip
    for event in kinds:
        assert take(tally, 0, *[event] * 50) == [Counted(event)] * 50


def test_losses_of_the_whole_host_are_told_once_in_a_window() -> None:
    for loss in (EventsLost("x"), MessagesLost(None, 3, 0)):
        tally = Tally(find_scope)
        assert take(tally, 0, *[loss] * 5) == [Counted(loss)] * LOSSES_AT_MOST
        assert tally.flush(tally.due_nsec) == [Counted(loss, 5 - LOSSES_AT_MOST)]


def test_a_flood_that_lasts_fills_no_history() -> None:
    """500 a second for ten minutes; a VF's last 128 entries are kept."""
    tally, told = Tally(find_scope), 0
    for millisecond in range(0, 600_000, 2):
        told += len(tally.take(meet(), millisecond * 1_000_000))
    assert told < 50


def test_windows_are_short_again_when_it_was_quiet() -> None:
    tally = Tally(find_scope)
    for _ in range(9):
        take(tally, tally.due_nsec, *[meet()] * 9)
    assert tally.flush(tally.due_nsec)
    quiet_nsec = 1000 * LONGEST_NSEC
    assert take(tally, quiet_nsec, meet()) == [Counted(meet())]
    take(tally, quiet_nsec, *[meet()] * 9)
    assert tally.due_nsec == quiet_nsec + WINDOW_NSEC


@pytest.mark.parametrize("severity", [Severity.NONFATAL, Severity.FATAL])
def test_what_was_counted_before_an_error_that_was_not_corrected_is_told_before_it(
    severity: Severity,
) -> None:
    tally, error = Tally(find_scope), meet(severity=severity)
    take(tally, 0, *[meet()] * 10)
    assert take(tally, 1, error) == [Counted(meet(), 10 - ERRORS_AT_MOST), Counted(error)]
    assert tally.due_nsec == 0


def test_who_is_told_no_more_has_been_told_all_and_the_window_goes_on() -> None:
    tally = Tally(find_scope)
    take(tally, 0, *[meet()] * 10, *[EventsLost("x")] * 3)
    assert tally.settle(PLACE) == [Missed(meet(), 6, False), Missed(EventsLost("x"), 2, False)]
    assert tally.settle(PLACE) == []
    take(tally, 1, meet(), meet())
    assert tally.due_nsec == WINDOW_NSEC
    assert tally.settle(PLACE) == [Missed(meet(), 2, False)]
    assert tally.flush(2)[0] == Counted(meet(), 8, {PLACE: 8})


def test_only_whom_an_error_concerns_has_missed_it() -> None:
    for scope, place, is_own in (({(PF, 1)}, (PF, 1), True), ({PF, OTHER}, (OTHER, 1), False)):
        tally = Tally(lambda _, scope=scope: frozenset(scope))  # type: ignore[misc]
        take(tally, 0, *[meet()] * 5)
        assert tally.settle((PF, 2) if is_own else (PciAddress.parse("0000:03:00.0"), 1)) == []
        assert tally.settle(place) == [Missed(meet(), 1, is_own)]


@given(st.lists(st.tuples(st.sampled_from([meet(), meet(BAD_TLP), EventsLost("x")]), st.integers(0, 3))))
def test_all_are_counted(events: list[tuple[KernelEvent, int]]) -> None:
    tally, counts, now_nsec = Tally(find_scope), Counter[str](), 0
    for event, seconds in events:
        now_nsec += seconds * WINDOW_NSEC
        for told in tally.take(event, now_nsec):
            counts[str(told.event)] += told.times
    for told in tally.flush(now_nsec):
        counts[str(told.event)] += told.times
    assert counts == Counter(str(event) for event, _ in events)
