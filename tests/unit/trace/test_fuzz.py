"""No bytes bring the reader down: TraceError is all it raises, and it always comes to an end.

FUZZ_INPUTS=1000000 pytest -s tests/unit/trace/test_fuzz.py reads a million, and tells how fast.
"""

from __future__ import annotations

import os
import random
import time

from hypothesis import given
from hypothesis import strategies as st

from sriovd.trace import jsonl
from sriovd.trace.chrome import ChromeTrace
from sriovd.trace.layout import HEADER_BYTES, RECORD_BYTES, TraceError, encode_header
from sriovd.trace.reader import Entry, TraceReader
from sriovd.trace.source import MemorySource
from sriovd.trace.text import Tree, format_entry
from tests.unit.trace.buffers import Buffer, damage, make_random_buffer

INPUTS = int(os.environ.get("FUZZ_INPUTS", "20000"))
WHOLE_BUFFERS = 500  # to damage; making one costs more than reading it


def read_all(memory: bytes) -> list[Entry] | None:
    """The entries, or None if it is no trace; more than the capacity there cannot be."""
    try:
        reader = TraceReader(MemorySource(memory))
        entries = list(reader.read())
    except TraceError:
        return None
    assert len(entries) + reader.damaged <= reader.header.capacity
    assert reader.lost >= 0
    return entries


def test_damaged_buffers() -> None:
    source = random.Random(INPUTS)
    wholes = [make_random_buffer(source) for _ in range(WHOLE_BUFFERS)]
    tree, records, refused = Tree(), 0, 0
    started = time.monotonic()
    for number in range(INPUTS):
        entries = read_all(damage(source, wholes[number % WHOLE_BUFFERS]))
        refused += entries is None
        for entry in entries or ():
            records += 1
            assert format_entry(entry, tree.find_depth(entry.record)).isprintable()
        if number % 10_000 == 0:
            tree = Tree()
    rate = INPUTS / (time.monotonic() - started)
    print(f"{INPUTS} buffers, {rate:.0f} a second: {records} records, {refused} were no trace")
    assert 0.02 * INPUTS < refused < 0.5 * INPUTS  # or the damage is not where it should be
    assert records > INPUTS


@given(st.binary(min_size=RECORD_BYTES, max_size=RECORD_BYTES), st.binary(max_size=HEADER_BYTES))
def test_bytes_as_a_record_and_as_a_header(record: bytes, header: bytes) -> None:
    read_all(header)
    read_all(header.ljust(HEADER_BYTES, b"\0") + record * 2)
    buffer = Buffer(2)
    buffer.fill(1)
    offset = buffer.offset_of(0)
    buffer.memory[offset + 8 : offset + RECORD_BYTES] = record[8:]
    entries = read_all(bytes(buffer.memory))
    for entry in entries or ():
        assert jsonl.format_entry(entry).isascii()
        assert list(ChromeTrace(1, "").convert(entry))
    magic = encode_header(buffer.header)[:20]
    read_all((magic + header).ljust(HEADER_BYTES + 2 * RECORD_BYTES, b"\0"))
