"""The lives of all leases: the automaton at work, its effects carried out.

Rule: a lease's new state is on disk before anything is done for it. The rows of one lease are carried out
one after the other; the answer of an older row counts no more. Whatever an effect meets, it ends with an
event: a lease must always know how it stands.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple

from sriovd.core.errors import BackendFailed, InUse, SriovdError
from sriovd.core.inventory import Function, Inventory
from sriovd.core.lease.automaton import Effect, LeaseEvent, advance
from sriovd.core.lease.pool import Place
from sriovd.core.lease.record import Lease, LeaseState
from sriovd.core.lease.waiting import Waiters
from sriovd.core.lease.work import LeaseWork
from sriovd.core.messages import Message, announce
from sriovd.core.store import Store
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

_WATCH_SEC = (0.2, 0.5, 1.0, 2.0, 5.0)  # between looks at who holds a VF open; the last for ever
_STORE_AGAIN_SEC = 1.0  # a disk that is full may have room later

# What an effect ends with that could not be carried out. Watch-holders tries again by itself; the others
# have no answer: what take-back leaves behind stops the cleaning (work.py).
_WHEN_IMPOSSIBLE = {
    Effect.PREPARE: LeaseEvent.PREPARE_FAILED,
    Effect.HAND_OVER: LeaseEvent.PREPARE_FAILED,
    Effect.CHECK_CLOSED: LeaseEvent.STILL_OPEN,
    Effect.CLEAN: LeaseEvent.CLEAN_FAILED,
}
# Who waits for these is told when that is on disk, when the VF is quarantined, when the VF is free.
_TOLD_WHEN_TRUE = (LeaseState.ACTIVE, LeaseState.FAILED, LeaseState.RELEASED)


class _Answer(NamedTuple):
    """What an effect ends with; `reason`: in words, `error`: for whoever asked."""

    event: LeaseEvent
    reason: str = ""
    error: SriovdError | None = None


class LeaseLives:
    """`leases` by number, `places` with the number of the lease that has each. `on_change` is told each new
    state, `on_end` when a lease is over."""

    def __init__(self, inventory: Inventory, work: LeaseWork, store: Store) -> None:
        self._inventory = inventory
        self._work = work
        self._store = store
        self.leases: dict[int, Lease] = {}
        self.places: dict[Place, int] = {}
        self.waiters = Waiters()
        self._stored: dict[int, Lease] = {}  # as they are on disk
        self._rows: dict[int, int] = {}  # the newest row of each
        self._runners: dict[int, asyncio.Task[None]] = {}
        self._watches: set[int] = set()  # leases whose runner only watches
        self._groups: dict[int, int] = {}  # VFIO groups that are handed over
        self._closed = False
        self.on_change: Callable[[Lease], None] = lambda _: None
        self.on_end: Callable[[Lease], None] = lambda _: None
        self.on_leave: Callable[[Place], None] = lambda _: None  # told of VFs whose owner gives them up

    def vf_address(self, lease: Lease) -> PciAddress | None:
        """Where its VF is now, if it is."""
        return self._inventory.vfs_of(lease.pf).get(lease.index)

    def vf_of(self, lease: Lease) -> Function | None:
        """The VF at its place, be it the one that it was prepared for or another."""
        address = self.vf_address(lease)
        return None if address is None else self._inventory.functions.get(address)

    async def store(self, lease: Lease, patience_sec: float) -> bool:
        """Take up a new lease, of which nothing is done yet. When it is on disk or patience is over: whether
        nothing has happened to it meanwhile."""
        self.places[lease.pf, lease.index] = lease.number
        self.begin_row(lease, ())
        await asyncio.wait({self._runners[lease.number]}, timeout=patience_sec)
        return self._is_newest(lease.number, 1)

    def recall(self, lease: Lease) -> None:
        """Take up a lease as it is on disk."""
        self.leases[lease.number] = self._stored[lease.number] = lease
        self.places[lease.pf, lease.index] = lease.number
        vf = self.vf_of(lease)
        if vf is not None and vf.generation == lease.generation and vf.facts.iommu_group is not None:
            self._groups[lease.number] = vf.facts.iommu_group
        self.on_change(lease)

    async def close(self) -> None:
        """Do nothing more, as if the daemon were killed: the next one goes on."""
        self._closed = True
        runners = set(self._runners.values())
        for runner in runners:
            runner.cancel()
        if runners:
            await asyncio.wait(runners)

    def fire(
        self, number: int, event: LeaseEvent, reason: str = "", error: SriovdError | None = None
    ) -> None:
        """`event` happens to the lease, for that reason; `error` is what those get who asked for it. They
        are told of a refusal, too; then the lease stays as it is."""
        if self._closed:
            return
        lease = self.leases[number]
        try:
            transition = advance(lease.state, event, str(lease))
        except SriovdError as refusal:
            refusal.message = f"{refusal.message} {reason}".rstrip()
            self.waiters.refuse(number, error or refusal)
            return
        if transition is None:
            return
        kept = lease.reason if transition.state is lease.state else ""
        after = replace(lease, state=transition.state, reason=reason or kept)
        self.begin_row(after, transition.effects, error)
        if after.state not in _TOLD_WHEN_TRUE:
            self.waiters.tell(after)

    def begin_row(self, lease: Lease, effects: tuple[Effect, ...], error: SriovdError | None = None) -> None:
        """The lease is like that now, and `effects` are to be carried out; `error`: what it has failed
        with."""
        number = lease.number
        changed = self.leases.get(number) != lease
        self.leases[number] = lease
        self._rows[number] = row = self._rows.get(number, 0) + 1
        previous = self._runners.get(number)
        if previous is not None and number in self._watches:
            previous.cancel()
        self._runners[number] = runner = asyncio.create_task(
            self._run_row(lease, row, effects, previous, error)
        )
        runner.add_done_callback(_report_failure)
        if changed:
            self.on_change(lease)
        if changed and lease.is_over:
            self.on_leave((lease.pf, lease.index))

    async def _run_row(
        self,
        lease: Lease,
        row: int,
        effects: tuple[Effect, ...],
        previous: asyncio.Task[None] | None,
        error: SriovdError | None,
    ) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        if self._is_newest(lease.number, row) and self._stored.get(lease.number) != lease:
            await _insist(lambda: self._store.put_lease(lease.number, lease.to_dict()))
            self._stored[lease.number] = lease
            if lease.state is LeaseState.ACTIVE:
                self.waiters.tell(lease)
        for effect in effects:
            if not self._is_newest(lease.number, row):
                return
            answer = await self._perform(effect, lease)
            if answer is not None and self._is_newest(lease.number, row):
                self.fire(lease.number, *answer)
                return
        if lease.state is LeaseState.FAILED and self._is_newest(lease.number, row):
            self.waiters.fail(lease.number, error or BackendFailed(f"{lease} has failed: {lease.reason}"))

    def _is_newest(self, number: int, row: int) -> bool:
        return self._rows.get(number) == row

    async def _perform(self, effect: Effect, lease: Lease) -> _Answer | None:
        """Do it; the event that it ends with, if it does with one."""
        try:
            return await self._do(effect, lease)
        except SriovdError as failure:
            error = failure
        except ConnectionError as failure:
            error = BackendFailed(f"{effect} of {lease}: {failure}.", "See the journal.")
        except Exception:
            _log.exception("%s of %s met a defect of sriovd", effect, lease)
            error = BackendFailed(f"{effect} of {lease} failed for a defect of sriovd.")
        _log.warning("%s of %s: %s", effect, lease, error)
        event = _WHEN_IMPOSSIBLE.get(effect)
        return _Answer(event, str(error), error) if event else None

    async def _do(self, effect: Effect, lease: Lease) -> _Answer | None:
        match effect:
            case Effect.PREPARE:
                await self._work.prepare(lease)
            case Effect.HAND_OVER:
                return self._hand_over(lease)
            case Effect.TAKE_BACK:
                self._take_back(lease)
            case Effect.CHECK_CLOSED:
                user = await self._work.find_user(lease)
                return _still_open(user) if user else _Answer(LeaseEvent.CLOSED)
            case Effect.WATCH_HOLDERS:
                return await self._watch(lease)
            case Effect.CLEAN:
                return await self._clean(lease)
            case Effect.FORGET:
                await self._forget(lease)
            case Effect.QUARANTINE:
                self._quarantine(lease)
            case Effect.TELL_OWNER:
                text = f"{lease} of {lease.name} is {lease.state}. {lease.reason}".rstrip()
                announce(_log, Message.LEASE, text, lease=lease.number, owner=lease.name)
        return None

    def _hand_over(self, lease: Lease) -> _Answer:
        group = self._work.hand_over(lease)
        if group is not None:
            self._groups[lease.number] = group
        return _Answer(LeaseEvent.PREPARED)

    def _take_back(self, lease: Lease) -> None:
        """Of a VF that is gone the kernel may have given the group to another, who is lent it by now."""
        group = self._groups.pop(lease.number, None)
        self._work.take_back(lease, None if group in self._groups.values() else group)

    async def _watch(self, lease: Lease) -> _Answer:
        """Until nobody holds the VF open. There is no event for that, so it is asked, ever less often."""
        self._watches.add(lease.number)
        try:
            for look in itertools.count():  # a pause first: it was in use a moment ago, or seemed so
                await asyncio.sleep(_WATCH_SEC[min(look, len(_WATCH_SEC) - 1)])
                if not await self._is_used(lease):
                    break
            return _Answer(LeaseEvent.CLOSED)
        finally:
            self._watches.discard(lease.number)

    async def _is_used(self, lease: Lease) -> bool:
        """True as well when nobody can tell."""
        try:
            return bool(await self._work.find_user(lease))
        except Exception as error:
            _log.warning("Who holds the VF of %s open cannot be told: %s", lease, error)
            return True

    async def _clean(self, lease: Lease) -> _Answer:
        try:
            await self._work.clean(lease)
        except InUse as error:
            return _still_open(error.message)
        return _Answer(LeaseEvent.CLEANED)

    async def _forget(self, lease: Lease) -> None:
        vf = self.vf_of(lease)
        # First, because a quarantine that outlives its lease would be nobody's to lift; others' reasons are
        # not ours to lift.
        if vf is not None and vf.quarantine.startswith(f"{lease}: "):
            self._inventory.quarantine(vf.address, "")
        await _insist(lambda: self._store.forget_lease(lease.number))
        for kept in (self.leases, self._stored, self._rows, self._runners, self._groups):
            kept.pop(lease.number, None)
        del self.places[lease.pf, lease.index]
        self.waiters.tell(lease)
        self.on_end(lease)

    def _quarantine(self, lease: Lease) -> None:
        address = self.vf_address(lease)
        if address is not None:
            self._inventory.quarantine(address, f"{lease}: {lease.reason}")
            text = f"{address} is quarantined: {lease.reason}"
            announce(_log, Message.QUARANTINED, text, address=str(address))


async def _insist(write: Callable[[], Awaitable[None]]) -> None:
    """Until it is on disk: nothing goes on without."""
    while True:
        try:
            return await write()
        except BackendFailed as error:
            _log.error("A lease waits for the disk: %s", error)
        await asyncio.sleep(_STORE_AGAIN_SEC)


def _still_open(user: str) -> _Answer:
    return _Answer(LeaseEvent.STILL_OPEN, f"{user.rstrip('.')}.")


def _report_failure(runner: asyncio.Task[None]) -> None:
    error = None if runner.cancelled() else runner.exception()
    if error is not None:
        _log.error("A lease could not be carried on", exc_info=error)
