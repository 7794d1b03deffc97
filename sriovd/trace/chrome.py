"""A trace in Chrome's format (Trace Event Format, array form), for ui.perfetto.dev and chrome://tracing.

Rule: a trace is a process and a transaction a thread of it, because two transactions may overlap and the
slices of one thread may not. BEGIN and END are the slice of the transaction; what took time is a complete
event that ends when it was recorded; the rest are instants. An arrow leads from cause to transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sriovd.trace.jsonl import make_readable
from sriovd.trace.names import name_error, name_member
from sriovd.trace.reader import Entry
from sriovd.trace.record import Record, RecordType

Event = dict[str, Any]


class ChromeTrace:
    """One trace. `process`: its number among those of the same output, from 1; `name`: what to call it."""

    def __init__(self, process: int, name: str) -> None:
        self._process = process
        self._name = name
        self._threads: dict[int, int] = {}  # by transaction; its ids are too large for a thread's
        self._open: set[int] = set()  # transactions

    def convert(self, entry: Entry) -> Iterator[Event]:
        """The events of a record, which are asked for in their order."""
        record = entry.record
        yield from self._introduce(record)
        yield {**self._make_event(record), "pid": self._process, "tid": self._threads[record.transaction]}

    def _introduce(self, record: Record) -> Iterator[Event]:
        """The names of process and thread, and the arrow, the first time."""
        transaction = record.transaction
        if transaction in self._threads:
            return
        if not self._threads:
            yield self._name_it("process_name", 0, self._name)
        thread = self._threads[transaction] = len(self._threads) + 1
        title = f"#{transaction} {make_readable(record.operation)}" if transaction else "the kernel"
        yield self._name_it("thread_name", thread, title)
        cause = self._threads.get(record.parent)
        if transaction and record.parent and cause is not None:
            arrow = {"name": "causes", "cat": "cause", "id": thread, "pid": self._process}
            start = _find_start(record)
            yield {**arrow, "ph": "s", "ts": start, "tid": cause}
            yield {**arrow, "ph": "f", "bp": "e", "ts": start, "tid": thread}

    def _name_it(self, what: str, thread: int, name: str) -> Event:
        return {
            "ph": "M",
            "name": what,
            "pid": self._process,
            "tid": thread,
            "ts": 0,
            "args": {"name": name},
        }

    def _make_event(self, record: Record) -> Event:
        common = {
            "name": make_readable(record.operation) or name_member(record.type),
            "cat": name_member(record.type),
            "args": _list_arguments(record),
        }
        if record.type is RecordType.BEGIN:
            self._open.add(record.transaction)
            return {**common, "ph": "B", "ts": record.time_nsec / 1000}
        if record.type is RecordType.END and record.transaction in self._open:
            self._open.discard(record.transaction)
            return {**common, "ph": "E", "ts": record.time_nsec / 1000}
        if record.latency_nsec:
            return {**common, "ph": "X", "ts": _find_start(record), "dur": record.latency_nsec / 1000}
        return {**common, "ph": "i", "s": "t", "ts": record.time_nsec / 1000}


def format_event(event: Event) -> str:
    """An element of the output's array, which may be cut off after any: its last bracket is optional."""
    return json.dumps(event)


def _find_start(record: Record) -> float:
    """In us. A transaction is recorded as it begins, anything else when it is over."""
    took = 0 if record.type is RecordType.BEGIN else record.latency_nsec
    return max(0, record.time_nsec - took) / 1000


def _list_arguments(record: Record) -> Event:
    return {
        "vf": str(record.vf),
        "transaction": record.transaction,
        "parent": record.parent,
        "direction": name_member(record.direction),
        "status": name_member(record.status),
        "error": name_error(record.errno) if record.errno else "",
        "arguments": make_readable(record.arguments),
        "lost": record.lost,
    }
