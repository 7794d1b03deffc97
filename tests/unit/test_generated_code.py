"""Compiled code that is kept between starts: the same classes, and never anything wrong from a file."""

from __future__ import annotations

import dataclasses
import marshal
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sriovd.generated_code import GeneratedCode

ROOT = Path(__file__).parent.parent.parent


def make_class() -> type:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2

    return Point


def start(monkeypatch: pytest.MonkeyPatch, directory: Path) -> list[str]:
    """What is compiled when a class is made with the code that `directory` keeps."""
    compiled = []

    def note(source: str, *arguments: object) -> object:
        compiled.append(source)
        return compile(source, *arguments)  # type: ignore[call-overload]

    monkeypatch.setenv("CACHE_DIRECTORY", str(directory))
    monkeypatch.setattr("sriovd.generated_code.compile", note, raising=False)
    code = GeneratedCode.begin()
    try:
        point = make_class()
    finally:
        code.end()
    assert point(1) == point(1, 2) != point(1, 3)
    assert repr(point(1)).endswith("Point(x=1, y=2)")
    with pytest.raises(dataclasses.FrozenInstanceError):
        point(1).x = 3
    return compiled


def test_second_start_compiles_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert start(monkeypatch, tmp_path)
    assert not start(monkeypatch, tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["dataclasses.code"]
    assert "exec" not in vars(dataclasses)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        lambda data: b"\0\0" + data[2:],  # another Python's
        lambda data: data + b"x",
    ],
)
def test_damaged_file_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    start(monkeypatch, tmp_path)
    file = tmp_path / "dataclasses.code"
    sound = file.read_bytes()
    file.write_bytes(damage(sound))
    assert start(monkeypatch, tmp_path)
    assert file.read_bytes() == sound


def test_what_is_no_longer_used_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "dataclasses.code"
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    code = GeneratedCode.begin()
    code.run("old = 1", {}, {})
    code.end()
    start(monkeypatch, tmp_path)
    assert "old = 1" not in marshal.loads(file.read_bytes()[8:])


def test_directory_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert start(monkeypatch, gone)
    assert not gone.exists()


def test_without_a_directory_python_has_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    code = GeneratedCode.begin()
    assert "exec" not in vars(dataclasses)
    code.end()


def test_the_daemon_keeps_its_own(tmp_path: Path) -> None:
    """All that its start generates, so that the next writes nothing. It has no bus here, and ends."""
    environment = {**os.environ, "CACHE_DIRECTORY": str(tmp_path)}
    file, written = tmp_path / "dataclasses.code", set()
    for _ in range(2):
        command = [sys.executable, "-m", "sriovd", "--simulated", "--bus", f"unix:path={tmp_path}/none"]
        assert subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=60).returncode == 1
        written.add(file.stat().st_mtime_ns)
    assert len(written) == 1
    assert len(marshal.loads(file.read_bytes()[8:])) > 50
