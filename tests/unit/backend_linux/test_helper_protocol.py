"""What helper and daemon say to each other, and which files a helper agrees to touch."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sriovd.backend.linux import helper


@pytest.mark.parametrize(
    "path",
    ["bus/pci/rescan", "bus/pci/devices/0000:01:00.0/reset", "bus/pci/drivers/vfio-pci/bind", "bus/pci/a b"],
)
def test_paths_of_the_pci_bus_are_allowed(path: str) -> None:
    assert helper.is_allowed(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/bus/pci/rescan",
        "/etc/passwd",
        "kernel/mm/ksm/run",
        "bus/pci/../../power/state",
        "bus/pci/drivers/../../../x/bind",
        "bus/pci/drivers//bind",
        "bus/pci/drivers/./bind",
        "bus/pci/drivers/x\0y/bind",
        "bus/pci/drivers/x\ny/bind",
        "bus/pci/drivers/bj\xf6rn/bind",
        "bus/pci/drivers/\udcff/bind",
        "bus/pcix/rescan",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    assert not helper.is_allowed(path)


@settings(deadline=None)
@given(st.text(), st.integers(0, 2**63))
def test_a_step_is_json_of_fixed_size_whatever_its_label(label: str, began_usec: int) -> None:
    text = helper.format_step(label, began_usec)
    assert len(text) == helper.STEP_BYTES
    fields = json.loads(text + b'"end": 0}')
    assert fields["began_usec"] == began_usec


def test_a_step_keeps_an_ordinary_label() -> None:
    assert json.loads(helper.format_step("bind 0000:01:10.2 vfio-pci", 7) + b'"end": 0}') == {
        "step": "bind 0000:01:10.2 vfio-pci",
        "began_usec": 7,
        "end": 0,
    }


_values = st.recursive(st.none() | st.integers() | st.text() | st.binary(), st.lists)


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(), _values), max_size=4), st.data())
def test_messages_survive_any_cutting(messages: list[tuple[str, object]], data: st.DataObject) -> None:
    stream = b"".join(helper.frame(message) for message in messages)
    buffer, received = bytearray(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        buffer += stream[:size]
        stream = stream[size:]
        while (message := helper.unframe(buffer)) is not None:
            received.append(message)
    assert received == messages
    assert not buffer
