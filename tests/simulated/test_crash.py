"""A daemon killed at every moment of every plan leaves the host in the same or a stricter state, and the
next one ends where an undisturbed one would have."""

from __future__ import annotations

import asyncio
import errno
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from sriovd.backend.base import Fault
from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.steps import Verb
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core.engine import Engine
from sriovd.core.jobs import Job
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState
from sriovd.core.lifecycle import CountOptions
from sriovd.pci import PciAddress
from tests.simulated.conftest import made_root
from tests.simulated.crash_host import PF, Place, Scene, Vf
from tests.simulated.crash_plays import Act, Plan, Play, play

NO_MAC = "00:00:00:00:00:00"

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


async def finish(job: Job) -> None:
    """Its end, whichever it is."""
    assert await job.wait(10_000_000)


def make_vfs(driver: str, count: int = 7) -> Act:
    async def act(engine: Engine) -> None:
        await finish(engine.lifecycle.set_num_vfs(PF, count, CountOptions(driver), "test"))

    return act


def bind_vfs(driver: str) -> Act:
    async def act(engine: Engine) -> None:
        await finish(engine.lifecycle.bind_vfs(PF, driver, False, "test"))

    return act


async def set_attributes(engine: Engine) -> None:
    wish = VfAttributes(vlan=5, qos=0, trust=True, spoof_check=False)
    await finish(engine.lifecycle.set_attributes(engine.inventory.vfs_of(PF)[3], wish, "test"))


def refuse_a_bind(backend: SimulatedBackend) -> None:
    """The fourth VF cannot be bound, so what was done before is undone."""
    backend.inject_fault(Fault(Verb.BIND, PciAddress.parse("0000:01:10.6"), errno.EIO, times=1))


def quiet_by_host(backend: SimulatedBackend) -> None:
    """Somebody else has turned the flag off, so it is not sriovd's to turn on."""
    backend.kernel.write("bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe", "0")
    backend.kernel.write("bus/pci/devices/0000:01:00.0/sriov_numvfs", "7")


VERB_PLANS = (
    Plan("make", act=make_vfs("vfio-pci")),
    Plan("make-default", act=make_vfs("default")),
    Plan("destroy", prepare=make_vfs("vfio-pci"), act=make_vfs("", 0)),
    Plan("bind", prepare=make_vfs("vfio-pci"), act=bind_vfs("pci-stub")),
    Plan("bind-default", prepare=make_vfs("vfio-pci"), act=bind_vfs("default")),
    Plan("bind-none", prepare=make_vfs("vfio-pci"), act=bind_vfs("none")),
    Plan("bind-quiet", drift=quiet_by_host, act=bind_vfs("default")),
    Plan(
        "bind-undo",
        prepare=make_vfs("vfio-pci"),
        drift=refuse_a_bind,
        act=bind_vfs("pci-stub"),
        asked="pci-stub",
    ),
    Plan("set-attributes", prepare=make_vfs("vfio-pci"), act=set_attributes),
)


async def borrow(engine: Engine) -> None:
    lease = await engine.leases.lease(1000, "vm", Wish(pf=PF), "vfio-pci")
    await engine.leases.wait_begun(lease.number)


async def give_back(engine: Engine) -> None:
    await engine.leases.release(engine.leases.all()[0].number, force=False)


async def borrow_and_give_back(engine: Engine) -> None:
    await borrow(engine)
    await give_back(engine)


LEASE_PLANS = (
    Plan("lease", prepare=make_vfs("pci-stub", 2), act=borrow_and_give_back),
    Plan("lease-policy", before=SEVEN, policy=SEVEN, act=borrow_and_give_back),
    Plan("lease-none", prepare=make_vfs("none", 2), act=borrow_and_give_back),
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


def play_all(plan: Plan, place: Path, check: Callable[[Plan, Play, Scene], None]) -> None:
    """Kill at every moment; `check` what came of it against what an undisturbed daemon makes."""
    model = play_at(plan, place, None)
    assert not model.rewritten
    assert not model.written_again
    assert len(model.moments) > 5
    for moment, name in enumerate(model.moments):
        try:
            seen = play_at(plan, place, moment)
            assert without_mac(seen.moments[-1]) == without_mac(name), "the moments have no order"
            check_common(seen)
            check(plan, seen, model.end)
        except AssertionError as error:
            raise AssertionError(f"killed {name} (moment {moment} of {len(model.moments)})") from error


def without_mac(moment: str) -> str:
    return moment.partition(" mac ")[0]


@pytest.mark.parametrize("plan", POLICY_PLANS, ids=str)
def test_policy(plan: Plan, place: Path) -> None:
    play_all(plan, place, check_policy)


@pytest.mark.parametrize("plan", VERB_PLANS, ids=str)
def test_verb(plan: Plan, place: Path) -> None:
    play_all(plan, place, check_verb)


@pytest.mark.parametrize("plan", LEASE_PLANS, ids=str)
def test_lease(plan: Plan, place: Path) -> None:
    play_all(plan, place, check_lease)


def check_common(seen: Play) -> None:
    """What is right after any crash."""
    assert seen.macs_at_crash.items() <= seen.macs.items()
    assert seen.open_intents == 0
    assert seen.written_again == 0
    for address, function in seen.functions.items():
        known = seen.known.get(address)
        if known is not None:
            same = known.facts.identity == function.facts.identity
            assert (
                function.generation == known.generation if same else function.generation > known.generation
            )
        later = seen.again[address]
        assert (later.generation, bool(later.quarantine)) == (function.generation, bool(function.quarantine))


def check_policy(plan: Plan, seen: Play, goal: Scene) -> None:
    check_crash(plan, seen, goal)
    check_end(seen, goal)


def check_verb(plan: Plan, seen: Play, goal: Scene) -> None:
    """Each VF is as it was or as it was asked for; one that has lost its driver is quarantined."""
    check_crash(plan, seen, goal)
    for pf, flag in seen.end.autoprobe.items():
        have = count(seen.end, pf)
        assert have in (count(seen.start, pf), count(goal, pf))
        likes = [scene.autoprobe[pf] for scene in (seen.start, goal) if count(scene, pf) == have]
        assert flag in likes
    for place, vf in seen.end.vfs.items():
        old, wanted = seen.start.vfs.get(place), goal.vfs.get(place)
        same = old is not None and old.device is vf.device
        quarantine = seen.functions[vf.device.address].quarantine
        choices = {old.driver if old and same else "", wanted.driver if wanted else "", plan.asked}
        choices -= {""} if old and same and old.driver and wanted and wanted.driver else set()
        assert vf.driver in choices or (quarantine and not vf.driver), f"{place} is on {vf.driver!r}"
        assert not (quarantine and vf.driver), f"{place} has {vf.driver} and {quarantine}"


def check_lease(_plan: Plan, seen: Play, goal: Scene) -> None:
    """A lease is active, or there is none; the VF is its owner's or nobody's."""
    if seen.owners_at_crash:
        assert seen.leases_at_crash == 1, "a VF is handed over that nobody will take back"
    assert [lease.state for lease in seen.leases] in ([], [LeaseState.ACTIVE])
    expected = {}
    for lease in seen.leases:
        vf = seen.end.vfs[lease.pf, lease.index]
        assert vf.driver == "vfio-pci"
        expected = {vf.device.address: lease.uid}
    assert seen.owners == expected
    assert seen.documents == len(expected)
    assert seen.left_over == 0
    assert seen.end.autoprobe == goal.autoprobe
    for place, vf in seen.released.vfs.items():
        assert vf.driver == seen.start.vfs[place].driver
        assert vf.attributes == seen.start.vfs[place].attributes
    assert not [each for each in seen.again.values() if each.quarantine]


def check_crash(plan: Plan, seen: Play, goal: Scene) -> None:
    """Nothing is open to anybody to whom it was not, and will not be."""
    start, crash = seen.start, seen.crash
    for place, vf in crash.vfs.items():
        old, wanted = start.vfs.get(place), goal.vfs.get(place)
        if old is not None and old.device is not vf.device:
            old = None
        allowed = {"", plan.asked, old.driver if old else "", wanted.driver if wanted else ""}
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
    assert not [each for each in seen.functions.values() if each.quarantine]


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
