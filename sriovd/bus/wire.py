"""The D-Bus wire format, outgoing direction: plain Python values to bytes. No input or output.

Each type is compiled once into a function `write(buffer, value)`. That makes a message several times cheaper
than the library's marshaller, which checks and dispatches anew for every value; a host with hundreds of VFs
announces thousands of properties at once. Everything is little endian. A bus closes the connection of a peer
that sends one invalid message, so whatever is not valid on the wire is refused here, with WireError. Rules:
D-Bus specification, "Marshaling (Wire Format)".
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from sriovd.bus.paths import is_object_path
from sriovd.bus.signature import (
    ALIGNMENT,
    BASIC_NAMES,
    SignatureError,
    Type,
    Value,
    Variant,
    parse_signature,
    parse_single,
)

MAX_ARRAY_BYTES = 1 << 26
MAX_VARIANT_DEPTH = 32

_PAD = tuple(bytes(count) for count in range(8))
_NUMBER_FORMATS = {"y": "B", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_U32 = struct.Struct("<I")


class WireError(ValueError):
    """A value cannot be sent as its type; the message says which value and which type."""


@dataclass(frozen=True, slots=True)
class Fd:
    """A file descriptor to send. owned: it is closed once it has been sent, or when it cannot be."""

    number: int
    owned: bool = True


class Buffer(bytearray):
    """Bytes of a message body in the making, which starts at an 8-byte boundary.

    `fds`: the descriptors that the body refers to, in order. `depth`: of variants being written.
    """

    __slots__ = ("depth", "fds")

    def __init__(self) -> None:
        super().__init__()
        self.fds: list[Fd] = []
        self.depth = 0


Writer = Callable[[Buffer, Value], None]


def encode_body(signature: str, values: tuple[Value, ...] | list[Value]) -> Buffer:
    """The body of a message: `values`, one for each complete type of `signature`. Raises WireError."""
    writers = _body_writers(signature)
    if len(writers) != len(values):
        raise WireError(f"{len(values)} values for signature '{signature}', which takes {len(writers)}")
    buffer = Buffer()
    for write, value in zip(writers, values, strict=True):
        write(buffer, value)
    return buffer


def entry_writer(key: str, signature: str) -> Writer:
    """A writer of one `{sv}` entry whose key and type are fixed, such as a property.

    It remembers the last value, which must not be changed afterwards: of 120 VFs that appear at once, most
    properties are the same, and an entry's bytes do not depend on its place.
    """
    head = Buffer()
    _write_string(head, key)
    _write_signature(head, signature)
    prefix, write = bytes(head), writer_for(parse_single(signature))
    last: Value = None
    written = b""

    def write_entry(buffer: Buffer, value: Value) -> None:
        nonlocal last, written
        buffer += _PAD[-len(buffer) & 7]
        if written and type(value) is type(last) and value == last:
            buffer += written
            return
        start = len(buffer)
        buffer += prefix
        try:
            write(buffer, value)
        except WireError as error:
            raise WireError(f"{key}: {error}") from None
        if not buffer.fds:  # each use of a descriptor is a new one
            last, written = value, bytes(buffer[start:])

    return write_entry


def begin_array(buffer: Buffer, alignment: int) -> tuple[int, int]:
    """Start an array by hand. Returns the mark that end_array() needs."""
    buffer += _PAD[-len(buffer) & 3]
    length_at = len(buffer)
    buffer += b"\0\0\0\0"
    buffer += _PAD[-len(buffer) & (alignment - 1)]  # not part of the length
    return length_at, len(buffer)


def end_array(buffer: Buffer, mark: tuple[int, int]) -> None:
    """Finish the array that begin_array() started. Raises WireError when it is larger than D-Bus allows."""
    length_at, start = mark
    length = len(buffer) - start
    if length > MAX_ARRAY_BYTES:
        raise WireError(f"an array of {length} bytes: D-Bus allows {MAX_ARRAY_BYTES}")
    _U32.pack_into(buffer, length_at, length)


def close_fds(values: Value) -> None:
    """Close the owned descriptors anywhere in `values`, which will not be sent."""
    if isinstance(values, Fd):
        if values.owned:
            os.close(values.number)
    elif isinstance(values, (tuple, list)):
        for value in values:
            close_fds(value)
    elif isinstance(values, dict):
        close_fds(list(values.values()))
    elif isinstance(values, Variant):
        close_fds(values.value)


@lru_cache(maxsize=1024)
def _body_writers(signature: str) -> tuple[Writer, ...]:
    return tuple(writer_for(kind) for kind in parse_signature(signature))


@lru_cache(maxsize=1024)
def writer_for(kind: Type) -> Writer:
    """The compiled writer for one complete type."""
    return _BUILDERS[kind.code](kind)


def _build_number(kind: Type) -> Writer:
    layout, name = struct.Struct("<" + _NUMBER_FORMATS[kind.code]), BASIC_NAMES[kind.code]
    pack, size = layout.pack, layout.size
    refused = (float, bool) if kind.code != "d" else (bool,)

    def write_number(buffer: Buffer, value: Value) -> None:
        buffer += _PAD[-len(buffer) & (size - 1)]
        if isinstance(value, refused):
            raise WireError(f"{value!r} is not {name}")
        try:
            buffer += pack(value)
        except struct.error:
            raise WireError(f"{_shorten(value)} is not {name}") from None

    return write_number


def _write_boolean(buffer: Buffer, value: Value) -> None:
    if value is not True and value is not False:
        raise WireError(f"{_shorten(value)} is not a boolean")
    buffer += _PAD[-len(buffer) & 3]
    buffer += b"\1\0\0\0" if value else b"\0\0\0\0"


def _write_string(buffer: Buffer, value: Value) -> None:
    try:
        data = value.encode()
    except (AttributeError, UnicodeEncodeError):
        raise WireError(f"{_shorten(value)} is not a string of valid Unicode") from None
    if b"\0" in data:
        raise WireError(f"{_shorten(value)} contains a NUL, which D-Bus strings cannot")
    buffer += _PAD[-len(buffer) & 3]
    buffer += _U32.pack(len(data)) + data + b"\0"


def _write_path(buffer: Buffer, value: Value) -> None:
    if not isinstance(value, str) or not is_object_path(value):
        raise WireError(f"{_shorten(value)} is not an object path")
    _write_string(buffer, value)


def _write_signature(buffer: Buffer, value: Value) -> None:
    try:
        parse_signature(value)
    except (SignatureError, TypeError) as error:
        raise WireError(str(error)) from None
    data = value.encode()
    buffer += bytes((len(data),)) + data + b"\0"


def _write_fd(buffer: Buffer, value: Value) -> None:
    if not isinstance(value, Fd):
        raise WireError(f"{_shorten(value)} is not a file descriptor (Fd)")
    buffer += _PAD[-len(buffer) & 3]
    buffer += _U32.pack(len(buffer.fds))
    buffer.fds.append(value)


def _write_variant(buffer: Buffer, value: Value) -> None:
    try:
        signature, inner = value.signature, value.value
        write = writer_for(parse_single(signature))
    except (AttributeError, SignatureError):
        raise WireError(f"{_shorten(value)} is not a Variant of one complete type") from None
    if buffer.depth >= MAX_VARIANT_DEPTH:
        raise WireError(f"variants nested deeper than {MAX_VARIANT_DEPTH}")
    _write_signature(buffer, signature)
    buffer.depth += 1
    write(buffer, inner)
    buffer.depth -= 1


def _build_array(kind: Type) -> Writer:
    child = kind.children[0]
    if child.code == "y":
        return _write_bytes
    if child.code == "{":
        return _build_dict(child)
    write_item, alignment = writer_for(child), ALIGNMENT[child.code]

    def write_array(buffer: Buffer, value: Value) -> None:
        if not isinstance(value, (list, tuple)):
            raise WireError(f"{_shorten(value)} is not a list for type '{kind.text}'")
        mark = begin_array(buffer, alignment)
        for item in value:
            write_item(buffer, item)
        end_array(buffer, mark)

    return write_array


def _write_bytes(buffer: Buffer, value: Value) -> None:
    if not isinstance(value, (bytes, bytearray, memoryview)):
        raise WireError(f"{_shorten(value)} is not bytes for type 'ay'")
    mark = begin_array(buffer, 1)
    buffer += value
    end_array(buffer, mark)


def _build_dict(entry: Type) -> Writer:
    write_key, write_value = writer_for(entry.children[0]), writer_for(entry.children[1])

    def write_dict(buffer: Buffer, value: Value) -> None:
        if not isinstance(value, Mapping):
            raise WireError(f"{_shorten(value)} is not a mapping for type 'a{entry.text}'")
        mark = begin_array(buffer, 8)
        for key, item in value.items():
            buffer += _PAD[-len(buffer) & 7]
            write_key(buffer, key)
            write_value(buffer, item)
        end_array(buffer, mark)

    return write_dict


def _build_struct(kind: Type) -> Writer:
    writers = tuple(writer_for(child) for child in kind.children)

    def write_struct(buffer: Buffer, value: Value) -> None:
        if not isinstance(value, (list, tuple)) or len(value) != len(writers):
            raise WireError(f"{_shorten(value)} is not {len(writers)} values for type '{kind.text}'")
        buffer += _PAD[-len(buffer) & 7]
        for write, item in zip(writers, value, strict=True):
            write(buffer, item)

    return write_struct


def _shorten(value: Value) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_BUILDERS: Mapping[str, Callable[[Type], Writer]] = MappingProxyType(
    {
        **dict.fromkeys("ynqiuxtd", _build_number),
        "b": lambda _: _write_boolean,
        "s": lambda _: _write_string,
        "o": lambda _: _write_path,
        "g": lambda _: _write_signature,
        "h": lambda _: _write_fd,
        "v": lambda _: _write_variant,
        "a": _build_array,
        "(": _build_struct,
    }
)
