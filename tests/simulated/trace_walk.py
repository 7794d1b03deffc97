"""The walk of recovery_walk.py with owners who have names, ask for their VFs themselves and listen to their
traces; and who reads all traces after every misfortune, and holds them against what tracing promises.

Rule: it knows the promises and not the code; what it believes of the past it has seen itself.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from sriovd.core.engine import Engine
from sriovd.core.errors import SriovdError
from sriovd.core.inspect.site import Subject
from sriovd.core.inventory import Change, FunctionChange
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import Lease
from sriovd.core.lifecycle import CountOptions
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.record import Place
from sriovd.core.trace.transaction import CURRENT, Transaction, transaction
from sriovd.pci import PciAddress
from sriovd.trace.record import Record, RecordType
from tests.simulated.recovery_walk import PFS, Walk
from tests.simulated.recovery_witness import Witness
from tests.simulated.trace_buffers import Buffers

OWNERS = {1001: "alice", 1002: "bob", 1003: "carol"}
_OPERATOR = "uid 0 (:1.5)"
_PEOPLE = re.compile(r"alice|bob|carol|uid \d+|:1\.\d+\b", re.ASCII)
_ADDRESS = re.compile(r"(?:[0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", re.ASCII)
_NOWHERE = PciAddress(0, 0, 0, 0)
_DEEPEST = 12  # transactions that have caused each other


class TraceWitness:
    """Reads the traces of one engine after the other."""

    def __init__(self, witness: Witness) -> None:
        self._break, self.trail = witness._break, witness.trail
        self.reads = 0
        self.buffers = Buffers()
        self._engine: Engine
        self._since_nsec: dict[Place, int] = {}  # what was before at that place is nobody's
        self._homes: dict[Place, set[PciAddress]] = {}

    def attach(self, engine: Engine) -> None:
        """Watch that engine, which has not begun."""
        self._engine = engine
        engine.leases.listen(lambda _: None, self._note_end)
        self.buffers.attach(engine)
        engine.inventory.listen(self._note_change)
        tell = engine.executor.on_chain

        def note_chain(*told: object) -> None:
            if _depth_of_current() > _DEEPEST:
                self._break("what causes what never ends")
            tell(*told)  # type: ignore[arg-type]

        engine.executor.on_chain = note_chain

    def _note_end(self, lease: Lease) -> None:
        self._since_nsec[lease.pf, lease.index] = time.monotonic_ns()

    def _note_change(self, change: Change) -> None:
        vf = (change.after or change.before) if isinstance(change, FunctionChange) else None
        virtual = getattr(vf, "virtual", None)
        if vf is None or virtual is None:
            return
        place = virtual.parent, virtual.index
        self._homes.setdefault(place, set()).add(vf.address)
        if change.after is None and self._engine.leases.find_at_place(place) is None:
            self._since_nsec[place] = time.monotonic_ns()

    def check(self) -> None:
        """Every trace as it is now."""
        tails: dict[int, Sequence[Record]] = {}
        for lease in self._engine.leases.all():
            records = self._engine.recorder.tail((lease.pf, lease.index), lease.number)
            tails[lease.number] = records
            self.reads += 1
            self._check_tree(lease, records)
            self._check_discretion(lease, records)
        self.buffers.check(tails)
        for text in self.buffers.told:
            self._break(text)

    def _check_tree(self, lease: Lease, records: Sequence[Record]) -> None:
        known: set[int] = set()
        first = records[0].transaction if records else 0
        for record in records:
            if record.type is RecordType.END:
                if first == 1 and record.transaction not in known:
                    self._break(f"{lease}: the end of nothing: {record}")
                continue
            if known and record.transaction != max(known) + 1:
                self._break(f"{lease}: after {max(known)} comes {record}")
            if record.parent >= record.transaction:
                self._break(f"{lease}: was caused by what came later: {record}")
            if (record.parent == 0) != (record.transaction == 1):
                self._break(f"{lease}: another root: {record}")
            if record.parent and first == 1 and record.parent not in known:
                self._break(f"{lease}: nothing known has caused {record}")
            known.add(record.transaction)

    def _check_discretion(self, lease: Lease, records: Sequence[Record]) -> None:
        place = lease.pf, lease.index
        for record in records:
            self.check_told(lease, f"{record.operation} {record.arguments}")
            if record.vf not in self._homes.get(place, ()) and record.vf.bus:
                self._break(f"{lease} is told as of another VF: {record}")
            since = self._since_nsec.get(place, 0)
            if record.time_nsec < since and record.type is not RecordType.BEGIN:
                self._break(f"{lease} is told of a time {since - record.time_nsec} ns before: {record}")

    def check_told(self, lease: Lease, text: str) -> None:
        """What an owner is told names nobody else."""
        own = {lease.name, f"uid {lease.uid}", f":1.{lease.uid}"}
        homes = self._homes.get((lease.pf, lease.index), ())
        known = {str(address) for address in (lease.pf, _NOWHERE, *homes)}
        others = (set(_PEOPLE.findall(text)) - own) | (set(_ADDRESS.findall(text)) - known)
        if others:
            self._break(f"{lease} of {lease.name} is told of {others}: {text}")

    def check_incidents(self) -> None:
        """Nobody suffers from an error that is over."""
        engine = self._engine
        for place, trace in engine.recorder._traces.items():
            trace.stream.read()
            pe = engine.recovery._lives.get(str(place[0].slot))
            is_online = pe.state is AdapterState.ONLINE and pe.vf(place).state is VfState.ONLINE
            if is_online and trace.stream._incident:
                self._break(f"{place} is online, and its incident goes on")

    def check_empty(self) -> None:
        """No VF and no lease is left."""
        recorder = self._engine.recorder
        left = [recorder._traces, recorder._leased, recorder._at, recorder._away, recorder._sinks]
        if any(left):
            self._break(f"nothing is left to be traced, but {left}")


def _depth_of_current() -> int:
    depth, current = 0, CURRENT.get()
    while current is not None:
        depth, current = depth + 1, current.parent
    return depth


class TraceWalk(Walk):
    """One walk."""

    def __init__(self, directory: Path, seed: int, *, links_return: bool) -> None:
        super().__init__(directory, seed, links_return=links_return)
        self._dice = random.Random(seed)
        self.traces = TraceWitness(self.witness)
        self._deeds = (
            *self._deeds, (8, self._lend_somebody), (6, self._let_go), (6, self._listen), (3, self._stop),
            (6, self._speak), (4, self._look),
        )  # fmt: skip

    def attach_to(self, engine: Engine) -> None:
        """As Walk's."""
        super().attach_to(engine)
        self.traces.attach(engine)

    async def begin(self) -> None:
        """As Walk's."""
        await super().begin()
        self.traces.check()

    def take_up_leases(self) -> None:
        """As Walk's; at once, as the daemon does."""
        super().take_up_leases()
        self.traces.buffers.take_up(self.engine)

    async def _pass(self) -> None:
        await super()._pass()
        self.traces.check()

    def _lend(self) -> None:
        self._lend_somebody()

    def _lend_somebody(self) -> None:
        uid = self._dice.choice(list(OWNERS))
        wish = Wish(pf=self._pick_pf())
        with transaction("Lease", f"uid {uid} (:1.{uid})"):
            self._start(lambda: self.engine.leases.lease(uid, OWNERS[uid], wish, "vfio-pci"))

    def _pick_lease(self) -> Lease:
        leases = self.engine.leases.all()
        if not leases:
            raise ValueError("there is no lease")
        return self._dice.choice(leases)

    def _as_owner(self, lease: Lease, verb: str) -> AbstractContextManager[Transaction]:
        return transaction(verb, f"uid {lease.uid} (:1.{lease.uid})")

    def _let_go(self) -> None:
        lease = self._pick_lease()
        force = self._dice.random() < 0.7

        async def ask() -> None:
            with self._as_owner(lease, "Release"):
                self.engine.leases.require_own(lease.number, lease.uid, lease.name)
                await self.engine.leases.release(lease.number, force)

        self._start(ask)

    def _release(self) -> None:
        self._let_go()

    def _speak(self) -> None:
        """A verb of an owner, which may be refused."""
        lease = self._pick_lease()
        vf = self.engine.leases.vf_address(lease)

        async def ask() -> None:
            with self._as_owner(lease, "Unfreeze"):
                if vf is not None:
                    self.engine.leases.require_own_at(vf, lease.uid, lease.name)
                    await self.engine.recovery.unfreeze(vf)

        self._start(ask)

    def _look(self) -> None:
        """Another verb, which reads from the VF."""
        lease = self._pick_lease()
        vf = self.engine.leases.vf_address(lease)
        if vf is None:
            return
        subject = Subject(vf, (lease.pf, lease.index), lease.number, lease.begun_usec)
        what = self._dice.choice(("registers", "driver", "recovery", ""))

        async def ask() -> None:
            with self._as_owner(lease, "Inspect"):
                self.engine.leases.require_own_at(vf, lease.uid, lease.name)
                if what:
                    told: object = await self.engine.inspector.inspect(subject, what)
                else:
                    told = await self.engine.error_data.collect(subject)
                self.traces.check_told(lease, str(told))

        self._start(ask)

    def _listen(self) -> None:
        self.traces.buffers.start(self._pick_lease(), history=self._dice.random() < 0.5)

    def _stop(self) -> None:
        self.traces.buffers.stop(self._pick_lease())

    def _ask(self) -> None:
        with transaction("Verb", _OPERATOR):
            super()._ask()

    def _recover(self) -> None:
        with transaction("Recover", _OPERATOR):
            self.engine.recovery.recover(self._pick(), _OPERATOR)

    async def kill(self) -> None:
        """As Walk's; before the end everybody lets go of everything."""
        if self.is_ending:
            await self._empty()
            self.traces.buffers.close()
        self.traces.buffers.kill()
        if self.engine.recorder._alarm is not None:
            self.engine.recorder._alarm.cancel()
        await super().kill()

    is_ending = False

    async def end(self) -> None:
        """As Walk's."""
        self.is_ending = True
        await super().end()

    async def _empty(self) -> None:
        self.traces.check()
        self.traces.check_incidents()
        self.witness.raise_broken("at the end")
        await self._release_all()
        for pf in PFS:
            if pf in self.engine.inventory.functions:
                with suppress(SriovdError):
                    self.engine.recovery.lift(pf)
                await asyncio.sleep(120)
                with suppress(SriovdError):
                    job = self.engine.lifecycle.set_num_vfs(pf, 0, CountOptions(), "test")
                    await job.wait(600_000_000)
        await asyncio.sleep(700)
        if not self.engine.leases.all() and not any(map(self.engine.inventory.vfs_of, PFS)):
            self.traces.check_empty()
        else:
            self.witness.trail.append(f"LEFT {self.engine.leases.all()}")
        self.witness.raise_broken("at the very end")

    async def _release_all(self) -> None:
        for lease in self.engine.leases.all():
            with suppress(SriovdError, TimeoutError):
                async with asyncio.timeout(300):
                    await self.engine.leases.release(lease.number, True)
