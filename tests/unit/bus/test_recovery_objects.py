"""What clients see of PEs: properties, once; states, each; and no VF for its adapter's sake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sriovd.backend.base import FunctionFacts, PhysicalFacts, VirtualFacts
from sriovd.bus.message import Field, Kind, body_fields, encode_field, encode_message
from sriovd.bus.objects import RECOVERY, Objects, adapter_path, function_path
from sriovd.bus.recovery_objects import RecoveryObjects
from sriovd.bus.tree import Tree
from sriovd.bus.visibility import Shares
from sriovd.bus.wire import Buffer
from sriovd.core.inventory import Inventory
from sriovd.core.jobs import JobRegistry
from sriovd.core.recovery.standing import PeStanding
from sriovd.daemon import _contract_for
from sriovd.pci import PciAddress

from .fakedesk import ONLINE, FakeDesk
from .support import decode_message

SLOT = "0000:01:00"
PFS = [PciAddress(0, 1, 0, number) for number in range(2)]
VFS = [PciAddress(0, 1, 0x10 + number // 8, number % 8) for number in range(120)]
FROZEN = PeStanding("frozen", "propagated", "Its adapter has failed.", 5, 1, "its adapter")
ADAPTER_PATHS = [adapter_path(SLOT), *map(function_path, PFS)]


class Shown:
    """A card with two PFs and 120 VFs in a tree; `signals`: path, member and body of what was sent."""

    def __init__(self) -> None:
        self.inventory = Inventory()
        self.desk = FakeDesk(JobRegistry())
        self.told: list[tuple[PciAddress, PeStanding]] = []
        self.signals: list[tuple[str, str, list[Any]]] = []
        self.tree = Tree(_contract_for(simulated=False), self._keep, schedule=lambda _: None)
        recovery = RecoveryObjects(
            self.tree, self.inventory, self.desk, lambda vf, standing: self.told.append((vf, standing))
        )
        Objects(self.tree, self.inventory, JobRegistry(), Shares(), recovery_of=recovery.interfaces_of)
        for pf in PFS:
            self.inventory.put(facts(pf))
        for vf in VFS:
            self.inventory.put(facts(vf))
        self.tree.flush()
        self.signals.clear()

    def _keep(self, path: str, interface: str, member: str, signature: str, body: Buffer) -> None:
        fields = [encode_field(Field.PATH, path), encode_field(Field.INTERFACE, interface)]
        fields += [encode_field(Field.MEMBER, member), *body_fields(signature, body)]
        message = decode_message(encode_message(Kind.SIGNAL, 1, fields, body))
        self.signals.append((path, member, message.body))

    def flushed(self) -> list[tuple[str, str, list[Any]]]:
        self.tree.flush()
        signals, self.signals = self.signals, []
        return signals

    def state(self, path: str) -> Any:
        return self.tree.get(path, RECOVERY, "State")


def facts(address: PciAddress) -> FunctionFacts:
    """A PF, or a VF of the first one."""
    is_pf = address in PFS
    return FunctionFacts(
        address=address, path=f"/sys/{address}", identity=1, vendor_id=0x8086, device_id=0x10C9,
        subsystem_vendor_id=0, subsystem_device_id=0, class_code=0x20000, revision=1, numa_node=0,
        driver="", iommu_group=None, net_interfaces=(), reset_methods=(),
        physical=PhysicalFacts(120, 0x80, 1, 0x10CA, drivers_autoprobe=True) if is_pf else None,
        virtual=None if is_pf else VirtualFacts(parent=PFS[0], index=VFS.index(address)),
    )  # fmt: skip


@pytest.fixture
def shown() -> Shown:
    return Shown()


def test_every_property_says_what_the_standing_says(shown: Shown) -> None:
    standing = PeStanding(
        "resetting", "own", "Fatal.", 1_700_000_000_000_000, 3, "VF 3 to be closed", "function-reset",
        ("warning: VF 2 has no driver. Bind it.",), 42,
    )  # fmt: skip
    shown.desk.set_adapter(SLOT, standing)
    for path in ADAPTER_PATHS:
        assert shown.tree.values_at(path, RECOVERY) == {
            "State": "resetting", "Cause": "own", "Reason": "Fatal.", "SinceUSec": 1_700_000_000_000_000,
            "Freezes": 3, "WaitsFor": "VF 3 to be closed", "Rung": "function-reset",
            "Audit": ["warning: VF 2 has no driver. Bind it."], "Corrected": 42,
        }  # fmt: skip
    assert shown.state(function_path(VFS[0])) == "online"


def test_a_change_of_an_adapter_costs_no_signal_of_a_vf(shown: Shown) -> None:
    shown.desk.set_adapter(SLOT, FROZEN)
    signals = shown.flushed()
    assert [path for path, _, _ in signals] == ADAPTER_PATHS * 2
    assert [member for _, member, _ in signals] == ["PropertiesChanged"] * 3 + ["StateChanged"] * 3


def test_states_are_told_each_and_in_order_and_properties_once(shown: Shown) -> None:
    locked = replace(FROZEN, state="locked-out")
    for standing in (FROZEN, locked):
        for vf in VFS[:2]:
            shown.desk.set_vf(vf, standing)
    paths = [function_path(vf) for vf in VFS[:2]]
    signals = shown.flushed()
    assert [(path, member) for path, member, _ in signals] == [
        *((path, "PropertiesChanged") for path in paths),
        *((path, "StateChanged") for path in paths * 2),
    ]
    assert signals[0][2][1]["State"].value == "locked-out"
    assert [body for _, _, body in signals[2:]] == [
        [state, "propagated", "Its adapter has failed."] for state in ("frozen", "locked-out") for _ in paths
    ]


def test_what_is_no_change_of_state_is_no_signal_of_one(shown: Shown) -> None:
    for members in (["PropertiesChanged"], []):
        shown.desk.set_vf(VFS[0], replace(ONLINE, freezes=1))
        assert [member for _, member, _ in shown.flushed()] == members


def test_a_storm_of_correctable_errors_is_none_on_the_bus(shown: Shown) -> None:
    shown.desk.set_vf(VFS[0], replace(ONLINE, corrected=100_000))
    assert shown.flushed() == []
    assert shown.tree.get(function_path(VFS[0]), RECOVERY, "Corrected") == 100_000


def test_who_comes_while_it_is_frozen_is_shown_so(shown: Shown) -> None:
    shown.inventory.drop(VFS[0])
    shown.inventory.drop(PFS[1])
    shown.desk.set_vf(VFS[0], FROZEN)
    shown.desk.set_adapter(SLOT, replace(FROZEN, cause="own"))
    shown.inventory.put(facts(VFS[0]))
    shown.inventory.put(facts(PFS[1]))
    assert shown.state(function_path(VFS[0])) == "frozen"
    assert shown.state(function_path(PFS[1])) == "frozen"
    announced = {body[0]: body[1] for _, member, body in shown.flushed() if member == "InterfacesAdded"}
    assert announced[function_path(VFS[0])][RECOVERY]["Cause"].value == "propagated"


def test_other_changes_of_a_function_leave_its_standing_alone(shown: Shown) -> None:
    shown.desk.set_vf(VFS[0], FROZEN)
    shown.flushed()
    shown.inventory.put(replace(facts(VFS[0]), driver="vfio-pci"))
    ((_, member, body),) = shown.flushed()
    assert (member, list(body[1])) == ("PropertiesChanged", ["Driver"])
    assert shown.state(function_path(VFS[0])) == "frozen"


def test_an_adapter_that_has_gone_is_told_and_nothing_else(shown: Shown) -> None:
    """Its objects may have gone before, in the middle of a rung that takes the card away."""
    shown.desk.set_adapter("0000:07:00", replace(FROZEN, state="removed"))
    shown.desk.set_adapter("0000:08:00", FROZEN)
    shown.desk.set_vf(PciAddress(0, 7, 0x10, 0), FROZEN)
    ((path, member, (state, *_)),) = shown.flushed()
    assert (path, member, state) == (adapter_path("0000:07:00"), "StateChanged", "removed")


def test_owners_are_told_of_every_change_with_an_object_or_without(shown: Shown) -> None:
    shown.inventory.drop(VFS[0])
    shown.desk.set_vf(VFS[0], FROZEN)
    shown.desk.set_vf(VFS[1], FROZEN)
    shown.desk.set_adapter(SLOT, FROZEN)
    assert shown.told == [(VFS[0], FROZEN), (VFS[1], FROZEN)]
