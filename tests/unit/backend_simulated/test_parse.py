"""What the kernel's string helpers accept."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.simulated.parse import parse_bool, parse_signed, parse_unsigned, same_text


def attempt(function: object, *arguments: object) -> object:
    """The value, or the errno's name."""
    try:
        return function(*arguments)  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"7", 7),
        (b"7\n", 7),
        (b"+3", 3),
        (b"03", 3),
        (b"010", 8),
        (b"0x3", 3),
        (b"0X1f", 31),
        (b"0", 0),
        (b"0\0junk", 0),
        (b"65535", 65535),
        (b"65536", "ERANGE"),
        (b"", "EINVAL"),
        (b"\n", "EINVAL"),
        (b"x", "EINVAL"),
        (b"-1", "EINVAL"),
        (b" 3", "EINVAL"),
        (b"3 ", "EINVAL"),
        (b"3\n\n", "EINVAL"),
        (b"0x", "EINVAL"),
        (b"08", "EINVAL"),
        (b"++3", "EINVAL"),
    ],
)
def test_unsigned_numbers(data: bytes, expected: object) -> None:
    assert attempt(parse_unsigned, data, 16) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [(b"-1", -1), (b"4", 4), (b"-+1", "EINVAL"), (b"x", "EINVAL"), (b"2147483648", "ERANGE")],
)
def test_signed_numbers(data: bytes, expected: object) -> None:
    assert attempt(parse_signed, data, 32) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"1", True),
        (b"y", True),
        (b"Y", True),
        (b"yes", True),
        (b"on", True),
        (b"1x", True),
        (b"0", False),
        (b"n", False),
        (b"off", False),
        (b"0\n", False),
        (b"00", False),
        (b"x", "EINVAL"),
        (b"2", "EINVAL"),
        (b"\n", "EINVAL"),
        (b"o", "EINVAL"),
    ],
)
def test_booleans(data: bytes, expected: object) -> None:
    assert attempt(parse_bool, data) == expected


@given(st.integers(0, 0xFFFF))
def test_every_way_to_write_a_number_gives_it(number: int) -> None:
    for text in (f"{number}", f"+{number}\n", f"0x{number:x}", f"0{number:o}"):
        assert parse_unsigned(text.encode(), 16) == number


def test_one_trailing_newline_is_ignored() -> None:
    assert same_text(b"flr\n", "flr")
    assert not same_text(b"flr\n\n", "flr")
    assert not same_text(b" flr", "flr")
