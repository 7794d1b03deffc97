"""Lease, Acquire, Release and the hand-over of VFIO groups.

Rule: whoever may lease at all is polkit's to say, once; after that only the owner, by user and name, may do
anything with a lease. Another's lease and none are the same answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any

from sriovd.bus.actions import LEASE
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.objects import LEASE_INTERFACE, MANAGER, Objects, function_path, lease_path
from sriovd.bus.options import parse_options
from sriovd.bus.polkit import Authority
from sriovd.bus.replies import (
    WAIT,
    WAIT_FORCE,
    WAIT_USEC,
    JobReply,
    Options,
    answer_with_job,
    is_forced,
    name_caller,
    parse_address,
)
from sriovd.bus.wire import Fd
from sriovd.core.errors import InvalidArgument
from sriovd.core.inventory import Inventory
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.lease.choose import Spread, Wish
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lease.record import Lease
from sriovd.core.lease.work import VFIO_PCI, LeaseWork
from sriovd.core.results import Changed, Result
from sriovd.pci import AddressError, PciSlot

_WISHES = {
    "address": "s", "pf": "s", "slot": "s", "vendor": "u", "device": "u", "class": "s", "bound-to": "s",
    "pf-driver": "s", "netdev": "s", "numa-node": "i", "spread": "s",
}  # fmt: skip
_OPTIONS = {**_WISHES, **WAIT, "driver": "s"}


class Descriptors:
    """The daemon's ends of the leases that a descriptor holds. `keep` and `drop` put one into what outlives
    the daemon, by its lease's number, and take it out again."""

    def __init__(
        self,
        on_closed: Callable[[int], None],
        keep: Callable[[int, int], None] = lambda _number, _fd: None,
        drop: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self._on_closed = on_closed
        self._keep = keep
        self._drop = drop
        self._ends: dict[int, socket.socket] = {}

    def make(self, number: int) -> Fd:
        """The owner's end for the lease of that number."""
        own, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._keep(number, own.fileno())
        self.watch(number, own)
        return Fd(theirs.detach())

    def watch(self, number: int, own: socket.socket) -> None:
        """Notice when the last copy of the other end is closed."""
        own.setblocking(False)
        self._ends[number] = own
        asyncio.get_running_loop().add_reader(own, self._look, number)

    def close(self, number: int) -> None:
        """The lease is over, whoever ended it."""
        own = self._ends.pop(number, None)
        if own is not None:
            asyncio.get_running_loop().remove_reader(own)
            own.close()
            self._drop(number)

    def _look(self, number: int) -> None:
        """Nothing that the owner writes means anything; its end does."""
        try:
            if self._ends[number].recv(1):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # ECONNRESET: closed with something unread
        self.close(number)
        self._on_closed(number)


class LeaseVerbs:
    """The handlers."""

    def __init__(
        self,
        inventory: Inventory,
        leases: LeaseKeeper,
        work: LeaseWork,
        jobs: JobRegistry,
        objects: Objects,
        authority: Authority,
        descriptors: Descriptors,
    ) -> None:
        self._inventory = inventory
        self._leases = leases
        self._work = work
        self._jobs = jobs
        self._objects = objects
        self._authority = authority
        self._descriptors = descriptors

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Interface and method name to handler."""
        return {
            (MANAGER, "Lease"): self.lease,
            (MANAGER, "Acquire"): self.acquire,
            (MANAGER, "Release"): self.release_by_number,
            (MANAGER, "OpenGroup"): self.open_by_number,
            (LEASE_INTERFACE, "Release"): self.release_on_object,
            (LEASE_INTERFACE, "OpenGroup"): self.open_on_object,
        }

    async def lease(self, caller: Caller, _path: str, owner: str, options: Options) -> tuple[str, str, str]:
        given = parse_options(options, _OPTIONS)
        lease = await self._grant(caller, owner, given, held_by_descriptor=False)
        lease = await self._wait_begun(lease, given)
        return lease_path(lease.number), self._function_of(lease), str(lease.state)

    async def acquire(
        self, caller: Caller, _path: str, owner: str, options: Options
    ) -> tuple[Fd, str, str, str]:
        given = parse_options(options, _OPTIONS)
        lease = await self._grant(caller, owner, given, held_by_descriptor=True)
        handle = self._descriptors.make(lease.number)
        lease = await self._wait_begun(lease, given)
        return handle, lease_path(lease.number), self._function_of(lease), str(lease.state)

    async def release_by_number(
        self, caller: Caller, _path: str, number: int, owner: str, options: Options
    ) -> JobReply:
        return await self._release(caller, number, owner, options)

    async def release_on_object(self, caller: Caller, path: str, owner: str, options: Options) -> JobReply:
        return await self._release(caller, self._objects.lease_at(path), owner, options)

    async def open_by_number(self, caller: Caller, _path: str, number: int, owner: str) -> tuple[Fd]:
        return self._open(caller, number, owner)

    async def open_on_object(self, caller: Caller, path: str, owner: str) -> tuple[Fd]:
        return self._open(caller, self._objects.lease_at(path), owner)

    async def _grant(
        self, caller: Caller, owner: str, given: Mapping[str, Any], *, held_by_descriptor: bool
    ) -> Lease:
        wish = _parse_wish(given)
        await self._authority.check(caller, LEASE, {"address": str(wish.address or "")})
        return await self._leases.lease(
            caller.uid, owner, wish, given.get("driver", VFIO_PCI), held_by_descriptor=held_by_descriptor
        )

    async def _wait_begun(self, lease: Lease, given: Mapping[str, Any]) -> Lease:
        """As it is when it has begun, or when the caller will wait no longer."""
        waiting = asyncio.create_task(self._leases.wait_begun(lease.number))
        done, _ = await asyncio.wait({waiting}, timeout=given.get("wait-usec", WAIT_USEC) / 1e6)
        return waiting.result() if done else self._leases.get(lease.number) or lease

    async def _release(self, caller: Caller, number: int, owner: str, options: Options) -> JobReply:
        given = parse_options(options, WAIT_FORCE)
        lease = self._own(caller, number, owner)
        vf = self._leases.vf_address(lease)
        objects = [self._inventory.get(vf)] if vf else []

        async def work(_job: Job) -> Result:
            await self._leases.release(number, is_forced(given))
            return Changed(f"Released {lease}")

        return await answer_with_job(self._jobs.start("Release", objects, name_caller(caller), work), given)

    def _open(self, caller: Caller, number: int, owner: str) -> tuple[Fd]:
        return (Fd(self._work.open_group(self._own(caller, number, owner))),)

    def _own(self, caller: Caller, number: int, owner: str) -> Lease:
        return self._leases.require_own(number, caller.uid, owner, trusted=self._authority.trusts(caller))

    def _function_of(self, lease: Lease) -> str:
        address = self._leases.vf_address(lease)
        return function_path(address) if address else "/"


def _parse_slot(text: str) -> PciSlot:
    try:
        return PciSlot.parse(text)
    except AddressError as error:
        raise InvalidArgument(f"{error}.") from error


def _parse_spread(text: str) -> Spread:
    try:
        return Spread(text)
    except ValueError:
        known = ", ".join(f"'{each}'" for each in Spread)
        raise InvalidArgument(f"{text[:32]!r} is no way to spread leases.", f"Give {known}.") from None


# How a wish's option is called in core, and what makes it a value there.
_PARSERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "address": ("address", parse_address),
    "pf": ("pf", parse_address),
    "slot": ("slot", _parse_slot),
    "vendor": ("vendor", int),
    "device": ("device", int),
    "class": ("pci_class", str),
    "bound-to": ("driver", str),
    "pf-driver": ("pf_driver", str),
    "netdev": ("netdev", str),
    "numa-node": ("numa_node", int),
    "spread": ("spread", _parse_spread),
}


def _parse_wish(given: Mapping[str, Any]) -> Wish:
    """Raises InvalidArgument."""
    named = {_PARSERS[key][0]: _PARSERS[key][1](value) for key, value in given.items() if key in _PARSERS}
    return Wish(**named)
