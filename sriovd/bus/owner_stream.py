"""What the descriptor of a lease says: one line for each state that the PE of the lease's VF comes to.

Rule: only the lease's own VF is spoken of, and only to its owner. The first line after a start of the daemon
may say what was said before; a reader who must know how it stands reads the properties.
"""

from __future__ import annotations

from sriovd.bus.descriptors import Descriptors
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lease.record import Lease
from sriovd.core.recovery.standing import PeStanding
from sriovd.pci import PciAddress


class OwnerStream:
    """Tells owners through their descriptors."""

    def __init__(self, leases: LeaseKeeper, descriptors: Descriptors) -> None:
        self._leases = leases
        self._descriptors = descriptors
        self._told: dict[int, str] = {}  # the last state, by lease that a descriptor holds

    def tell(self, vf: PciAddress, standing: PeStanding) -> None:
        """The standing of the VF at `vf` has changed."""
        lease = self._leases.find_at(vf)
        if lease is None or not lease.held_by_descriptor or self._told.get(lease.number) == standing.state:
            return
        self._told[lease.number] = standing.state
        event: dict[str, str | int] = {
            "lease": lease.number,
            "state": standing.state,
            "cause": standing.cause,
            "reason": standing.reason,
            "usec": standing.since_usec,
        }
        self._descriptors.tell(lease.number, event)

    def close(self, lease: Lease) -> None:
        """The lease is over: its descriptor hangs up."""
        self._told.pop(lease.number, None)
        self._descriptors.close(lease.number)
