"""A daemon killed at every moment of every plan of a policy leaves the host in the same or a stricter state,
and the next one ends where an undisturbed one would have."""

from __future__ import annotations

from pathlib import Path

import pytest

from sriovd.backend.simulated import SimulatedBackend
from tests.simulated.crash_checks import NO_MAC, check_crash, is_same, play_all, play_at
from tests.simulated.crash_host import NVME, PF, PF2, Place, Scene, Vf
from tests.simulated.crash_plays import Plan, Play

pytestmark = pytest.mark.usefixtures("no_pauses")

NICS = """
[[policy]]
match.address = "0000:01:00.0"
functions = {{ num-vfs = {count}, driver = "vfio-pci" }}
vf.defaults = {{ spoof-check = false, trust = true, vlan = 100, qos = 2, max-tx-rate = 500 }}
vf."0" = {{ vlan = 7, driver = "pci-stub" }}
vf."1" = {{ trust = false, driver = "default" }}
vf."2" = {{ driver = "none" }}
[[policy]]
match.address = "0000:02:00.0"
functions = {{ num-vfs = {count}, driver = "vfio-pci" }}
[[policy]]
match.class = "nvme"
functions = {{ num-vfs = 3, driver = "vfio-pci" }}
"""
SEVEN, FOUR, NONE = NICS.format(count=7), NICS.format(count=4), ""
OTHER_DRIVERS = SEVEN.replace("pci-stub", "swap").replace("vfio-pci", "pci-stub").replace("swap", "vfio-pci")
OTHER_ATTRIBUTES = SEVEN.replace("vlan = 100", "vlan = 200").replace("trust = true", "trust = false")
EMPTY = """
[[policy]]
match.address = "0000:0[123]:00.0"
functions.num-vfs = 0
"""


def drift(backend: SimulatedBackend) -> None:
    """Somebody takes a driver away, gives another, and changes attributes."""
    backend.kernel.write("bus/pci/drivers/vfio-pci/unbind", "0000:01:10.6")
    backend.kernel.write("bus/pci/devices/0000:02:10.0/driver_override", "pci-stub\n")
    backend.kernel.write("bus/pci/drivers/vfio-pci/unbind", "0000:02:10.0")
    backend.kernel.write("bus/pci/drivers/pci-stub/bind", "0000:02:10.0")
    backend.set_vf_attribute(PF, "3 vlan 0 0 802.1Q")
    backend.set_vf_attribute(PF, "4 trust off")


POLICY_PLANS = (
    Plan("bring-up", policy=SEVEN),
    Plan("resize", before=SEVEN, policy=FOUR),
    Plan("change of drivers", before=SEVEN, policy=OTHER_DRIVERS),
    Plan("change of attributes", before=SEVEN, policy=OTHER_ATTRIBUTES),
    Plan("teardown", before=SEVEN, policy=EMPTY),
    Plan("repair of drift", before=SEVEN, drift=drift, policy=SEVEN),
)


@pytest.mark.parametrize("plan", POLICY_PLANS, ids=str)
def test_policy(plan: Plan, place: Path) -> None:
    play_all(plan, place, check_policy)


def test_what_an_undisturbed_daemon_makes(place: Path) -> None:
    """With which all others are compared."""
    end = play_at(POLICY_PLANS[0], place, None).end
    vfs = [[vf for place, vf in sorted(end.vfs.items()) if place[0] == pf] for pf in (PF, PF2, NVME)]
    assert [vf.driver for vf in vfs[0]] == ["pci-stub", "igbvf", "", *["vfio-pci"] * 4]
    assert [vf.driver for vf in vfs[1] + vfs[2]] == ["vfio-pci"] * 10
    assert vfs[0][2].override == "none"
    assert [vf.attributes.vlan for vf in vfs[0]] == [7, *[100] * 6]
    assert [vf.attributes.trust for vf in vfs[0]] == [True, False, *[True] * 5]
    assert {(vf.attributes.qos, vf.attributes.spoof_check, vf.attributes.max_tx_rate) for vf in vfs[0]} == {
        (2, False, 500)
    }
    assert len({vf.attributes.mac for vf in vfs[0] + vfs[1]} - {NO_MAC}) == 14


def check_policy(plan: Plan, seen: Play, goal: Scene) -> None:
    check_crash(plan, seen, goal)
    check_end(seen, goal)


def check_end(seen: Play, goal: Scene) -> None:
    """All is as if nothing had happened, and was not touched without need."""
    assert seen.end.vfs.keys() == goal.vfs.keys()
    for place, vf in seen.end.vfs.items():
        check_vf(place, vf, goal.vfs[place])
        if vf.attributes.mac not in (None, NO_MAC):
            assert vf.attributes.mac == seen.macs[place]
        was = seen.crash.vfs.get(place)
        if was == vf:
            assert place not in seen.rewritten, f"{place} was right, and was written to"
    assert seen.end.autoprobe == goal.autoprobe
    assert not [each for each in seen.functions.values() if each.quarantine]


def check_vf(place: Place, vf: Vf, goal: Vf) -> None:
    assert (vf.driver, vf.override) == (goal.driver, goal.override), place
    assert is_same(vf.attributes, goal.attributes), f"{place}: {vf.attributes}"
