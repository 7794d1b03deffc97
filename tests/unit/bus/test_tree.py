"""The object tree alone: what is announced, once, in which order, and at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sriovd.bus.contract import ContractMismatch, load_contract
from sriovd.bus.message import Field, Kind, body_fields, encode_field, encode_message
from sriovd.bus.tree import ROOT, NoSuchObject, Tree
from sriovd.bus.wire import Buffer, WireError

from .support import CONTRACT, PART, THING, decode_message, object_path, thing

_CONTRACT = load_contract(CONTRACT)
_PART = {"Level": 1, "Paths": []}


class Recorder:
    """A tree whose signals and scheduled flushes are kept."""

    def __init__(self) -> None:
        self.signals: list[tuple[str, str, list[Any]]] = []
        self.scheduled: list[Callable[[], None]] = []
        self.tree = Tree(_CONTRACT, self._emit, schedule=self.scheduled.append)

    def _emit(self, path: str, interface: str, member: str, signature: str, body: Buffer) -> None:
        fields = [encode_field(Field.PATH, path), encode_field(Field.INTERFACE, interface)]
        fields += [encode_field(Field.MEMBER, member), *body_fields(signature, body)]
        message = decode_message(encode_message(Kind.SIGNAL, 1, fields, body))
        self.signals.append((path, member, _plain(message.body)))

    def flushed(self) -> list[tuple[str, str, list[Any]]]:
        """Flush; the signals since the last time."""
        self.tree.flush()
        signals, self.signals = self.signals, []
        return signals


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)


@pytest.fixture
def recorder() -> Recorder:
    recorder = Recorder()
    recorder.tree.add(object_path(0), {THING: thing()})
    recorder.flushed()
    recorder.scheduled.clear()
    return recorder


def test_changes_of_one_tick_are_one_signal(recorder: Recorder) -> None:
    recorder.tree.update(object_path(0), THING, {"Driver": "vfio-pci"})
    recorder.tree.update(object_path(0), THING, {"Count": 1, "Driver": "pci-stub"})
    assert len(recorder.scheduled) == 1
    assert recorder.flushed() == [
        (object_path(0), "PropertiesChanged", [THING, {"Driver": "pci-stub", "Count": 1}, []]),
    ]
    assert recorder.flushed() == []


def test_equal_values_and_values_that_come_back_say_nothing(recorder: Recorder) -> None:
    recorder.tree.update(object_path(0), THING, {"Driver": "igb", "Details": {}})
    assert recorder.scheduled == []
    recorder.tree.update(object_path(0), THING, {"Driver": "none"})
    recorder.tree.update(object_path(0), THING, {"Driver": "igb"})
    assert recorder.flushed() == []


def test_the_annotation_decides_what_is_said(recorder: Recorder) -> None:
    recorder.tree.update(object_path(0), THING, {"Blob": b"new", "Clock": 5})
    assert recorder.flushed() == [(object_path(0), "PropertiesChanged", [THING, {}, ["Blob"]])]
    recorder.tree.update(object_path(0), THING, {"Clock": 6})
    assert recorder.flushed() == []
    with pytest.raises(ContractMismatch, match="Name is constant"):
        recorder.tree.update(object_path(0), THING, {"Name": "other"})


def test_other_signals_follow_what_changes_in_the_same_transaction_in_their_order(
    recorder: Recorder,
) -> None:
    recorder.tree.emit_signal(object_path(0), THING, "Poked", 1)
    assert len(recorder.scheduled) == 1
    recorder.tree.update(object_path(0), THING, {"Driver": "none"})
    recorder.tree.emit_signal(object_path(0), THING, "Poked", 2)
    recorder.tree.update(object_path(0), THING, {"Driver": "vfio-pci"})
    assert (len(recorder.scheduled), recorder.signals) == (1, [])
    assert recorder.flushed() == [
        (object_path(0), "PropertiesChanged", [THING, {"Driver": "vfio-pci"}, []]),
        (object_path(0), "Poked", [1]),
        (object_path(0), "Poked", [2]),
    ]
    assert recorder.flushed() == []


def test_an_object_is_announced_with_its_latest_values(recorder: Recorder) -> None:
    recorder.tree.add(object_path(1), {THING: thing(), PART: _PART})
    recorder.tree.update(object_path(1), THING, {"Count": 9})
    assert recorder.flushed() == [
        (ROOT, "InterfacesAdded", [object_path(1), {THING: thing(Count=9), PART: _PART}]),
    ]


def test_an_object_that_comes_and_goes_in_one_tick_is_not_mentioned(recorder: Recorder) -> None:
    recorder.tree.add(object_path(1), {THING: thing()})
    recorder.tree.remove(object_path(1))
    assert recorder.flushed() == []


def test_a_replaced_object_goes_and_comes(recorder: Recorder) -> None:
    recorder.tree.update(object_path(0), THING, {"Count": 1})
    recorder.tree.remove(object_path(0))
    recorder.tree.add(object_path(0), {THING: thing("new")})
    assert recorder.flushed() == [
        (ROOT, "InterfacesRemoved", [object_path(0), [THING]]),
        (ROOT, "InterfacesAdded", [object_path(0), {THING: thing("new")}]),
    ]


def test_interfaces_come_and_go_on_an_object(recorder: Recorder) -> None:
    recorder.tree.set_interfaces(object_path(0), {THING: thing(Count=8), PART: _PART})
    assert recorder.flushed() == [
        (ROOT, "InterfacesAdded", [object_path(0), {PART: _PART}]),
        (object_path(0), "PropertiesChanged", [THING, {"Count": 8}, []]),
    ]
    recorder.tree.set_interfaces(object_path(0), {THING: thing(Count=8)})
    assert recorder.flushed() == [(ROOT, "InterfacesRemoved", [object_path(0), [PART]])]


def test_an_interface_that_comes_back_in_one_tick_is_a_change(recorder: Recorder) -> None:
    recorder.tree.set_interfaces(object_path(0), {PART: _PART})
    recorder.tree.set_interfaces(object_path(0), {THING: thing(Count=3)})
    assert recorder.flushed() == [(object_path(0), "PropertiesChanged", [THING, {"Count": 3}, []])]
    recorder.tree.add(object_path(1), {THING: thing(Count=1)})
    recorder.tree.set_interfaces(object_path(1), {PART: _PART})
    recorder.tree.set_interfaces(object_path(1), {THING: thing(Count=2)})
    assert recorder.flushed() == [(ROOT, "InterfacesAdded", [object_path(1), {THING: thing(Count=2)}])]


def test_new_objects_are_announced_before_the_property_that_names_them(recorder: Recorder) -> None:
    recorder.tree.set_interfaces(object_path(0), {THING: thing(), PART: _PART})
    recorder.flushed()
    recorder.tree.update(object_path(0), PART, {"Paths": [object_path(1)]})
    recorder.tree.add(object_path(1), {THING: thing()})
    recorder.tree.add(object_path(2), {THING: thing()})
    recorder.flushed()
    recorder.tree.remove(object_path(2))
    recorder.tree.update(object_path(0), PART, {"Paths": []})
    recorder.tree.add(object_path(3), {THING: thing()})
    assert [member for _, member, _ in recorder.flushed()] == [
        "InterfacesAdded", "PropertiesChanged", "InterfacesRemoved",
    ]  # fmt: skip


def test_the_root_object_is_no_managed_object(recorder: Recorder) -> None:
    recorder.tree.add(ROOT, {THING: thing("root")})
    recorder.tree.update(ROOT, THING, {"Count": 1})
    assert recorder.flushed() == []
    recorder.tree.update(ROOT, THING, {"Count": 2})
    assert recorder.flushed() == [(ROOT, "PropertiesChanged", [THING, {"Count": 2}, []])]
    assert ROOT.encode() + b"\0\0" not in bytes(recorder.tree.encode_managed_objects())


def test_nodes_exist_as_long_as_something_is_below(recorder: Recorder) -> None:
    tree = recorder.tree
    assert tree.children_of("/") == ["org"]
    assert tree.children_of(ROOT) == ["function"]
    assert tree.has_node(f"{ROOT}/function")
    assert not tree.has(f"{ROOT}/function")
    tree.add(object_path(1), {THING: thing()})
    tree.remove(object_path(0))
    assert tree.children_of(f"{ROOT}/function") == ["_1"]
    tree.remove(object_path(1))
    assert not tree.has_node(ROOT)
    assert tree.has_node("/")
    assert tree.children_of("/") == []


def test_what_does_not_fit_the_contract_is_refused_and_changes_nothing(recorder: Recorder) -> None:
    tree = recorder.tree
    incomplete = thing()
    del incomplete["Count"]
    path = object_path(0)
    refused: list[tuple[type[Exception], str, Callable[[], None]]] = [
        (ContractMismatch, "unknown in .*Thing: Count", lambda: tree.add("/a", {THING: incomplete})),
        (ContractMismatch, "missing or unknown .*: More", lambda: tree.add("/a", {THING: thing(More=1)})),
        (ContractMismatch, "no interface 'a.B'", lambda: tree.add("/a", {"a.B": {}})),
        (ContractMismatch, "not an object path", lambda: tree.add("a", {THING: thing()})),
        (ContractMismatch, "taken", lambda: tree.add(object_path(0), {THING: thing()})),
        (WireError, r"/a: .*Thing.Driver: .* NUL", lambda: tree.add("/a", {THING: thing(Driver="a\0")})),
        (WireError, "Count: -1 is", lambda: tree.update(path, THING, {"Driver": "x", "Count": -1})),
        (ContractMismatch, "no property", lambda: tree.update(path, THING, {"Driver": "x", "Nope": 1})),
        (NoSuchObject, "no interface", lambda: tree.update(object_path(0), PART, {"Level": 1})),
        (NoSuchObject, "no object '/a'", lambda: tree.update("/a", THING, {"Count": 1})),
        (NoSuchObject, "no object '/a'", lambda: tree.remove("/a")),
        (NoSuchObject, "no object '/a'", lambda: tree.set_interfaces("/a", {})),
        (ContractMismatch, "constant", lambda: tree.set_interfaces(path, {THING: thing("x")})),
    ]  # fmt: skip
    for error, said, action in refused:
        with pytest.raises(error, match=said):
            action()
    assert recorder.flushed() == []
    assert tree.values_at(object_path(0), THING) == thing()
    assert tree.interfaces_at(object_path(0)) == (THING,)


_PATHS = st.sampled_from([object_path(n) for n in range(3)])
_STEPS = st.one_of(
    st.tuples(st.just("put"), _PATHS, st.booleans(), st.booleans(), st.integers(0, 2)),
    st.tuples(st.just("remove"), _PATHS),
    st.tuples(st.just("flush")),
)


@settings(deadline=None)
@given(st.lists(_STEPS, max_size=30))
def test_a_client_that_follows_the_signals_knows_the_tree(steps: list[tuple[Any, ...]]) -> None:
    """Whatever happens in whatever ticks: signals applied one by one give what GetManagedObjects would."""
    recorder = Recorder()
    tree, known = recorder.tree, dict[str, dict[str, Any]]()
    for step in [*steps, ("flush",)]:
        if step[0] == "put":
            _, path, with_thing, with_part, count = step
            wanted = {THING: thing(Count=count)} if with_thing else {}
            wanted |= {PART: {"Level": count, "Paths": []}} if with_part or not with_thing else {}
            (tree.set_interfaces if path in tree else tree.add)(path, wanted)
        elif step[0] == "remove" and step[1] in tree:
            tree.remove(step[1])
        elif step[0] == "flush":
            for path, member, body in recorder.flushed():
                _apply(known, path, member, body)
    present = {p: {i: dict(tree.values_at(p, i)) for i in tree.interfaces_at(p)} for p in tree.paths()}
    assert known == present


def _apply(known: dict[str, dict[str, Any]], path: str, member: str, body: list[Any]) -> None:
    if member == "InterfacesAdded":
        assert not known.get(body[0], {}).keys() & body[1].keys(), "announced twice"
        known.setdefault(body[0], {}).update(body[1])
    elif member == "InterfacesRemoved":
        for interface in body[1]:
            del known[body[0]][interface]
        if not known[body[0]]:
            del known[body[0]]
    else:
        assert body[1], "a signal that says nothing"
        known[path][body[0]].update(body[1])


@pytest.mark.alone
def test_the_cost_of_a_change_does_not_depend_on_the_number_of_objects() -> None:
    def time_for(objects: int) -> float:
        tree = Tree(_CONTRACT, lambda *_: None, schedule=lambda _: None)
        for number in range(objects):
            tree.add(object_path(number), {THING: thing()})
        tree.flush()
        return min(_time_of_updates(tree, attempt) for attempt in range(7))

    few, many = time_for(16), time_for(8000)
    assert many / few < 2, f"500 times the objects made a change {many / few:.1f} times as dear"


def _time_of_updates(tree: Tree, attempt: int) -> float:
    start = time.perf_counter()
    for count in range(300):
        tree.update(object_path(count % 16), THING, {"Count": 1000 * attempt + count})
        tree.flush()
    return time.perf_counter() - start
