"""Unfreeze, WaitPermitted, Recover, Lift and the bundles: what owners and operators do about errors.

Rule: who names an owner speaks for that owner's lease, and for nothing else: another's VF, nobody's and none
are the same answer. Who names none is an operator, and speaks for VFs that nobody leases. What is refused is
refused at once; who waits has one of the calls that he may have running at a time (limits.py), and waits no
longer than he is on the bus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from sriovd.bus.actions import INSPECT, LEASE, RECOVER
from sriovd.bus.connection import Connection
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.objects import MANAGER, RECOVERY, Objects
from sriovd.bus.options import parse_options
from sriovd.bus.polkit import Authority
from sriovd.bus.presence import wait_while_present
from sriovd.bus.replies import (
    WAIT,
    WAIT_USEC,
    JobReply,
    Options,
    answer_with_job,
    name_caller,
    require_operator,
    require_sight,
)
from sriovd.core.errors import InvalidArgument, NotOwner
from sriovd.core.inventory import Inventory
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.recovery.desk import RecoveryDesk
from sriovd.pci import AddressError, PciAddress, PciSlot

Target = str | PciAddress
"""The slot of an adapter, or the address of a PF or VF."""

BundleRow = tuple[int, int, str, str]


class RecoveryVerbs:
    """The handlers."""

    def __init__(
        self,
        inventory: Inventory,
        leases: LeaseKeeper,
        desk: RecoveryDesk,
        objects: Objects,
        authority: Authority,
        connection: Connection,
    ) -> None:
        self._inventory = inventory
        self._leases = leases
        self._desk = desk
        self._objects = objects
        self._authority = authority
        self._connection = connection
        self._unfreezing: dict[PciAddress, asyncio.Task[str]] = {}

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Interface and method name to handler."""
        verbs: dict[str, Callable[..., Awaitable[tuple[Any, ...]]]] = {
            "Unfreeze": self.unfreeze,
            "WaitPermitted": self.wait_permitted,
            "Recover": self.recover,
            "Lift": self.lift,
            "ListBundles": self.list_bundles,
        }
        return {
            **{(MANAGER, name): self._by_name(verb) for name, verb in verbs.items()},
            **{(RECOVERY, name): self._on_object(verb) for name, verb in verbs.items()},
            (MANAGER, "ReadBundle"): self.read_bundle,
            (RECOVERY, "ReadBundle"): self._on_object(self.read_own_bundle),
        }

    def _by_name(self, verb: Callable[..., Awaitable[tuple[Any, ...]]]) -> Handler:
        async def handle(caller: Caller, _path: str, name: str, *arguments: Any) -> tuple[Any, ...]:
            return await verb(caller, _parse_target(name), *arguments)

        return handle

    def _on_object(self, verb: Callable[..., Awaitable[tuple[Any, ...]]]) -> Handler:
        async def handle(caller: Caller, path: str, *arguments: Any) -> tuple[Any, ...]:
            return await verb(caller, self._objects.target_at(path), *arguments)

        return handle

    async def unfreeze(self, caller: Caller, target: Target, owner: str, options: Options) -> tuple[str]:
        given = parse_options(options, WAIT)
        vf, lease = await self._admit(caller, target, owner)
        task = self._unfreezing.get(vf) or self._start_unfreezing(vf)
        with self._leases.while_lasting(lease, vf, owner):
            done, _ = await asyncio.wait({task}, timeout=given.get("wait-usec", WAIT_USEC) / 1e6)
            return (task.result() if done else self._desk.vf_standing(vf).state,)

    def _start_unfreezing(self, vf: PciAddress) -> asyncio.Task[str]:
        """One task for all who ask: an owner who asks a thousand times costs no more than once."""

        def forget(done: asyncio.Task[str]) -> None:
            del self._unfreezing[vf]
            if not done.cancelled():
                done.exception()  # has been looked at: who waits no longer sees it in the standing

        self._unfreezing[vf] = task = asyncio.ensure_future(self._desk.unfreeze(vf))
        task.add_done_callback(forget)
        return task

    async def wait_permitted(
        self, caller: Caller, target: Target, owner: str, timeout_usec: int
    ) -> tuple[str]:
        vf, lease = await self._admit(caller, target, owner)
        waiting = self._desk.wait_permitted(vf, timeout_usec)
        with self._leases.while_lasting(lease, vf, owner):
            return (await wait_while_present(self._connection, caller.sender, waiting),)

    async def recover(self, caller: Caller, target: Target, options: Options) -> JobReply:
        given = parse_options(options, WAIT)
        await self._authorize(caller, RECOVER, target)
        require_sight(caller, target)
        return await answer_with_job(
            self._objects, caller, self._desk.recover(target, name_caller(caller)), given
        )

    async def lift(self, caller: Caller, target: Target, options: Options) -> tuple[str]:
        parse_options(options, {})
        await self._authorize(caller, RECOVER, target)
        require_sight(caller, target)
        return (self._desk.lift(target),)

    async def list_bundles(self, caller: Caller, target: Target) -> tuple[list[BundleRow]]:
        await self._authorize(caller, INSPECT, target)
        heads = self._desk.list_bundles(self._slot_of(target))
        return ([(each.number, each.taken_usec, each.kind, each.title) for each in heads],)

    async def read_bundle(self, caller: Caller, _path: str, number: int, form: str) -> tuple[str]:
        await self._authority.check(caller, RECOVER)
        require_operator(caller)
        return (await self._desk.read_bundle(number, form),)

    async def read_own_bundle(self, caller: Caller, target: Target, number: int, form: str) -> tuple[str]:
        """Only the adapter's own."""
        await self._authorize(caller, RECOVER, target)
        require_operator(caller)
        slot = self._slot_of(target)
        if all(each.number != number for each in self._desk.list_bundles(slot)):
            raise InvalidArgument(
                f"No bundle {number} is kept of adapter {slot}.", "ListBundles lists them."
            )
        return (await self._desk.read_bundle(number, form),)

    async def _authorize(self, caller: Caller, action: str, target: Target) -> None:
        await self._authority.check(caller, action, {"address": str(target)})

    async def _admit(self, caller: Caller, target: Target, owner: str) -> tuple[PciAddress, int]:
        """The VF that the caller may speak for, and the number of the lease, 0 for none. Raises
        NotAuthorized, InvalidArgument, NotOwner, and NoSuchFunction to who names no owner and does not see
        it."""
        await self._authorize(caller, LEASE if owner else RECOVER, target)
        vf = self._require_vf(caller, target)
        if owner:
            trusted = self._authority.trusts(caller)
            return vf, self._leases.require_own_at(vf, caller.uid, owner, trusted=trusted).number
        require_sight(caller, vf)
        if self._leases.find_at(vf) is not None:
            raise NotOwner(f"VF {vf} is leased, and its owner's to unfreeze.", "Give the owner's name.")
        return vf, 0

    def _require_vf(self, caller: Caller, target: Target) -> PciAddress:
        """Raises InvalidArgument for an adapter, and a PF that the caller knows of."""
        if isinstance(target, str) or (caller.is_operator and self._is_pf(target)):
            raise InvalidArgument(
                f"{target} is no VF, and only VFs are waited for and unfrozen, each by its owner.",
                "Recover starts the recovery of an adapter, and Lift ends its quarantine.",
            )
        return target

    def _is_pf(self, address: PciAddress) -> bool:
        function = self._inventory.functions.get(address)
        return function is not None and function.virtual is None

    def _slot_of(self, target: Target) -> str:
        """The adapter, or that of the function. Raises NoSuchFunction."""
        return target if isinstance(target, str) else self._inventory.get(target).adapter


def _parse_target(text: str) -> Target:
    try:
        return PciAddress.parse(text)
    except AddressError:
        pass
    try:
        return str(PciSlot.parse(text))
    except AddressError:
        raise InvalidArgument(
            f"{text[:64]!r} is neither an address nor a slot.", "Write it like 0000:01:00.0, or 0000:01:00."
        ) from None
