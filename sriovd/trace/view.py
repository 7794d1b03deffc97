"""What is shown of one trace: which of its records, and in which form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from sriovd.trace import jsonl, text
from sriovd.trace.chrome import ChromeTrace, format_event
from sriovd.trace.reader import Entry, TraceReader
from sriovd.trace.record import Record, RecordType, Status


class Form(StrEnum):
    """What becomes of a record."""

    TEXT = "text"
    TREE = "tree"  # text, moved in below its cause
    JSON = "json"
    CHROME = "chrome"


@dataclass(frozen=True, slots=True)
class Filter:
    """`types`: none are all. `since_transaction`: the first. `failed`: only what failed or was refused."""

    types: frozenset[RecordType] = frozenset()
    since_transaction: int = 0
    failed: bool = False

    def admits(self, record: Record) -> bool:
        """Whether `record` is to be shown."""
        return (
            (not self.types or record.type in self.types)
            and record.transaction >= self.since_transaction
            and (not self.failed or record.status in (Status.FAILED, Status.REFUSED))
        )


class View:
    """A trace as it is shown. `number`: which of those shown together, from 1; `shown`: records so far."""

    def __init__(self, reader: TraceReader, number: int, form: Form, wanted: Filter) -> None:
        self.reader = reader
        self.shown = 0
        self._form = form
        self._wanted = wanted
        self._tree = text.Tree()
        self._chrome = ChromeTrace(number, f"VF {reader.header.vf}, lease {reader.header.lease}")

    def show(self) -> Iterator[str]:
        """The lines of what is new. Raises TraceError as TraceReader.read() does."""
        for entry in self.reader.read():
            depth = self._tree.find_depth(entry.record)  # which has to know of those that are not shown
            if self._wanted.admits(entry.record):
                self.shown += 1
                yield from self._format(entry, depth)

    def _format(self, entry: Entry, depth: int) -> Iterator[str]:
        match self._form:
            case Form.TEXT:
                yield text.format_entry(entry)
            case Form.TREE:
                yield text.format_entry(entry, depth)
            case Form.JSON:
                yield jsonl.format_entry(entry)
            case Form.CHROME:
                yield from map(format_event, self._chrome.convert(entry))
            case _:
                assert_never(self._form)
