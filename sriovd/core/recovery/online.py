"""A desk where nothing ever fails: everything is online, and whatever else is asked is refused.

Rule: stands in for the keeper of recovery as long as there is none.
"""

# ruff: noqa: ARG002

from __future__ import annotations

from collections.abc import Callable, Sequence

from sriovd.core.errors import InvalidArgument, NoSuchFunction, NotSupported
from sriovd.core.jobs import Job
from sriovd.core.recovery.standing import BundleHead, PeStanding
from sriovd.pci import PciAddress

_ONLINE = PeStanding("online")


class OnlineDesk:
    """A RecoveryDesk (desk.py)."""

    def __init__(self) -> None:
        self.on_adapter: Callable[[str, PeStanding], None] = lambda _slot, _standing: None
        self.on_vf: Callable[[PciAddress, PeStanding], None] = lambda _vf, _standing: None

    def adapter_standing(self, slot: str) -> PeStanding:
        return _ONLINE

    def vf_standing(self, address: PciAddress) -> PeStanding:
        return _ONLINE

    async def unfreeze(self, vf: PciAddress) -> str:
        return _ONLINE.state

    async def wait_permitted(self, vf: PciAddress, timeout_usec: int) -> str:
        return _ONLINE.state

    def recover(self, target: str | PciAddress, requester: str) -> Job:
        raise NotSupported(f"{target} is online, and nothing recovers it.")

    def lift(self, target: str | PciAddress) -> str:
        raise InvalidArgument(f"{target} is not quarantined.", "There is nothing to lift.")

    def list_bundles(self, slot: str) -> Sequence[BundleHead]:
        return ()

    async def read_bundle(self, number: int, form: str) -> str:
        raise NoSuchFunction(f"No bundle {number} is kept.", "ListBundles lists them.")
