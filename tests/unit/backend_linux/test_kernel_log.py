"""Lines of the journal; a list stands for it, because a build machine may have none."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from systemd import journal

from sriovd.backend.linux.kernel_log import MAX_LINES, read_kernel_log

PF = "0000:01:00.0"


class FakeReader:
    """journal.Reader, as far as it is used; entries are seconds and text."""

    entries: list[tuple[float, str]]

    def __init__(self, flags: int) -> None:
        self.asked: list[Any] = []

    def this_boot(self) -> None:
        self.asked.append("this boot")

    def add_match(self, **match: str) -> None:
        self.asked.append(match)

    def seek_monotonic(self, seconds: float) -> None:
        assert self.asked == ["this boot", {"_TRANSPORT": "kernel"}]
        self._from_sec = seconds if any(at >= seconds for at, _ in self.entries) else 0.0

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for seconds, text in self.entries:
            if seconds >= self._from_sec:
                time = SimpleNamespace(timestamp=datetime.timedelta(seconds=seconds))
                yield {"MESSAGE": text, "__MONOTONIC_TIMESTAMP": time}


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    FakeReader.entries = []
    monkeypatch.setattr(journal, "Reader", FakeReader)
    return FakeReader.entries


def test_lines_with_any_of_the_words_are_given_in_order(entries: list[tuple[float, str]]) -> None:
    entries += [
        (1.0, f"igb {PF}: too early"),
        (2.5, f"igb {PF}: reset"),
        (2.6, "usb 1-1: reset"),
        (3.0, "vfio-pci 0000:01:10.0: hello"),
    ]
    assert read_kernel_log(2_000_000, [PF, "0000:01:10.0"]) == [
        f"[2.500000] igb {PF}: reset",
        "[3.000000] vfio-pci 0000:01:10.0: hello",
    ]


def test_lines_that_are_too_old_are_not_given_for_want_of_others(entries: list[tuple[float, str]]) -> None:
    entries += [(1.0, f"igb {PF}: too early")]
    assert read_kernel_log(2_000_000, [PF]) == []


def test_a_flood_is_cut(entries: list[tuple[float, str]]) -> None:
    entries += [(float(second), f"{PF} says {second}") for second in range(MAX_LINES + 50)]
    lines = read_kernel_log(0, [PF])
    assert len(lines) == MAX_LINES
    assert lines[-1].endswith(f"says {MAX_LINES - 1}")


def test_without_a_journal_there_are_no_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(flags: int) -> None:
        raise PermissionError("not for you")

    monkeypatch.setattr(journal, "Reader", refuse)
    assert read_kernel_log(0, [PF]) == []
    assert "not for you" in caplog.text
