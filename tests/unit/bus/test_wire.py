"""What we encode, an independent decoder (dbus-next's) reads back; what cannot be sent is named."""

from __future__ import annotations

import math
from typing import Any

import pytest
from dbus_next.message import Message
from dbus_next.signature import Variant as LibraryVariant
from hypothesis import given, settings
from hypothesis import strategies as st

from sriovd.bus.message import (
    Field,
    Kind,
    MalformedMessage,
    body_fields,
    encode_field,
    encode_message,
    read_prologue,
)
from sriovd.bus.signature import SignatureError, Variant, parse_signature, parse_single
from sriovd.bus.wire import Buffer, Fd, WireError, close_fds, encode_body, entry_writer

from .support import decode_message

_RANGES = {"y": 8, "q": 16, "u": 32, "t": 64}
_SIGNED = {"n": 16, "i": 32, "x": 64}
_TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20)
_BASIC: dict[str, st.SearchStrategy[Any]] = {
    **{code: st.integers(0, 2**bits - 1) for code, bits in _RANGES.items()},
    **{code: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for code, bits in _SIGNED.items()},
    "b": st.booleans(), "s": _TEXT, "o": st.sampled_from(["/", "/a", "/org/sriovd1/function/_0"]),
    "d": st.floats(allow_nan=False), "g": st.sampled_from(["", "s", "a{sv}", "(ii)ai"]),
}  # fmt: skip
_KEYS = st.sampled_from("yunst")


def _typed(depth: int) -> st.SearchStrategy[tuple[str, st.SearchStrategy[Any]]]:
    """Signatures, each with a strategy for its values."""
    basic = st.sampled_from(sorted(_BASIC)).map(lambda code: (code, _BASIC[code]))
    if depth == 0:
        return basic
    inner = _typed(depth - 1)
    return st.one_of(
        basic,
        inner.filter(lambda t: t[0] != "y").map(lambda t: ("a" + t[0], st.lists(t[1], max_size=4))),
        st.just(("ay", st.binary(max_size=9))),
        st.lists(inner, min_size=1, max_size=3).map(
            lambda fields: (
                f"({''.join(f[0] for f in fields)})",
                st.tuples(*(f[1] for f in fields)).map(list),
            )
        ),
        st.tuples(_KEYS, inner).map(
            lambda pair: (
                f"a{{{pair[0]}{pair[1][0]}}}",
                st.dictionaries(_BASIC[pair[0]], pair[1][1], max_size=4),
            )
        ),
        inner.map(lambda t: ("v", t[1].map(lambda value: Variant(t[0], value)))),
    )


@st.composite
def _bodies(draw: st.DrawFn) -> tuple[str, list[Any]]:
    typed = draw(st.lists(_typed(3), max_size=4))
    return "".join(signature for signature, _ in typed), [draw(values) for _, values in typed]


def _decode(signature: str, values: list[Any]) -> Message:
    body = encode_body(signature, values)
    fields = [
        encode_field(Field.PATH, "/a"),
        encode_field(Field.INTERFACE, "a.b"),
        encode_field(Field.MEMBER, "M"),
    ]
    data = encode_message(Kind.SIGNAL, 7, fields + body_fields(signature, body), body)
    prologue = read_prologue(data)
    assert prologue.header_bytes + prologue.body_bytes == len(data)
    return decode_message(data)


def _plain(value: Any) -> Any:
    if isinstance(value, LibraryVariant):
        return Variant(value.signature, _plain(value.value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(_bodies())
def test_what_is_encoded_is_read_back_by_the_library(body: tuple[str, list[Any]]) -> None:
    signature, values = body
    message = _decode(signature, values)
    assert (message.path, message.interface, message.member, message.serial) == ("/a", "a.b", "M", 7)
    assert message.signature == signature
    assert _plain(message.body) == values


@pytest.mark.parametrize(
    ("signature", "value", "said"),
    [
        ("u", -1, "-1 is not an unsigned 32-bit integer"),
        ("y", 256, "256 is not a byte"),
        ("t", 1 << 64, "is not an unsigned 64-bit integer"),
        ("u", True, "True is not"),
        ("u", "7", "'7' is not"),
        ("u", None, "None is not"),
        ("b", 1, "1 is not a boolean"),
        ("d", "x", "'x' is not a floating point number"),
        ("s", "a\0b", "contains a NUL"),
        ("s", "\udc80", "valid Unicode"),
        ("s", b"x", "not a string"),
        ("o", "", "not an object path"),
        ("o", "/a/", "not an object path"),
        ("o", "/a b", "not an object path"),
        ("g", "a", "the end at character 2"),
        ("h", 3, "not a file descriptor"),
        ("as", "text", "not a list"),
        ("ay", [1], "not bytes"),
        ("a{sv}", [], "not a mapping"),
        ("a{sv}", {"k": 1}, "not a Variant"),
        ("v", Variant("uu", 1), "not a Variant of one complete type"),
        ("(su)", ("x",), "not 2 values"),
    ],
)
def test_a_value_that_cannot_be_sent_is_named(signature: str, value: object, said: str) -> None:
    with pytest.raises(WireError) as refused:
        encode_body(signature, [value])
    assert said in str(refused.value)


def test_variants_nested_too_deep_are_refused() -> None:
    value: Variant = Variant("u", 1)
    for _ in range(40):
        value = Variant("v", value)
    with pytest.raises(WireError, match="nested deeper"):
        encode_body("v", [value])


def test_the_number_of_values_must_match() -> None:
    with pytest.raises(WireError, match="2 values for signature 's', which takes 1"):
        encode_body("s", ["a", "b"])


@pytest.mark.parametrize(
    "text",
    ["a", "(", "()", "{sv}", "a{vs}", "a{sv", "z",
      "a{s}", "(s", "s" * 256, "a" * 33 + "y", "(" * 33 + "y" + ")" * 33,
    ]
)  # fmt: skip
def test_bad_signatures_are_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        parse_signature(text)


def test_a_single_type_is_exactly_one() -> None:
    assert parse_single("a{s(ii)}").children[0].children[1].text == "(ii)"
    for text in ("", "ss"):
        with pytest.raises(SignatureError, match="exactly one complete type"):
            parse_single(text)


def test_a_message_that_starts_with_nonsense_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="byte order mark 0x58"):
        read_prologue(b"X" * 16)


def test_owned_descriptors_of_unsent_values_are_closed() -> None:
    import os

    reading, writing = os.pipe()
    close_fds(({"a": Variant("h", Fd(reading))}, [Fd(writing, owned=False)]))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reading)
    os.close(writing)


def test_numbers_keep_their_sign_and_size() -> None:
    assert _decode("nixd", [-1, -2, -3, math.pi]).body == [-1, -2, -3, math.pi]


def test_a_remembered_entry_is_the_same_in_every_place() -> None:
    for signature, values in {
        "s": ("a", "a", "bb", "a"),
        "b": (True, True, False),
        "u": (1, 1, 2),
        "as": (["a"], ["a"], []),
        "(ub)": ((1, True), (1, True)),
    }.items():
        write = entry_writer("Name", signature)
        for lead in range(9):
            for value in values:
                buffer, fresh = Buffer(), Buffer()
                for each in (buffer, fresh):
                    each += bytes(lead)
                write(buffer, value)
                entry_writer("Name", signature)(fresh, value)
                assert buffer == fresh


def test_what_is_equal_in_python_only_is_not_taken_for_the_remembered_value() -> None:
    write = entry_writer("Name", "u")
    write(Buffer(), 1)
    for wrong in (True, 1.0):
        with pytest.raises(WireError, match="Name"):
            write(Buffer(), wrong)
