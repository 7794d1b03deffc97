"""A random walk of misfortunes over a host with two adapters, and the engines that live on it: errors told
in any order or not at all, accesses that fail or hang, cards pulled out, tenants who ask, and kill -9.

Rule: everything is drawn from one seed. After the last misfortune, every adapter must come to an end.
"""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sriovd.backend.base import Fault, Holder, Severity
from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.error_news import Source
from sriovd.backend.simulated.uevents import EventFault
from sriovd.backend.steps import Verb
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.engine import Engine, Places
from sriovd.core.errors import SriovdError
from sriovd.core.jobs import Job
from sriovd.core.lease.choose import Wish
from sriovd.core.lifecycle import CountOptions
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.record import AdapterPe
from sriovd.core.recovery.vocabulary import Permission, Response, Rung, Storm
from sriovd.core.recovery.wish import RecoveryWish
from sriovd.pci import PciAddress
from tests.simulated.recovery_witness import VF_STRICTNESS, Witness

PFS = tuple(PciAddress.parse(f"0000:0{bus}:00.0") for bus in (1, 2))
MACHINE = tuple(("igb", str(pf)) for pf in PFS)
VFS = 3
QEMU = Holder(4711, "qemu")
ALICE = 1000
END_SEC = 3600.0  # of the simulated host's time, which costs nothing
_ENDS = (AdapterState.ONLINE, AdapterState.QUARANTINED, AdapterState.REMOVED)
_VF_UNDER_WAY = (
    VfState.FROZEN_OWN, VfState.FROZEN_PROPAGATED, VfState.LOCKED_OUT, VfState.RECOVERING,
)  # fmt: skip
_LOCKED = VF_STRICTNESS[VfState.LOCKED_OUT]


class Walk:
    """One walk. `deeds`: what was done to the host, in words."""

    def __init__(self, directory: Path, seed: int, *, links_return: bool) -> None:
        self._random = random.Random(seed)
        self.backend = SimulatedBackend(
            str(directory / "sys"), machine=MACHINE, time_scale=1.0, links_return=links_return
        )
        self.witness = Witness(self.backend)
        self.wish = RecoveryWish(close_sec=5)
        self._places = Places(state=str(directory / "db"))
        self._asking: set[asyncio.Task[None]] = set()
        self._follower: asyncio.Task[None]
        self._before: set[asyncio.Task[Any]] = set()
        self.engine: Engine
        self._deeds: tuple[tuple[int, Callable[[], Awaitable[None] | None]], ...] = (
            (12, self._err), (4, self._err_corrected), (4, self._hide), (2, self._tell_all), (3, self._lose),
            (5, self._spoil_news), (8, self._spoil_access), (6, self._clear), (2, self._unplug),
            (4, self._plug), (4, self._decide), (5, self._lend), (3, self._unfreeze), (3, self._release),
            (5, self._ask), (2, self._recover), (3, self._lift), (2, self._open), (2, self._close),
            (1, self._cut_off), (5, self._restart), (25, self._wait),
        )  # fmt: skip

    # Daemons.

    async def begin(self) -> None:
        """Start a daemon's rules."""
        self._before = asyncio.all_tasks()
        await self.backend.start()
        with patch.object(Rulebook, "recovery_for_adapter", lambda _book, _slot: self.wish):
            self.engine = engine = Engine(self.backend, self._places)
        stored = {slot: AdapterPe.from_dict(row) for slot, (_, row) in engine._saved.recoveries.items()}
        self.attach_to(engine)
        engine.executor.on_stuck = engine.inventory.set_stuck
        engine.executor.on_recovered = self._note_recovered
        self._follower = asyncio.create_task(engine.picture.follow())
        await engine.look_around()
        self.witness.check_restart(stored)
        await engine.take_up_recovery()
        self.witness.check_restart(stored)
        self.take_up_leases()
        await engine.start_policy()

    def attach_to(self, engine: Engine) -> None:
        """Watch it; it has not begun."""
        self.witness.attach(engine)

    def take_up_leases(self) -> None:
        """Of the daemon before."""
        self.engine.take_up_leases(frozenset())

    async def kill(self) -> None:
        """Kill -9: nothing of the daemon goes on; the kernel and what its helpers are in do."""
        await self.engine.recovery.close()
        await self.engine.leases.close()
        helpers = {run.task for run in self.backend._runs}
        spared = {*self._before, *self.backend._tasks, *helpers, asyncio.current_task()}
        doomed = asyncio.all_tasks() - spared
        for task in doomed:
            task.cancel()
        await asyncio.gather(*doomed, return_exceptions=True)
        await self.engine.store.close()
        await self.backend.stop()

    def _note_recovered(self, adapter: str) -> None:
        """As the daemon's."""
        self.engine.inventory.set_stuck(adapter, "")
        self.engine.picture.look_again(adapter)
        self.engine.policy.note_adapter(adapter)
        self.engine.recovery.check(adapter)

    # The walk.

    async def prepare(self) -> None:
        """A daemon, and VFs on all PFs."""
        await self.begin()
        for pf in PFS:
            await self._make_vfs(pf)

    async def go(self, deeds: int) -> None:
        """So many misfortunes, and the end of all of them. Raises Broken."""
        await self.prepare()
        weights = [weight for weight, _ in self._deeds]
        for _ in range(deeds):
            _, deed = self._random.choices(self._deeds, weights)[0]
            self.witness.trail.append(f"# {deed.__name__.strip('_')}")
            with suppress(SriovdError, ValueError):
                done = deed()
                if done is not None:
                    await done
            await self._pass()
            self.witness.raise_broken("on the way")
        await self.end()

    async def end(self) -> None:
        """No more misfortunes: everything comes to an end. Raises Broken."""
        self._clear()
        self._tell_all()
        self.backend.lose_events(0)
        for dev in self.backend.list_functions():
            self.backend.close_device(dev)
        self.wish = RecoveryWish(close_sec=5)
        self.witness.trail.append("# the end of all misfortunes")
        try:
            async with asyncio.timeout(END_SEC):
                while self.list_unended():
                    await asyncio.sleep(1.0)
        except TimeoutError:
            self.witness._break(f"this never ended: {'; '.join(self.list_unended())}")
        for text in self.list_fenced():
            self.witness._break(text)
        self.witness.raise_broken("at the end")
        await self.kill()

    def list_unended(self) -> list[str]:
        """What is still under way."""
        found = []
        for pe in self.engine.recovery._lives.all():
            if pe.state not in _ENDS:
                found.append(f"{pe.slot} is {pe.state} ({self.engine.recovery.adapter_standing(pe.slot)})")
            elif pe.state is AdapterState.ONLINE:
                found += [f"{vf} is {vf.state}: {vf.reason}" for vf in pe.vfs if vf.state in _VF_UNDER_WAY]
            elif pe.state is AdapterState.QUARANTINED:
                found += [f"{vf} is {vf.state}" for vf in pe.vfs if VF_STRICTNESS[vf.state] < _LOCKED]
                found += ["no last bundle"] if not self._has_last_bundle(pe) else []
        jobs = self.engine.jobs._jobs.values()
        found += [f"job Recover: {job.stage}" for job in jobs if _is_recovering(job)]
        return found

    def _has_last_bundle(self, pe: AdapterPe) -> bool:
        heads = self.engine.recovery.list_bundles(pe.slot)
        return any(head.kind == "give-up" and head.taken_usec >= pe.since_usec for head in heads)

    def list_fenced(self) -> list[str]:
        """VFs that are online, and fenced still."""
        engine, found = self.engine, []
        for pf in PFS:
            pe = engine.recovery._lives.get(str(pf.slot))
            for index, address in engine.inventory.vfs_of(pf).items():
                facts = self.backend.read_function(address)
                is_online = pe.state is AdapterState.ONLINE and pe.vf((pf, index)).state is VfState.ONLINE
                if is_online and facts is not None and not facts.reset_methods:
                    found.append(f"{address} is online and cannot be reset")
        return found

    async def _make_vfs(self, pf: PciAddress) -> None:
        options = CountOptions(driver="vfio-pci")
        job = self.engine.lifecycle.set_num_vfs(pf, VFS, options, "test")
        await job.wait(600_000_000)

    async def _pass(self) -> None:
        """A few turns of the loop, or some time."""
        if self._random.random() < 0.5:
            for _ in range(self._random.randrange(30)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(self._random.choice((0.001, 0.01, 0.1, 0.5)))

    async def _wait(self) -> None:
        await asyncio.sleep(self._random.choice((0.5, 2.0, 5.0, 10.0, 100.0)))

    # What may be met.

    def _pick_pf(self) -> PciAddress:
        return self._random.choice(PFS)

    def _pick(self) -> PciAddress:
        """A PF or a VF, as the kernel has them."""
        pf = self._pick_pf()
        vfs = list(self.backend.list_virtual_functions(pf).values())
        return self._random.choice([pf, *vfs])

    def _pick_vf(self) -> PciAddress:
        vfs = [vf for pf in PFS for vf in self.backend.list_virtual_functions(pf).values()]
        if not vfs:
            raise ValueError("there is no VF")
        return self._random.choice(vfs)

    # Misfortunes.

    def _err(self) -> None:
        severity = self._random.choice((Severity.NONFATAL, Severity.NONFATAL, Severity.FATAL))
        self.backend.inject_error(self._pick(), severity, 0, ())

    def _err_corrected(self) -> None:
        address = self._pick()
        for _ in range(self._random.randrange(1, 8)):
            self.backend.inject_error(address, Severity.CORRECTED, 0, ())

    def _hide(self) -> None:
        self.backend.hide_errors([source for source in Source if self._random.random() < 0.5])

    def _tell_all(self) -> None:
        self.backend.hide_errors(())

    def _lose(self) -> None:
        self.backend.lose_events(self._random.randrange(1, 20))

    def _spoil_news(self) -> None:
        verb = self._random.choice(tuple(EventFault))
        times = self._random.randrange(1, 8)
        address = self._random.choice((None, self._pick()))
        self.backend.inject_fault(Fault(str(verb), address, delay_usec=300_000, times=times))

    def _spoil_access(self) -> None:
        fault = self._random.choice(
            (
                {"errno": errno.EIO}, {"errno": errno.ENODEV}, {"errno": errno.ENOTTY}, {"hang": True},
                {"delay_usec": 500_000}, {"delay_usec": 40_000_000},
            )
        )  # fmt: skip
        address = self._random.choice((None, self._pick()))
        times = self._random.choice((0, 1, 1, 3))
        self.backend.inject_fault(
            Fault(str(self._random.choice(tuple(Verb))), address, times=times, **fault)
        )

    def _clear(self) -> None:
        self.backend.clear_faults()

    def _unplug(self) -> None:
        self.backend.unplug(self._pick_pf())

    def _plug(self) -> None:
        for profile, pf in MACHINE:
            with suppress(ValueError):
                self.backend.plug(profile, PciAddress.parse(pf))

    def _open(self) -> None:
        self.backend.open_device(self._pick_vf(), QEMU)

    def _close(self) -> None:
        for pf in PFS:
            for vf in self.backend.list_virtual_functions(pf).values():
                self.backend.close_device(vf)

    def _cut_off(self) -> None:
        self.backend.freeze_function(self._pick(), frozen=self._random.random() < 0.3)

    # Policy and people.

    def _decide(self) -> None:
        choose = self._random.choice
        rungs = tuple(rung for rung in Rung if self._random.random() < 0.8)
        self.wish = RecoveryWish(
            choose(tuple(Storm)), 3, choose(tuple(Response)),
            choose((Response.RECOVER, Response.RECOVER, Response.QUARANTINE)), rungs,
            choose(tuple(Permission)), choose((0, 0, 2)), choose((0, 2, 5)),
        )  # fmt: skip

    def _start(self, asking: Callable[[], Awaitable[Any]]) -> None:
        """Somebody asks, and does not wait."""

        async def ask() -> None:
            with suppress(SriovdError, OSError):
                await asking()

        task = asyncio.create_task(ask())
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _lend(self) -> None:
        wish = Wish(pf=self._pick_pf())
        self._start(lambda: self.engine.leases.lease(ALICE, "vm", wish, "vfio-pci"))

    def _release(self) -> None:
        for lease in self.engine.leases.all()[:1]:
            self._start(partial(self.engine.leases.release, lease.number, self._random.random() < 0.5))

    def _unfreeze(self) -> None:
        for pf in PFS:
            for vf in self.engine.inventory.vfs_of(pf).values():
                self._start(partial(self.engine.recovery.unfreeze, vf))

    def _ask(self) -> None:
        lifecycle, choose = self.engine.lifecycle, self._random.choice
        match self._random.randrange(6):
            case 0:
                lifecycle.set_num_vfs(
                    self._pick_pf(), choose((0, VFS, VFS + 1)), CountOptions("vfio-pci"), "x"
                )
            case 1:
                lifecycle.bind(self._pick_vf(), choose(("vfio-pci", "igbvf", "pci-stub")), True, "x")
            case 2:
                lifecycle.reset(self._pick(), True, "x")
            case 3:
                lifecycle.set_attributes(self._pick_vf(), VfAttributes(vlan=choose((0, 7, 8))), "x")
            case 4:
                lifecycle.unbind(self._pick_vf(), True, "x")
            case 5:
                lifecycle.bind_vfs(self._pick_pf(), "vfio-pci", True, "x")

    def _recover(self) -> None:
        self.engine.recovery.recover(self._pick(), "x")

    def _lift(self) -> None:
        for pf in PFS:
            with suppress(SriovdError):
                self.engine.recovery.lift(pf)
            for vf in self.engine.inventory.vfs_of(pf).values():
                with suppress(SriovdError):
                    self.engine.recovery.lift(vf)

    async def _restart(self) -> None:
        await self.kill()
        await self.begin()


def _is_recovering(job: Job) -> bool:
    return job.operation == "Recover" and not job.state.ended
