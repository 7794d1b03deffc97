"""What tracing promises holds whatever happens: numbers without gaps, causes that are there, and nothing of
anybody else.

How far is walked is $TRACE_STEPS's to say, in events that the automata of recovery follow; with which seeds,
$TRACE_SEED's.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sriovd.core.trace import recorder
from tests.simulated import virtual
from tests.simulated.trace_walk import TraceWalk

STEPS = int(os.environ.get("TRACE_STEPS", "2000"))
SEED = int(os.environ.get("TRACE_SEED", "1"))
_DEEDS = 60
_MEMORY = "/dev/shm"
_KEPT = (12, 100_000)  # entries of one VF: of some much is dropped, and of others nothing


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def walk(seed: int) -> TraceWalk:
    """One walk with that seed."""
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.path.isdir(_MEMORY) else None) as directory:

        async def go() -> TraceWalk:
            made = TraceWalk(Path(directory), seed, links_return=seed % 3 == 0)
            try:
                await made.go(_DEEDS)
            except BaseException as error:
                error.add_note(f"TRACE_SEED={seed} TRACE_STEPS=1 walks the same way again")
                raise
            return made

        return virtual.run(go)


@pytest.mark.timeout(0)
def test_the_promises_hold_on_any_way(quiet: None, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, reads, seed = 0, 0, SEED
    while steps < STEPS:
        monkeypatch.setattr(recorder, "KEPT", _KEPT[seed % 2])
        made = walk(seed)
        steps, reads, seed = steps + made.witness.steps, reads + made.traces.reads, seed + 1
    print(f"{steps} steps, {reads} traces read, seeds {SEED} to {seed - 1}")
