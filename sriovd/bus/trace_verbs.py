"""Trace.Start, Stop and ReadTail: an owner's records of his VF, in his own memory or as an answer.

Rule: tracing is for leases, so who starts or stops it names the lease's owner; another's VF, nobody's and
none are the same answer. Reading names the owner, too, or is an operator's, of a VF that nobody leases. A
descriptor that comes with a call is only lent to core: it is closed after the call, whatever comes of that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from sriovd.bus.actions import LEASE, RECOVER
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.objects import MANAGER, TRACE, Objects
from sriovd.bus.options import parse_options
from sriovd.bus.pace import Pace, Pacer
from sriovd.bus.polkit import Authority
from sriovd.bus.replies import Options, parse_address, require_sight
from sriovd.core.errors import InvalidArgument, NotOwner
from sriovd.core.inventory import Inventory
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lease.pool import Place, place_of
from sriovd.core.lease.record import Lease
from sriovd.pci import PciAddress
from sriovd.trace.names import name_error, name_member
from sriovd.trace.record import Record, RecordType, Status

if TYPE_CHECKING:  # loaded when an owner asks
    from sriovd.core.trace.desk import TraceDesk

Row = tuple[int, int, int, int, str, str, str, str, str, str]

_STARTS = Pace("traces", 64, 1.0)  # each maps, and fills, up to 4 MiB
_OWNER = {"owner": "s"}
_START = {**_OWNER, "mode": "s", "history": "b"}
_READ = {**_OWNER, "types": "as", "since-transaction": "t", "failed": "b", "at-most": "u"}
_TYPES = {name_member(each): each for each in RecordType}
_FAILED = (Status.FAILED, Status.REFUSED)


class Tails(Protocol):
    """What the recorder has kept."""

    def tail(self, place: Place, lease_number: int = 0, /) -> Sequence[Record]:
        """The last records of the VF at `place`, the oldest first: of that lease, or all of them."""


class TraceVerbs:
    """The handlers."""

    def __init__(
        self,
        inventory: Inventory,
        leases: LeaseKeeper,
        desk: Callable[[], TraceDesk],
        tails: Tails,
        objects: Objects,
        authority: Authority,
    ) -> None:
        self._inventory = inventory
        self._leases = leases
        self._desk = desk
        self._tails = tails
        self._objects = objects
        self._authority = authority
        self._starts = Pacer(_STARTS)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Interface and method name to handler."""
        return {
            (MANAGER, "StartTrace"): self._by_name(self.start),
            (MANAGER, "StopTrace"): self._by_name(self.stop),
            (MANAGER, "ReadTrace"): self._by_name(self.read_tail),
            (TRACE, "Start"): self._on_object(self.start),
            (TRACE, "Stop"): self._on_object(self.stop),
            (TRACE, "ReadTail"): self._on_object(self.read_tail),
        }

    def _by_name(self, verb: Callable[..., Awaitable[tuple[Any, ...]]]) -> Handler:
        async def handle(caller: Caller, _path: str, name: str, *arguments: Any) -> tuple[Any, ...]:
            return await verb(caller, parse_address(name), *arguments)

        return handle

    def _on_object(self, verb: Callable[..., Awaitable[tuple[Any, ...]]]) -> Handler:
        async def handle(caller: Caller, path: str, *arguments: Any) -> tuple[Any, ...]:
            return await verb(caller, self._objects.address_at(path), *arguments)

        return handle

    async def start(self, caller: Caller, vf: PciAddress, fd: int, options: Options) -> tuple[int, int]:
        self._starts.spend(caller.uid, asyncio.get_running_loop().time())
        given = parse_options(options, _START)
        lease = await self._require_own(caller, vf, given)
        return self._desk().start(
            lease, caller.uid, fd, given.get("mode", "overwrite"),
            history=given.get("history", True), trusted=self._authority.trusts(caller),
        )  # fmt: skip

    async def stop(self, caller: Caller, vf: PciAddress, options: Options) -> tuple[()]:
        lease = await self._require_own(caller, vf, parse_options(options, _OWNER))
        self._desk().stop(lease)
        return ()

    async def read_tail(self, caller: Caller, vf: PciAddress, options: Options) -> tuple[list[Row]]:
        given = parse_options(options, _READ)
        types = _parse_types(given.get("types", ()))
        if given.get("owner"):
            lease = await self._require_own(caller, vf, given, silent=True)
            records = self._tails.tail((lease.pf, lease.index), lease.number)
        else:
            records = self._tails.tail(await self._require_free(caller, vf))
        return ([_make_row(each) for each in _choose(records, types, given)],)

    async def _require_own(
        self, caller: Caller, vf: PciAddress, given: Mapping[str, Any], *, silent: bool = False
    ) -> Lease:
        """Raises NotAuthorized, NotOwner."""
        await self._authority.check(caller, LEASE, {"address": str(vf)})
        trusted, owner = self._authority.trusts(caller), given.get("owner", "")
        return self._leases.require_own_at(vf, caller.uid, owner, trusted=trusted, silent=silent)

    async def _require_free(self, caller: Caller, vf: PciAddress) -> Place:
        """The place of a VF that nobody leases, for an operator. Raises NotAuthorized, NotOwner,
        NoSuchFunction, InvalidArgument."""
        await self._authority.check(caller, RECOVER, {"address": str(vf)})
        require_sight(caller, vf)
        if self._leases.find_at(vf) is not None:
            raise NotOwner(f"VF {vf} is leased, and its trace its owner's.", "Give the owner's name.")
        function = self._inventory.get(vf)
        if function.virtual is None:
            raise InvalidArgument(f"{vf} is no VF, and only VFs are traced.")
        return place_of(function)


def _parse_types(names: Iterable[str]) -> frozenset[RecordType]:
    unknown = [name for name in names if name not in _TYPES]
    if unknown:
        raise InvalidArgument(
            f"{unknown[0][:32]!r} is no type of record.", f"Give any of {', '.join(_TYPES)}."
        )
    return frozenset(_TYPES[name] for name in names)


def _choose(
    records: Sequence[Record], types: frozenset[RecordType], given: Mapping[str, Any]
) -> Sequence[Record]:
    """Those that every filter in `given` lets through; then the last of them."""
    since, failed = given.get("since-transaction", 0), given.get("failed", False)
    chosen = [
        each
        for each in records
        if (not types or each.type in types)
        and each.transaction >= since
        and (not failed or each.status in _FAILED)
    ]
    return chosen[max(0, len(chosen) - given.get("at-most", len(chosen))) :]


def _make_row(record: Record) -> Row:
    return (
        record.transaction, record.parent, record.time_nsec // 1000, record.latency_nsec // 1000,
        name_member(record.type), name_member(record.direction), name_member(record.status),
        record.operation, name_error(record.errno) if record.errno else "", record.arguments,
    )  # fmt: skip
