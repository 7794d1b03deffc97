"""Reading what is whole, what is torn, what is gone, and what was never a trace."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.trace.layout import CONSUMER, HEADER_BYTES, LOST, PRODUCER, RECORD_BYTES, Flag, TraceError
from sriovd.trace.reader import TraceReader
from sriovd.trace.source import MemorySource, Source, open_source
from tests.unit.trace.buffers import PLAIN, Buffer, replace


def sequences(reader: TraceReader) -> list[int]:
    """Of what there is to read; and that each is the record it says."""
    entries = list(reader.read())
    assert all(entry.record.transaction == entry.sequence for entry in entries)
    return [entry.sequence for entry in entries]


class InterferingSource(MemorySource):
    """Memory in which something happens right after a given read."""

    def __init__(
        self, memory: bytearray, offset: int, interfere: Callable[[], None], times: int = 1
    ) -> None:
        super().__init__(memory)
        self._offset, self._interfere, self._times = offset, interfere, times

    def read(self, offset: int, size: int) -> bytes:
        copy = super().read(offset, size)
        if offset == self._offset and self._times:
            self._times -= 1
            self._interfere()
        return copy


@given(st.integers(2, 9), st.integers(0, 40))
def test_overwrite_mode_keeps_the_newest_and_counts_the_rest(capacity: int, count: int) -> None:
    buffer = Buffer(capacity)
    buffer.fill(count)
    reader = buffer.reader()
    there = list(range(max(0, count - (capacity - 1)) + 1, count + 1))
    assert sequences(reader) == there
    assert (reader.lost, reader.damaged, reader.position) == (count - len(there), 0, count)
    assert buffer.load(LOST) == reader.lost


@given(st.integers(2, 9), st.lists(st.integers(0, 12), max_size=12))
def test_drop_mode_keeps_the_oldest_and_counts_the_rest(capacity: int, bursts: list[int]) -> None:
    """Each burst is followed by a read, which makes room."""
    buffer = Buffer(capacity, Flag.DROP)
    reader = buffer.reader()
    had = 0
    for burst in bursts:
        buffer.fill(burst)
        had += len(sequences(reader))
        reader.release()
        assert buffer.load(CONSUMER) == reader.position == had
    assert had == sum(min(burst, capacity) for burst in bursts)
    assert reader.lost == sum(bursts) - had
    assert reader.damaged == 0


def test_drop_mode_says_where_records_are_missing() -> None:
    buffer = Buffer(2, Flag.DROP)
    buffer.fill(5)
    reader = buffer.reader()
    assert [entry.record.lost for entry in reader.read()] == [0, 0]
    reader.release()
    buffer.fill(1)
    assert [entry.record.lost for entry in reader.read()] == [3]
    assert reader.lost == 3


@given(st.integers(2, 9), st.lists(st.integers(0, 20), max_size=12))
def test_following_sees_each_record_once_or_counts_it(capacity: int, bursts: list[int]) -> None:
    buffer = Buffer(capacity)
    reader = buffer.reader()
    had: list[int] = []
    for burst in bursts:
        buffer.fill(burst)
        had += sequences(reader)
    assert had == sorted(set(had))
    assert len(had) + reader.lost == sum(bursts)


def test_reading_goes_on_where_another_reader_stopped() -> None:
    buffer = Buffer(8)
    buffer.fill(5)
    assert sequences(buffer.reader(position=3)) == [4, 5]
    buffer.fill(10)
    reader = buffer.reader(position=5)
    assert sequences(reader) == [9, 10, 11, 12, 13, 14, 15]
    assert reader.lost == 3


@pytest.mark.parametrize(
    ("consumer", "first"), [(0, 7), (6, 7), (8, 9), (10, None), (11, 7), (5, 7), (2**64 - 1, 7)]
)
def test_a_consumer_that_cannot_be_counts_as_the_oldest(consumer: int, first: int | None) -> None:
    buffer = Buffer(4, Flag.DROP)
    for _ in range(10):
        buffer.fill(1)
        buffer.store(CONSUMER, buffer.producer)
    buffer.store(CONSUMER, consumer)
    assert next(iter(sequences(buffer.reader())), None) == first


def test_overwrite_mode_has_no_consumer() -> None:
    buffer = Buffer(4)
    buffer.fill(3)
    reader = buffer.reader()
    assert sequences(reader) == [1, 2, 3]
    reader.release()
    assert buffer.load(CONSUMER) == 0


def test_a_record_that_is_being_written_is_tried_again() -> None:
    """What was copied is half written, although its sequence is right when it is asked for again."""
    buffer = Buffer(8)
    buffer.fill(3)
    slot = buffer.offset_of(1)
    whole = bytes(buffer.memory)

    def finish() -> None:
        buffer.memory[:] = whole

    buffer.store(slot, 0)
    buffer.store(slot + 32, 99)  # its transaction
    source = InterferingSource(buffer.memory, slot + 8, finish)
    reader = TraceReader(source)
    assert sequences(reader) == [1, 2, 3]
    assert (reader.lost, reader.damaged) == (0, 0)


def test_a_copy_that_changed_meanwhile_is_not_taken() -> None:
    """Its sequence is another one when it is asked for again."""
    buffer = Buffer(4)
    buffer.fill(3)
    source = InterferingSource(buffer.memory, buffer.offset_of(0) + 8, lambda: buffer.fill(2))
    reader = TraceReader(source)
    assert sequences(reader) == [3]  # up to where the producer was; 1 and 2 are gone meanwhile
    assert (reader.lost, reader.damaged) == (2, 0)
    assert sequences(reader) == [4, 5]


def test_a_record_overwritten_all_the_time_is_skipped_and_the_reader_comes_to_an_end() -> None:
    buffer = Buffer(4)
    buffer.fill(3)
    source = InterferingSource(buffer.memory, buffer.offset_of(0) + 8, lambda: buffer.fill(4), times=1000)
    reader = TraceReader(source)
    assert sequences(reader) == []
    assert reader.lost >= 3
    assert reader.damaged == 0


@pytest.mark.parametrize("sequence", [0, 1, 3, 6, 2**64 - 1])
def test_a_record_with_another_sequence_is_skipped_and_counted(sequence: int) -> None:
    buffer = Buffer(4)
    buffer.fill(3)
    buffer.store(buffer.offset_of(1), sequence)
    reader = buffer.reader()
    assert sequences(reader) == [1, 3]
    assert (reader.lost, reader.damaged) == (0, 1)


def test_a_record_of_an_unknown_type_is_skipped_and_counted() -> None:
    buffer = Buffer(4)
    buffer.fill(3)
    buffer.memory[buffer.offset_of(1) + 8] = 99
    reader = buffer.reader()
    assert sequences(reader) == [1, 3]
    assert reader.damaged == 1


def test_a_producer_that_lies_costs_no_more_than_a_full_buffer() -> None:
    buffer = Buffer(8)
    buffer.fill(3)
    buffer.store(PRODUCER, 2**63 - 1)
    reader = buffer.reader()
    assert sequences(reader) == []
    assert (reader.damaged, reader.lost) == (7, 2**63 - 8)
    buffer.store(PRODUCER, 2**63)
    with pytest.raises(TraceError, match="nobody can have written"):
        list(buffer.reader().read())


def test_a_producer_that_goes_back_is_told_of() -> None:
    buffer = Buffer(8)
    buffer.fill(3)
    reader = buffer.reader()
    assert sequences(reader) == [1, 2, 3]
    buffer.store(PRODUCER, 2)
    with pytest.raises(TraceError, match="start again"):
        list(reader.read())


def test_the_capacity_is_taken_once() -> None:
    buffer = Buffer(4)
    buffer.fill(3)
    reader = buffer.reader()
    buffer.memory[20:24] = b"\xff\xff\xff\xff"
    assert sequences(reader) == [1, 2, 3]


def test_whether_it_is_active() -> None:
    buffer = Buffer()
    reader = buffer.reader()
    assert reader.is_active
    buffer.memory[24] = 0
    assert not reader.is_active


@pytest.mark.parametrize("size", [0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + RECORD_BYTES])
def test_a_trace_that_is_cut_off_is_refused(size: int) -> None:
    with pytest.raises(TraceError):
        TraceReader(MemorySource(bytes(Buffer(2).memory[:size])))


def make_memfd(memory: bytes, seals: bool) -> int:
    import fcntl

    descriptor = os.memfd_create("trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, memory)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return descriptor


def read_through(source: Source) -> list[int]:
    return sequences(TraceReader(source))


def test_a_sealed_memfd_is_followed_and_consumed() -> None:
    buffer = Buffer(4, Flag.DROP | Flag.ACTIVE)
    buffer.fill(3)
    descriptor = make_memfd(bytes(buffer.memory), seals=True)
    with open_source(f"/proc/self/fd/{descriptor}", writable=True) as source:
        reader = TraceReader(source)
        assert sequences(reader) == [1, 2, 3]
        buffer.fill(1)
        os.pwrite(descriptor, buffer.memory, 0)
        assert sequences(reader) == [4]
        reader.release()
    assert os.pread(descriptor, 8, CONSUMER) == (4).to_bytes(8, "little")
    os.close(descriptor)


def test_a_reader_that_may_not_write_cannot_consume() -> None:
    buffer = Buffer(4, Flag.DROP)
    descriptor = make_memfd(bytes(buffer.memory), seals=True)
    with (
        open_source(f"/proc/self/fd/{descriptor}") as source,
        pytest.raises(TraceError, match="for reading only"),
    ):
        TraceReader(source).release()
    os.close(descriptor)
    with pytest.raises(TraceError, match="for reading only"):
        TraceReader(MemorySource(bytes(buffer.memory))).release()


def test_a_file_that_shrinks_under_the_reader_is_told_of() -> None:
    """Were it mapped, the reader would die of SIGBUS."""
    buffer = Buffer(4)
    buffer.fill(3)
    descriptor = make_memfd(bytes(buffer.memory), seals=False)
    with open_source(f"/proc/self/fd/{descriptor}", writable=True) as source:
        reader = TraceReader(source)
        entries = reader.read()
        assert next(entries).record == replace(PLAIN, transaction=1)
        os.ftruncate(descriptor, HEADER_BYTES)
        with pytest.raises(TraceError, match="ends before byte"):
            next(entries)
        with pytest.raises(TraceError, match="copy"):
            source.store(CONSUMER, 1)
    os.close(descriptor)


NO_TRACES = {
    "/dev/null": "not a regular file",
    "/proc/self": "directory|not a regular file",
    "/nonexistent": "No such file or directory; give the path",
    "nul\0byte": "cannot be opened",
    "/proc/self/status": "too few",
}


@pytest.mark.parametrize("path", NO_TRACES)
def test_what_is_no_trace_at_all(path: str) -> None:
    with pytest.raises(TraceError, match=NO_TRACES[path]), open_source(path) as source:
        TraceReader(source)


def test_a_fifo_is_not_waited_for(tmp_path: os.PathLike[str]) -> None:
    path = f"{tmp_path}/fifo"
    os.mkfifo(path)
    with pytest.raises(TraceError, match="not a regular file"), open_source(path):
        pass
