"""What the bus asks of recovery, and is told by it.

Rule: addresses name a PF or VF, slots an adapter; a PF's PE is its adapter's. Who may ask is not decided
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from sriovd.core.jobs import Job
from sriovd.core.recovery.standing import BundleHead, PeStanding
from sriovd.pci import PciAddress


class RecoveryDesk(Protocol):
    """core/recovery/keeper.py."""

    on_adapter: Callable[[str, PeStanding], None]  # slot; told every change of a standing
    on_vf: Callable[[PciAddress, PeStanding], None]  # the VF's address now

    def adapter_standing(self, slot: str) -> PeStanding:
        """How the adapter stands; online when nothing is known."""

    def vf_standing(self, address: PciAddress) -> PeStanding:
        """How the VF at that address stands."""

    async def unfreeze(self, vf: PciAddress) -> str:
        """The owner of `vf` takes it back to life: its state afterwards. Raises LockedOut, Frozen,
        Quarantined, NoSuchFunction, and whatever its recovery fails with."""

    async def wait_permitted(self, vf: PciAddress, timeout_usec: int) -> str:
        """Return when `vf` is permitted or online: its state. Raises TimedOut, Quarantined,
        NoSuchFunction."""

    def recover(self, target: str | PciAddress, requester: str) -> Job:
        """Begin the recovery of an adapter (slot, or a PF's address) or of a VF as if an error had come.
        Raises NoSuchFunction, Quarantined, Frozen and LockedOut when one is under way."""

    def lift(self, target: str | PciAddress) -> str:
        """End the quarantine of an adapter or VF, which is recovered then: its state. Raises
        InvalidArgument when there is nothing to lift, NoSuchFunction."""

    def list_bundles(self, slot: str) -> Sequence[BundleHead]:
        """The bundles that are kept of that adapter, the oldest first."""

    async def read_bundle(self, number: int, form: str) -> str:
        """A bundle as "text" for people or "json". Raises InvalidArgument, NoSuchFunction when it is not
        kept."""
