"""D-Bus messages whose form is right and whose contents are not, and those that are costly to read."""

from __future__ import annotations

import time
import tracemalloc
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sriovd.bus.calls import BadBody
from sriovd.bus.message import Field, Kind, MalformedMessage, encode_message
from sriovd.bus.receiver import MAX_INCOMING_BYTES
from sriovd.bus.signature import Variant
from sriovd.bus.transport import Header, read_header, read_values
from sriovd.bus.wire import encode_body
from sriovd.pci import PciAddress
from tests.fuzz.entries_bus import header_of, make_call
from tests.fuzz.table import TABLE
from tests.unit.bus.test_wire import _bodies

_SECONDS_AT_MOST = 0.2  # of processor time, and on a slow machine; some 30 ms are meant
_GROWTH_AT_MOST_BYTES = 16 << 20
_CODES = "ynqiuxtdsgb"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_bodies(), st.data())
def test_a_message_with_any_changes_is_refused_or_read(
    body: tuple[str, list[Any]], data: st.DataObject
) -> None:
    message = bytearray(make_call(*body))
    places = st.lists(st.tuples(st.integers(0, len(message) - 1), st.integers(0, 255)), max_size=4)
    for place, byte in data.draw(places):
        message[place] = byte
    for entry in (TABLE["dbus-stream"], TABLE["dbus-header"], TABLE["dbus-message"]):
        with suppress(*entry.errors):
            entry.parse(bytes(message))


def _field(code: int, signature: str, value: Any) -> bytes:
    return bytes(encode_body("(yv)", ((code, Variant(signature, value)),)))


@pytest.mark.parametrize(
    ("field", "signature", "value"),
    [
        (Field.UNIX_FDS, "s", "many"),
        (Field.UNIX_FDS, "t", 1),
        (Field.REPLY_SERIAL, "as", ["x"]),
        (Field.SIGNATURE, "s", "s"),
        (Field.PATH, "s", "/x"),
        (Field.MEMBER, "u", 7),
    ],
)
def test_a_known_field_of_another_type_is_no_header(field: Field, signature: str, value: Any) -> None:
    message = encode_message(Kind.RETURN, 7, [_field(field, signature, value)], encode_body("", []))
    with pytest.raises(MalformedMessage):
        read_header(message)
    TABLE["dbus-message"].parse(message)  # and nothing else comes of it


def test_an_unknown_field_may_be_anything() -> None:
    message = encode_message(Kind.CALL, 7, [_field(99, "as", ["x"])], encode_body("", []))
    assert read_header(message).fields == {99: ["x"]}


def _many_signatures() -> tuple[str, list[Any]]:
    """Of each, the decoder keeps 400 bytes a letter."""
    texts = ("a(" + "".join(_CODES[(number >> at) % 11] for at in range(250)) + ")" for number in range(960))
    return "av", [[Variant(text, []) for text in texts]]


COSTLY = {
    "long signatures": _many_signatures(),
    "variants": ("av", [[Variant("y", 1)] * 60_000]),
    "nested arrays": ("aay", [[b""] * 60_000]),
    "structs of bytes": ("a(yyyyyyyy)", [[(1,) * 8] * 30_000]),
    "empty texts": ("as", [[""] * 32_000]),
}


@pytest.mark.parametrize("kind", COSTLY)
def test_no_message_takes_long_to_read(kind: str) -> None:
    signature, values = COSTLY[kind]
    body = bytes(encode_body(signature, values))
    assert MAX_INCOMING_BYTES // 2 < len(body) <= MAX_INCOMING_BYTES
    began = time.process_time()
    with pytest.raises(BadBody):
        read_values(header_of(signature), body, ())
    assert time.process_time() - began < _SECONDS_AT_MOST
    tracemalloc.start()
    try:
        with pytest.raises(BadBody):
            read_values(header_of(signature), body, ())
        assert tracemalloc.get_traced_memory()[1] < _GROWTH_AT_MOST_BYTES
    finally:
        tracemalloc.stop()


def test_the_longest_list_that_anybody_means_is_read() -> None:
    """The addresses of as many functions as a message holds; and bytes are one value, however many."""
    addresses = [str(PciAddress.from_rid(0, number)) for number in range(13_000)]
    body = bytes(encode_body("asa{sv}", [addresses, {"wait-usec": Variant("t", 1)}]))
    assert len(read_values(header_of("asa{sv}"), body, ())[0]) == 13_000
    header = Header(ord("l"), Kind.CALL, 0, 1, {Field.SIGNATURE: "ay"})
    assert len(read_values(header, bytes(encode_body("ay", [bytes(200_000)])), ())[0]) == 200_000
