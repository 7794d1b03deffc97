"""A record as one line of JSON, every field under the name that it has in layout.py."""

from __future__ import annotations

import json

from sriovd.trace.names import name_error, name_member
from sriovd.trace.reader import Entry


def format_entry(entry: Entry) -> str:
    """The line, without its end: ASCII, numbers as integers, bytes that are no UTF-8 as \\xNN."""
    record = entry.record
    return json.dumps(
        {
            "sequence": entry.sequence,
            "time_nsec": record.time_nsec,
            "latency_nsec": record.latency_nsec,
            "transaction": record.transaction,
            "parent": record.parent,
            "vf": str(record.vf),
            "type": name_member(record.type),
            "direction": name_member(record.direction),
            "status": name_member(record.status),
            "operation": make_readable(record.operation),
            "error": name_error(record.errno) if record.errno else "",
            "arguments": make_readable(record.arguments),
            "cut_bytes": entry.cut_bytes,
            "lost": record.lost,
        }
    )


def make_readable(text: str) -> str:
    """`text` as valid Unicode."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
