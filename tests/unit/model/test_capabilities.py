"""Walking capability lists: the model's own, and bytes from outside that are wrong in every way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.model.capabilities import CapabilityError, walk_capabilities, walk_extended_capabilities
from sriovd.backend.model.configspace import ConfigSpace
from tests.unit.model.cards import build_pf, enable_vfs

# id and offset, in the order of the list; the igb and nvme ones were read from QEMU's devices
PF_LISTS = {
    "igb": (
        [(0x01, 0x40), (0x05, 0x50), (0x11, 0x70), (0x10, 0xA0)],
        [(0x01, 0x100), (0x0E, 0x150), (0x10, 0x160)],
    ),
    "nvme": ([(0x11, 0x40), (0x10, 0x80), (0x01, 0x60)], [(0x0E, 0x100), (0x10, 0x120)]),
    "dlb": ([(0x11, 0x60), (0x10, 0x6C), (0x01, 0xB0)], [(0x01, 0x100), (0x0E, 0x148), (0x10, 0x160)]),
}
VF_LISTS = {
    "igb": ([(0x10, 0xA0), (0x11, 0x70)], [(0x01, 0x100), (0x0E, 0x150)]),
    "nvme": ([(0x11, 0x40), (0x10, 0x80), (0x01, 0x60)], [(0x0E, 0x100)]),
    "dlb": ([(0x11, 0x60), (0x10, 0x6C)], [(0x01, 0x100), (0x0E, 0x148)]),
}
Lists = tuple[list[tuple[int, int]], list[tuple[int, int]]]


def walk_both(config: ConfigSpace) -> Lists:
    legacy, extended = walk_capabilities(config), walk_extended_capabilities(config)
    assert all(item.version == 1 for item in extended)
    return [(item.id, item.offset) for item in legacy], [(item.id, item.offset) for item in extended]


@pytest.mark.parametrize("name", PF_LISTS)
def test_lists_of_the_profiles(name: str) -> None:
    pf = build_pf(name)
    enable_vfs(pf, 1)
    assert walk_both(pf.config) == PF_LISTS[name]
    assert walk_both(pf.virtual_functions[0].config) == VF_LISTS[name]


def build_dump(size: int, *cells: tuple[int, bytes]) -> ConfigSpace:
    """A dump with the capability bit of Status set and bytes at some offsets."""
    raw = bytearray(size)
    raw[0x06] = 0x10
    for offset, content in cells:
        raw[offset : offset + len(content)] = content
    return ConfigSpace.from_bytes(bytes(raw))


@pytest.mark.parametrize(
    ("size", "cells", "names"),
    [
        (256, [(0x34, b"\x40"), (0x40, b"\x01\x50"), (0x50, b"\x05\x40")], "0x51 goes back to 0x40"),
        (256, [(0x34, b"\x40"), (0x40, b"\x01\x40")], "0x41 goes back to 0x40"),
        (256, [(0x34, b"\x20")], "0x34 is 0x20: outside 0x40 to 0xff"),
        (64, [(0x34, b"\x40")], "0x40 needs 2 bytes, the configuration space ends at 0x40"),
        (256, [(0x34, b"\xf8"), (0xF8, b"\x10\x00")], "0x10 at 0xf8 needs 20 bytes"),
    ],
)
def test_a_wrong_legacy_list_is_named(size: int, cells: list[tuple[int, bytes]], names: str) -> None:
    with pytest.raises(CapabilityError, match=names):
        walk_capabilities(build_dump(size, *cells))


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([(0x100, b"\x01\x00\x01\x15"), (0x150, b"\x0e\x00\x01\x10")], "0x150 goes back to 0x100"),
        ([(0x100, b"\x01\x00\x01\x08")], "0x100 is 0x80: outside 0x100 to 0xfff"),
        ([(0x100, b"\x01\x00\x21\x15")], "0x100 is 0x152: not aligned"),
        ([(0x100, b"\xff\xff\xff\xff")], "0x100 reads all-ones"),
        ([(0x100, b"\x01\x00\xc1\xff"), (0xFFC, b"\x10\x00\x01\x00")], "0x0010 at 0xffc needs 64 bytes"),
    ],
)
def test_a_wrong_extended_list_is_named(cells: list[tuple[int, bytes]], names: str) -> None:
    with pytest.raises(CapabilityError, match=names):
        walk_extended_capabilities(build_dump(4096, *cells))


def test_absent_lists_are_empty() -> None:
    assert walk_capabilities(ConfigSpace.from_bytes(bytes(256))) == []
    assert walk_capabilities(build_dump(256)) == []
    assert walk_extended_capabilities(build_dump(4096)) == []
    assert walk_extended_capabilities(build_dump(256)) == []


@given(st.sampled_from([64, 256, 4096]), st.data())
def test_any_bytes_end_in_a_list_or_a_capability_error(size: int, data: st.DataObject) -> None:
    """Random pointers among few targets, so that loops and dead ends are common."""
    raw = bytearray(data.draw(st.binary(min_size=64, max_size=64)).ljust(size, b"\0"))
    raw[0x06] |= 0x10
    for offset in range(0x40, size, 4):
        if offset < 0x200:
            raw[offset : offset + 4] = data.draw(
                st.sampled_from([b"\x01\x44\x01\x10", b"\x10\x48\x01\x14", b"\x05\x4c\xc1\xff"])
            )
    config = ConfigSpace.from_bytes(bytes(raw))
    for walk in (walk_capabilities, walk_extended_capabilities):
        try:
            offsets = [item.offset for item in walk(config)]
        except CapabilityError as error:
            assert "0x" in str(error)
        else:
            assert len(set(offsets)) == len(offsets)
