"""A few inputs for every parser in every run; FUZZ_INPUTS and FUZZ_SEED ask for more, and others."""

from __future__ import annotations

import os
import time

import pytest

from tests.fuzz import run as fuzz
from tests.fuzz.entry import NO_ERRORS, Entry
from tests.fuzz.mutate import Mutator
from tests.fuzz.table import TABLE

INPUTS = int(os.environ.get("FUZZ_INPUTS", "0"))
SEED = int(os.environ.get("FUZZ_SEED", "0"))


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.timeout(300 + INPUTS // 50)
def test_a_parser_refuses_as_it_says_and_in_time(name: str) -> None:
    entry = TABLE[name]
    inputs = INPUTS or entry.quick_inputs
    report = fuzz.run(entry, inputs, SEED)
    assert report.inputs >= inputs
    assert report.growth_bytes <= fuzz.MOST_GROWTH_BYTES


@pytest.mark.parametrize("name", TABLE)
def test_a_parser_takes_its_seeds(name: str) -> None:
    """One of them at least, else what is made of them would get no further than the first check."""
    entry = TABLE[name]
    taken = 0
    for seed in entry.seeds():
        try:
            entry.parse(seed)
        except entry.errors:
            continue
        taken += 1
    assert taken


def test_the_same_seed_gives_the_same_inputs() -> None:
    entry = TABLE["bundle"]

    def make(seed: int) -> list[bytes]:
        stock, mutator = fuzz.make_inputs(entry, seed)
        return [mutator.make(stock) for _ in range(300)]

    assert make(1) == make(1)
    assert make(1) != make(2)


def test_inputs_are_no_longer_than_asked() -> None:
    mutator = Mutator(0, (b"word",), 100)
    assert max(len(mutator.make([bytes(90)])) for _ in range(3000)) == 100


def _crash(data: bytes) -> None:
    if data[:1] == b"x":
        raise KeyError("x")


def _spin(data: bytes) -> None:
    began = time.process_time()
    while time.process_time() - began < 3 * fuzz.MOST_SECONDS:
        try:
            sum(range(1000))
        except Exception:  # as some parsers do
            continue


def _swallow(data: bytes) -> int:
    return len(b"\1" * (fuzz.MOST_GROWTH_BYTES * 2))


@pytest.mark.parametrize(
    ("parse", "error", "reason"),
    [
        (_crash, KeyError, "KeyError"),
        (_spin, fuzz.TakesTooLong, "processor time"),
        (_swallow, AssertionError, "grew by"),
    ],
)
def test_a_defect_is_found(parse: object, error: type[BaseException], reason: str) -> None:
    def seeds() -> tuple[bytes, ...]:
        return (b"w" + bytes(1000),)

    entry = Entry("planted", parse, NO_ERRORS, seeds, ())  # type: ignore[arg-type]
    with pytest.raises(error):
        fuzz.run(entry, 20_000)
    report = fuzz.last_report(entry)
    assert report.crash is not None
    assert reason in report.reason


def test_a_documented_error_is_no_defect() -> None:
    entry = Entry("planted", _crash, (KeyError,), lambda: (b"w",), (), (b"x",))
    assert fuzz.run(entry, 2000).outcomes == 2
