"""A daemon killed at every moment of a verb or a lease, where no policy puts right what it leaves: each VF
is as it was or as it was asked for, or it is quarantined and says why."""

from __future__ import annotations

import errno
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
from tests.simulated.crash_checks import check_crash, count, play_all
from tests.simulated.crash_host import PF, Scene
from tests.simulated.crash_plays import Act, Plan, Play
from tests.simulated.test_crash_policy import SEVEN

pytestmark = pytest.mark.usefixtures("no_pauses")


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


async def remake(engine: Engine) -> None:
    """Several generations of VFs at the same places."""
    for count_of_vfs in (2, 0, 2, 0, 2):
        await make_vfs("", count_of_vfs)(engine)


VERB_PLANS = (
    Plan("remake", act=remake),
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


@pytest.mark.parametrize("plan", VERB_PLANS, ids=str)
def test_verb(plan: Plan, place: Path) -> None:
    play_all(plan, place, check_verb)


@pytest.mark.parametrize("plan", LEASE_PLANS, ids=str)
def test_lease(plan: Plan, place: Path) -> None:
    play_all(plan, place, check_lease)


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
        if wanted is not None and not wanted.driver:
            assert not quarantine, f"{place} is as it was asked for"


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
