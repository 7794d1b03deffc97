"""The uevents of the simulated host on their way to the one who listens, with the misfortunes that may meet
them.

Rule: order is the kernel's unless a fault says otherwise. Knows no device.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from enum import StrEnum

from sriovd.backend.base import ErrorRecord, EventsLost, Fault, KernelEvent, LinkChanged, Uevent
from sriovd.backend.driver_events import DriverEvent


class EventFault(StrEnum):
    """Fault verbs that concern news instead of accesses; the fault's address is the event's. A uevent that
    is lost is followed by EventsLost; of a lost record nobody learns."""

    LOSE = "lose-event"  # dropped
    DELAY = "delay-event"  # arrives delay_usec late, others overtake it
    REORDER = "reorder-event"  # arrives after its successor
    REPEAT = "repeat-event"  # arrives twice
    LOSE_RECORD = "lose-record"
    DELAY_RECORD = "delay-record"
    REORDER_RECORD = "reorder-record"
    REPEAT_RECORD = "repeat-record"


UEVENT_VERBS = frozenset(str(verb) for verb in EventFault if verb.endswith("-event"))
RECORD_VERBS = frozenset(str(verb) for verb in EventFault if verb.endswith("-record"))


class UeventQueue:
    """From the first `open` on, everything emitted, in order."""

    def __init__(self) -> None:
        self._events: deque[KernelEvent] = deque()
        self._arrived = asyncio.Event()
        self._open = False
        self._held: Uevent | ErrorRecord | None = None
        self._to_lose = 0
        self.takes_drivers = False  # whether somebody wants what drivers say

    def open(self) -> None:
        """Begin to listen."""
        self._open = True

    def close(self) -> None:
        """Stop listening; what was not fetched is gone and the iterator ends."""
        self._open = self.takes_drivers = False
        self._events.clear()
        self._held = None
        self._arrived.set()

    def lose(self, count: int) -> None:
        """Drop the next `count` events."""
        self._to_lose += count

    def emit(self, event: Uevent | ErrorRecord, fault: Fault | None = None) -> None:
        """Send an event, with what `fault` does to it."""
        if not self._open:
            return
        misfortune = fault.verb.partition("-")[0] if fault else ""
        is_uevent = isinstance(event, Uevent)
        if is_uevent and (self._to_lose or misfortune == "lose"):
            self._to_lose = max(0, self._to_lose - 1)
            self._report_loss()
        elif fault and misfortune == "delay":
            asyncio.get_running_loop().call_later(fault.delay_usec / 1e6, self._deliver, event)
        elif misfortune == "reorder" and self._held is None:
            self._held = event
        elif misfortune != "lose":
            self._deliver(event)
            if misfortune == "repeat":
                self._deliver(event)

    def emit_link(self, event: LinkChanged) -> None:
        """Send what comes from another socket than uevents, which shares no misfortune with them."""
        if self._open:
            self._events.append(event)
            self._arrived.set()

    def emit_driver(self, event: DriverEvent) -> None:
        """Send what a driver says, if anybody wants it."""
        if self._open and self.takes_drivers:
            self._events.append(event)
            self._arrived.set()

    async def listen(self) -> AsyncIterator[KernelEvent]:
        """The events; ends at close()."""
        while self._open:
            while self._events:
                yield self._events.popleft()
            self._arrived.clear()
            if self._open:
                await self._arrived.wait()

    def drain(self) -> list[KernelEvent]:
        """Everything that has arrived and nobody has fetched."""
        events = list(self._events)
        self._events.clear()
        return events

    def _deliver(self, event: Uevent | ErrorRecord) -> None:
        if not self._open:
            return
        self._events.append(event)
        if self._held is not None:
            self._events.append(self._held)
            self._held = None
        self._arrived.set()

    def _report_loss(self) -> None:
        """net/netlink/af_netlink.c netlink_overrun: one error however many are dropped, until it has been
        read."""
        if not self._events or not isinstance(self._events[-1], EventsLost):
            self._events.append(EventsLost("the simulated socket was overrun"))
        self._arrived.set()
