"""What the owner of a lease that a descriptor holds reads there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from sriovd.bus.descriptors import Descriptors
from sriovd.bus.owner_stream import OwnerStream
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lease.record import Lease, LeaseState
from sriovd.core.recovery.standing import PeStanding
from sriovd.pci import PciAddress

PF = PciAddress(0, 1, 0, 0)
HELD, KEPT, FREE = (PciAddress(0, 1, 16, number) for number in range(3))
LEASES = {
    vf: Lease(number, 1000, "vm", PF, number, 1, "vfio-pci", "none", vf == HELD, LeaseState.ACTIVE)
    for number, vf in ((1, HELD), (2, KEPT))
}
FROZEN = PeStanding("frozen", "own", "Poisoned TLP.", 1_700_000_000_000_000)


class Recorder:
    """The leases and their descriptors, as far as the stream knows them."""

    def __init__(self) -> None:
        self.said: list[tuple[int, Mapping[str, str | int]]] = []
        self.closed: list[int] = []
        self.stream = OwnerStream(cast(LeaseKeeper, self), cast(Descriptors, self))

    def find_at(self, vf: PciAddress) -> Lease | None:
        return LEASES.get(vf)

    def tell(self, number: int, event: Mapping[str, str | int]) -> None:
        self.said.append((number, event))

    def close(self, number: int) -> None:
        self.closed.append(number)


def test_it_says_which_lease_what_whose_why_and_when() -> None:
    recorder = Recorder()
    recorder.stream.tell(HELD, FROZEN)
    event = {
        "lease": 1, "state": "frozen", "cause": "own", "reason": "Poisoned TLP.",
        "usec": 1_700_000_000_000_000,
    }  # fmt: skip
    assert recorder.said == [(1, event)]


def test_only_those_whose_lease_a_descriptor_holds_are_told() -> None:
    recorder = Recorder()
    for vf in (KEPT, FREE):
        recorder.stream.tell(vf, FROZEN)
    assert recorder.said == []


def test_a_state_is_said_once_until_there_is_another() -> None:
    recorder = Recorder()
    locked = replace(FROZEN, state="locked-out")
    for standing in (FROZEN, replace(FROZEN, corrected=7), locked, locked, FROZEN):
        recorder.stream.tell(HELD, standing)
    assert [event["state"] for _, event in recorder.said] == ["frozen", "locked-out", "frozen"]


def test_a_lease_that_is_over_leaves_nothing() -> None:
    recorder = Recorder()
    recorder.stream.tell(HELD, FROZEN)
    recorder.stream.close(LEASES[HELD])
    recorder.stream.close(LEASES[KEPT])
    assert (recorder.closed, recorder.stream._told) == ([1, 2], {})
