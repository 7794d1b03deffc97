"""Transcripts as text, and two of them compared.

Rule: pure. A difference that is known to be the kernel's own is a row of KERNEL_DIFFERENCES with its reason;
every other one is an error of one of the hosts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.conformance.transcript import Line


@dataclass(frozen=True, slots=True)
class KernelDifference:
    """The actions `numbers` of `scenario` may come out differently on kernel `kernel`, for a reason."""

    kernel: str
    scenario: str
    numbers: range
    reason: str

    @property
    def places(self) -> set[tuple[str, int]]:
        """The actions by scenario and number."""
        return {(self.scenario, number) for number in self.numbers}


KERNEL_DIFFERENCES = (
    KernelDifference(
        "6.1",
        "bind-fails",
        range(4, 14),
        "nvme probes in a worker of its own (drivers/nvme/host/pci.c nvme_async_probe, until 6.2): a bind"
        " that will fail succeeds, and the VF leaves the driver by itself a moment later",
    ),
)


def write_transcript(lines: Iterable[Line]) -> str:
    """A JSON object per line."""
    return "".join(json.dumps(asdict(line)) + "\n" for line in lines)


def read_transcript(text: str) -> list[Line]:
    """The lines of a transcript. Raises ValueError naming the line that is none."""
    lines = []
    for number, row in enumerate(text.splitlines(), 1):
        try:
            values = json.loads(row)
            lines.append(Line(**(values | {"events": tuple(values["events"])})))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"line {number} is no line of a transcript: {row[:80]!r}") from error
    return lines


def explain(expected: Sequence[Line], found: Sequence[Line], kernel: str = "") -> str:
    """What differs, scenario by scenario, as a unified diff of each differing action; empty when nothing
    does. `kernel`: whose known differences from the expected transcript are allowed."""
    known = {place for row in KERNEL_DIFFERENCES if row.kernel == kernel for place in row.places}
    left, right = _by_place(expected), _by_place(found)
    differing = (
        place
        for place in dict.fromkeys([*left, *right])
        if left.get(place) != right.get(place) and place not in known
    )
    return "\n".join(_explain_line(place, left.get(place), right.get(place)) for place in differing)


def list_stale(expected: Sequence[Line], found: Sequence[Line], kernel: str) -> list[KernelDifference]:
    """The rows of KERNEL_DIFFERENCES for `kernel` that make no difference any more."""
    left, right = _by_place(expected), _by_place(found)
    rows = (row for row in KERNEL_DIFFERENCES if row.kernel == kernel)
    return [row for row in rows if all(left.get(place) == right.get(place) for place in row.places)]


def _by_place(lines: Sequence[Line]) -> dict[tuple[str, int], Line]:
    return {(line.scenario, line.number): line for line in lines}


def _explain_line(place: tuple[str, int], left: Line | None, right: Line | None) -> str:
    scenario, number = place
    action = (left or right or Line(scenario, number, "", None, ())).action
    rows = difflib.unified_diff(_show(left), _show(right), "expected", "found", lineterm="", n=2)
    return "\n".join([f"{scenario} {number}: {action}", *(f"    {row}" for row in rows)])


def _show(line: Line | None) -> list[str]:
    """A line, one row for each thing that may differ alone."""
    if line is None:
        return ["(not there)"]
    return [line.action, *_show_value(line.result, ""), *(f"event: {event}" for event in line.events)]


def _show_value(value: Any, prefix: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _show_value(item, f"{prefix}{key}: ")
    elif isinstance(value, list) and any(isinstance(item, list) for item in value):
        for item in value:
            yield from _show_value(item, prefix)
    else:
        yield f"{prefix}{json.dumps(value)}"
