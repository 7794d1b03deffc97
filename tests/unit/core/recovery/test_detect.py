"""What signals mean, in whatever order they come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.recovery.detect import (
    ECHO_USEC,
    WALK_USEC,
    News,
    Sight,
    Verdict,
    Walk,
    judge_record,
    judge_walk,
    settle,
    suspect,
)
from sriovd.pci import PciAddress

PF, VF, OTHER = (PciAddress.parse(f"0000:01:{place}") for place in ("00.0", "10.0", "10.2"))
BEGAN = 10 * ECHO_USEC
STEP = ECHO_USEC // 100  # between two signals


def record(
    address: PciAddress = VF, severity: Severity = Severity.NONFATAL, at_usec: int = BEGAN
) -> ErrorRecord:
    return ErrorRecord(address, severity, 0x4000, (), at_usec)


Signal = ErrorRecord | Walk


def judge(sight: Sight, signal: Signal, now_usec: int) -> tuple[Sight, News]:
    if isinstance(signal, ErrorRecord):
        return judge_record(sight, signal, signal.address != PF, now_usec)
    return judge_walk(sight, signal, now_usec)


def hear(signals: Sequence[Signal], sight: Sight | None = None) -> tuple[Sight, list[News]]:
    """All of them, one soon after the other."""
    sight, news = sight or Sight(), []
    for number, signal in enumerate(signals):
        sight, meaning = judge(sight, signal, BEGAN + STEP * number)
        news.append(meaning)
    return sight, news


def orders_of(*signals: Signal) -> st.SearchStrategy[list[Signal]]:
    """Of these signals: any of them, lost, repeated, in any order."""
    return st.lists(st.sampled_from(signals), max_size=20)


WELL = (Walk.BEGIN, Walk.SUCCESS)
ILL = (Walk.BEGIN, Walk.FAILURE)


@given(orders_of(*WELL))
def test_what_a_record_has_told_of_a_vf_never_becomes_the_adapters_error(walk: list[Signal]) -> None:
    sight, news = hear([record(), *walk])
    assert news[0] is News.VF_ERROR
    assert not {News.ADAPTER_ERROR, News.VF_ERROR}.intersection(news[1:])
    assert sight.culprit == VF


@given(orders_of(record(), *WELL))
def test_one_error_of_a_vf_is_news_of_each_kind_once_at_most(signals: list[Signal]) -> None:
    news = Counter(hear(signals)[1])
    assert news[News.VF_ERROR] == (record() in signals)
    assert news[News.ADAPTER_ERROR] <= 1


@given(orders_of(record(PF), *WELL, *ILL))
def test_one_error_of_a_pf_is_never_a_vfs(signals: list[Signal]) -> None:
    sight, news = hear([record(PF), *signals])
    assert news.count(News.ADAPTER_ERROR) == 1
    assert News.VF_ERROR not in news
    assert sight.culprit is None


@given(orders_of(*WELL, *ILL))
def test_without_records_it_is_the_adapters(walk: list[Signal]) -> None:
    """A walk that has succeeded and of which nothing else was told has cost nothing."""
    _, news = hear(walk)
    assert News.VF_ERROR not in news
    assert news.count(News.ADAPTER_ERROR) == (bool({Walk.BEGIN, Walk.FAILURE}.intersection(walk)))


@given(orders_of(record(), record(PF), *WELL, *ILL))
def test_of_two_verdicts_failure_wins(signals: list[Signal]) -> None:
    assume(Walk.FAILURE in signals)
    sight, _ = hear([Walk.BEGIN, *signals])
    assert sight.verdict is Verdict.FAILED


@given(orders_of(record(), record(PF), *WELL, *ILL))
def test_a_vfs_error_with_which_the_kernel_fails_is_told_as_the_adapters(signals: list[Signal]) -> None:
    """By a verdict on its culprit, for which the adapter is frozen, or as the adapter's own."""
    assume(Walk.FAILURE in signals)
    sight, news = Sight(), []
    for number, signal in enumerate(signals):
        sight, meaning = judge(sight, signal, BEGAN + STEP * number)
        news.append(meaning)
        if meaning is News.VERDICT and sight.verdict is Verdict.FAILED and sight.culprit:
            news.append(News.ADAPTER_ERROR)
    assert News.ADAPTER_ERROR in news


@given(orders_of(record(), record(PF), *WELL, *ILL), orders_of(record(), record(PF), *WELL))
def test_echoes_of_what_is_dealt_with_are_no_news(before: list[Signal], after: list[Signal]) -> None:
    sight, _ = hear([*before, Walk.BEGIN, Walk.FAILURE])
    done = BEGAN + STEP * (len(before) + 2)
    sight = settle(sight, done)
    for number, signal in enumerate(after):
        sight, news = judge(sight, signal, done + STEP * number)
        assert news is News.NOTHING


@given(st.lists(st.sampled_from([record(VF), record(OTHER), record(PF)]), unique=True, min_size=1))
def test_every_error_of_one_walk_is_told_and_the_adapters_outweighs(records: list[ErrorRecord]) -> None:
    sight, news = hear([*records, *records, Walk.BEGIN])
    told = [News.ADAPTER_ERROR if each.address == PF else News.VF_ERROR for each in records]
    assert news == [*told, *[News.NOTHING] * (len(records) + 1)]
    assert (sight.culprit is None) == (record(PF) in records)


@pytest.mark.parametrize("address", [PF, VF])
def test_a_fatal_error_is_the_adapters_whoever_met_it(address: PciAddress) -> None:
    assert hear([record(address, Severity.FATAL)])[1] == [News.ADAPTER_ERROR]


@given(orders_of(record(), *WELL))
def test_a_corrected_error_disturbs_nothing(signals: list[Signal]) -> None:
    corrected = record(PF, Severity.CORRECTED)
    before, news = hear(signals)
    after, told = hear([corrected, *signals])
    assert told == [News.CORRECTED, *news]
    assert (after.verdict, after.culprit) == (before.verdict, before.culprit)


def test_a_corrected_error_that_is_repeated_counts_once() -> None:
    corrected = record(PF, Severity.CORRECTED)
    assert hear([corrected, record(VF), corrected])[1] == [News.CORRECTED, News.VF_ERROR, News.NOTHING]


@pytest.mark.parametrize(
    ("later_usec", "news"), [(ECHO_USEC - 1, News.NOTHING), (ECHO_USEC, News.ADAPTER_ERROR)]
)
def test_a_walk_echoes_for_a_second(later_usec: int, news: News) -> None:
    sight, _ = judge_walk(Sight(), Walk.BEGIN, BEGAN)
    sight, _ = judge_walk(sight, Walk.SUCCESS, BEGAN)
    assert judge_walk(sight, Walk.BEGIN, BEGAN + later_usec)[1] is news


def test_a_walk_that_never_ends_is_over_some_time() -> None:
    sight, _ = judge_walk(Sight(), Walk.BEGIN, BEGAN)
    assert judge_walk(sight, Walk.BEGIN, BEGAN + WALK_USEC - 1)[1] is News.NOTHING
    assert judge_walk(sight, Walk.BEGIN, BEGAN + WALK_USEC)[1] is News.ADAPTER_ERROR


@given(orders_of(record(), record(PF), *WELL, *ILL))
def test_a_suspicion_is_news_only_where_nothing_is_known(signals: list[Signal]) -> None:
    sight, _ = hear(signals)
    now = BEGAN + STEP * len(signals)
    known, news = suspect(sight, now)
    assert (news is News.NOTHING) == sight.is_open(now)
    assert suspect(known, now)[1] is News.NOTHING
