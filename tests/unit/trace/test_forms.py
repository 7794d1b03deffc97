"""What a record looks like as text, as JSON and in Perfetto."""

from __future__ import annotations

import errno
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.trace import jsonl
from sriovd.trace.chrome import ChromeTrace, format_event
from sriovd.trace.names import ERROR_NAMES
from sriovd.trace.reader import Entry
from sriovd.trace.record import Direction, Record, RecordType, Status
from sriovd.trace.text import Tree, escape, format_entry
from tests.unit.trace.buffers import PLAIN, RECORDS, VF, replace

EMPTY = Record(RecordType.NOTE, Direction.NONE, Status.OK, VF, "")
LINES = [
    (PLAIN, 0, "[   12.345678] #5 <2 0000:01:10.2 write to-kernel bind ok 1234 us vfio-pci"),
    (EMPTY, 0, "[    0.000000] #0 0000:01:10.2 note - ok"),
    (
        replace(PLAIN, lost=3, status=Status.FAILED, errno=16),
        9,
        "[   12.345678] (3 lost) #5 <2 0000:01:10.2 write to-kernel bind failed EBUSY 1234 us vfio-pci"
        " (+9 bytes)",
    ),
    (replace(EMPTY, errno=4095), 0, "[    0.000000] #0 0000:01:10.2 note - ok errno 4095"),
    (
        replace(EMPTY, errno=-5, latency_nsec=999),
        0,
        "[    0.000000] #0 0000:01:10.2 note - ok errno -5 0 us",
    ),
    (
        replace(EMPTY, type=RecordType.HAND_OVER, direction=Direction.TO_OWNER, time_nsec=2**64 - 1),
        0,
        "[18446744073.709551] #0 0000:01:10.2 hand-over to-owner - ok",
    ),
]


@pytest.mark.parametrize(("record", "cut_bytes", "line"), LINES)
def test_a_line_of_text(record: Record, cut_bytes: int, line: str) -> None:
    assert format_entry(Entry(1, record, cut_bytes)) == line


def test_the_names_of_errors_are_the_machines() -> None:
    assert {number: getattr(errno, name) for number, name in ERROR_NAMES.items()} == {
        number: number for number in ERROR_NAMES
    }


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a b~", "a b~"),
        ("\n\x1b[2J\x7f", r"\x0a\x1b[2J\x7f"),
        ("é", r"\xc3\xa9"),
        ("\\x41", r"\x5cx41"),
        ("\udcff", r"\xff"),
    ],
)
def test_what_cannot_be_printed_is_escaped(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@given(RECORDS)
def test_every_record_is_one_printable_line(record: Record) -> None:
    for line in (format_entry(Entry(1, record)), jsonl.format_entry(Entry(1, record))):
        assert line.isascii()
        assert line.isprintable()


def test_a_line_of_json() -> None:
    record = replace(PLAIN, errno=16, status=Status.FAILED, lost=3, arguments="é\udcff")
    assert json.loads(jsonl.format_entry(Entry(9, record, 4))) == {
        "sequence": 9, "time_nsec": 12_345_678_000, "latency_nsec": 1_234_000, "transaction": 5, "parent": 2,
        "vf": "0000:01:10.2", "type": "write", "direction": "to-kernel", "status": "failed",
        "operation": "bind", "error": "EBUSY", "arguments": "é\\xff", "cut_bytes": 4, "lost": 3,
    }  # fmt: skip


def make_step(time_usec: int, type_: RecordType, transaction: int, parent: int = 0, took: int = 0) -> Record:
    return replace(
        PLAIN,
        type=type_,
        operation=f"{type_.name.lower()}{transaction}",
        time_nsec=time_usec * 1000,
        latency_nsec=took * 1000,
        transaction=transaction,
        parent=parent,
    )


STORY = [
    make_step(100, RecordType.UEVENT, 0),
    make_step(200, RecordType.BEGIN, 1),
    make_step(300, RecordType.WRITE, 1, took=50),
    make_step(310, RecordType.BEGIN, 2, parent=1),
    make_step(400, RecordType.RESET, 2, parent=1, took=80),
    make_step(410, RecordType.DRIVER, 0, parent=2),
    make_step(420, RecordType.END, 1, took=220),  # answered while the job goes on
    make_step(500, RecordType.END, 2, parent=1, took=190),
    make_step(600, RecordType.ERROR, 3),
    make_step(700, RecordType.RECOVERY, 4, parent=3),
    make_step(800, RecordType.END, 77, parent=76),  # its beginning was overwritten
]


def test_a_tree_moves_what_is_caused_in() -> None:
    tree = Tree()
    assert [tree.find_depth(record) for record in STORY] == [0, 0, 1, 1, 2, 2, 0, 1, 0, 1, 1]
    assert format_entry(Entry(1, EMPTY), 2) == "[    0.000000] #0 0000:01:10.2     note - ok"


def test_a_tree_that_never_ends_does_not_leave_the_screen() -> None:
    tree = Tree()
    depths = [tree.find_depth(make_step(1, RecordType.BEGIN, n + 1, parent=n)) for n in range(100)]
    assert max(depths) == depths[-1] == 20


def convert(records: Iterable[Record]) -> list[dict[str, Any]]:
    chrome = ChromeTrace(1, "VF 0000:01:10.2, lease 7")
    lines = [format_event(event) for record in records for event in chrome.convert(Entry(1, record))]
    events = json.loads("[" + ",".join(lines) + "]")
    assert isinstance(events, list)
    return events


def check_format(events: list[dict[str, Any]]) -> None:
    """What the Trace Event Format asks of every event, and Perfetto of a thread: slices that nest."""
    stacks: dict[int, list[str]] = defaultdict(list)
    for event in events:
        assert event["ph"] in "BEXiMsf"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["ts"], int | float)
        assert ("dur" in event) == (event["ph"] == "X")
        assert event["ph"] != "i" or event["s"] == "t"
        assert event["ph"] not in "sf" or {"id", "cat", "name"} <= event.keys()
        if event["ph"] == "B":
            stacks[event["tid"]].append(event["name"])
        if event["ph"] == "E":
            stacks[event["tid"]].pop()


def pick(events: list[dict[str, Any]], phase: str, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(event[key] for key in keys) for event in events if event["ph"] == phase]


def test_perfetto_gets_slices_instants_and_arrows() -> None:
    events = convert(STORY)
    check_format(events)
    assert pick(events, "B", "name", "ts", "tid") == [("begin1", 200, 2), ("begin2", 310, 3)]
    assert pick(events, "E", "ts", "tid") == [(420, 2), (500, 3)]
    assert pick(events, "X", "name", "ts", "dur", "tid") == [("write1", 250, 50, 2), ("reset2", 320, 80, 3)]
    assert ("uevent0", 100, 1) in pick(events, "i", "name", "ts", "tid")
    assert ("error3", 600, 4) in pick(events, "i", "name", "ts", "tid")
    assert pick(events, "s", "ts", "tid") == [(310, 2), (700, 4)]
    assert pick(events, "f", "ts", "tid", "bp") == [(310, 3, "e"), (700, 5, "e")]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[0] == "VF 0000:01:10.2, lease 7"
    assert names[1] == "the kernel"
    assert names[3] == "#2 begin2"


def test_an_arrow_starts_inside_the_slice_of_its_cause() -> None:
    """Perfetto binds it to the slice that its thread is in at that time, and drops it if there is none."""
    events = convert(STORY)
    begun = {tid: ts for ts, tid in pick(events, "B", "ts", "tid")}
    ended = {tid: ts for ts, tid in pick(events, "E", "ts", "tid")}
    starts = [(ts, tid) for ts, tid in pick(events, "s", "ts", "tid") if tid in begun]
    assert starts
    assert all(begun[tid] <= ts <= ended[tid] for ts, tid in starts)


@given(st.lists(RECORDS, max_size=20))
def test_perfetto_is_given_nothing_it_cannot_read(records: list[Record]) -> None:
    check_format(convert(records))
