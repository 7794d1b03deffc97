"""The record of a lease: whose it is, where its VF is, and how it stands.

Rule: a record is a value and says only what must outlive the daemon. One that comes back and does not make
sense is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from sriovd.core import fields, rules
from sriovd.core.errors import InvalidArgument
from sriovd.pci import PciAddress

_NAME = re.compile(r"[ -~]{1,64}", re.ASCII)
_LARGEST_UID = 2**32 - 2  # (uid_t)-1 is nobody's (chown(2))
_LARGEST_INDEX = 2**16 - 2  # NumVFs has 16 bits (PCIe base specification, SR-IOV capability)


class LeaseState(StrEnum):
    """Where a lease stands. README.md, section Leases, has the whole life cycle."""

    PREPARING = "preparing"  # the VF is chosen, and being bound and handed over
    ACTIVE = "active"  # the owner may use it
    ABSENT = "absent"  # the VF does not exist at the moment; the lease waits for it
    RELEASING = "releasing"  # the owner may no longer open it; waits until nobody holds it open
    CLEANING = "cleaning"  # reset, attributes and driver put back
    RELEASED = "released"  # over; the VF is free
    FAILED = "failed"  # preparing or cleaning did not work; the VF is quarantined


@dataclass(frozen=True, slots=True)
class Lease:
    """One VF, lent to one owner. The owner is `uid` and `name`; the place is `pf` and `index`, which survive
    that the VF is destroyed and made again, while its address may change."""

    number: int  # 1 and up, never used again
    uid: int  # of the owner
    name: str  # that the owner has chosen, see check_name
    pf: PciAddress
    index: int  # of the VF, 0-based
    generation: int  # of the VF that it was prepared for (core.inventory.Function)
    driver: str  # what the VF is bound to for the owner, as Bind takes it
    home: str  # what it was bound to before; "none" for nothing
    held_by_descriptor: bool  # it ends when the last copy of the owner's descriptor is closed
    state: LeaseState
    reason: str = ""  # why it is in that state; never empty when it has failed
    begun_usec: int = 0  # CLOCK_REALTIME when it was granted; what was before is a former owner's

    def __str__(self) -> str:
        return f"lease {self.number} (VF {self.index} of {self.pf})"

    @property
    def is_over(self) -> bool:
        """Whether its owner is out of it, though it may still have its VF."""
        return self.state in _OVER

    def is_of(self, uid: int, name: str, trusted: bool) -> bool:
        """Whether it is that owner's. `trusted`: of any user who has given it that name."""
        return self.name == name and (self.uid == uid or trusted)

    def to_dict(self) -> dict[str, int | str | bool]:
        """The record as JSON has it: the address and the state are text."""
        return asdict(self) | {"pf": str(self.pf), "state": self.state.value}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Lease:
        """The inverse of to_dict. Raises ValueError naming the field when one is missing, unknown, of the
        wrong type or out of its range. `begun_usec` may be missing, as sriovd did not always write it."""
        lease = cls(**fields.parse_fields("a lease record", _FIELDS, {"begun_usec": 0, **data}))
        if lease.state is LeaseState.FAILED and not lease.reason:
            raise ValueError("a lease record's reason is missing, though the lease has failed")
        return lease


_OVER = (LeaseState.RELEASING, LeaseState.CLEANING, LeaseState.RELEASED, LeaseState.FAILED)


def check_name(name: str) -> None:
    """Whether `name` can be an owner's: 1 to 64 printable ASCII characters. Raises InvalidArgument."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:64]!r} cannot name the owner of a lease.", "Give 1 to 64 printable ASCII characters."
        )


_FIELDS: dict[str, fields.Parser] = {
    "number": fields.whole(1, fields.LARGEST_NUMBER),
    "uid": fields.whole(0, _LARGEST_UID),
    "name": fields.checked(check_name),
    "pf": fields.address,
    "index": fields.whole(0, _LARGEST_INDEX),
    "generation": fields.whole(1, fields.LARGEST_NUMBER),
    "driver": fields.checked(rules.check_driver_name),
    "home": fields.checked(rules.check_driver_name),
    "held_by_descriptor": fields.flag,
    "state": fields.converted(LeaseState),
    "reason": fields.text,
    "begun_usec": fields.whole(0, fields.LARGEST_NUMBER),
}
