"""What an entry of the table is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

NO_ERRORS: tuple[type[Exception], ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """A parser. `parse` takes any bytes; `errors`: what it documents to raise for those that it refuses.
    `seeds` gives inputs that it accepts, or nearly. `words`: what mutations put in. `modules`: of sriovd,
    whose parsing is held by this entry. `max_bytes`: the longest input that can reach it, or that is tried.
    `is_json`: inputs are changed as values, too, since most changes of the text make it none.
    `quick_inputs`: how many it gets in
    every run of the tests."""

    name: str
    parse: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: Callable[[], tuple[bytes, ...]]
    modules: tuple[str, ...]
    words: tuple[bytes, ...] = ()
    max_bytes: int = 1 << 16
    is_json: bool = False
    quick_inputs: int = 3000


def to_text(data: bytes) -> str:
    """As a client's string or a file's text comes in: valid Unicode."""
    return data.decode("utf-8", "replace")


def to_name(data: bytes) -> str:
    """As a file's name comes in (os.fsdecode)."""
    return data.decode("utf-8", "surrogateescape")
