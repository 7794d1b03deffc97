"""What must come back: as it was in service, and never as a recovery has it in its hands."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.base import FunctionFacts
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.inventory import Function
from sriovd.core.recovery.snapshot import (
    NO_ATTRIBUTES,
    PfShot,
    VfShot,
    list_ports,
    overlay,
    take_shot,
    with_attributes,
    with_bus_masters,
)
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import OTHER_PF, PF, make_pf, make_vf

PORT = PciAddress.parse("0000:00:03.0")


def function(facts: FunctionFacts) -> Function:
    return Function(facts, 1)


def shoot(
    driver: str = "vfio-pci", before: PfShot | None = None, pf_driver: str = "igb", in_service: bool = True
) -> PfShot:
    vfs = [function(make_vf(index, driver=driver)) for index in (1, 0)]
    pf = function(make_pf(driver=pf_driver))
    return take_shot(pf, vfs, PORT, before, lambda _: in_service)


def test_a_shot_has_what_the_inventory_knows() -> None:
    shot = shoot()
    assert (shot.address, shot.driver, shot.port) == (PF, "igb", PORT)
    assert [vf.index for vf in shot.vfs] == [0, 1]
    assert {vf.driver for vf in shot.vfs} == {"vfio-pci"}
    assert shot.vfs[0].reset_methods == ("flr",)
    assert shot.vf(1) == shot.vfs[1]
    assert shot.vf(2) is None


def test_what_is_not_in_service_keeps_its_older_picture() -> None:
    before = shoot()
    assert shoot("", before, in_service=False) == before
    assert {vf.driver for vf in shoot("", before).vfs} == {""}, "whoever unbinds in service means it"


def test_vfs_that_are_away_are_remembered() -> None:
    before = shoot()
    shot = take_shot(function(make_pf()), [], PORT, before, lambda _: False)
    assert shot.vfs == before.vfs


def test_a_pf_without_driver_keeps_its_older_picture() -> None:
    before = with_attributes(shoot(), {}, True)
    shot = shoot(before=before, pf_driver="", in_service=False)
    assert (shot.driver, shot.up) == ("igb", True)
    assert shoot(before=None, pf_driver="").driver == ""


@given(st.lists(st.dictionaries(st.sampled_from([0, 1]), st.booleans()), max_size=5))
def test_who_was_once_let_do_dma_gets_it_back(looks: list[dict[int, bool]]) -> None:
    """A fence may have taken it between two looks."""
    shot = shoot()
    for look in looks:
        shot = with_bus_masters(shot, look)
    for vf in shot.vfs:
        assert vf.bus_master == any(look.get(vf.index, False) for look in looks)


def test_attributes_that_were_not_told_stay() -> None:
    shot = with_attributes(shoot(), {0: VfAttributes(vlan=7)}, True)
    later = with_attributes(shot, {1: VfAttributes(vlan=8)}, False)
    assert [vf.attributes.vlan for vf in later.vfs] == [7, 8]
    assert not later.up


def test_a_wish_lies_over_what_was() -> None:
    base = VfAttributes(vlan=7, qos=3, spoof_check=True)
    assert overlay(base, VfAttributes(vlan=9, spoof_check=False)) == VfAttributes(
        vlan=9, qos=3, spoof_check=False
    )
    assert overlay(base, NO_ATTRIBUTES) == base
    assert overlay(NO_ATTRIBUTES, base) == base


def test_each_bridge_once() -> None:
    shots = [shoot(), replace(shoot(), address=OTHER_PF), PfShot(PF, "igb")]
    assert list_ports(shots) == (PORT,)


def test_a_vfs_shot_names_the_vf_it_was() -> None:
    vf = replace(function(make_vf(0)), generation=4)
    shot = take_shot(function(make_pf()), [vf], None, None, lambda _: True)
    assert shot.vfs == (VfShot(0, vf.address, 4, "", ("flr",)),)


def test_the_picture_of_a_vf_that_was_made_anew_has_what_a_fence_takes_from_the_new_one() -> None:
    before = with_attributes(with_bus_masters(shoot(), {0: True}), {0: VfAttributes(vlan=7)}, True)
    vf = replace(function(make_vf(0)), generation=2)
    shot = take_shot(function(make_pf()), [vf], PORT, before, lambda _: False)
    assert shot.vfs[0] == replace(before.vfs[0], generation=2, bus_master=False)
    assert shot.vfs[0].driver == "vfio-pci"
    assert shot.vfs[1] == before.vfs[1]


def test_vfs_that_were_destroyed_in_service_do_not_come_back() -> None:
    assert take_shot(function(make_pf()), [], PORT, shoot(), lambda _: True).vfs == ()
