"""sriovd's command line: where the log goes, and with which fields."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from systemd import journal

from sriovd import __main__ as main_module
from sriovd.__main__ import main, parse_arguments
from sriovd.core.messages import Message, announce

_log = logging.getLogger("sriovd.test")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What goes to the journal: text and fields."""
    messages: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(journal, "send", lambda text, **fields: messages.append((text, fields)))
    return messages


@pytest.fixture
def journal_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging as the service has it, which systemd tells by JOURNAL_STREAM."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setenv("JOURNAL_STREAM", "8:12345")
    root.handlers.clear()
    main_module._set_up_logging("info")
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("journal_log")
def test_announcement_has_its_fields(sent: list[tuple[str, dict[str, Any]]]) -> None:
    announce(_log, Message.ADAPTER_STUCK, "Adapter 0000:01:00 is stuck.", adapter="0000:01:00", job=7)
    ((text, fields),) = sent
    assert text == "Adapter 0000:01:00 is stuck."
    assert fields["MESSAGE_ID"] == Message.ADAPTER_STUCK.value
    assert (fields["SRIOVD_ADAPTER"], fields["SRIOVD_JOB"]) == ("0000:01:00", "7")
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"]) == ("3", "sriovd")


@pytest.mark.usefixtures("journal_log")
def test_place_in_the_code_is_told(sent: list[tuple[str, dict[str, Any]]]) -> None:
    """CODE_LINE is a number: journal.send formats it with {:d} and refuses text."""
    _log.warning("%d of %s", 3, "them")
    ((text, fields),) = sent
    assert text == "3 of them"
    assert (fields["CODE_FILE"], fields["CODE_FUNC"]) == (__file__, "test_place_in_the_code_is_told")
    assert type(fields["CODE_LINE"]) is int
    assert fields["PRIORITY"] == "4"
    assert "MESSAGE_ID" not in fields


@pytest.mark.usefixtures("journal_log")
def test_fields_are_such_as_the_journal_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the library's own send(), down to the lines that it hands over."""
    lines: list[tuple[Any, ...]] = []
    monkeypatch.setattr(sys.modules["systemd.journal"], "sendv", lambda *parts: lines.append(parts))
    announce(_log, Message.JOB_DONE, "Done.", address="0000:01:00.0", job=1)
    assert lines, "journal.send refused a field"
    (parts,) = lines
    fields = dict(part.split("=", 1) for part in parts)
    assert fields["MESSAGE_ID"] == Message.JOB_DONE.value
    assert fields["SRIOVD_ADDRESS"] == "0000:01:00.0"
    assert fields["CODE_LINE"].isdecimal()


@pytest.mark.usefixtures("journal_log")
def test_traceback_goes_along(sent: list[tuple[str, dict[str, Any]]]) -> None:
    try:
        raise KeyError("defect")
    except KeyError:
        _log.exception("incident %s", "beef")
    ((text, _),) = sent
    assert text.startswith("incident beef\nTraceback")


@pytest.mark.usefixtures("journal_log")
def test_journal_that_is_away_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_text: str, **_fields: Any) -> None:
        raise OSError("no journal")

    monkeypatch.setattr(journal, "send", fail)
    _log.warning("lost")
    assert "no journal" in capsys.readouterr().err


def test_without_a_journal_the_log_is_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        main_module._set_up_logging("error")
        _log.warning("quiet")
        _log.error("loud")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    assert capsys.readouterr().err == "ERROR: loud\n"


def test_defaults() -> None:
    given = parse_arguments([])
    assert (given.bus, given.simulated, given.root, given.time_scale) == ("system", False, None, 0.1)
    assert given.uevent_buffer == 128 << 20


def test_uevent_buffer_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRIOVD_UEVENT_BUFFER", "4096")
    assert parse_arguments([]).uevent_buffer == 4096
    assert parse_arguments(["--uevent-buffer", "8192"]).uevent_buffer == 8192


def test_bus_that_cannot_be_reached_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        root.handlers.clear()
        assert main(["--simulated", "--bus", "unix:path=/nonexistent"]) == 1
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    text = capsys.readouterr().err
    assert text.startswith("CRITICAL: sriovd ends: cannot connect to the bus at 'unix:path=/nonexistent'")
    assert text.count("\n") == 1
