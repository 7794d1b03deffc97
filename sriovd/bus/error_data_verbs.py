"""Inspect, CollectErrorData and ReadErrorData: what the owner of a VF may know of it, with no administrator.

Rule: as recovery_verbs.py: who names an owner speaks for that owner's lease, and another's VF, nobody's, a
PF and none are the same answer by the same way; who names none is an operator, for any VF. Every call is
paid for first (pace.py), whatever becomes of it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from sriovd.bus.actions import LEASE, RECOVER
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.errors import LimitsExceeded
from sriovd.bus.objects import MANAGER, TRACE, Objects
from sriovd.bus.options import parse_options
from sriovd.bus.pace import Pace, Pacer
from sriovd.bus.polkit import Authority
from sriovd.bus.replies import Options, parse_address, require_operator, require_sight
from sriovd.bus.signature import Variant
from sriovd.bus.wire import Fd
from sriovd.core.errors import InvalidArgument
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.recovery.gate import Gate
from sriovd.pci import PciAddress

if TYPE_CHECKING:  # loaded when somebody asks
    from sriovd.core.error_data.error_data import ErrorData
    from sriovd.core.inspect.inspector import Inspector
    from sriovd.core.inspect.site import Subject
    from sriovd.core.inspect.vocabulary import Value

READ_BYTES = 64 << 10  # as an array, which every part of the bus copies
_INSPECTIONS = Pace("inspections", 20, 4.0)
_ERROR_DATA = Pace("error data", 4, 0.2)
# As descriptors, which sriovd's memory pays for as long as somebody keeps them: some 100 KiB each.
_DESCRIPTORS = Pace("descriptors of error data", 64, 1 / 600)
_OWNER = {"owner": "s"}
_ERROR_DATA_OPTIONS = {**_OWNER, "number": "t", "format": "s"}
_JSON, _TEXT = "json", "text"


class ErrorDataVerbs:
    """The handlers. `inspector`, `error_data`: give who does the work."""

    def __init__(
        self,
        leases: LeaseKeeper,
        gate: Gate,
        objects: Objects,
        authority: Authority,
        inspector: Callable[[], Inspector],
        error_data: Callable[[], ErrorData],
    ) -> None:
        self._leases = leases
        self._gate = gate
        self._objects = objects
        self._authority = authority
        self._inspector = inspector
        self._error_data = error_data
        self._inspections, self._collections = Pacer(_INSPECTIONS), Pacer(_ERROR_DATA)
        self._descriptors = Pacer(_DESCRIPTORS)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Interface and method name to handler."""
        verbs: dict[str, tuple[Pacer, Callable[..., Awaitable[tuple[Any, ...]]]]] = {
            "Inspect": (self._inspections, self.inspect),
            "CollectErrorData": (self._collections, self.collect),
            "ReadErrorData": (self._collections, self.read),
        }
        return {
            **{(MANAGER, name): self._paid(*verb, parse_address) for name, verb in verbs.items()},
            **{(TRACE, name): self._paid(*verb, None) for name, verb in verbs.items()},
        }

    def _paid(
        self,
        pacer: Pacer,
        verb: Callable[..., Awaitable[tuple[Any, ...]]],
        parse: Callable[[str], PciAddress] | None,
    ) -> Handler:
        """`parse`: what makes the first argument an address; None where the object says it."""

        async def handle(caller: Caller, path: str, *arguments: Any) -> tuple[Any, ...]:
            pacer.spend(caller.uid, asyncio.get_running_loop().time())
            if parse is None:
                return await verb(caller, self._objects.address_at(path), *arguments)
            name, *rest = arguments
            return await verb(caller, parse(name), *rest)

        return handle

    async def inspect(
        self, caller: Caller, address: PciAddress, what: str, options: Options
    ) -> tuple[dict[str, Variant]]:
        owner = parse_options(options, _OWNER).get("owner", "")
        subject = await self._admit(caller, address, owner)
        with self._leases.while_lasting(subject.lease, address, owner):
            shown = await self._inspector().inspect(subject, what)
        return ({name: _variant(value) for name, value in shown.items()},)

    async def collect(self, caller: Caller, address: PciAddress, options: Options) -> tuple[Fd]:
        self._descriptors.spend(caller.uid, asyncio.get_running_loop().time())
        data = await self._make(caller, address, options)
        from sriovd.bus.sealed import seal

        return (Fd(seal("sriovd-error-data", data)),)

    async def read(self, caller: Caller, address: PciAddress, options: Options) -> tuple[bytes]:
        data = await self._make(caller, address, options)
        if len(data) > READ_BYTES:
            raise LimitsExceeded(
                f"the error data have {len(data)} bytes, and ReadErrorData gives {READ_BYTES} at most:"
                " CollectErrorData gives them all"
            )
        return (data,)

    async def _make(self, caller: Caller, address: PciAddress, options: Options) -> bytes:
        """The document as bytes."""
        given = parse_options(options, _ERROR_DATA_OPTIONS)
        form = given.get("format", _JSON)
        if form not in (_JSON, _TEXT):
            raise InvalidArgument(f"{form[:32]!r} is no form of error data.", "Give 'json' or 'text'.")
        owner = given.get("owner", "")
        subject = await self._admit(caller, address, owner)
        with self._leases.while_lasting(subject.lease, address, owner):
            document = await self._error_data().collect(subject, given.get("number", 0))
        if form == _JSON:
            return json.dumps(document).encode()
        from sriovd.core.error_data.text import render

        return render(document).encode()

    async def _admit(self, caller: Caller, address: PciAddress, owner: str) -> Subject:
        """The VF that the caller may know of. Raises NotAuthorized, also to who names no owner and is no
        operator; NotOwner for who names one; NoSuchFunction for who does not see it, InvalidArgument."""
        from sriovd.core.inspect.site import Subject

        await self._authority.check(caller, LEASE if owner else RECOVER, {"address": str(address)})
        if owner:
            trusted = self._authority.trusts(caller)
            lease = self._leases.require_own_at(address, caller.uid, owner, trusted=trusted)
            return Subject(address, (lease.pf, lease.index), lease.number, lease.begun_usec)
        require_sight(caller, address)
        require_operator(caller)  # a tenant may see the VF, and not what was before his lease
        return Subject(address, self._gate.require_place(address))


def _variant(value: Value) -> Variant:
    match value:
        case bool():
            return Variant("b", value)
        case int():
            return Variant("x", value)
        case str():
            return Variant("s", value)
        case bytes():
            return Variant("ay", value)
        case dict():
            return Variant("a{st}", value)
        case _:
            return Variant("as", list(value))
