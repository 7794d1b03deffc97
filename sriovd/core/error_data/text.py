"""Error data as text for people, from the document that programs get. Pure.

Rule: what the document has is shown, in its order; names lose what a terminal would obey.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def render(document: Mapping[str, Any]) -> str:
    """The report, with a newline at its end."""
    state, error = document["state"], document["error"]
    now = document["now"]
    lines = [
        f"Error data of VF {document['vf']} for lease {document['lease']}, {_when(document['taken_usec'])}",
        f"Error: {document['kind']}",
        f"State: {state['state']}{_bracket(state['cause'])}; adapter: {state['adapter']}",
        *([f"Reason: {state['reason']}"] if state["reason"] else []),
        *_section(
            "Bundles", (f"{e['number']} {e['kind']} {_when(e['taken_usec'])}" for e in document["bundles"])
        ),
        *(_describe_error(error) if error else []),
        *_section("Trace", map(_describe_record, document["trace"])),
        *_section("Registers now", [now["missing"]] if now["missing"] else now["registers"]),
    ]
    return "".join(f"{_printable(line)}\n" for line in lines)


def _describe_error(error: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"Bundle {error['number']}, {_when(error['taken_usec'])}: {error['title']}"
    yield f"  driver: {error['driver'] or 'none'}"
    yield from _section("Its errors", (_describe_own(each) for each in error["records"]))
    yield from _section(
        "Errors of its adapter",
        (f"{_at(e)} {e['of']} {e['severity']}: {_name(e)}" for e in error["adapter_errors"]),
    )
    yield from _section("Error counters that changed", _list_changes(error))
    yield from _section("Kernel log", error["kernel_log"])
    yield from _section("What sriovd did to it", error["actions"])
    yield from _section("Registers then", error["registers"])


def _describe_own(record: Mapping[str, Any]) -> str:
    tlp = f"; TLP {' '.join(record['tlp_header'])}: {record['tlp']}" if record["tlp"] else ""
    return f"{_at(record)} {record['severity']}: {_name(record)} ({record['status']:#010x}){tlp}"


def _name(record: Mapping[str, Any]) -> str:
    return ", ".join(record["errors"]) or "its status could not be read"


def _list_changes(error: Mapping[str, Any]) -> Iterator[str]:
    for severity, names in error["counters_after"].items():
        before = error["counters_before"].get(severity, {})
        for name, count in names.items():
            if count != before.get(name, 0):
                yield f"{severity} {name} {before.get(name, 0)} -> {count}"


def _describe_record(record: Mapping[str, Any]) -> str:
    cause = f" by {record['parent']}" if record["parent"] else ""
    return (
        f"[{record['time_nsec'] / 1e9:.6f}] {record['transaction']}{cause} {record['type']}"
        f" {record['operation']} {record['arguments']}: {record['status']}"
    )


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield title
    yield from (f"  {line}" for line in [*lines] or ["none"])


def _at(record: Mapping[str, Any]) -> str:
    return f"[{record['at_usec'] / 1e6:.6f}]"


def _when(usec: int) -> str:
    return (_EPOCH + timedelta(microseconds=usec)).strftime("%Y-%m-%d %H:%M:%S.%f UTC")


def _bracket(text: str) -> str:
    return f" ({text})" if text else ""


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() else "?" for each in line)
