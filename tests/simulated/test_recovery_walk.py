"""The promises of recovery hold whatever happens, in which order, and however often the daemon is killed;
and it always comes to an end.

How far is walked is $RECOVERY_STEPS's to say, in events that the automata follow; with which seeds,
$RECOVERY_SEED's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sriovd.backend.base import Fault, Severity
from sriovd.backend.simulated.uevents import EventFault
from sriovd.core.recovery.record import FREEZES
from tests.simulated import virtual
from tests.simulated.recovery_walk import PFS, VFS, Walk
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


def with_walk(seed: int, deed: Callable[[Walk], Awaitable[None]], *, links_return: bool = False) -> Walk:
    """A walk on which that is done."""
    where = _MEMORY if os.path.isdir(_MEMORY) else None
    with tempfile.TemporaryDirectory(dir=where) as directory:

        async def go() -> Walk:
            made = Walk(Path(directory), seed, links_return=links_return)
            await deed(made)
            return made

        return virtual.run(go)


def walk(seed: int) -> Witness:
    """One walk with that seed; who has watched it."""

    async def go(made: Walk) -> None:
        try:
            await made.go(_DEEDS)
        except BaseException as error:
            error.add_note(f"RECOVERY_SEED={seed} RECOVERY_STEPS=1 walks the same way again")
            raise

    return with_walk(seed, go, links_return=seed % 2 == 0).witness


@pytest.mark.timeout(0)
def test_the_promises_hold_on_any_way(quiet: None) -> None:
    steps, seed = 0, SEED
    while steps < STEPS:
        steps += walk(seed).steps
        seed += 1
    print(f"{steps} steps, seeds {SEED} to {seed - 1}")


MISFORTUNES = st.lists(
    st.tuples(
        st.sampled_from([EventFault.DELAY, EventFault.REORDER, EventFault.REPEAT, EventFault.REPEAT_RECORD]),
        st.integers(1, 6),
    ),
    max_size=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(index=st.integers(0, VFS - 1), misfortunes=MISFORTUNES, hidden=st.sampled_from([(), ("counters",)]))
def test_a_vfs_own_error_changes_one_pe(
    quiet: None, index: int, misfortunes: list[tuple[EventFault, int]], hidden: tuple[str, ...]
) -> None:
    """The kernel walks over the whole adapter, and tells of it in any order and more than once."""

    async def go(made: Walk) -> None:
        await made.prepare()
        made.backend.hide_errors(hidden)
        vf = made.engine.inventory.vfs_of(PFS[0])[index]
        for verb, times in misfortunes:
            made.backend.inject_fault(Fault(str(verb), delay_usec=200_000, times=times))
        made.backend.inject_error(vf, Severity.NONFATAL, 0, ())
        await asyncio.sleep(30)
        await made.end()

    made = with_walk(1, go)
    assert made.witness.changed == {(PFS[0], index): [*VF_WAY]}


VF_WAY = ("frozen-own", "permitted", "recovering", "online")


@pytest.mark.parametrize("severity", [Severity.NONFATAL, Severity.FATAL])
def test_an_adapters_error_is_told_in_the_order_of_the_tables(quiet: None, severity: Severity) -> None:
    async def go(made: Walk) -> None:
        await made.prepare()
        made.backend.inject_error(PFS[0], severity, 0, ())
        await asyncio.sleep(60)
        await made.end()

    changed = dict(with_walk(1, go).witness.changed)
    way = ["frozen", "collecting", "resetting", "restoring", "verifying", "permitting", "online"]
    vf_way = ["frozen-propagated", "locked-out", *VF_WAY[1:]]
    assert changed.pop(str(PFS[0].slot)) == way
    assert changed == {(PFS[0], index): vf_way for index in range(VFS)}


def test_the_sixth_freeze_within_the_hour_is_one_too_many(quiet: None) -> None:
    async def go(made: Walk) -> None:
        await made.prepare()
        for _ in range(FREEZES):
            made.backend.inject_error(PFS[0], Severity.NONFATAL, 0, ())
            await asyncio.sleep(60)
            assert made.engine.recovery.adapter_standing(slot).state == "online"
        made.backend.inject_error(PFS[0], Severity.NONFATAL, 0, ())
        await asyncio.sleep(60)
        assert made.engine.recovery.adapter_standing(slot).state == "quarantined"
        assert not made.list_unended()
        made.engine.recovery.lift(slot)
        await asyncio.sleep(60)
        assert made.engine.recovery.adapter_standing(slot).state == "online"
        await made.end()

    slot = str(PFS[0].slot)
    with_walk(1, go)


def test_an_hour_later_the_budget_is_full_again(quiet: None) -> None:
    async def go(made: Walk) -> None:
        await made.prepare()
        for _ in range(FREEZES + 2):
            made.backend.inject_error(PFS[0], Severity.NONFATAL, 0, ())
            await asyncio.sleep(900)
            assert made.engine.recovery.adapter_standing(str(PFS[0].slot)).state == "online"
        await made.end()

    with_walk(1, go)
