"""All leases, for whoever asks: who has which VF, lending one, and ending that.

Rule: a lease is decided in one turn of the event loop, so no VF is ever lent twice. What follows is the
automaton's (life.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from sriovd.core import scripts
from sriovd.core.errors import (
    Cancelled,
    InUse,
    InvalidArgument,
    LockedOut,
    NoSuchFunction,
    NotOwner,
    PoolExhausted,
    SriovdError,
    TimedOut,
)
from sriovd.core.inventory import Change, Function, FunctionChange, Inventory
from sriovd.core.lease.automaton import BEGIN, LeaseEvent
from sriovd.core.lease.choose import Wish, refuse
from sriovd.core.lease.life import LeaseLives
from sriovd.core.lease.pool import Place, Pool, place_of
from sriovd.core.lease.record import Lease, LeaseState, check_name
from sriovd.core.lease.work import LeaseWork
from sriovd.core.store import Store
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

LEASES_PER_USER = 1024  # except root, who has them for others
_ROOT_UID = 0
_STORE_PATIENCE_SEC = 5.0
_RESUMED = frozenset({LeaseState.ACTIVE, LeaseState.RELEASED})
_BEGUN = frozenset(LeaseState) - {LeaseState.PREPARING, LeaseState.FAILED}  # failing is told as an error


class LeaseKeeper:
    """The leases."""

    def __init__(self, inventory: Inventory, work: LeaseWork, store: Store, last_number: int) -> None:
        self._inventory = inventory
        self._work = work
        self._last_number = last_number
        self._lives = LeaseLives(inventory, work, store)
        self._pool = Pool(inventory, self._lives.places)
        self._opening: set[int] = set()  # leases whose groups are being opened
        self.is_held: Callable[[Place], bool] = lambda _: False  # by a recovery: see hold_by

        self.on_owner: Callable[[Lease], None] = lambda _: None  # told the lease that an owner speaks for
        self._listeners: list[tuple[Callable[[Lease], None], Callable[[Lease], None]]] = []
        self._lives.on_change, self._lives.on_end = self._tell_change, self._tell_end
        self._left: dict[PciAddress, int] = {}  # leases by the address that their VF was at last

    def listen(self, on_change: Callable[[Lease], None], on_end: Callable[[Lease], None]) -> None:
        """Call `on_change` with every new state of a lease, and `on_end` when one is over."""
        self._listeners.append((on_change, on_end))

    def _tell_change(self, lease: Lease) -> None:
        for on_change, _ in self._listeners:
            on_change(lease)

    def _tell_end(self, lease: Lease) -> None:
        for _, on_end in self._listeners:
            on_end(lease)

    def hold_by(self, is_held: Callable[[Place], bool], on_leave: Callable[[Place], None]) -> None:
        """`is_held` tells of VFs that are being recovered: they are neither lent nor handed over.
        `on_leave` is told of VFs whose owner will not take them back to life any more."""
        self.is_held = self._pool.is_held = self._work.is_held = is_held
        self._lives.on_leave = on_leave

    def get(self, number: int) -> Lease | None:
        """The lease of that number while it lasts."""
        return self._lives.leases.get(number)

    def all(self) -> Sequence[Lease]:
        """Every lease."""
        return list(self._lives.leases.values())

    def find_at_place(self, place: Place) -> Lease | None:
        """The lease that has the VF at `place`."""
        number = self._lives.places.get(place)
        return None if number is None else self._lives.leases[number]

    def find_at(self, address: PciAddress) -> Lease | None:
        """The lease of the VF at `address`, also while that VF is away: it is made again at its place."""
        function = self._inventory.functions.get(address)
        if function is not None:
            return self.get(self._lives.places.get(place_of(function), 0)) if function.virtual else None
        lease = self.get(self._left.get(address, 0))
        return lease if lease is not None and self.vf_address(lease) is None else None

    def describe_lease_of(self, address: PciAddress) -> str:
        """Whose lease the VF at `address` is under; empty for nobody's."""
        lease = self.find_at(address)
        return f"{lease.name!r} (uid {lease.uid}, lease {lease.number})" if lease else ""

    def require_own(self, number: int, uid: int, name: str, *, trusted: bool = False) -> Lease:
        """The lease of that number, if it is theirs: the same answer for another's and for none. `trusted`:
        any user's. Raises NotOwner."""
        lease = self.get(number)
        if lease is None or not lease.is_of(uid, name, trusted):
            raise NotOwner(f"You have no lease {number} as {name[:64]!r}.", "Leases end by Release.")
        self.on_owner(lease)
        return lease

    def require_own_at(
        self, address: PciAddress, uid: int, name: str, *, trusted: bool = False, silent: bool = False
    ) -> Lease:
        """As require_own, for the lease of the VF at `address`: another's, none, and no VF are the same.
        `silent`: the owner only reads what is recorded of it, which that shall not push out."""
        lease = self.find_at(address)
        if lease is None or not lease.is_of(uid, name, trusted):
            raise _not_owner(address, name)
        if not silent:
            self.on_owner(lease)
        return lease

    @contextmanager
    def while_lasting(self, number: int, address: PciAddress, name: str) -> Iterator[None]:
        """Neither what is found meanwhile nor why that fails is told when the lease of that number has
        ended: the VF may be another's since. 0: nobody speaks for a lease. Raises as require_own_at."""
        try:
            yield
        except SriovdError as error:
            if number and self.get(number) is None:
                raise _not_owner(address, name) from error
            raise
        if number and self.get(number) is None:
            raise _not_owner(address, name)

    def vf_address(self, lease: Lease) -> PciAddress | None:
        """Where its VF is now, if it is."""
        return self._lives.vf_address(lease)

    async def open_group(self, lease: Lease) -> int:
        """A descriptor of the lease's VFIO group. Raises NotSupported, LockedOut, InUse, Stuck,
        BackendFailed, NoSuchFunction."""
        self._refuse_held(lease)
        if lease.number in self._opening:
            raise InUse(f"The VFIO group of {lease} is being opened already.", "Wait for that.")
        self._opening.add(lease.number)
        try:
            fd = await self._work.open_group(lease)
        finally:
            self._opening.discard(lease.number)
            ours = self._hand_over_again(lease)
        try:
            if not ours:
                raise LockedOut(f"{lease} has ended while its group was opened.")
            self._refuse_held(lease)  # it has frozen meanwhile
        except LockedOut:
            os.close(fd)
            raise
        return fd

    def _refuse_held(self, lease: Lease) -> None:
        """Nobody opens a VF that is being recovered: a rung that destroys it would wait for that. Raises
        LockedOut."""
        if self.is_held((lease.pf, lease.index)):
            raise LockedOut(
                f"The VF of {lease} is being recovered from an error.",
                "WaitPermitted returns when it may be unfrozen.",
            )

    def _hand_over_again(self, lease: Lease) -> bool:
        """Whether the lease is as it was; then its owner may open the group himself, too."""
        now = self.get(lease.number)
        if now is None or now.state is not LeaseState.ACTIVE or now.generation != lease.generation:
            return False
        try:
            self._work.hand_over(now)
        except SriovdError as error:
            _log.warning("%s", error)
        return True

    # Lease and release.

    async def lease(
        self,
        uid: int,
        name: str,
        wish: Wish,
        driver: str,
        *,
        held_by_descriptor: bool = False,
        generation: int = 0,
        explain: bool = True,
    ) -> Lease:
        """Lend a free VF that fits `wish` to an owner; it is being prepared afterwards. `driver`: what it is
        handed out on. `generation`: of the VF at the wish's address, 0 for any. `explain`: he may know why
        he gets none; who may not gets PoolExhausted in any case, in the same time. Raises PoolExhausted,
        InvalidArgument, BindFailed, NoSuchFunction."""
        check_name(name)
        self._work.check_driver(driver)
        vf = await self._find_free(wish, generation, explain)
        self._refuse_too_many(uid)
        self._last_number += 1
        pf, index = place_of(vf)
        lease = Lease(
            number=self._last_number, uid=uid, name=name, pf=pf, index=index, driver=driver,
            home=vf.facts.driver or scripts.NONE, generation=vf.generation,
            held_by_descriptor=held_by_descriptor, state=BEGIN.state, begun_usec=time.time_ns() // 1000,
        )  # fmt: skip
        self.on_owner(lease)
        if await self._lives.store(lease, _STORE_PATIENCE_SEC):
            self._lives.begin_row(lease, BEGIN.effects)
        return self.get(lease.number) or replace(lease, state=LeaseState.RELEASED)

    async def _find_free(self, wish: Wish, generation: int, explain: bool) -> Function:
        """A VF that is the caller's if he takes it in this turn of the event loop."""
        if generation and wish.address is None:
            raise InvalidArgument("A generation tells VFs of one address apart.", "Give an address, too.")
        used: set[PciAddress] = set()
        while True:
            if wish.address is not None and explain:
                self._inventory.get(wish.address, generation)
            vf = self._pool.choose(wish, used, explain)
            if generation not in (0, vf.generation):
                raise refuse(wish)
            with self._pool.reserved(vf):
                if await self._work.find_user_of(vf):
                    used.add(vf.address)
                elif self._inventory.functions.get(vf.address) == vf and self._pool.is_lendable(vf):
                    return vf  # else much has happened while its holders were asked

    def _refuse_too_many(self, uid: int) -> None:
        own = sum(lease.uid == uid for lease in self._lives.leases.values())
        if uid != _ROOT_UID and own >= LEASES_PER_USER:
            raise PoolExhausted(f"User {uid} has {own} leases, and more are not given.", "Release some.")

    async def wait_begun(self, number: int) -> Lease:
        """Until the lease is active. One that cannot be prepared is released again. Raises what it failed
        with, NoSuchFunction when its VF has vanished, and Cancelled when it is released meanwhile."""
        try:
            lease = await self._wait(number, _BEGUN)
            if lease is not None and lease.state is LeaseState.ABSENT:
                raise NoSuchFunction(f"The VF of {lease} vanished before it was handed over.", "Ask again.")
        except SriovdError as error:
            await self._give_up(number, error)
            raise
        if lease is None or lease.state is not LeaseState.ACTIVE:
            raise Cancelled(f"Lease {number} was released before it was active.")
        return lease

    async def _give_up(self, number: int, error: SriovdError) -> None:
        try:
            await self.release(number, force=False)
        except SriovdError as cleaning:
            if cleaning is not error:  # somebody else's release has failed, too
                error.hint = f"{error.hint} Its VF is quarantined: {cleaning.message}".lstrip()

    async def release(self, number: int, force: bool) -> None:
        """End the lease; returns when the VF is clean and free. Raises InUse while somebody holds it open,
        unless `force`: then it ends when they close it. Raises what the cleaning failed with."""
        while number in self._lives.leases:
            self._lives.fire(number, LeaseEvent.FORCED if force else LeaseEvent.RELEASE_ASKED)
            # A VF that vanishes before it was looked at takes the request with it: then it is made again.
            await self._wait(number, {LeaseState.RELEASED, LeaseState.ABSENT}, refusable=True)

    def force(self, number: int) -> None:
        """Take the VF back although it is held open; whoever waits for its release goes on waiting."""
        if self.get(number) is not None:
            self._lives.fire(number, LeaseEvent.FORCED)

    def owner_gone(self, number: int) -> None:
        """The last copy of the owner's descriptor was closed."""
        lease = self.get(number)
        if lease is not None and lease.held_by_descriptor:
            self._lives.fire(number, LeaseEvent.OWNER_GONE)

    async def _wait(
        self, number: int, states: frozenset[LeaseState] | set[LeaseState], *, refusable: bool = False
    ) -> Lease | None:
        """The lease when it is in one of `states`; None when it is over already. Raises what it fails
        with."""
        lease = self.get(number)
        if lease is None or (lease.state in states and lease.state is not LeaseState.RELEASED):
            return lease
        return await self._lives.waiters.wait(number, states, refusable=refusable)

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
            self._last_number = max(self._last_number, lease.number)
            self._lives.recall(lease)
        self._work.sweep(frozenset(self._lives.leases))
        self._inventory.listen(self._take_change)
        for lease in self.all():
            self._restart(lease, lease.number in kept)

    def _restart(self, lease: Lease, descriptor_kept: bool) -> None:
        number, vf = lease.number, self._lives.vf_of(lease)
        self._lives.fire(number, LeaseEvent.RESTARTED)
        if vf is None or vf.generation != lease.generation:
            self._lives.fire(number, LeaseEvent.VF_GONE)
        if vf is not None:
            self._come_back(number, vf)
        if not descriptor_kept:
            self.owner_gone(number)

    def _take_change(self, change: Change) -> None:
        vf = (change.after or change.before) if isinstance(change, FunctionChange) else None
        if not isinstance(vf, Function) or vf.virtual is None:
            return
        number = self._lives.places.get(place_of(vf))
        if number is None:
            return
        if change.after is None:
            self._left[vf.address] = number
        if change.after is None and vf.generation == self._lives.leases[number].generation:
            self._lives.fire(number, LeaseEvent.VF_GONE)
        elif change.before is None:
            self._come_back(number, vf)

    def withhold(self, place: Place) -> None:
        """Let the owner of the VF at `place` open it no more, until resume(); it stays open where it is."""
        lease = self.find_at_place(place)
        if lease is None or lease.state is not LeaseState.ACTIVE:
            return
        try:
            self._work.take_back(lease, None)
        except SriovdError as error:
            _log.warning("%s", error)

    def resume(self, place: Place) -> None:
        """The VF at `place`, which was held back, may be handed over again."""
        lease = self.find_at_place(place)
        vf = self._lives.vf_of(lease) if lease is not None else None
        if lease is not None and vf is not None and not self._hand_over_again(lease):
            self._come_back(lease.number, vf)

    async def wait_resumed(self, place: Place, timeout_sec: float) -> None:
        """Until the lease at `place` is active, or over. Raises what it fails with, TimedOut."""
        number = self._lives.places.get(place)
        if number is None:
            return
        try:
            async with asyncio.timeout(timeout_sec):
                await self._wait(number, _RESUMED)
        except TimeoutError:
            raise TimedOut(f"{self._lives.leases[number]} is not active after {timeout_sec:g} s.") from None

    def _come_back(self, number: int, vf: Function) -> None:
        lease = self._lives.leases[number]
        if lease.state is LeaseState.ABSENT and not self.is_held((lease.pf, lease.index)):
            self._lives.leases[number] = replace(lease, generation=vf.generation)
            self._lives.fire(number, LeaseEvent.VF_BACK)

    async def close(self) -> None:
        """Do nothing more, as if the daemon were killed: the next one goes on."""
        await self._lives.close()


def _not_owner(address: PciAddress, name: str) -> NotOwner:
    return NotOwner(f"You have no lease on a VF at {address} as {name[:64]!r}.", "Leases end by Release.")
