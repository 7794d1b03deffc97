"""One plan, played once: a beginning, a daemon that is killed at a moment, and the next daemon.

Rule: every play begins alike, so that the moments of one are those of all; what an undisturbed daemon makes
of the beginning is what each must end in.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sriovd.backend.simulated import SimulatedBackend
from sriovd.core.converge.standing import Condition
from sriovd.core.engine import Engine, Places
from sriovd.core.inventory import Function
from sriovd.core.lease.record import Lease, LeaseState
from sriovd.pci import PciAddress
from tests.simulated.crash import Life, until
from tests.simulated.crash_host import CrashHost, Place, Scene

TRANSIENT = frozenset({LeaseState.PREPARING, LeaseState.RELEASING, LeaseState.CLEANING, LeaseState.RELEASED})

Act = Callable[[Engine], Awaitable[None]]


async def do_nothing(_engine: Engine) -> None:
    """For plans whose policy says all."""


def leave_alone(_backend: SimulatedBackend) -> None:
    """For plans in which nobody interferes."""


@dataclass(frozen=True)
class Plan:
    """`before`: the policy that the beginning is as; `prepare`: what is asked then. `policy`: that of the
    daemon that is killed, and of the next. `drift`: what somebody else does in between. `act`: what the
    killed daemon is asked; `asked`: the driver that this may leave on VFs, when it is not the one that they
    end on."""

    name: str
    before: str = ""
    prepare: Act = do_nothing
    drift: Callable[[SimulatedBackend], None] = leave_alone
    policy: str = ""
    act: Act = do_nothing
    asked: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)  # asyncio.run() asks for the repr of what it ends with
class Play:
    """What was seen: at the beginning, when the daemon was dead, and at the end. `known`: the functions as
    the killed daemon had them, `functions`: as the last has them. `moments`: of the killed daemon."""

    start: Scene
    crash: Scene
    end: Scene
    known: Mapping[PciAddress, Function]
    functions: Mapping[PciAddress, Function]
    macs_at_crash: Mapping[Place, str]
    macs: Mapping[Place, str]
    open_intents: int
    rewritten: frozenset[Place]  # VFs that were written to after the crash
    moments: list[str]
    leases_at_crash: int
    leases: Sequence[Lease]  # of the last daemon, when it had settled
    released: Scene  # then they were released
    owners: Mapping[PciAddress, int]  # whose VFIO groups were handed over before that, by VF
    owners_at_crash: Mapping[PciAddress, int]
    documents: int  # CDI documents before that
    left_over: int  # groups still handed over and CDI documents after it
    again: Mapping[PciAddress, Function]  # as one more daemon has them
    written_again: int  # writes that this one needed


async def play(plan: Plan, directory: Path, dies_at: int | None) -> Play:
    """From the beginning to the end; `dies_at`: None for an undisturbed daemon."""
    host = CrashHost(str(directory / "sys"))
    places = Places(str(directory / "db"), (str(directory / "policies"),), str(directory / "cdi"))
    (directory / "policies").mkdir()
    if plan.before or plan.prepare is not do_nothing:
        await _live(plan.before, plan.prepare, host, places)
    plan.drift(host.backend)
    start = host.look()
    _write_policy(places, plan.policy)
    life = Life(host.backend, places, dies_at)
    acting = asyncio.create_task(_act(life, plan.act))
    dying = asyncio.create_task(life.dead.wait())
    await asyncio.wait({acting, dying}, return_when=asyncio.FIRST_COMPLETED)
    if life.dead.is_set():
        await life.bury()
    else:
        dying.cancel()
        await acting
        await life.end()
    crash, owners_at_crash = host.look(), _list_owners(host.backend)
    kept = _count(places, "SELECT count(*) FROM leases"), _read_macs(places)
    last = Life(host.backend, places)
    await last.start()
    await settle(last)
    end, rewritten = host.look(), host.writes_since(crash)
    leases, owners, documents = (
        last.engine.leases.all(),
        _list_owners(host.backend),
        _count_documents(places),
    )
    for lease in leases:
        await last.engine.leases.release(lease.number, force=False)
    await settle(last)
    await last.end()
    released = host.look()
    again = Life(host.backend, places)
    await again.start()
    await settle(again)
    await again.end()
    return Play(
        start=start, crash=crash, end=end, known=dict(life.engine.inventory.functions),
        functions=dict(last.engine.inventory.functions), macs_at_crash=kept[1], macs=_read_macs(places),
        open_intents=_count(places, "SELECT count(*) FROM intents WHERE outcome IS NULL"),
        rewritten=frozenset(rewritten), moments=life.moments, leases_at_crash=kept[0], leases=leases,
        released=released, owners=owners, owners_at_crash=owners_at_crash, documents=documents,
        left_over=len(_list_owners(host.backend)) + _count_documents(places),
        again=dict(again.engine.inventory.functions), written_again=len(host.written) - released.writes,
    )  # fmt: skip


async def settle(life: Life) -> None:
    """Until the daemon has nothing left to do."""
    engine = life.engine
    try:
        await until(lambda: _is_settled(engine, life.backend))
    except TimeoutError:
        standings = [engine.standings.of(pf) for pf in engine.inventory.functions]
        raise AssertionError(f"{standings}, {engine.leases.all()}, {engine.jobs.running}") from None


def _is_settled(engine: Engine, backend: SimulatedBackend) -> bool:
    idle = not (engine.jobs.running or backend._runs or engine.policy._checks or engine._tasks)
    pfs = [each for each in engine.inventory.functions.values() if each.physical is not None]
    good = all(
        engine.standings.of(pf.address).condition is Condition.IN_SYNC
        for pf in pfs
        if engine.rulebook.concerns(pf)
    )
    well = not engine.recovery._watch._checks and all(pe.is_idle for pe in engine.recovery._lives.all())
    return idle and good and well and not any(lease.state in TRANSIENT for lease in engine.leases.all())


async def _act(life: Life, act: Act) -> None:
    await life.start()
    await act(life.engine)
    await settle(life)


async def _live(policy: str, prepare: Act, host: CrashHost, places: Places) -> None:
    _write_policy(places, policy)
    life = Life(host.backend, places)
    await _act(life, prepare)
    await life.end()


def _write_policy(places: Places, text: str) -> None:
    Path(places.policies[0], "host.toml").write_text(text)


def _read_macs(places: Places) -> dict[Place, str]:
    with sqlite3.connect(places.state) as database:
        rows = database.execute("SELECT pf, vf, mac FROM macs").fetchall()
    database.close()
    return {(PciAddress.parse(pf), index): mac for pf, index, mac in rows}


def _count(places: Places, query: str) -> int:
    with sqlite3.connect(places.state) as database:
        (count,) = database.execute(query).fetchone()
    database.close()
    return int(count)


def _count_documents(places: Places) -> int:
    return len(os.listdir(places.cdi)) if os.path.isdir(places.cdi) else 0


def _list_owners(backend: SimulatedBackend) -> dict[PciAddress, int]:
    groups = {dev.group: dev.address for dev in backend.host.devices.values() if dev.physfn is not None}
    return {groups[group]: uid for group, uid in backend.group_owners.items() if group in groups}
