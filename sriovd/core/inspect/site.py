"""Of which VF is spoken, and with what it is looked at.

Rule: a VF is known by its place, which lasts while it is destroyed and made again; its address is that by
which its owner knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from sriovd.backend.base import Backend
from sriovd.backend.steps import Chain, ChainResult, Script, Step
from sriovd.core.configurer import Configurer
from sriovd.core.errors import Frozen, LockedOut, NoSuchFunction, Quarantined, TimedOut
from sriovd.core.execute import Executor
from sriovd.core.inventory import Function, Inventory
from sriovd.core.kernel_errors import explain
from sriovd.core.recovery.gate import Gate
from sriovd.core.recovery.record import AdapterPe, Place, VfPe
from sriovd.core.recovery.standing import BundleHead
from sriovd.core.recovery.titles import Concern, read_concern
from sriovd.pci import PciAddress
from sriovd.trace.record import Record

_LANE_SEC = 20.0  # jobs on the adapter go first


@dataclass(frozen=True, slots=True)
class Subject:
    """A VF as its owner may know it. `lease`: the number of his lease, 0 for an operator who asks.
    `since_usec`: CLOCK_REALTIME when that began: what was before is a former owner's."""

    address: PciAddress
    place: Place
    lease: int = 0
    since_usec: int = 0

    @property
    def adapter(self) -> str:
        """The slot of its adapter."""
        return str(self.place[0].slot)


class Desk(Protocol):
    """What is asked of recovery: core/recovery/keeper.py."""

    def pes_at(self, place: Place) -> tuple[AdapterPe, VfPe]:
        """The PEs of the adapter and of the VF."""

    def list_bundles(self, slot: str) -> Sequence[BundleHead]:
        """The bundles of the adapter, the oldest first."""

    async def read_bundle(self, number: int, form: str) -> str:
        """One of them, as "json"."""


@dataclass(frozen=True, slots=True)
class Site:
    """`tail`: the last records of the trace of the VF at a place, of one lease, or of all for 0.
    `read_counters`: what drivers have counted of the VF at that address; does not block."""

    backend: Backend
    inventory: Inventory
    executor: Executor
    configurer: Configurer
    gate: Gate
    desk: Desk
    tail: Callable[[Place, int], Sequence[Record]] = lambda _place, _lease: ()
    read_counters: Callable[[PciAddress], Mapping[str, int]] = lambda _vf: {}

    def vf(self, subject: Subject) -> Function:
        """The VF as it is now. Raises NoSuchFunction while it is away, or when another is at its address."""
        vf = self.inventory.functions.get(subject.address)
        if vf is None or vf.virtual is None or (vf.virtual.parent, vf.virtual.index) != subject.place:
            raise NoSuchFunction(f"VF {subject.address} is away.", "It may be made again: ask later.")
        return vf

    def refuse_held(self, subject: Subject) -> None:
        """Raises Frozen, LockedOut or Quarantined while nobody may touch the VF; why its adapter is out of
        service is not said, for that may be another's error."""
        try:
            self.gate.refuse_place(subject.place)
        except (Frozen, LockedOut, Quarantined) as error:
            _, vf = self.desk.pes_at(subject.place)
            raise type(error)(
                f"VF {subject.address} is {vf.state.word}: nothing reads from it until it is in service.",
                "CollectErrorData has what was read of it before.",
            ) from None

    @asynccontextmanager
    async def turn(self, subject: Subject) -> AsyncIterator[None]:
        """The right to read from the VF, which comes when its adapter's turn does. Raises as refuse_held and
        vf; TimedOut when it does not come; Stuck."""
        try:
            async with asyncio.timeout(_LANE_SEC) as limit, self.executor.lane(subject.adapter):
                limit.reschedule(None)  # what is done then has a deadline of its own
                self.refuse_held(subject)  # much may have happened while others had their turn
                self.vf(subject)
                yield
        except TimeoutError:
            raise TimedOut(f"The adapter of VF {subject.address} is busy.", "Ask again.") from None

    async def read(self, subject: Subject, what: str, *steps: Step) -> ChainResult:
        """What `steps` read of the VF. Raises as turn, BackendFailed, and what a step fails with."""
        script = Script(f"reading {what} of {subject.address}", (Chain(subject.address, steps),))
        async with self.turn(subject):
            (result,) = await self.executor.run(subject.adapter, script)
        if result.failure is not None:
            raise explain(result.failure)
        return result

    def heads_of(self, subject: Subject) -> list[tuple[BundleHead, Concern]]:
        """The bundles that concern the VF, and why, the oldest first."""
        heads = self.desk.list_bundles(subject.adapter)
        found = ((each, read_concern(each.title, subject.place)) for each in heads)
        return [(each, why) for each, why in found if why and each.taken_usec >= subject.since_usec]
