"""Headers of packets, taken apart as PCIe 2.2 puts them together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.recovery.decode_tlp import describe_tlp

# Table 2-3 of the base specification: Fmt and Type as it prints them.
NAMES = [
    ("000", "00000", "MRd32"), ("001", "00000", "MRd64"),
    ("000", "00001", "MRdLk32"), ("001", "00001", "MRdLk64"),
    ("010", "00000", "MWr32"), ("011", "00000", "MWr64"),
    ("000", "00010", "IORd"), ("010", "00010", "IOWr"),
    ("000", "00100", "CfgRd0"), ("010", "00100", "CfgWr0"),
    ("000", "00101", "CfgRd1"), ("010", "00101", "CfgWr1"),
    ("010", "11011", "DMWr32"), ("011", "11011", "DMWr64"),
    *((("001", f"10{route:03b}", "Msg")) for route in range(8)),
    *((("011", f"10{route:03b}", "MsgD")) for route in range(8)),
    ("000", "01010", "Cpl"), ("010", "01010", "CplD"),
    ("000", "01011", "CplLk"), ("010", "01011", "CplDLk"),
    ("010", "01100", "FetchAdd32"), ("011", "01100", "FetchAdd64"),
    ("010", "01101", "Swap32"), ("011", "01101", "Swap64"),
    ("010", "01110", "CAS32"), ("011", "01110", "CAS64"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "kind", "name"), NAMES)
def test_fmt_and_type_name_it(form: str, kind: str, name: str) -> None:
    first = int(form + kind, 2) << 24
    assert describe_tlp((first, 0, 0, 0)).startswith(f"{name}: ")


def test_no_other_fmt_and_type_has_a_name() -> None:
    named = {int(form + kind, 2) for form, kind, _name in NAMES}
    for byte in set(range(0x80)) - named:
        assert (
            describe_tlp((byte << 24, 0, 0, 0)) == f"unknown TLP (Fmt {byte >> 5:03b}, Type {byte & 31:05b})"
        )


WHOLE = [
    (
        (0x40000001, 0x0100050F, 0xFEE00000, 0),
        "MWr32: 1 DW at 0xfee00000, requester 01:00.0, tag 0x05, byte enables first 1111, last 0000",
    ),
    (
        (0x20000000, 0x018200FE, 0x00000010, 0x00000FFC),
        "MRd64: 1024 DW at 0x1000000ffc, requester 01:10.2, tag 0x00, byte enables first 1110, last 1111",
    ),
    (
        (0x00000001, 0x0100000F, 0x00001003, 0),
        "MRd32: 1 DW at 0x1000, requester 01:00.0, tag 0x00, byte enables first 1111, last 0000",
    ),
    (
        (0x02000001, 0x00000001, 0x0000D000, 0),
        "IORd: 1 DW at 0xd000, requester 00:00.0, tag 0x00, byte enables first 0001, last 0000",
    ),
    (
        (0x05000001, 0x0000120C, 0x0182063F, 0),
        "CfgRd1: register 0x63c of 01:10.2, requester 00:00.0, tag 0x12, byte enables first 1100, last 0000",
    ),
    (
        (0x4A000002, 0x01000008, 0x00180544, 0),
        "CplD: successful, 2 DW from 01:00.0, requester 00:03.0, tag 0x05, 8 bytes left, lower address 0x44",
    ),
    (
        (0x0A000000, 0x01002004, 0x00000500, 0),
        "Cpl: unsupported request, no data from 01:00.0, requester 00:00.0, tag 0x05, 4 bytes left,"
        " lower address 0x00",
    ),
    (
        (0x0A000000, 0x01008000, 0x00000500, 0),
        "Cpl: completer abort, no data from 01:00.0, requester 00:00.0, tag 0x05, 4096 bytes left,"
        " lower address 0x00",
    ),
    (
        (0x0A000000, 0x0100E004, 0x00000500, 0),
        "Cpl: status 111, no data from 01:00.0, requester 00:00.0, tag 0x05, 4 bytes left,"
        " lower address 0x00",
    ),
    (
        (0x30000000, 0x01000031, 0, 0),
        "Msg: ERR_NONFATAL (0x31), routed to the root complex, requester 01:00.0",
    ),
    ((0x74000001, 0x000000AB, 0, 0), "MsgD: code (0xab), routed to the link partner, requester 00:00.0"),
    ((0x37000000, 0x00000014, 0, 0), "Msg: PM_Active_State_Nak (0x14), routed 111, requester 00:00.0"),
    (
        (0x4C000002, 0x0100050F, 0x00001000, 0),
        "FetchAdd32: 2 DW at 0x1000, requester 01:00.0, tag 0x05, byte enables first 1111, last 0000",
    ),
    ((0x81000000, 0, 0, 0), "local TLP prefix of type 0x1"),
    ((0x92000000, 0, 0, 0), "end-to-end TLP prefix of type 0x2"),
    ((0x40000001, 0x0100050F, 0xFEE00000), "only 3 of 4 dwords are known"),
    ((), "only 0 of 4 dwords are known"),
]


@pytest.mark.parametrize(("words", "text"), WHOLE, ids=lambda each: str(each)[:20])
def test_a_header_in_words(words: tuple[int, ...], text: str) -> None:
    assert describe_tlp(words) == text


FLAGS = [
    (1 << 14, "poisoned"),
    (1 << 15, "with digest"),
    (1 << 16, "with hint"),
    (3 << 20, "traffic class 3"),
    (1 << 14 | 7 << 20, "poisoned, traffic class 7"),
]


@pytest.mark.parametrize(("bits", "text"), FLAGS)
def test_what_is_out_of_the_ordinary_is_said(bits: int, text: str) -> None:
    plain = describe_tlp((0x40000001, 0x0100050F, 0x1000, 0))
    assert describe_tlp((0x40000001 | bits, 0x0100050F, 0x1000, 0)) == f"{plain}, {text}"


def test_a_tag_has_ten_bits() -> None:
    assert "tag 0x3ff," in describe_tlp((0x40000001 | 1 << 23 | 1 << 19, 0xFF0F, 0x1000, 0))
    assert "tag 0x205," in describe_tlp((0x4A000001 | 1 << 23, 0, 0x0500, 0))


@pytest.mark.parametrize(("bits", "text"), [(1, "translation request"), (2, "translated address")])
def test_an_address_that_is_not_plain_is_said(bits: int, text: str) -> None:
    assert f"at 0x1000 ({text})," in describe_tlp((0x00000001 | bits << 10, 0, 0x1000, 0))


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
def test_any_words_are_described(words: list[int]) -> None:
    text = describe_tlp(words)
    assert text.isprintable()
    assert 0 < len(text) < 200
