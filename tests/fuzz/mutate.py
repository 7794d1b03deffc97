"""Changes bytes so that a parser nearly takes them.

Rule: deterministic: the same seed gives the same inputs, on every machine and whatever came before in the
process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

_INTERESTING = tuple(
    number.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for number in (0, 1, 0x7F, 1 << 8 * width - 1, (1 << 8 * width - 1) - 1, (1 << 8 * width) - 1)
    for order in ("little", "big")
    if number < 1 << 8 * width
)
_VALUES = tuple(map(json.dumps, (
    None, True, False, 0, 1, -1, 7, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 1.5,
    float("nan"),
    float("inf"), "", "x", "0000:01:00.0", "0000:ff:1f.7", "0000:01:00", "\0", "\x1b[2J", "\ud800", "\u2028",
    "x" * 70000, [], {}, [[]], [None], {"": 0}, {"0000:01:00.0": {}},
)))  # fmt: skip
_MOST_CHANGES = 6
_CHUNK_BYTES = 16
_JSON_SHARE = 0.5
_ONE_IN_FEW, _ONE_IN_MANY = 40, 1500

Change = Callable[[bytearray], None]


class Mutator:
    """Makes inputs of at most `max_bytes` out of others; `words`: pieces that mean something."""

    def __init__(
        self, seed: int | str, words: Sequence[bytes], max_bytes: int, *, is_json: bool = False
    ) -> None:
        self._random = Random(seed)
        self._words = tuple(filter(None, words)) or _INTERESTING
        self._max_bytes = max_bytes
        self._is_json = is_json
        self._changes: tuple[Change, ...] = (
            self._flip, self._flip, self._set, self._insert, self._delete, self._copy, self._swap_in_word,
            self._insert_word, self._set_number, self._cut,
        )  # fmt: skip

    def make(self, pool: Sequence[bytes]) -> bytes:
        """An input made of one or two of `pool`."""
        random = self._random
        if self._is_json and random.random() < _JSON_SHARE:
            return self._change_value(random.choice(pool))
        data = bytearray(random.choice(pool))
        if random.random() < 0.1:
            self._splice(data, random.choice(pool))
        for _ in range(random.randint(1, _MOST_CHANGES)):
            random.choice(self._changes)(data)
        if not random.randrange(_ONE_IN_FEW):
            self._repeat(data, 1024)
        elif not random.randrange(_ONE_IN_MANY):
            self._repeat(data, self._max_bytes)  # for what grows with the square of an input's length
        return bytes(data[: self._max_bytes])

    def _change_value(self, text: bytes) -> bytes:
        """The JSON with a few of its values others; any at all where it is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = json.loads(self._random.choice(_VALUES))
        for _ in range(self._random.randint(1, 3)):
            value = self._changed(value)
        return json.dumps(value).encode()

    def _changed(self, value: Any) -> Any:
        """With one value inside it changed, taken away or added."""
        random = self._random
        if not isinstance(value, dict | list) or not value or not random.randrange(12):
            return json.loads(random.choice(_VALUES))
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = random.choice(keys)
        choice = random.randrange(10)
        if choice == 0:
            del value[key]
        elif choice == 1 and isinstance(value, dict):
            value[random.choice(("", "number", "x", "0000:01:00.0"))] = value[key]
        elif choice == 1 and isinstance(value, list):
            value.extend(value[:32] * random.randint(1, 8))
        elif choice == 2:
            value[key] = value[random.choice(keys)]
        else:
            value[key] = self._changed(value[key])
        return value

    def _place(self, data: bytearray) -> int:
        return self._random.randrange(len(data) + 1)

    def _span(self, data: bytearray) -> slice:
        begin = self._place(data)
        return slice(begin, begin + self._random.randint(1, _CHUNK_BYTES))

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] ^= 1 << self._random.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._random.randrange(len(data))] = self._random.randrange(256)

    def _insert(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._random.randbytes(self._random.randint(1, 4))

    def _delete(self, data: bytearray) -> None:
        del data[self._span(data)]

    def _copy(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = data[self._span(data)]

    def _insert_word(self, data: bytearray) -> None:
        at = self._place(data)
        data[at:at] = self._random.choice(self._words)

    def _swap_in_word(self, data: bytearray) -> None:
        word, at = self._random.choice(self._words), self._place(data)
        data[at : at + len(word)] = word

    def _set_number(self, data: bytearray) -> None:
        number, at = self._random.choice(_INTERESTING), self._place(data)
        data[at : at + len(number)] = number

    def _cut(self, data: bytearray) -> None:
        if not self._random.randrange(4):
            del data[self._place(data) :]

    def _splice(self, data: bytearray, other: bytes) -> None:
        data[self._place(data) :] = other[self._random.randrange(len(other) + 1) :]

    def _repeat(self, data: bytearray, total: int) -> None:
        at = self._place(data)
        chunk = data[at : at + self._random.randint(1, _CHUNK_BYTES)] or self._random.choice(self._words)
        data[at:at] = chunk * (max(0, total - len(data)) // len(chunk))
