"""All leases: who has which VF, and the life of each, driven by the automaton.

Rule: a lease is decided in one turn of the event loop, so no VF is ever lent twice; its new state is on disk
before anything is done for it. The rows of one lease are carried out one after the other; the answer of an
older row counts no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sriovd.core import rules, scripts
from sriovd.core.errors import InUse, NotOwner, SriovdError
from sriovd.core.inventory import Change, Function, FunctionChange, Inventory
from sriovd.core.lease.automaton import BEGIN, Effect, LeaseEvent, advance
from sriovd.core.lease.choose import Candidate, Wish, choose
from sriovd.core.lease.record import Lease, LeaseState, check_name
from sriovd.core.lease.work import LeaseWork
from sriovd.core.messages import Message, announce
from sriovd.core.store import Store
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

_WATCH_SEC = (0.2, 0.5, 1.0, 2.0, 5.0)  # between looks at who holds a VF open; the last for ever
_OVER = frozenset({LeaseState.RELEASED, LeaseState.FAILED})
_BEGUN = frozenset({LeaseState.ACTIVE, *_OVER})

Place = tuple[PciAddress, int]
Answer = tuple[LeaseEvent, str]  # and the reason in words


class LeaseKeeper:
    """The leases. `on_change` is told each new state, `on_end` when one is over."""

    def __init__(self, inventory: Inventory, work: LeaseWork, store: Store, last_number: int) -> None:
        self._inventory = inventory
        self._work = work
        self._store = store
        self._last_number = last_number
        self._leases: dict[int, Lease] = {}
        self._places: dict[Place, int] = {}
        self._reserved: set[PciAddress] = set()
        self._rows: Counter[int] = Counter()  # the newest row of each lease
        self._runners: dict[int, asyncio.Task[None]] = {}
        self._watches: set[int] = set()  # leases whose runner only watches
        self._groups: dict[int, int] = {}  # VFIO groups that are handed over, by lease
        self._errors: dict[int, SriovdError] = {}  # what the last row was refused with
        self._turns: dict[int, asyncio.Event] = {}
        self.on_change: Callable[[Lease], None] = lambda _: None
        self.on_end: Callable[[Lease], None] = lambda _: None

    # What others ask.

    def get(self, number: int) -> Lease | None:
        """The lease of that number while it lasts."""
        return self._leases.get(number)

    def all(self) -> Sequence[Lease]:
        """Every lease."""
        return list(self._leases.values())

    def describe_lease_of(self, address: PciAddress) -> str:
        """Whose lease the VF at `address` is under; empty for nobody's."""
        function = self._inventory.functions.get(address)
        number = self._places.get(_place_of(function)) if function and function.virtual else None
        if number is None:
            return ""
        lease = self._leases[number]
        return f"{lease.name!r} (uid {lease.uid}, lease {number})"

    def require_own(self, number: int, uid: int, name: str, *, trusted: bool = False) -> Lease:
        """The lease of that number, if it is theirs: the same answer for another's and for none. `trusted`:
        any user's. Raises NotOwner."""
        lease = self._leases.get(number)
        if lease is None or lease.name != name or (lease.uid != uid and not trusted):
            raise NotOwner(f"You have no lease {number} as {name[:64]!r}.", "Leases end by Release.")
        return lease

    def vf_address(self, lease: Lease) -> PciAddress | None:
        """Where its VF is now, if it is."""
        return self._inventory.vfs_of(lease.pf).get(lease.index)

    # Lease and release.

    async def lease(
        self, uid: int, name: str, wish: Wish, driver: str, *, held_by_descriptor: bool = False
    ) -> Lease:
        """Lend a free VF that fits `wish` to an owner; it is being prepared afterwards. `driver`: what it is
        handed out on. Raises PoolExhausted, InvalidArgument."""
        check_name(name)
        rules.check_driver_name(driver)
        excluded: set[PciAddress] = set()
        while True:
            vf = self._inventory.get(self._choose(wish, excluded))
            self._reserved.add(vf.address)
            try:
                if not await self._is_used(vf):
                    return self._enter(vf, uid, name, driver, held_by_descriptor)
                excluded.add(vf.address)
            finally:
                self._reserved.discard(vf.address)

    async def wait_begun(self, number: int) -> Lease:
        """Until the lease is active or has failed; one that has failed without ever being active is released
        again. Raises what it failed with."""
        lease = await self._wait(number, _BEGUN)
        if lease.state is LeaseState.FAILED:
            error = self._errors.get(number)
            self.fire(number, LeaseEvent.RELEASE_ASKED)
            await self._wait(number, frozenset({LeaseState.RELEASED}))
            raise error or InUse(f"{lease} could not be prepared: {lease.reason}")
        return lease

    async def release(self, number: int, force: bool) -> Lease:
        """End the lease; returns when the VF is clean and free. Raises InUse while somebody holds it open,
        unless `force`: then it ends when they close it."""
        self._errors.pop(number, None)
        self.fire(number, LeaseEvent.FORCED if force else LeaseEvent.RELEASE_ASKED)
        lease = await self._wait(number, _OVER, refusable=True)
        error = self._errors.pop(number, None)
        if error is not None:
            raise error
        return lease

    def owner_gone(self, number: int) -> None:
        """The last copy of the owner's descriptor was closed."""
        if number in self._leases:
            self.fire(number, LeaseEvent.OWNER_GONE)

    # What happens.

    def restore(self, records: Sequence[Mapping[str, Any]], kept: frozenset[int]) -> None:
        """Take up what a former daemon has left, and listen from now on. `kept`: leases whose descriptor has
        outlived it. Writes nothing for a lease that is as it should be."""
        for record in records:
            try:
                lease = Lease.from_dict(record)
            except ValueError as error:
                _log.error("A lease in the database makes no sense and is left there: %s", error)
                continue
            self._leases[lease.number] = lease
            self._places[lease.pf, lease.index] = lease.number
            self._last_number = max(self._last_number, lease.number)
            self.on_change(lease)
        self._inventory.listen(self._take_change)
        for lease in list(self._leases.values()):
            self._restart(lease, lease.number in kept)

    def _restart(self, lease: Lease, descriptor_kept: bool) -> None:
        vf = self._vf_of(lease)
        if vf is not None and vf.generation == lease.generation and vf.facts.iommu_group is not None:
            self._groups[lease.number] = vf.facts.iommu_group
        self.fire(lease.number, LeaseEvent.RESTARTED)
        if vf is None or vf.generation != lease.generation:
            self.fire(lease.number, LeaseEvent.VF_GONE)
        if vf is not None and vf.generation != lease.generation and lease.number in self._leases:
            self._come_back(self._leases[lease.number], vf)
        if lease.held_by_descriptor and not descriptor_kept:
            self.owner_gone(lease.number)

    def _take_change(self, change: Change) -> None:
        if not isinstance(change, FunctionChange):
            return
        vf = change.after or change.before
        number = self._places.get(_place_of(vf)) if vf is not None and vf.virtual is not None else None
        if number is None or vf is None:
            return
        lease = self._leases[number]
        if change.after is None:
            if vf.generation == lease.generation:
                self.fire(number, LeaseEvent.VF_GONE)
        elif change.before is None:
            self._come_back(lease, vf)

    def _come_back(self, lease: Lease, vf: Function) -> None:
        if lease.state is LeaseState.ABSENT:
            self._leases[lease.number] = replace(lease, generation=vf.generation)
            self.fire(lease.number, LeaseEvent.VF_BACK)

    # The automaton at work.

    def fire(self, number: int, event: LeaseEvent, reason: str = "") -> None:
        """`event` happens to the lease. A refusal is kept for whoever waits; the lease stays as it is."""
        lease = self._leases[number]
        try:
            transition = advance(lease.state, event, str(lease))
        except SriovdError as error:
            if reason and isinstance(error, InUse):
                error.message = f"{error.message} {reason}."
            self._refuse(number, error)
            return
        if transition is not None:
            self._begin_row(replace(lease, state=transition.state, reason=reason), transition.effects)

    def _begin_row(self, lease: Lease, effects: tuple[Effect, ...]) -> None:
        number = lease.number
        changed = self._leases.get(number) != lease
        self._leases[number] = lease
        self._rows[number] += 1
        previous = self._runners.get(number)
        if previous is not None and number in self._watches:
            previous.cancel()
        runner = asyncio.create_task(self._run_row(lease, self._rows[number], effects, previous, changed))
        runner.add_done_callback(_report_failure)
        self._runners[number] = runner
        if changed:
            self._tell(lease)

    async def _run_row(
        self,
        lease: Lease,
        row: int,
        effects: tuple[Effect, ...],
        previous: asyncio.Task[None] | None,
        changed: bool,
    ) -> None:
        if previous is not None:
            await asyncio.wait({previous})
        if changed and self._is_newest(lease, row):
            await self._store.put_lease(lease.number, lease.to_dict())
        for effect in effects:
            if not self._is_newest(lease, row):
                return
            answer = await self._perform(effect, lease)
            if answer is not None and self._is_newest(lease, row):
                self.fire(lease.number, *answer)
                return

    def _is_newest(self, lease: Lease, row: int) -> bool:
        return self._rows[lease.number] == row

    async def _perform(self, effect: Effect, lease: Lease) -> Answer | None:
        """Do it; the event that it ends with, if it does with one."""
        try:
            match effect:
                case Effect.PREPARE:
                    return self._failed(lease, await self._work.prepare(lease))
                case Effect.HAND_OVER:
                    return self._hand_over(lease)
                case Effect.TAKE_BACK:
                    self._work.take_back(lease, self._groups.pop(lease.number, None))
                case Effect.CHECK_CLOSED:
                    user = await self._work.find_user(lease)
                    return (LeaseEvent.STILL_OPEN, user) if user else (LeaseEvent.CLOSED, "")
                case Effect.WATCH_HOLDERS:
                    return await self._watch(lease)
                case Effect.CLEAN:
                    return _judge_cleaning(await self._work.clean(lease))
                case Effect.FORGET:
                    await self._forget(lease)
                case Effect.QUARANTINE:
                    self._quarantine(lease)
                case Effect.TELL_OWNER:
                    text = f"{lease} of {lease.name} is {lease.state}. {lease.reason}".rstrip()
                    announce(_log, Message.LEASE, text, lease=lease.number, owner=lease.name)
        except (SriovdError, ConnectionError) as error:
            _log.warning("%s of %s: %s", effect, lease, error)
        return None

    def _hand_over(self, lease: Lease) -> Answer:
        failed = self._failed(lease, self._work.hand_over(lease))
        if failed is not None:
            return failed
        vf = self._vf_of(lease)
        if vf is not None and vf.facts.iommu_group is not None:
            self._groups[lease.number] = vf.facts.iommu_group
        return LeaseEvent.PREPARED, ""

    def _failed(self, lease: Lease, error: SriovdError | None) -> Answer | None:
        if error is None:
            return None
        self._errors[lease.number] = error
        return LeaseEvent.PREPARE_FAILED, str(error)

    async def _watch(self, lease: Lease) -> Answer:
        """Until nobody holds the VF open. There is no event for that, so it is asked, ever less often."""
        self._watches.add(lease.number)
        try:
            looks = 0
            while await self._work.find_user(lease):
                await asyncio.sleep(_WATCH_SEC[min(looks, len(_WATCH_SEC) - 1)])
                looks += 1
            return LeaseEvent.CLOSED, ""
        finally:
            self._watches.discard(lease.number)

    async def _forget(self, lease: Lease) -> None:
        address = self.vf_address(lease)
        if address is not None:  # first: a quarantine that outlives its lease would be nobody's to lift
            self._inventory.quarantine(address, "")
        await self._store.forget_lease(lease.number)
        del self._leases[lease.number]
        del self._places[lease.pf, lease.index]
        self._runners.pop(lease.number, None)
        del self._rows[lease.number]
        self.on_end(lease)
        self._wake(lease.number)

    def _quarantine(self, lease: Lease) -> None:
        address = self.vf_address(lease)
        if address is not None:
            self._inventory.quarantine(address, f"{lease}: {lease.reason}")
            text = f"{address} is quarantined: {lease.reason}"
            announce(_log, Message.QUARANTINED, text, address=str(address))

    # The choice.

    def _choose(self, wish: Wish, excluded: set[PciAddress]) -> PciAddress:
        free: list[Candidate] = []
        taken: list[Candidate] = []
        for function in self._inventory.functions.values():
            if function.virtual is not None:
                is_free = self._is_free(function) and function.address not in excluded
                (free if is_free else taken).append(self._candidate(function))
        return choose(free, wish, Counter(pf for pf, _ in self._places), taken)

    def _is_free(self, vf: Function) -> bool:
        stuck = self._inventory.adapters[vf.adapter].stuck if vf.adapter in self._inventory.adapters else ""
        taken = _place_of(vf) in self._places or vf.address in self._reserved
        return not (taken or vf.quarantine or stuck)

    def _candidate(self, vf: Function) -> Candidate:
        place = vf.virtual
        if place is None:
            raise TypeError(f"{vf} is no VF")
        pf = self._inventory.get(place.parent).facts
        return Candidate(
            vf.address, place.parent, place.index, pf.numa_node, vf.facts.driver, vf.facts.vendor_id,
            vf.facts.device_id, vf.facts.class_code, pf.driver, pf.net_interfaces,
        )  # fmt: skip

    async def _is_used(self, vf: Function) -> bool:
        return bool(await self._work.find_user_of(vf))

    def _enter(self, vf: Function, uid: int, name: str, driver: str, held_by_descriptor: bool) -> Lease:
        """The moment in which the VF becomes theirs."""
        current = self._inventory.get(vf.address)  # it may have been replaced while its holders were asked
        pf, index = _place_of(current)
        self._last_number += 1
        home = current.facts.driver or scripts.NONE
        lease = Lease(
            number=self._last_number, uid=uid, name=name, pf=pf, index=index, driver=driver, home=home,
            generation=current.generation, held_by_descriptor=held_by_descriptor,
            state=BEGIN.state,
        )  # fmt: skip
        self._places[pf, index] = lease.number
        self._begin_row(lease, BEGIN.effects)
        return lease

    # Those who wait.

    async def _wait(self, number: int, states: frozenset[LeaseState], *, refusable: bool = False) -> Lease:
        """Until the lease is in one of `states`, or gone, or, if `refusable`, something was refused."""
        last = self._leases[number]
        while (lease := self._leases.get(number)) is not None and lease.state not in states:
            last = lease
            if refusable and number in self._errors:
                return lease
            await self._turns.setdefault(number, asyncio.Event()).wait()
        return lease or replace(last, state=LeaseState.RELEASED)

    def _wake(self, number: int) -> None:
        turn = self._turns.pop(number, None)
        if turn is not None:
            turn.set()

    def _refuse(self, number: int, error: SriovdError) -> None:
        self._errors[number] = error
        self._wake(number)

    def _tell(self, lease: Lease) -> None:
        self.on_change(lease)
        self._wake(lease.number)

    def _vf_of(self, lease: Lease) -> Function | None:
        address = self.vf_address(lease)
        return None if address is None else self._inventory.functions.get(address)


def _place_of(vf: Function) -> Place:
    if vf.virtual is None:
        raise TypeError(f"{vf} is no VF")
    return vf.virtual.parent, vf.virtual.index


def _report_failure(runner: asyncio.Task[None]) -> None:
    error = None if runner.cancelled() else runner.exception()
    if error is not None:
        _log.error("A lease could not be carried on", exc_info=error)


def _judge_cleaning(error: SriovdError | None) -> Answer:
    if error is None:
        return LeaseEvent.CLEANED, ""
    if isinstance(error, InUse):
        return LeaseEvent.STILL_OPEN, error.message
    return LeaseEvent.CLEAN_FAILED, str(error)
