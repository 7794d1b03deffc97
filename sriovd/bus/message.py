"""Whole D-Bus messages as bytes: builds the outgoing ones and measures incoming ones. No input or output.

Rules: D-Bus specification, "Message Protocol". The header's fields are position independent (each starts at
an 8-byte boundary), so those that repeat, such as interface and member of a signal, are encoded once.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import lru_cache

from sriovd.bus.signature import Variant
from sriovd.bus.wire import Buffer, WireError, encode_body

MAX_MESSAGE_BYTES = 32 << 20
"""The largest message that a system bus takes (dbus-daemon, max_message_size); a larger one ends the
connection.
"""

PROLOGUE_BYTES = 16
"""The part of every message from which its length follows."""

_PROLOGUE = struct.Struct("<BBBBIII")
_LITTLE, _BIG, _VERSION = ord("l"), ord("B"), 1


class Kind(IntEnum):
    """What a message is."""

    CALL = 1
    RETURN = 2
    ERROR = 3
    SIGNAL = 4


class Flag(IntFlag):
    """Bits of the header's flags byte."""

    NO_REPLY_EXPECTED = 1
    NO_AUTO_START = 2
    ALLOW_INTERACTIVE_AUTHORIZATION = 4


class Field(IntEnum):
    """Codes of the header's fields."""

    PATH = 1
    INTERFACE = 2
    MEMBER = 3
    ERROR_NAME = 4
    REPLY_SERIAL = 5
    DESTINATION = 6
    SENDER = 7
    SIGNATURE = 8
    UNIX_FDS = 9


_FIELD_TYPES = {Field.PATH: "o", Field.SIGNATURE: "g", Field.REPLY_SERIAL: "u", Field.UNIX_FDS: "u"}


class MessageTooLarge(WireError):
    """The message is larger than a bus takes."""


class MalformedMessage(ValueError):
    """The bytes received are not a D-Bus message; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Prologue:
    """What the first 16 bytes tell. header_bytes includes the prologue and the padding before the body."""

    header_bytes: int
    body_bytes: int


def read_prologue(data: bytes | bytearray) -> Prologue:
    """The lengths of the message that starts with `data` (PROLOGUE_BYTES of it). Raises MalformedMessage."""
    if data[0] not in (_LITTLE, _BIG):
        raise MalformedMessage(f"byte order mark {data[0]:#04x}, where 'l' or 'B' is expected")
    order = "<" if data[0] == _LITTLE else ">"
    body_bytes, _, fields_bytes = struct.unpack_from(order + "III", data, 4)
    return Prologue(PROLOGUE_BYTES + fields_bytes + (-fields_bytes & 7), body_bytes)


def field_type(field: Field) -> str:
    """The signature of a field's value."""
    return _FIELD_TYPES.get(field, "s")


@lru_cache(maxsize=2048)
def encode_field(field: Field, value: str | int) -> bytes:
    """One field of a header. Raises WireError."""
    return bytes(encode_body("(yv)", ((int(field), Variant(field_type(field), value)),)))


def encode_message(kind: Kind, serial: int, fields: list[bytes], body: Buffer, flags: int = 0) -> bytes:
    """A complete message. fields: results of encode_field(). Raises MessageTooLarge."""
    header = bytearray()
    for field in fields:
        header += bytes(-len(header) & 7)
        header += field
    prologue = _PROLOGUE.pack(_LITTLE, kind, flags, _VERSION, len(body), serial, len(header))
    message = b"".join((prologue, header, bytes(-len(header) & 7), body))
    if len(message) > MAX_MESSAGE_BYTES:
        raise MessageTooLarge(f"a message of {len(message)} bytes: a bus takes at most {MAX_MESSAGE_BYTES}")
    return message


def body_fields(signature: str, body: Buffer) -> list[bytes]:
    """The header fields that describe a body."""
    fields = [encode_field(Field.SIGNATURE, signature)] if signature else []
    return [*fields, encode_field(Field.UNIX_FDS, len(body.fds))] if body.fds else fields
