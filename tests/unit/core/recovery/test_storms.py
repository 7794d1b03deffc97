"""Counting correctable errors."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.recovery import storms
from sriovd.core.recovery.storms import Storms
from sriovd.pci import PciAddress

SLOT = "0000:01:00"
PF, VF = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:10.0")
MINUTE = 60_000_000


def test_the_one_too_many_is_told_once() -> None:
    counted = Storms()
    told = [counted.count(SLOT, PF, second * 1_000_000, 3) for second in range(10)]
    assert told == [False] * 3 + [True] + [False] * 6
    assert counted.total(SLOT) == 10


def test_the_next_minute_may_have_its_storm() -> None:
    counted = Storms()
    assert [counted.count(SLOT, PF, 0, 1) for _ in range(2)] == [False, True]
    assert [counted.count(SLOT, PF, MINUTE + 1, 1) for _ in range(2)] == [False, True]


def test_functions_are_counted_apart_and_adapters_together() -> None:
    counted = Storms()
    assert not any(counted.count(SLOT, address, 0, 2) for address in (PF, VF, PF, VF))
    assert counted.total(SLOT) == 4
    assert counted.total("0000:02:00") == 0


@given(st.lists(st.integers(0, 2 * MINUTE), max_size=60), st.integers(1, 10))
def test_slow_errors_are_no_storm(pauses: list[int], threshold: int) -> None:
    counted, now, began, count = Storms(), 0, 0, 0
    for pause in pauses:
        now += pause
        if now - began > MINUTE or not count:
            began, count = now, 0
        count += 1
        assert counted.count(SLOT, PF, now, threshold) == (count == threshold + 1)


def test_memory_is_bounded() -> None:
    counted = Storms()
    for function in range(storms._FUNCTIONS + 10):
        counted.count(SLOT, PciAddress(0, function // 256, function // 8 % 32, function % 8), 0, 1)
    assert len(counted._windows) == storms._FUNCTIONS
