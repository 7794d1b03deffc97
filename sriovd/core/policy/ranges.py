"""VF indexes as policies write them (`0,2,4-6`), and how ranges that overlap are taken apart. Pure."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

LAST_INDEX = 65534  # NumVFs of the SR-IOV capability has 16 bits, and an index is below it
_PART = re.compile(r" *([0-9]{1,5})(?: *- *([0-9]{1,5}))? *", re.ASCII)


class Span(NamedTuple):
    """The VFs `first` to `last`, both included."""

    first: int
    last: int


def parse_spans(text: str) -> tuple[Span, ...]:
    """The indexes in `text`. Raises ValueError that says what is wrong."""
    spans = sorted(_parse_span(part) for part in text.split(","))
    for one, next_one in pairwise(spans):
        if next_one.first <= one.last:
            raise ValueError(f"VF {next_one.first} is named twice")
    return tuple(spans)


def _parse_span(text: str) -> Span:
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError("not an index, a range or a list of them")
    first = int(match[1])
    last = int(match[2]) if match[2] else first
    if last < first:
        raise ValueError(f"the range {first}-{last} goes down")
    if last > LAST_INDEX:
        raise ValueError(f"VF {last} is beyond the last, {LAST_INDEX}")
    return Span(first, last)


def split_spans(spans: Sequence[Span]) -> Iterator[Span]:
    """The parts of all `spans`, in order, none overlapping, each wholly in or out of each of `spans`; gaps
    are among them."""
    edges = sorted({edge for span in spans for edge in (span.first, span.last + 1)})
    for first, after in pairwise(edges):
        yield Span(first, after - 1)


def find_cover(spans: Sequence[Sequence[Span]], at_most: int) -> Mapping[Span, Sequence[int]]:
    """Which of `spans` cover each part of all of them, by their indexes; parts that none covers are absent.
    Raises ValueError when more than `at_most` cover one: the work would grow with the square of them."""
    parts = list(split_spans([span for each in spans for span in each]))
    firsts = [part.first for part in parts]
    cover: dict[Span, list[int]] = {}
    for index, own in enumerate(spans):
        for span in own:
            for part in parts[bisect_left(firsts, span.first) : bisect_right(firsts, span.last)]:
                covering = cover.setdefault(part, [])
                covering.append(index)
                if len(covering) > at_most:
                    raise ValueError(f"VF {part.first} is named by more than {at_most} tables")
    return dict(sorted(cover.items()))
