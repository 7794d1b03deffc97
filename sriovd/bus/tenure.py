"""The lease under which a tenant asks for something, for as long as that takes.

Rule: a tenant sees a VF because he has it, which is asked when he calls; what he has asked for may get its
turn later, when the VF is another's. So it is asked again: before anything is done to the VF, in the turn in
which it is done, and before anything is told of it. Operators ask for any VF, whoever has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sriovd.bus.dispatch import Caller
from sriovd.bus.replies import refuse_unseen, require_sight
from sriovd.core.errors import SriovdError
from sriovd.core.jobs import Job
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.pci import PciAddress


class Tenure:
    """Of the VF at `address`, by who sees it. Raises NoSuchFunction."""

    def __init__(self, caller: Caller, leases: LeaseKeeper, address: PciAddress) -> None:
        require_sight(caller, address)
        self._leases = leases
        self._address = address
        lease = None if caller.is_operator else leases.find_at(address)
        if lease is None and not caller.is_operator:
            raise refuse_unseen(address)
        self._number = lease.number if lease is not None else 0  # 0: an operator

    def cover(self, job: Job) -> Job:
        """What the job does is done while its owner has the VF, or not at all."""
        job.admit = self.require_active
        return job

    def require_active(self) -> None:
        """That its owner still has the VF, and is not on his way out: then its cleaning comes first. Raises
        NoSuchFunction."""
        lease = self._leases.get(self._number)
        if self._number and (lease is None or lease.is_over):
            raise refuse_unseen(self._address)

    @contextmanager
    def while_lasting(self) -> Iterator[None]:
        """What is found meanwhile, and why that fails, is told to nobody whose lease has ended. Raises
        NoSuchFunction."""
        try:
            yield
        except SriovdError as error:
            self._require_there(error)
            raise
        self._require_there(None)

    def _require_there(self, error: SriovdError | None) -> None:
        if self._number and self._leases.get(self._number) is None:
            raise refuse_unseen(self._address) from error
