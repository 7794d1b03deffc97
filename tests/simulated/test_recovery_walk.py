"""The promises of recovery hold whatever happens, in which order, and however often the daemon is killed;
and it always comes to an end.

How far is walked is $RECOVERY_STEPS's to say, in events that the automata follow; with which seeds,
$RECOVERY_SEED's.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulated import virtual
from tests.simulated.recovery_walk import Walk
from tests.simulated.recovery_witness import Witness

STEPS = int(os.environ.get("RECOVERY_STEPS", "3000"))
SEED = int(os.environ.get("RECOVERY_SEED", "1"))
_DEEDS = 60
_MEMORY = "/dev/shm"


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def walk(seed: int) -> Witness:
    """One walk with that seed; who has watched it."""
    where = _MEMORY if os.path.isdir(_MEMORY) else None
    with tempfile.TemporaryDirectory(dir=where) as directory:

        async def go() -> Witness:
            made = Walk(Path(directory), seed, links_return=seed % 2 == 0)
            try:
                await made.go(_DEEDS)
            except BaseException as error:
                error.add_note(f"RECOVERY_SEED={seed} RECOVERY_STEPS=1 walks the same way again")
                raise
            return made.witness

        return virtual.run(go)


@pytest.mark.timeout(0)
def test_the_promises_hold_on_any_way(quiet: None) -> None:
    steps, seed = 0, SEED
    while steps < STEPS:
        steps += walk(seed).steps
        seed += 1
    print(f"{steps} steps, seeds {SEED} to {seed - 1}")
