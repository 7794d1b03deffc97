"""Indexes as they are written, ranges taken apart, and the vocabulary of attributes."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.vf_attributes import FIELD_NAMES, LINK_STATES, VLAN_PROTOCOLS
from sriovd.core.policy.ranges import LAST_INDEX, Span, find_cover, parse_spans
from sriovd.core.policy.schema import LinkState, VfTable, VlanProtocol

WRITTEN = [
    ("0", [(0, 0)]),
    ("0-3", [(0, 3)]),
    ("7-7", [(7, 7)]),
    ("4-6,0,2", [(0, 0), (2, 2), (4, 6)]),
    (" 0 , 2 - 3 ", [(0, 0), (2, 3)]),
    ("007", [(7, 7)]),
    (f"0-{LAST_INDEX}", [(0, LAST_INDEX)]),
]


@pytest.mark.parametrize(("text", "spans"), WRITTEN)
def test_indexes_as_they_are_written(text: str, spans: list[tuple[int, int]]) -> None:
    assert list(parse_spans(text)) == spans


SPANS = st.builds(lambda first, size: Span(first, first + size), st.integers(0, 20), st.integers(0, 9))


@given(st.lists(st.lists(SPANS, max_size=1), max_size=6))
def test_every_index_is_covered_by_what_names_it(tables: list[list[Span]]) -> None:
    cover = find_cover(tables, at_most=6)
    seen = {index: list(who) for part, who in cover.items() for index in range(part.first, part.last + 1)}
    wanted = {
        index: who
        for index in range(30)
        if (who := [at for at, own in enumerate(tables) for each in own if each.first <= index <= each.last])
    }
    assert seen == wanted
    assert list(cover) == sorted(cover)


def test_the_schema_has_the_vocabulary_of_the_seam() -> None:
    assert set(VfTable.__struct_fields__) == {*FIELD_NAMES, "driver"}
    assert get_args(get_args(VlanProtocol)[0]) == VLAN_PROTOCOLS
    assert get_args(get_args(LinkState)[0]) == LINK_STATES
