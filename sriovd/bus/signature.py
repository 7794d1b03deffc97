"""D-Bus type signatures: parsed and checked, no input or output.

Rules: D-Bus specification, "Type system". Every signature used here comes from the contract or is a
constant, so the number of different ones is small and each is parsed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeAlias

MAX_SIGNATURE_BYTES = 255
MAX_DEPTH = 32  # of arrays, and again of structs

BASIC_NAMES: Mapping[str, str] = MappingProxyType(
    {
        "y": "a byte",
        "b": "a boolean",
        "n": "a 16-bit integer",
        "q": "an unsigned 16-bit integer",
        "i": "a 32-bit integer",
        "u": "an unsigned 32-bit integer",
        "x": "a 64-bit integer",
        "t": "an unsigned 64-bit integer",
        "d": "a floating point number",
        "s": "a string",
        "o": "an object path",
        "g": "a type signature",
        "h": "a file descriptor",
    }
)
"""What each basic type is called in a sentence."""

ALIGNMENT: Mapping[str, int] = MappingProxyType(
    {
        "y": 1,
        "g": 1,
        "v": 1,
        "n": 2,
        "q": 2,
        "b": 4,
        "i": 4,
        "u": 4,
        "h": 4,
        "s": 4,
        "o": 4,
        "a": 4,
        "x": 8,
        "t": 8,
        "d": 8,
        "(": 8,
        "{": 8,
    }
)
"""Bytes to which a value of a type is aligned, by the type's first letter."""


Value: TypeAlias = Any
"""A D-Bus value as plain Python: int, bool, float, str, bytes, list or tuple, dict, Variant; its type is
told beside.
"""


class SignatureError(ValueError):
    """A text is not a D-Bus type signature; the message names the text and the reason."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A value that carries its type (`v`). signature: one complete type; value: plain Python."""

    signature: str
    value: Value


@dataclass(frozen=True, slots=True)
class Type:
    """One complete type. code: its first letter; text: all of it; children: the types inside."""

    code: str
    text: str
    children: tuple[Type, ...] = ()


@lru_cache(maxsize=1024)
def parse_signature(text: str) -> tuple[Type, ...]:
    """The complete types that `text` lists, outermost level. Raises SignatureError."""
    if len(text) > MAX_SIGNATURE_BYTES:
        raise SignatureError(
            f"signature of {len(text)} characters, where {MAX_SIGNATURE_BYTES} are possible"
        )
    types: list[Type] = []
    position = 0
    while position < len(text):
        parsed, position = _parse_type(text, position, 0, 0)
        types.append(parsed)
    return tuple(types)


def parse_single(text: str) -> Type:
    """The one complete type that `text` must be. Raises SignatureError."""
    types = parse_signature(text)
    if len(types) != 1:
        raise SignatureError(f"signature '{text}': exactly one complete type is needed, not {len(types)}")
    return types[0]


def _parse_type(text: str, start: int, arrays: int, structs: int) -> tuple[Type, int]:
    if arrays > MAX_DEPTH or structs > MAX_DEPTH:
        raise SignatureError(f"signature '{text}': nested deeper than {MAX_DEPTH}")
    code = text[start : start + 1]
    if code in BASIC_NAMES or code == "v":
        return Type(code, code), start + 1
    if code == "a":
        return _parse_array(text, start, arrays + 1, structs)
    if code == "(":
        return _parse_struct(text, start, arrays, structs + 1)
    found = f"'{code}'" if code else "the end"
    raise SignatureError(f"signature '{text}': {found} at character {start + 1} where a type is expected")


def _parse_array(text: str, start: int, arrays: int, structs: int) -> tuple[Type, int]:
    if text[start + 1 : start + 2] == "{":
        child, end = _parse_entry(text, start + 1, arrays, structs)
    else:
        child, end = _parse_type(text, start + 1, arrays, structs)
    return Type("a", text[start:end], (child,)), end


def _parse_entry(text: str, start: int, arrays: int, structs: int) -> tuple[Type, int]:
    key, position = _parse_type(text, start + 1, arrays, structs)
    if key.code not in BASIC_NAMES:
        raise SignatureError(f"signature '{text}': a dictionary needs a basic type as key, not '{key.text}'")
    value, position = _parse_type(text, position, arrays, structs + 1)
    if text[position : position + 1] != "}":
        raise SignatureError(f"signature '{text}': '}}' expected at character {position + 1}")
    return Type("{", text[start : position + 1], (key, value)), position + 1


def _parse_struct(text: str, start: int, arrays: int, structs: int) -> tuple[Type, int]:
    fields: list[Type] = []
    position = start + 1
    while text[position : position + 1] != ")":
        field, position = _parse_type(text, position, arrays, structs)
        fields.append(field)
    if not fields:
        raise SignatureError(f"signature '{text}': a struct needs at least one field")
    return Type("(", text[start : position + 1], tuple(fields)), position + 1
