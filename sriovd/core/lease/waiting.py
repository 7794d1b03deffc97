"""Those who wait for a lease to come to a state.

Rule: whoever waits is answered once, in the turn of the event loop in which it happens, with the lease as it
is then: no state is missed, and nobody takes an answer away that another waits for, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from sriovd.core.errors import SriovdError
from sriovd.core.lease.record import Lease, LeaseState


@dataclass(eq=False, frozen=True, slots=True)
class _Waiter:
    states: Collection[LeaseState]
    refusable: bool
    answer: asyncio.Future[Lease]


class Waiters:
    """By the number of the lease; of a lease that nobody waits for nothing is kept."""

    def __init__(self) -> None:
        self._waiters: dict[int, list[_Waiter]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    async def wait(self, number: int, states: Collection[LeaseState], *, refusable: bool = False) -> Lease:
        """Until the lease is in one of `states`. Raises what it fails with, and, if `refusable`, what a
        request is refused with."""
        waiter = _Waiter(states, refusable, asyncio.get_running_loop().create_future())
        self._waiters.setdefault(number, []).append(waiter)
        try:
            return await waiter.answer
        finally:
            self._waiters[number].remove(waiter)
            if not self._waiters[number]:
                del self._waiters[number]

    def tell(self, lease: Lease) -> None:
        """The lease is in a new state."""
        for waiter in self._waiters.get(lease.number, ()):
            if lease.state in waiter.states and not waiter.answer.done():
                waiter.answer.set_result(lease)

    def fail(self, number: int, error: SriovdError) -> None:
        """The lease has failed."""
        for waiter in self._waiters.get(number, ()):
            if not waiter.answer.done():
                waiter.answer.set_exception(error)

    def refuse(self, number: int, error: SriovdError) -> None:
        """What was asked for is not done, and the lease stays as it is."""
        for waiter in self._waiters.get(number, ()):
            if waiter.refusable and not waiter.answer.done():
                waiter.answer.set_exception(error)
