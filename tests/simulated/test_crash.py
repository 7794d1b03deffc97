"""A daemon killed at every moment of every plan leaves the host in the same or a stricter state, and the next
one ends where an undisturbed one would have."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.vf_attributes import VfAttributes
from tests.simulated.conftest import made_root
from tests.simulated.crash_host import NVME, PF, PF2, Place, Scene, Vf
from tests.simulated.crash_plays import Plan, Play, play

NO_MAC = "00:00:00:00:00:00"

NICS = """
[[policy]]
match.address = "0000:01:00.0"
functions.num-vfs = {count}
vf.defaults = {{ spoof-check = false, trust = true, vlan = 100, qos = 2, max-tx-rate = 500, driver = "vfio-pci" }}
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


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated drivers keep what they took, and nothing is gained by looking again later."""
    monkeypatch.setattr("sriovd.core.binder.SETTLE_SEC", 0.0)
    monkeypatch.setattr("sriovd.core.converge.keeper.PAUSE_SEC", 0.0)
    monkeypatch.setattr("sriovd.core.configurer._PAUSE_SEC", 0.0)
    logging.disable(logging.CRITICAL)


@pytest.fixture
def place() -> Iterator[Path]:
    """Where the hosts of one test are."""
    with made_root() as path:
        yield Path(path).parent


def play_at(plan: Plan, place: Path, dies_at: int | None) -> Play:
    """Play it in a directory of its own."""
    directory = Path(tempfile.mkdtemp(dir=place))
    try:
        return asyncio.run(play(plan, directory, dies_at))
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("plan", POLICY_PLANS, ids=str)
def test_policy(plan: Plan, place: Path) -> None:
    model = play_at(plan, place, None)
    assert not model.rewritten
    assert len(model.moments) > 10
    for moment, name in enumerate(model.moments):
        try:
            seen = play_at(plan, place, moment)
            assert seen.moments[-1] == name, "the moments come in another order every time"
            check_crash(seen.start, seen.crash, model.end)
            check_end(seen, model.end)
        except AssertionError as error:
            raise AssertionError(f"killed {name} (moment {moment} of {len(model.moments)})") from error


def check_crash(start: Scene, crash: Scene, goal: Scene) -> None:
    """Nothing is open to anybody to whom it was not, and will not be."""
    for place, vf in crash.vfs.items():
        old, wanted = start.vfs.get(place), goal.vfs.get(place)
        if old is not None and old.device is not vf.device:
            old = None
        allowed = {"", old.driver if old else "", wanted.driver if wanted else ""}
        assert vf.driver in allowed, f"{place} is on {vf.driver}"
        if wanted is not None and vf.driver and (old is None or old.driver != vf.driver):
            assert is_same(vf.attributes, wanted.attributes), f"{place} is handed out as {vf.attributes}"
    for pf in crash.autoprobe:
        assert count(crash, pf) in {0, count(start, pf), count(goal, pf)}


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
    assert seen.macs_at_crash.items() <= seen.macs.items()
    assert seen.open_intents == 0
    assert not [each for each in seen.functions.values() if each.quarantine]
    for address, function in seen.functions.items():
        known = seen.known.get(address)
        if known is not None:
            same = known.facts.identity == function.facts.identity
            assert function.generation == known.generation if same else function.generation > known.generation


def check_vf(place: Place, vf: Vf, goal: Vf) -> None:
    assert (vf.driver, vf.override) == (goal.driver, goal.override), place
    assert is_same(vf.attributes, goal.attributes), f"{place}: {vf.attributes}"


def is_same(have: VfAttributes, wanted: VfAttributes) -> bool:
    """All but the address, which must be none where none is wanted."""
    names = [field.name for field in fields(VfAttributes) if field.name != "mac"]
    has_mac, wants_mac = have.mac not in (None, NO_MAC), wanted.mac not in (None, NO_MAC)
    return has_mac == wants_mac and all(getattr(have, name) == getattr(wanted, name) for name in names)


def count(scene: Scene, pf: object) -> int:
    return sum(place[0] == pf for place in scene.vfs)
