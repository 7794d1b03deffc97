"""Bits, widths, resets and behaviours of a configuration space that no device has."""

from __future__ import annotations

import pytest

from sriovd.backend.model.configspace import Behaviour, ConfigLayout, ConfigSpace, Reset


def build_space() -> ConfigSpace:
    layout = ConfigLayout(256)
    layout.define(0x40, 4, 0x1234_5678, writable=0x0000_FF00)
    layout.define(0x44, 4, 0, writable=0x0F, clearable=0xF0, sticky=0x33)
    layout.define(0x48, 2, 0x00FF, writable=0xFFFF, kept_by_flr=0x0F00)
    return ConfigSpace(layout)


@pytest.mark.parametrize(
    ("offset", "width", "names"),
    [
        (0x41, 2, "0x41: not aligned"),
        (0x42, 4, "0x42: not aligned"),
        (0x40, 3, "width 3"),
        (0x40, 8, "width 8"),
        (0x40, 0, "width 0"),
        (0x100, 1, r"0x100\+1: outside"),
        (-4, 4, "outside"),
        (4096, 4, r"0x1000\+4: outside"),
    ],
)
def test_a_bad_access_is_named(offset: int, width: int, names: str) -> None:
    space = build_space()
    with pytest.raises(ValueError, match=names):
        space.read(offset, width)
    with pytest.raises(ValueError, match=names):
        space.write(offset, width, 0)


@pytest.mark.parametrize(("width", "value"), [(1, 0x100), (2, 0x1_0000), (4, 1 << 32), (4, -1)])
def test_a_value_that_does_not_fit_is_named(width: int, value: int) -> None:
    with pytest.raises(ValueError, match=f"0x40: -?{abs(value):#x} does not fit {width} bytes"):
        build_space().write(0x40, width, value)


@pytest.mark.parametrize(
    ("offset", "width", "value", "dword"),
    [(0x40, 4, 0xFFFF_FFFF, 0x1234_FF78), (0x40, 4, 0, 0x1234_0078), (0x41, 1, 0xAB, 0x1234_AB78),
     (0x40, 1, 0xAB, 0x1234_5678), (0x40, 2, 0xCDEF, 0x1234_CD78), (0x42, 2, 0xFFFF, 0x1234_5678)],
)  # fmt: skip
def test_only_writable_bits_change(offset: int, width: int, value: int, dword: int) -> None:
    space = build_space()
    space.write(offset, width, value)
    assert space.read(0x40, 4) == dword


def test_a_one_clears_and_a_zero_leaves() -> None:
    space = build_space()
    space.poke(0x44, 4, 0xFF)
    space.write(0x44, 1, 0x5A)
    assert space.read(0x44, 4) == 0xAA, "bits 6 and 4 cleared by ones, 7 and 5 left by zeros, 3:0 written"


@pytest.mark.parametrize(
    ("kind", "sticky", "payload"),
    [(Reset.FUNCTION, 0x33, 0x0FFF & 0x0F00 | 0x00FF), (Reset.HOT, 0x33, 0x00FF), (Reset.POWER, 0, 0x00FF)],
)
def test_what_each_reset_keeps(kind: Reset, sticky: int, payload: int) -> None:
    space = build_space()
    space.poke(0x44, 4, 0xFF)
    space.poke(0x48, 2, 0x0F00)
    space.write(0x40, 4, 0)
    space.reset(kind)
    assert (space.read(0x44, 4), space.read(0x48, 2), space.read(0x40, 4)) == (sticky, payload, 0x1234_5678)


def test_an_undefined_byte_reads_zero_and_ignores_writes() -> None:
    space = build_space()
    space.write(0x80, 4, 0xFFFF_FFFF)
    assert space.read(0x80, 4) == 0


def test_a_behaviour_sees_the_whole_register_in_a_partial_write() -> None:
    space, seen = build_space(), []
    space.attach(
        Behaviour(
            0x48,
            2,
            view=lambda v: v ^ 0xFFFF,
            decide=lambda old, new: new & 0x7FFF,
            commit=lambda *a: seen.append(a),
        )
    )
    space.write(0x49, 1, 0x91)
    assert seen == [(0x00FF, 0x91FF)]
    assert (space.peek(0x48, 2), space.read(0x48, 2), space.read(0x49, 1)) == (0x11FF, 0xEE00, 0xEE)
    assert space.to_bytes()[0x48:0x4A] == b"\x00\xee"


def test_two_behaviours_for_one_byte_are_refused() -> None:
    space = build_space()
    space.attach(Behaviour(0x48, 2))
    with pytest.raises(ValueError, match="0x49 has a behaviour"):
        space.attach(Behaviour(0x49, 1))


@pytest.mark.parametrize("size", [0, 63, 65, 255, 1024, 4095, 8192])
def test_a_dump_of_impossible_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes: it has 64, 256 or 4096"):
        ConfigSpace.from_bytes(bytes(size))


@pytest.mark.parametrize("size", [64, 256, 4096])
def test_a_dump_reads_back_and_ignores_writes(size: int) -> None:
    recorded = bytes(i * 7 & 0xFF for i in range(size))
    space = ConfigSpace.from_bytes(recorded)
    space.write(0x10, 4, 0xFFFF_FFFF)
    assert space.to_bytes() == recorded
    assert space.read(0x20, 4) == int.from_bytes(recorded[0x20:0x24], "little")


@pytest.mark.parametrize(
    ("define", "names"),
    [((0xFE, 4), "0xfe\\+4: outside"), ((0x40, 1, 0x100), "0x40: 0x100 does not fit"), ((-1, 1), "outside")],
)
def test_a_register_that_cannot_be_is_refused(define: tuple[int, ...], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        ConfigLayout(256).define(*define)


def test_load_takes_writable_bits_and_refuses_another_device() -> None:
    space = build_space()
    recorded = bytearray(space.to_bytes())
    recorded[0x41], recorded[0x44] = 0xEE, 0xFF
    space.load(bytes(recorded))
    assert space.read(0x40, 2) == 0xEE78
    recorded[0x43] = 0x99
    with pytest.raises(ValueError, match="byte 0x043 is 0x99, this device has 0x12"):
        space.load(bytes(recorded))
    assert space.read(0x40, 4) == 0x1234_EE78, "nothing half done"
    with pytest.raises(ValueError, match="64 bytes, expected 256"):
        space.load(bytes(64))
