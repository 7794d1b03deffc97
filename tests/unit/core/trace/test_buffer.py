"""Records in the owner's memory: what is lost is counted exactly, what is killed half way is never seen, and
what the owner writes there changes nothing."""

from __future__ import annotations

import mmap
import random
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from sriovd.core.trace import buffer as buffer_module
from sriovd.core.trace.buffer import BufferWriter
from sriovd.trace import layout
from sriovd.trace.layout import Flag
from tests.unit.core.trace.buffers import CONSUMER, VF, Buffer, make_record, read_trace


def transactions(buffer: Buffer) -> list[int]:
    return [record.transaction for record in buffer.read()[1]]


def test_the_header_says_what_it_is() -> None:
    buffer = Buffer(16, drops=True)
    header, records = buffer.read()
    assert (header.capacity, header.flags, header.vf, header.lease) == (16, Flag.DROP | Flag.ACTIVE, VF, 1)
    assert (header.producer, header.lost, header.next_transaction, records) == (0, 0, 1, [])
    assert abs(header.started_nsec - time.monotonic_ns()) < 60 * 10**9
    buffer.writer.end()
    assert buffer.read()[0].flags == Flag.DROP


def test_records_come_back_as_they_were() -> None:
    buffer = Buffer()
    buffer.write(1, 2, 3)
    assert buffer.read()[1] == [make_record(number) for number in (1, 2, 3)]
    assert buffer.read()[0].next_transaction == 4


def test_overwriting_counts_what_is_gone() -> None:
    buffer = Buffer(16)
    for number in range(1, 101):
        buffer.write(number)
        header, records = buffer.read()
        assert (header.producer, header.lost) == (number, max(0, number - 15))
        assert [record.transaction for record in records] == list(range(header.lost + 1, number + 1))
        assert not any(record.lost for record in records)


def test_dropping_counts_what_is_gone_and_says_where() -> None:
    buffer = Buffer(16, drops=True)
    buffer.write(*range(1, 22))
    header, records = buffer.read()
    assert (header.producer, header.lost, len(records)) == (16, 5, 16)
    assert header.next_transaction == 22
    buffer.consume(2)
    buffer.write(22, 23, 24)
    header, records = buffer.read()
    assert (header.producer, header.lost) == (18, 6)
    assert [(each.transaction, each.lost) for each in records[-3:]] == [(16, 0), (22, 5), (23, 0)]
    buffer.consume(18)
    buffer.write(25)
    assert [(each.transaction, each.lost) for each in buffer.read()[1][-1:]] == [(25, 1)]


def test_a_reader_and_a_writer_lose_nothing_that_is_not_counted() -> None:
    """Any play of both: everything was either read once, in order, or counted."""
    chance = random.Random(5)
    buffer = Buffer(16, drops=True)
    taken: list[int] = []
    told = 0
    for number in range(1, 3001):
        buffer.write(number)
        if not chance.randrange(12):
            header, found = read_trace(buffer.memory)
            consumer = buffer.words[CONSUMER]
            count = chance.randrange(header.producer - consumer + 1)
            fresh = [record for sequence, record in found if consumer < sequence <= consumer + count]
            taken += [record.transaction for record in fresh]
            told += sum(record.lost for record in fresh)
            buffer.consume(consumer + count)
        if not chance.randrange(50):
            buffer.restart()
    header, found = read_trace(buffer.memory)
    rest = [record for sequence, record in found if sequence > buffer.words[CONSUMER]]
    seen = taken + [record.transaction for record in rest]
    assert seen == sorted(set(seen))
    assert len(seen) + header.lost == 3000
    assert header.lost > 0
    assert told + sum(record.lost for record in rest) == buffer.slot.read().told


@pytest.mark.parametrize("consumer", [17, 2**63, 2**64 - 1])
def test_a_consumer_that_makes_no_sense_is_a_full_buffer(consumer: int) -> None:
    buffer = Buffer(16, drops=True)
    buffer.write(*range(1, 17))
    buffer.consume(consumer)
    buffer.write(17)
    assert (buffer.read()[0].producer, buffer.read()[0].lost) == (16, 1)
    buffer.consume(16)
    buffer.write(18)
    assert (buffer.read()[0].producer, buffer.read()[0].lost) == (17, 1)


def test_what_the_owner_writes_there_is_not_believed() -> None:
    chance = random.Random(7)
    buffer = Buffer(16)
    size = len(buffer.memory)
    for number in range(1, 200):
        buffer.memory[:size] = chance.randbytes(size)
        buffer.write(number)
        words = buffer.words
        counters = [words[each >> 3] for each in (layout.PRODUCER, layout.LOST, layout.NEXT_TRANSACTION)]
        assert counters == [number, max(0, number - 15), number + 1]
        start = layout.HEADER_BYTES + (number - 1) % 16 * layout.RECORD_BYTES
        assert words[start >> 3] == number
        body = buffer.memory[start + layout.BODY : start + layout.RECORD_BYTES]
        assert layout.decode_record(body)[0] == make_record(number)
    buffer.restart()
    buffer.write(200, *range(201, 220))
    assert transactions(buffer) == list(range(205, 220))


def test_nothing_outside_is_written() -> None:
    buffer = Buffer(16)
    size, guard = len(buffer.memory), 4096
    around = mmap.mmap(-1, size + 2 * guard)
    around[:] = b"\xa5" * len(around)
    writer = BufferWriter(memoryview(around)[guard : guard + size], buffer.slot)
    writer.publish(VF)
    for number in range(1, 1000):
        writer.write(make_record(number, "x" * (number % 300)))
    writer.end()
    assert around[:guard] == around[guard + size :] == b"\xa5" * guard


# Killed at any moment.


def snapshots(buffer: Buffer, act: Callable[[], None]) -> Iterator[tuple[bytes, list[int]]]:
    """The buffer and the ledger's slot as they are before every instruction of the writer in `act`."""
    seen: list[tuple[bytes, list[int]]] = []

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != buffer_module.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            now = bytes(buffer.memory), list(buffer.slot.words)
            if not seen or seen[-1] != now:
                seen.append(now)
        return trace

    sys.settrace(trace)
    try:
        act()
    finally:
        sys.settrace(None)
    yield from seen


def test_a_record_that_is_being_written_has_no_sequence() -> None:
    """So a reader that was overtaken knows: what has a sequence is that record and no other."""
    buffer = Buffer(16)
    for step in range(1, 40):
        for memory, _ in snapshots(buffer, lambda: buffer.write(step)):  # noqa: B023 (called at once)
            for start in range(layout.HEADER_BYTES, len(memory), layout.RECORD_BYTES):
                sequence = int.from_bytes(memory[start : start + 8], "little")
                body = memory[start + layout.BODY : start + layout.RECORD_BYTES]
                assert not sequence or layout.decode_record(body)[0] == make_record(sequence)


@pytest.mark.parametrize("drops", [False, True])
def test_whenever_it_is_killed_what_is_there_reads_cleanly_and_goes_on(drops: bool) -> None:
    buffer = Buffer(16, drops=drops)
    for step in range(1, 48):
        if drops and step in (10, 30, 36):
            buffer.consume(min(step, buffer.words[layout.PRODUCER >> 3]))
        cuts = list(snapshots(buffer, lambda: buffer.write(step)))  # noqa: B023 (called before the next)
        assert len(cuts) >= 3
        after = bytes(buffer.memory), list(buffer.slot.words)
        for memory, words in cuts:
            buffer.memory[:] = memory
            _check_clean(buffer, step)
            for index, word in enumerate(words):
                buffer.slot.words[index] = word
            buffer.restart()
            _check_clean(buffer, step)
            _check_going_on(buffer, step, drops)
        buffer.memory[:] = after[0]
        for index, word in enumerate(after[1]):
            buffer.slot.words[index] = word
        buffer.restart()


def _check_clean(buffer: Buffer, step: int) -> None:
    """Every record that the header vouches for is whole, and none comes twice."""
    _, records = buffer.read()
    ids = [record.transaction for record in records]
    assert ids == sorted(set(ids))
    assert all(record == make_record(record.transaction) or record.lost for record in records)
    assert all(number <= step for number in ids)


def _check_going_on(buffer: Buffer, step: int, drops: bool) -> None:
    """Of `step` records all but the last are read or counted, and the next has an id of its own."""
    before = buffer.read()[0]
    following = buffer.writer.next_transaction
    assert following in (step, step + 1)
    if drops:
        assert before.producer + before.lost in (step - 1, step)
    buffer.consume(buffer.words[layout.PRODUCER >> 3])
    buffer.write(following)
    header, records = buffer.read()
    assert records[-1].transaction == following
    assert header.producer == before.producer + 1
    assert header.next_transaction == following + 1
    if drops:
        account = buffer.slot.read()
        assert account.told == account.lost == header.lost
        assert sum(record.lost for record in records) <= header.lost


def test_a_record_costs_little() -> None:
    """Well under 20 us, be the machine busy or not: the median of many."""
    buffer = Buffer(1024)
    record = make_record(1, "vfio-pci, and some more text that says what was written")
    spent = []
    for _ in range(5000):
        began = time.perf_counter_ns()
        buffer.writer.write(record)
        spent.append(time.perf_counter_ns() - began)
    assert sorted(spent)[2500] < 20_000
