"""The promises of recovery hold whatever happens, in which order, and however often the daemon is killed;
and it always comes to an end.

How far is walked is $RECOVERY_STEPS's to say, in events that the automata follow; with which seeds,
$RECOVERY_SEED's.
"""

from __future__ import annotations

import asyncio
import errno
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
from sriovd.backend.steps import Verb
from sriovd.core.errors import NoSuchFunction, Quarantined
from sriovd.core.lease.choose import Wish
from sriovd.core.lifecycle import CountOptions
from sriovd.core.recovery.record import FREEZES
from sriovd.core.recovery.vocabulary import Permission
from sriovd.core.recovery.wish import RecoveryWish
from sriovd.pci import PciAddress
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


def test_a_write_that_never_returns_ends_in_quarantine(quiet: None) -> None:
    async def go(made: Walk) -> None:
        await made.prepare()
        made.backend.inject_fault(Fault(Verb.REMOVE, hang=True))
        made.backend.inject_error(PFS[0], Severity.FATAL, 0, ())
        await asyncio.sleep(600)
        standing = made.engine.recovery.adapter_standing(str(PFS[0].slot))
        assert standing.state == "quarantined"
        assert "remove" in standing.reason
        await made.end()

    with_walk(1, go)


def test_a_kernels_failure_that_is_dealt_with_holds_no_vf_later(quiet: None) -> None:
    async def go(made: Walk) -> None:
        await made.prepare()
        made.backend.inject_error(PFS[0], Severity.FATAL, 0, ())
        await asyncio.sleep(60)
        vf = made.engine.inventory.vfs_of(PFS[0])[1]
        made.engine.recovery.recover(vf, "test")
        await asyncio.sleep(60)
        assert made.engine.recovery.vf_standing(vf).state == "online"
        await made.end()

    with_walk(1, go)


def test_a_vf_whose_fence_stays_up_has_failed(quiet: None) -> None:
    async def go(made: Walk) -> None:
        await made.prepare()
        made.wish = RecoveryWish(permission=Permission.MANUAL)
        await made.engine.leases.lease(1000, "vm", Wish(address=vf), "vfio-pci")
        await asyncio.sleep(1)
        made.backend.inject_error(vf, Severity.NONFATAL, 0, ())
        await asyncio.sleep(10)
        assert made.engine.recovery.vf_standing(vf).state == "permitted"
        made.backend.inject_fault(Fault(Verb.SET_RESET_METHOD, vf, errno=errno.EIO, times=1))
        with pytest.raises(Quarantined, match="EIO"):
            await made.engine.recovery.unfreeze(vf)
        made.engine.recovery.lift(vf)
        await asyncio.sleep(10)
        assert made.engine.recovery.vf_standing(vf).state == "online"
        await made.end()

    vf = PciAddress.parse("0000:01:10.0")
    with_walk(1, go)


def test_a_daemon_killed_before_its_snapshot_restores_no_older_one(quiet: None) -> None:
    """The drivers are those of the time of the freeze."""

    async def go(made: Walk) -> None:
        await made.prepare()
        made.backend.inject_error(PFS[0], Severity.FATAL, 0, ())
        await asyncio.sleep(60)
        vf = made.engine.inventory.vfs_of(PFS[0])[1]
        job = made.engine.lifecycle.bind(vf, "igbvf", True, "test")
        assert await job.wait(10_000_000)
        made.backend.inject_error(PFS[0], Severity.NONFATAL, 0, ())
        while made.engine.recovery.adapter_standing(str(PFS[0].slot)).state != "frozen":
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # the freeze is on disk
        await made.kill()
        await made.begin()
        await asyncio.sleep(60)
        facts = made.backend.read_function(vf)
        assert facts is not None
        assert facts.driver == "igbvf"
        await made.end()

    with_walk(1, go)


def test_a_vf_that_does_not_answer_is_not_believed(quiet: None) -> None:
    """The kernel has nothing to recover from, and one VF is dead: only making it anew helps."""

    async def go(made: Walk) -> None:
        await made.prepare()
        made.backend.freeze_function(made.engine.inventory.vfs_of(PFS[0])[1], frozen=True)
        made.engine.recovery.recover(PFS[0], "test")
        await asyncio.sleep(60)
        standing = made.engine.recovery.adapter_standing(str(PFS[0].slot))
        assert (standing.state, standing.rung) == ("online", "driver-rebind")
        await made.end()

    with_walk(1, go)


def test_a_vf_that_is_gone_cannot_be_recovered(quiet: None) -> None:
    async def go(made: Walk) -> None:
        await made.prepare()
        vf = made.engine.inventory.vfs_of(PFS[0])[1]
        made.engine.recovery.recover(PFS[0], "test")
        await asyncio.sleep(60)
        job = made.engine.lifecycle.set_num_vfs(PFS[0], 0, CountOptions(), "test")
        assert await job.wait(60_000_000)
        with pytest.raises(NoSuchFunction):
            made.engine.recovery.recover(vf, "test")
        await made.end()

    with_walk(1, go)
