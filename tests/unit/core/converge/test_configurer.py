"""Attributes of VFs on a simulated host: all or none, tried again, read back, never asked twice in vain."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.base import Fault
from sriovd.backend.model import PROFILES
from sriovd.backend.model.profiles import with_total_vfs
from sriovd.backend.simulated.drivers import DRIVERS
from sriovd.backend.simulated.netdev import NO_MAC
from sriovd.backend.steps import Verb
from sriovd.backend.vf_attributes import Attribute, VfAttributes
from sriovd.core import configurer
from sriovd.core.attributes import make_wish
from sriovd.core.capabilities import Capabilities
from sriovd.core.errors import (
    BackendFailed,
    InvalidArgument,
    NoSuchFunction,
    NotSupported,
    SriovdError,
)
from sriovd.core.jobs import Job, JobState
from sriovd.core.store import Store
from tests.unit.core.converge.site import A, Site, made_site, run_async

WISH: dict[str, Any] = {
    "mac": "02:00:00:00:00:01",
    "vlan": 100,
    "spoof-check": False,
    "trust": True,
    "max-tx-rate": 50,
}
REQUESTS = [
    "mac 02:00:00:00:00:01", "vlan 100 0 802.1Q", "spoof-check off", "trust on", "rate 0 50",
]  # fmt: skip


async def set_vf(site: Site, **wish: Any) -> Job:
    """Ask for attributes of VF 0."""
    attributes = make_wish({name.replace("_", "-"): value for name, value in wish.items()})
    vf = site.vfs()[0].address
    return await site.end(site.engine.lifecycle.set_attributes(vf, attributes, "uid 0"))


async def make_vfs(site: Site, count: int = 2) -> None:
    """VFs behind sriovd's back, which has seen them."""
    site.other(f"{A}/sriov_drivers_autoprobe", "0")
    site.other(f"{A}/sriov_numvfs", str(count))
    await site.engine.picture.rescan()
    await site.until(lambda: site.device(A).has_carrier, "the carrier")
    site.clear()


def requests(site: Site) -> list[str]:
    return [write.partition(f"set-vf-attribute {0} ")[2] for write in site.writes]


def test_one_request_for_each_attribute_that_differs() -> None:
    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            assert (await set_vf(site, **WISH)).state is JobState.DONE
            assert requests(site) == REQUESTS
            site.clear()
            assert (await set_vf(site, **WISH)).outcome.startswith("Unchanged: ")
            assert (await set_vf(site)).outcome.startswith("Unchanged: ")
            assert site.writes == []
            assert (await set_vf(site, **{**WISH, "vlan": 7, "qos": 3})).state is JobState.DONE
            assert requests(site) == ["vlan 7 3 802.1Q"]
            assert (await set_vf(site, vlan=8)).state is JobState.DONE
            assert requests(site)[1:] == ["vlan 8 3 802.1Q"]  # what nobody wishes stays

    run_async(test())


@pytest.mark.parametrize("failing", range(len(REQUESTS)))
@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EIO, BackendFailed), (errno.EOPNOTSUPP, NotSupported), (errno.EAGAIN, BackendFailed)],
)
def test_all_or_none(failing: int, number: int, error: type[SriovdError]) -> None:
    """Whichever request fails, everything is as it was."""

    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            site.backend.set_vf_attribute(A, "0 vlan 9 0 802.1Q")
            before = list(site.attributes())
            start = site.backend.kernel.start

            def fail(access: Any, path: str, data: bytes = b"") -> Any:
                if data.decode().endswith(REQUESTS[failing]):
                    site.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, A, errno=number, times=1))
                return start(access, path, data)

            site.backend.kernel.start = fail  # type: ignore[method-assign]
            job = await set_vf(site, **WISH)
            assert (job.state, type(job.error)) == (JobState.FAILED, error), job.outcome
            assert site.attributes() == before
            assert "put back" not in job.outcome

    run_async(test())


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EBUSY])
def test_a_reset_that_ends_in_time_is_waited_for(number: int) -> None:
    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            site.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, A, errno=number, times=3))
            job = await set_vf(site, **WISH)
            assert job.state is JobState.DONE, job.outcome
            assert requests(site)[3:] == REQUESTS

    run_async(test())


def test_a_rate_waits_for_the_carrier_and_other_nonsense_for_nothing() -> None:
    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            site.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, A, errno=errno.EINVAL, times=3))
            assert (await set_vf(site, max_tx_rate=50)).state is JobState.DONE
            site.clear()
            site.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, A, errno=errno.EINVAL, times=1))
            job = await set_vf(site, vlan=5)
            assert isinstance(job.error, InvalidArgument)
            assert len(site.writes) == 1
            site.backend.clear_faults()
            site.clear()
            job = await set_vf(site, max_tx_rate=5000)  # more than the link has
            assert isinstance(job.error, InvalidArgument), job.outcome
            assert len(site.writes) == configurer._TRIES

    run_async(test())


def test_a_rate_is_set_although_making_vfs_has_cost_the_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the real igb: no carrier for 0.4 s."""
    monkeypatch.setattr(configurer, "_PAUSE_SEC", 0.1)

    async def test() -> None:
        policy = (
            '[match]\naddress = "0000:01:00.0"\n[functions]\nnum-vfs = 2\n[vf.defaults]\nmax-tx-rate = 50\n'
        )
        async with made_site(policy=policy, time_scale=1.0) as site:
            site.device(A).is_up = site.device(A).has_carrier = True
            await site.engine.rulebook.load()
            job = await site.apply()
            assert job.state is JobState.DONE, job.outcome
            assert [vf.max_tx_rate for vf in site.attributes()] == [50, 50]
            assert any("rate" in write for write in site.writes)

    run_async(test())


def test_what_is_not_kept_is_told_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says yes every time, and shows something else."""
    monkeypatch.setattr(configurer, "_TRIES", 3)

    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            start = site.backend.kernel.start

            def forget(access: Any, path: str, data: bytes = b"") -> Any:
                call = start(access, path, data)
                known = site.device(A).vf_attributes
                known[0] = replace(known[0], vlan=0)
                return call

            site.backend.kernel.start = forget  # type: ignore[method-assign]
            job = await set_vf(site, vlan=5, trust=True)
            assert isinstance(job.error, BackendFailed)
            assert "vlan 0 to 5 is still to be done" in job.outcome
            assert site.attributes()[0].trust is False

    run_async(test())


def test_what_could_not_be_put_back_is_named() -> None:
    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            start = site.backend.kernel.start

            def fail(access: Any, path: str, data: bytes = b"") -> Any:
                if "trust" in data.decode():
                    site.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, A, errno=errno.EIO))
                return start(access, path, data)

            site.backend.kernel.start = fail  # type: ignore[method-assign]
            job = await set_vf(site, vlan=5, trust=True)
            assert "Could not be put back: 0 vlan 0 0 802.1Q." in job.outcome
            assert site.attributes()[0].vlan == 5

    run_async(test())


def test_what_a_driver_cannot_is_asked_once_also_after_a_restart(tmp_path: Path) -> None:
    async def test() -> None:
        state = str(tmp_path / "db")
        async with made_site(state=state) as site:
            await make_vfs(site)
            first = await set_vf(site, link_state="enable")
            assert isinstance(first.error, NotSupported)
            assert requests(site) == ["link-state enable"]
            site.clear()
            assert "igb cannot set link-state" in (await set_vf(site, link_state="enable")).outcome
            assert (await set_vf(site, link_state="auto")).state is JobState.DONE  # it is
            assert site.writes == []
        async with made_site(state=state) as site:
            await make_vfs(site)
            again = await set_vf(site, link_state="disable", vlan=5)
            assert isinstance(again.error, NotSupported)
            assert (site.writes, site.attributes()[0].vlan) == ([], 0)

    run_async(test())


def test_capabilities_are_those_of_a_driver_and_a_kernel(tmp_path: Path) -> None:
    async def test() -> None:
        path = str(tmp_path / "db")
        store = Store(path, "boot", "6.1")
        known = Capabilities(store)
        await known.learn("igb", Attribute.TRUST)
        await known.learn("igb", Attribute.TRUST)
        assert known.lacking_of("igb") == (Attribute.TRUST,)
        assert known.lacking_of("ixgbe") == ()
        known.refuse_lacking("igb", [Attribute.MAC])
        with pytest.raises(NotSupported, match="igb cannot set trust of a VF"):
            known.refuse_lacking("igb", Attribute)
        await store.close()
        for kernel, lacking in (("6.1", (Attribute.TRUST,)), ("6.12", ())):
            store = Store(path, "another boot", kernel)
            assert Capabilities(store, store.load().unsupported).lacking_of("igb") == lacking
            await store.close()

    run_async(test())


@pytest.mark.parametrize(
    ("wish", "error", "says"),
    [
        ({"rss-query": True}, NotSupported, "does not tell rss-query"),
        ({"min-tx-rate": 5}, InvalidArgument, "rate 5 0"),
        ({"vlan": 5, "vlan-protocol": "802.1ad"}, NotSupported, "no such VLAN protocol"),
        ({"node-guid": "00:11:22:33:44:55:66:77"}, NotSupported, "does not tell node-guid"),
    ],
)
def test_refusals(wish: dict[str, Any], error: type[SriovdError], says: str) -> None:
    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            before = list(site.attributes())
            job = await set_vf(site, **wish)
            assert type(job.error) is error, job.outcome
            assert says in job.outcome
            assert site.attributes() == before

    run_async(test())


def test_a_driver_that_tells_nothing_of_its_vfs() -> None:
    async def test() -> None:
        drivers = [
            replace(each, link=replace(each.link, reports_vfs=False)) if each.name == "igb" else each
            for each in DRIVERS
        ]
        async with made_site(drivers=drivers) as site:
            site.other(f"{A}/sriov_numvfs", "1")
            await site.engine.picture.rescan()
            site.clear()
            job = await set_vf(site, vlan=5)
            assert isinstance(job.error, NotSupported)
            assert "does not tell of its VFs" in job.outcome
            assert site.writes == []

    run_async(test())


def test_a_vf_that_goes_before_its_turn() -> None:
    async def test() -> None:
        async with made_site() as site:
            await make_vfs(site)
            vf = site.vfs()[0].address
            async with site.engine.executor.lane("0000:01:00"):
                job = site.engine.lifecycle.set_attributes(vf, VfAttributes(vlan=5), "uid 0")
                site.other(f"{A}/sriov_numvfs", "0")
                await site.engine.picture.rescan()
            assert isinstance((await site.end(job)).error, NoSuchFunction)

    run_async(test())


def test_256_vfs_in_three_reads_and_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the plan reads, what is read before, and what is read back."""
    monkeypatch.setitem(PROFILES, "igb", with_total_vfs(PROFILES["igb"], 256))
    drivers = [
        replace(each, sriov=replace(each.sriov, limit=256)) if each.name == "igb" and each.sriov else each
        for each in DRIVERS
    ]
    policy = '[match]\nslot = "0000:01:00"\n[functions]\nnum-vfs = 256\n[vf.defaults]\nvlan = 9\n'

    async def test() -> None:
        async with made_site(policy=policy, drivers=drivers, machine=[("igb", str(A))]) as site:
            await site.engine.rulebook.load()
            job = await site.apply()
            assert job.state is JobState.DONE, job.outcome
            assert len({vf.mac for vf in site.attributes()} - {NO_MAC}) == len(site.vfs()) == 256
            assert {vf.vlan for vf in site.attributes()} == {9}
            assert (len(site.writes), site.reads) == (2 + 2 * 256, 2)
            site.clear()
            assert (await site.apply()).outcome.startswith("Unchanged: ")
            assert (site.writes, site.reads) == ([], 1)

    run_async(test())
