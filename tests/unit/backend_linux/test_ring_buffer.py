"""Pages of the kernel's trace buffer, as the kernel made one and as it could make others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.linux.ring_buffer import Field, parse_fields, parse_format, split_page
from tests.unit.backend_linux.trace_pages import AER_FORMAT, HEADER_PAGE, make_page, word

LAYOUT = parse_fields(HEADER_PAGE)
MISSED_EVENTS = 1 << 31
PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31


def test_a_layout_is_read() -> None:
    assert LAYOUT["timestamp"] == Field(0, 8)
    assert LAYOUT["commit"] == Field(8, 8)
    assert LAYOUT["data"] == Field(16, 4080)


def test_a_format_is_read() -> None:
    aer = parse_format(AER_FORMAT)
    assert aer.number == 1348
    assert aer.fields["common_type"] == Field(0, 2)
    assert aer.fields["dev_name"] == Field(8, 4)
    assert aer.fields["tlp_header"] == Field(20, 16)


def test_a_format_without_number_is_none() -> None:
    with pytest.raises(ValueError, match="ID"):
        parse_format("name: aer_event\n")


def test_times_add_up() -> None:
    records = [(5, b"aaaa"), (7, b"bbbbbbbb")]
    assert split_page(LAYOUT, make_page(100, records)) == ([(105, b"aaaa"), (112, b"bbbbbbbb")], False)


def test_lost_records_are_told() -> None:
    assert split_page(LAYOUT, make_page(100, [(0, b"aaaa")], flags=MISSED_EVENTS)) == (
        [(100, b"aaaa")],
        True,
    )


def test_what_is_no_record_is_passed_over() -> None:
    before = word(TIME_EXTEND, 3) + word(2)  # 2 << 27 | 3 nanoseconds
    discarded = word(PADDING, 1) + word(8) + bytes(4)
    long = word(0, 1) + word(4 + 400) + bytes(400)
    stamp = word(TIME_STAMP, 9) + word(1)
    page = make_page(1 << 60, raw=before + discarded + long + stamp + word(1, 1) + b"last")
    after_extend_nsec = (1 << 60) + (2 << 27 | 3)
    stamped_nsec = (1 << 60 | 1 << 27 | 9) + 1
    assert split_page(LAYOUT, page) == (
        [(after_extend_nsec + 1, bytes(400)), (stamped_nsec, b"last")],
        False,
    )


def test_the_rest_of_a_page_may_be_empty() -> None:
    page = make_page(0, raw=word(1, 1) + b"only" + word(PADDING) + bytes(100))
    assert split_page(LAYOUT, page) == ([(1, b"only")], False)


@pytest.mark.parametrize("page", [b"", bytes(15), make_page(0, [(0, b"aaaa")])[:20]])
def test_a_page_that_is_cut_is_refused(page: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        split_page(LAYOUT, page)


@given(st.binary(max_size=200), st.integers(0, 200))
def test_no_page_does_more_harm_than_a_refusal(data: bytes, size: int) -> None:
    try:
        records, _ = split_page(LAYOUT, make_page(0, raw=data, size=size))
    except ValueError:
        return
    assert sum(len(record) for _, record in records) <= len(data)


def test_time_has_64_bits_as_the_kernels_has() -> None:
    """Else a record of it could not be written to anybody's buffer."""
    page = make_page(2**64 - 1, [(3, b"aaaa")], raw=word(TIME_EXTEND) + word(2**27 - 1) + word(1) + b"bbbb")
    records, _ = split_page(LAYOUT, page)
    assert [time_nsec for time_nsec, _ in records] == [2, 2 + ((2**27 - 1) << 27)]
