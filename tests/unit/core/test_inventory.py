"""The picture's store: who is announced, when, and as what generation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.base import FunctionFacts
from sriovd.core.errors import InvalidArgument, NoSuchFunction
from sriovd.core.inventory import Adapter, AdapterChange, Change, Function, FunctionChange, Inventory
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import OTHER_PF, PF, make_pf, make_vf

SECOND_PF = PciAddress.parse("0000:01:00.1")
SLOT = "0000:01:00"


class Listener:
    """An inventory with a record of what it announced, in short words."""

    def __init__(self) -> None:
        self.inventory = Inventory()
        self.changes: list[Change] = []
        self.inventory.listen(self.changes.append)

    def take(self) -> list[str]:
        """What was announced since the last time."""
        words = [_describe(change) for change in self.changes]
        self.changes.clear()
        return words


def _describe(change: Change) -> str:
    kind = "changed" if change.before and change.after else "appeared" if change.after else "gone"
    either = change.after or change.before
    return f"{either.slot if isinstance(either, Adapter) else either} {kind}"


@pytest.fixture
def listener() -> Listener:
    return Listener()


def test_a_change_is_announced_once_and_no_change_not_at_all(listener: Listener) -> None:
    listener.inventory.put(make_pf())
    assert listener.take() == [f"{SLOT} appeared", f"PF {PF} appeared"]
    listener.inventory.put(make_pf())
    assert listener.take() == []
    listener.inventory.put(make_pf(driver=""))
    assert listener.take() == [f"PF {PF} changed"]


def test_a_listener_is_told_after_it_has_happened() -> None:
    inventory, seen = Inventory(), []
    inventory.listen(lambda _: seen.append(PF in inventory.functions))
    inventory.put(make_pf())
    inventory.drop(PF)
    assert seen == [True, True, False, False]


def test_a_successor_by_identity_follows_the_removal_and_has_a_new_generation(listener: Listener) -> None:
    listener.inventory.put(make_pf())
    listener.inventory.put(make_vf(0, identity=100))
    listener.inventory.quarantine(make_vf(0).address, "broken")
    listener.take()
    listener.inventory.put(make_vf(0, identity=200))
    vf = make_vf(0).address
    assert listener.take() == [f"VF {vf} gone", f"VF {vf} appeared"]
    successor = listener.inventory.get(vf)
    assert (successor.generation, successor.quarantine) == (2, "")


def test_a_generation_is_never_used_twice(listener: Listener) -> None:
    generations = []
    for identity in (1, 2, 2, 3):  # the second was lost from sight for a moment
        listener.inventory.put(make_pf(identity=identity))
        generations.append(listener.inventory.get(PF).generation)
        listener.inventory.drop(PF)
    assert generations == [1, 2, 2, 3]


def test_a_pf_takes_its_vfs_with_it_and_they_go_first(listener: Listener) -> None:
    vfs = [make_vf(index) for index in range(3)]
    for facts in (make_pf(), *vfs, make_pf(OTHER_PF)):
        listener.inventory.put(facts)
    listener.take()
    listener.inventory.drop(PF)
    assert listener.take() == [
        *(f"VF {vf.address} gone" for vf in vfs), f"PF {PF} gone", f"{SLOT} gone",
    ]  # fmt: skip
    assert list(listener.inventory.functions) == [OTHER_PF]
    assert listener.inventory.vfs_of(PF) == {}


def test_an_adapter_lives_as_long_as_one_of_its_pfs(listener: Listener) -> None:
    inventory = listener.inventory
    inventory.put(make_pf())
    inventory.put(make_pf(SECOND_PF))
    assert inventory.adapters[SLOT].physical_functions == (PF, SECOND_PF)
    assert f"{SLOT} changed" in listener.take()
    inventory.drop(PF)
    assert inventory.adapters[SLOT].physical_functions == (SECOND_PF,)
    inventory.drop(SECOND_PF)
    assert inventory.adapters == {}
    assert listener.take()[-1] == f"{SLOT} gone"


def test_a_vf_belongs_to_the_adapter_of_its_pf(listener: Listener) -> None:
    listener.inventory.put(make_pf())
    listener.inventory.put(make_vf(6))
    vf = listener.inventory.get(make_vf(6).address)
    assert str(vf.address.slot) != SLOT
    assert vf.adapter == SLOT


def test_stuck_is_told_once_and_outlives_the_adapters_absence(listener: Listener) -> None:
    inventory = listener.inventory
    inventory.put(make_pf())
    listener.take()
    for _ in range(2):
        inventory.set_stuck(SLOT, "a write hangs")
    assert listener.take() == [f"{SLOT} changed"]
    inventory.drop(PF)
    inventory.put(make_pf(identity=2))
    assert inventory.adapters[SLOT].stuck == "a write hangs"
    inventory.set_stuck(SLOT, "")
    assert inventory.adapters[SLOT].stuck == ""


def test_stuck_of_an_unknown_adapter_is_no_change(listener: Listener) -> None:
    listener.inventory.set_stuck("host", "a rescan hangs")
    assert listener.take() == []


def test_quarantine_is_marked_and_lifted(listener: Listener) -> None:
    listener.inventory.put(make_pf())
    listener.take()
    for reason in ("broken", "broken", ""):
        listener.inventory.quarantine(PF, reason)
    assert listener.take() == [f"PF {PF} changed"] * 2
    listener.inventory.quarantine(OTHER_PF, "not there")
    assert listener.take() == []


def test_quarantine_survives_a_new_reading(listener: Listener) -> None:
    listener.inventory.put(make_pf())
    listener.inventory.quarantine(PF, "broken")
    listener.inventory.put(make_pf(driver=""))
    assert listener.inventory.get(PF).quarantine == "broken"


def test_retain_drops_the_rest(listener: Listener) -> None:
    for facts in (make_pf(), make_vf(0), make_vf(1), make_pf(OTHER_PF)):
        listener.inventory.put(facts)
    listener.inventory.retain([PF, make_vf(1).address])
    assert set(listener.inventory.functions) == {PF, make_vf(1).address}
    assert dict(listener.inventory.vfs_of(PF)) == {1: make_vf(1).address}


def test_an_unknown_address_is_refused_by_name_and_dropping_it_is_fine(listener: Listener) -> None:
    listener.inventory.drop(PF)
    with pytest.raises(NoSuchFunction, match=str(PF)):
        listener.inventory.get(PF)


def test_a_vf_asked_for_its_vfs_is_refused_with_its_pf(listener: Listener) -> None:
    listener.inventory.put(make_vf(0))
    with pytest.raises(InvalidArgument, match=str(make_vf(0).address)) as refusal:
        listener.inventory.get_pf(make_vf(0).address)
    assert str(PF) in refusal.value.hint


PUT_OR_DROP = st.lists(
    st.tuples(st.sampled_from([make_pf(), make_pf(SECOND_PF), make_vf(0), make_vf(1)]), st.integers(0, 3))
)


@given(PUT_OR_DROP)
def test_announcements_replayed_give_the_picture(events: list[tuple[FunctionFacts, int]]) -> None:
    """Whoever only listens knows what whoever asks knows, whatever comes in which order."""
    listener = Listener()
    for facts, identity in events:
        if identity:
            listener.inventory.put(replace(facts, identity=identity))
        else:
            listener.inventory.drop(facts.address)
    functions: dict[PciAddress, Function | None] = {}
    adapters: dict[str, Adapter | None] = {}
    for change in listener.changes:
        if isinstance(change, AdapterChange):
            either = change.after or change.before
            assert either is not None
            assert adapters.get(either.slot) == change.before
            adapters[either.slot] = change.after
        else:
            assert isinstance(change, FunctionChange)
            one = change.after or change.before
            assert one is not None
            assert functions.get(one.address) == change.before
            functions[one.address] = change.after
    assert {key: value for key, value in functions.items() if value} == listener.inventory.functions
    assert {key: value for key, value in adapters.items() if value} == listener.inventory.adapters
