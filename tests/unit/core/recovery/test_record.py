"""What outlives the daemon: budgets, and records that come back as they were."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.record import FREEZES, SPAN_USEC, AdapterPe, Budget, VfPe
from sriovd.core.recovery.snapshot import PfShot, VfShot
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress

PF, PORT, VF = (PciAddress.parse(text) for text in ("0000:01:00.0", "0000:00:03.0", "0000:01:10.0"))
NOW = 1_800_000_000_000_000

SHOT = PfShot(
    PF, "igb", PORT, True, (VfShot(0, VF, 3, "vfio-pci", ("flr", "pm"), True, VfAttributes(vlan=7)),)
)
PE = AdapterPe(
    "0000:01:00",
    AdapterState.RESETTING,
    "it has failed",
    NOW,
    Budget(NOW, 2),
    (Rung.KERNEL,),
    Rung.REMOVE_RESCAN,
    12,
    (SHOT,),
    (VfPe(PF, 0, VfState.LOCKED_OUT, True, "so", NOW, Budget(NOW, 1), VfAttributes(trust=True)),),
)


def test_a_record_comes_back_as_it_was() -> None:
    assert AdapterPe.from_dict(json.loads(json.dumps(PE.to_dict()))) == PE


@pytest.mark.parametrize(
    "change",
    [
        {"state": "happy"},
        {"slot": 7},
        {"budget": {"first_usec": "now"}},
        {"tried": ["kick"]},
        {"vfs": [{"pf": "nowhere", "index": 0}]},
        {"shots": 3},
    ],
)
def test_a_record_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        AdapterPe.from_dict({**PE.to_dict(), **change})


def test_five_freezes_an_hour_and_not_a_sixth() -> None:
    budget = Budget()
    for freeze in range(1, FREEZES + 2):
        budget = budget.spend(NOW + freeze)
        assert budget.counted(NOW + freeze) == freeze
        assert budget.is_over == (freeze > FREEZES)


@given(st.lists(st.integers(0, SPAN_USEC // 2), max_size=40))
def test_no_hour_that_begins_with_a_freeze_has_more_than_are_counted(pauses: list[int]) -> None:
    budget, now, began, count = Budget(), NOW, 0, 0
    for pause in pauses:
        now += pause
        if not count or now - began > SPAN_USEC:
            began, count = now, 0
        count += 1
        budget = budget.spend(now)
        assert budget == Budget(began, count)
        assert budget.is_over == (count > FREEZES)


def test_a_clock_that_was_set_back_empties_nothing() -> None:
    spent = Budget(NOW, FREEZES)
    assert spent.counted(NOW - SPAN_USEC) == FREEZES
    assert spent.spend(NOW - SPAN_USEC).is_over


@pytest.mark.parametrize(("later_usec", "count"), [(SPAN_USEC, 3), (SPAN_USEC + 1, 0)])
def test_the_hour_begins_with_the_first(later_usec: int, count: int) -> None:
    assert Budget(NOW, 3).counted(NOW + later_usec) == count


def test_vfs_to_which_nothing_has_happened_are_left_out() -> None:
    pe = AdapterPe("0000:01:00").with_vfs([VfPe(PF, 0), VfPe(PF, 1, VfState.FAILED), VfPe(PF, 2)])
    assert [vf.index for vf in pe.vfs] == [1]
    assert pe.vf((PF, 2)) == VfPe(PF, 2)
    assert pe.with_vfs([VfPe(PF, 1, VfState.REMOVED)]).vfs == ()
    spent = VfPe(PF, 1, budget=Budget(NOW, 1))
    assert pe.with_vfs([spent]).vfs == (spent,), "its budget must not be forgotten"


def test_an_adapter_is_idle_when_all_is_online() -> None:
    spent = VfPe(PF, 1, budget=Budget(NOW, 1))
    assert AdapterPe("0000:01:00").with_vfs([spent]).is_idle
    assert not AdapterPe("0000:01:00").with_vfs([VfPe(PF, 1, VfState.PERMITTED)]).is_idle
    assert not PE.is_idle
