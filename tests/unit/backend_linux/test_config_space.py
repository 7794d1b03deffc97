"""Configuration space through a helper; a file stands for it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.steps import Step, Verb

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import FakeTree, MakeScript, OpenPool, Play

CONTENTS = bytes(range(256)) * 16
Touch = Callable[[Verb, str], tuple[int, str]]


@pytest.fixture
def config(tree: FakeTree) -> Path:
    path = tree.device / "config"
    path.write_bytes(CONTENTS)
    return path


@pytest.fixture
def touch(tree: FakeTree, open_pool: OpenPool, play: Play, make_script: MakeScript) -> Touch:
    """What becomes of one step: errno and value."""

    def run(verb: Verb, argument: str) -> tuple[int, str]:
        done: list[tuple[int, str]] = []

        async def story() -> None:
            script = make_script((Step(verb, tree.function, argument),))
            async with open_pool() as pool:
                (result,) = await pool.run("slot", script, lambda _result: None).finished
                done.append((result.results[0].errno, result.results[0].value))

        play(story())
        return done[0]

    return run


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("0 4096", CONTENTS.hex()),
        ("4 2", "0405"),
        ("4094 8", "feff"),
        ("0 99999", CONTENTS.hex()),
        ("9999 4", ""),
    ],
)
def test_bytes_are_read(config: Path, touch: Touch, argument: str, value: str) -> None:
    assert touch(Verb.READ_CONFIG, argument) == (0, value)
    assert config.read_bytes() == CONTENTS


@pytest.mark.parametrize(
    ("argument", "before", "after"),
    [
        ("4 2 4 0", 0x0504, "0005"),
        ("4 2 3 1", 0x0504, "0505"),
        ("8 4 4294967295 1", 0x0B0A0908, "01000000"),
        ("9 1 240 255", 0x09, "f9"),
    ],
)
def test_bits_are_changed_and_no_others(
    config: Path, touch: Touch, argument: str, before: int, after: str
) -> None:
    assert touch(Verb.UPDATE_CONFIG, argument) == (0, str(before))
    offset, changed = int(argument.split()[0]), bytes.fromhex(after)
    assert config.read_bytes() == CONTENTS[:offset] + changed + CONTENTS[offset + len(changed) :]


@pytest.mark.parametrize(("argument", "contents"), [("0 2 4 0", b"\xff" * 8), ("0 2 4 4", b"\x04\0" * 4)])
def test_what_is_dead_or_so_already_is_not_written(
    config: Path, touch: Touch, argument: str, contents: bytes
) -> None:
    config.write_bytes(contents)
    written_nsec = config.stat().st_mtime_ns
    assert touch(Verb.UPDATE_CONFIG, argument) == (0, str(int.from_bytes(contents[:2], "little")))
    assert (config.read_bytes(), config.stat().st_mtime_ns) == (contents, written_nsec)


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        (Verb.READ_CONFIG, ""),
        (Verb.READ_CONFIG, "4"),
        (Verb.READ_CONFIG, "4 -1"),
        (Verb.READ_CONFIG, "4 99999999999"),
        (Verb.UPDATE_CONFIG, "4 2"),
        (Verb.UPDATE_CONFIG, "4 3 4 0"),
        (Verb.UPDATE_CONFIG, "4 2 4 x"),
    ],
)
def test_nonsense_is_refused(config: Path, touch: Touch, verb: Verb, argument: str) -> None:
    assert touch(verb, argument) == (errno.EINVAL, "")


def test_a_register_that_is_not_there_is_not_written(config: Path, touch: Touch) -> None:
    assert touch(Verb.UPDATE_CONFIG, "4095 2 1 1") == (errno.EFBIG, "")
    assert config.read_bytes() == CONTENTS


def test_a_function_that_is_gone_is_an_error(touch: Touch) -> None:
    assert touch(Verb.READ_CONFIG, "0 4") == (errno.ENOENT, "")
