"""Lease, Acquire, Release and the hand-over of VFIO groups.

Rule: whoever may lease at all is polkit's to say; and only the owner, by user and name, may do anything with
a lease. Another's lease and none are the same answer, and so are a VF that he cannot have and none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from sriovd.bus.actions import LEASE
from sriovd.bus.descriptors import Descriptors
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.objects import LEASE_INTERFACE, MANAGER, Objects, function_path, lease_path
from sriovd.bus.options import parse_options
from sriovd.bus.polkit import Authority
from sriovd.bus.replies import (
    GENERATION,
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
from sriovd.core.lease.work import VFIO_PCI
from sriovd.core.results import Changed, Result
from sriovd.pci import AddressError, PciSlot

_log = logging.getLogger(__name__)

_WISHES = {
    "address": "s", "pf": "s", "slot": "s", "vendor": "u", "device": "u", "class": "s", "bound-to": "s",
    "pf-driver": "s", "netdev": "s", "numa-node": "i", "spread": "s",
}  # fmt: skip
_OPTIONS = {**_WISHES, **WAIT, **GENERATION, "driver": "s"}


class LeaseVerbs:
    """The handlers."""

    def __init__(
        self,
        inventory: Inventory,
        leases: LeaseKeeper,
        jobs: JobRegistry,
        objects: Objects,
        authority: Authority,
        descriptors: Descriptors,
    ) -> None:
        self._inventory = inventory
        self._leases = leases
        self._jobs = jobs
        self._objects = objects
        self._authority = authority
        self._descriptors = descriptors
        self._releases: dict[int, Job] = {}  # that are under way

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
        await self._authorize(caller, given)
        lease = await self._grant(caller, owner, given, held_by_descriptor=False)
        lease = await self._wait_begun(lease, given)
        return lease_path(lease.number), self._function_of(lease), str(lease.state)

    async def acquire(
        self, caller: Caller, _path: str, owner: str, options: Options
    ) -> tuple[Fd, str, str, str]:
        given = parse_options(options, _OPTIONS)
        await self._authorize(caller, given)
        ends = self._descriptors.make(caller.uid)
        try:
            lease = await self._grant(caller, owner, given, held_by_descriptor=True)
            self._descriptors.watch(lease.number, ends.own, caller.uid)
            lease = await self._wait_begun(lease, given)
        except BaseException:
            self._descriptors.discard(ends)
            raise
        return Fd(ends.theirs.detach()), lease_path(lease.number), self._function_of(lease), str(lease.state)

    async def release_by_number(
        self, caller: Caller, _path: str, number: int, owner: str, options: Options
    ) -> JobReply:
        return await self._release(caller, number, owner, options)

    async def release_on_object(self, caller: Caller, path: str, owner: str, options: Options) -> JobReply:
        return await self._release(caller, self._objects.lease_at(path), owner, options)

    async def open_by_number(self, caller: Caller, _path: str, number: int, owner: str) -> tuple[Fd]:
        return await self._open(caller, number, owner)

    async def open_on_object(self, caller: Caller, path: str, owner: str) -> tuple[Fd]:
        return await self._open(caller, self._objects.lease_at(path), owner)

    async def _authorize(self, caller: Caller, given: Mapping[str, Any]) -> None:
        await self._authority.check(caller, LEASE, {"address": str(given.get("address", ""))})

    async def _grant(
        self, caller: Caller, owner: str, given: Mapping[str, Any], *, held_by_descriptor: bool
    ) -> Lease:
        return await self._leases.lease(
            caller.uid, owner, _parse_wish(given), given.get("driver", VFIO_PCI),
            held_by_descriptor=held_by_descriptor, generation=given.get("generation", 0),
            explain=caller.is_operator,
        )  # fmt: skip

    async def _wait_begun(self, lease: Lease, given: Mapping[str, Any]) -> Lease:
        """As it is when it has begun, or when the caller will wait no longer. The wait itself goes on: it
        ends a lease that cannot be prepared."""
        waiting = asyncio.create_task(self._leases.wait_begun(lease.number))
        waiting.add_done_callback(_note_failure)
        done, _ = await asyncio.wait({waiting}, timeout=given.get("wait-usec", WAIT_USEC) / 1e6)
        return waiting.result() if done else self._leases.get(lease.number) or lease

    async def _release(self, caller: Caller, number: int, owner: str, options: Options) -> JobReply:
        given = parse_options(options, WAIT_FORCE)
        await self._authority.check(caller, LEASE)
        lease = self._own(caller, number, owner)
        job = self._releases.get(number)
        if job is None:
            job = self._start_release(lease, is_forced(given), name_caller(caller))
        elif is_forced(given):
            self._leases.force(number)
        return await answer_with_job(self._objects, caller, job, given)

    def _start_release(self, lease: Lease, force: bool, requester: str) -> Job:
        """One job for all who ask: an owner who asks a thousand times costs no more than once."""
        vf = self._leases.vf_address(lease)
        objects = [self._inventory.get(vf)] if vf else []

        async def work(_job: Job) -> Result:
            try:
                await self._leases.release(lease.number, force)
            finally:
                del self._releases[lease.number]
            return Changed(f"Released {lease}")

        self._releases[lease.number] = job = self._jobs.start("Release", objects, requester, work)
        return job

    async def _open(self, caller: Caller, number: int, owner: str) -> tuple[Fd]:
        await self._authority.check(caller, LEASE)
        return (Fd(await self._leases.open_group(self._own(caller, number, owner))),)

    def _own(self, caller: Caller, number: int, owner: str) -> Lease:
        return self._leases.require_own(number, caller.uid, owner, trusted=self._authority.trusts(caller))

    def _function_of(self, lease: Lease) -> str:
        address = self._leases.vf_address(lease)
        return function_path(address) if address else "/"


def _note_failure(waiting: asyncio.Task[Lease]) -> None:
    """For whoever waits no longer; the others are told."""
    error = None if waiting.cancelled() else waiting.exception()
    if error is not None:
        _log.warning("A lease has not come to be: %s", error)


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
