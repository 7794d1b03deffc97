"""Policies in force: conflicts, what verbs may not do, what leases are told."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.base import Fault
from sriovd.backend.simulated.drivers import DRIVERS
from sriovd.backend.simulated.netdev import NO_MAC
from sriovd.backend.steps import Script, Verb
from sriovd.backend.vf_attributes import Attribute
from sriovd.core.attributes import make_wish
from sriovd.core.converge.campaign import digest_all
from sriovd.core.converge.plan import Action
from sriovd.core.converge.standing import Condition
from sriovd.core.errors import BackendFailed, Cancelled, InvalidArgument, NotSupported, PolicyConflict
from sriovd.core.jobs import Job, JobState
from sriovd.core.lifecycle import CountOptions
from sriovd.core.store import Store
from sriovd.pci import PciAddress
from tests.unit.core.converge.site import POLICY_OF_A, A, B, Site, made_site, run_async
from tests.unit.core.disk import taking_nothing

WHO = "uid 0"
FULL = POLICY_OF_A + '[vf."0"]\nvlan = 100\ndriver = "default"\n'
MAC = "02:00:00:00:00:aa"
C = PciAddress.parse("0000:07:00.0")


def of_one(address: str, mac: str = MAC) -> str:
    return f'[match]\naddress = "{address}"\n[functions]\nnum-vfs = 1\n[vf."0"]\nmac = "{mac}"\n'


BOTH = of_one("0000:0[12]:00.0")


async def loaded(site: Site) -> Site:
    await site.engine.rulebook.load()
    assert not site.engine.rulebook.problems
    return site


def test_verbs_that_contradict_a_policy_are_refused() -> None:
    async def test() -> None:
        async with made_site(policy=FULL) as site:
            await loaded(site)
            assert (await site.apply()).state is JobState.DONE
            verbs, vfs = site.engine.lifecycle, [vf.address for vf in site.vfs()]
            refused: dict[str, Callable[[], Job]] = {
                "wants 2 VFs": lambda: verbs.set_num_vfs(A, 0, CountOptions(), WHO),
                "wants VF 0 on default": lambda: verbs.set_num_vfs(A, 2, CountOptions("vfio-pci"), WHO),
                "wants VF 1 on vfio-pci": lambda: verbs.bind(vfs[1], "pci-stub", True, WHO),
                "wants VF 1 on vfio-pci ": lambda: verbs.unbind(vfs[1], True, WHO),
                "wants VF 0 on default ": lambda: verbs.bind_vfs(A, "vfio-pci", True, WHO),
                "wants VF 0 with vlan 100": lambda: verbs.set_attributes(
                    vfs[0], make_wish({"vlan": 7}), WHO
                ),
                "wants VF 1 with the address that": lambda: verbs.set_attributes(
                    vfs[1], make_wish({"mac": MAC}), WHO
                ),
            }
            site.clear()
            for says, verb in refused.items():
                with pytest.raises(PolicyConflict, match=says.strip()):
                    verb()
            allowed = [
                verbs.set_num_vfs(A, 2, CountOptions(), WHO),
                verbs.bind(vfs[0], "igbvf", False, WHO),
                verbs.bind(vfs[1], "vfio-pci", False, WHO),
                verbs.set_attributes(vfs[0], make_wish({"vlan": 100}), WHO),
            ]
            for job in allowed:
                assert (await site.end(job)).outcome.startswith("Unchanged: ")
            assert site.writes == []
            trust = verbs.set_attributes(vfs[0], make_wish({"trust": True}), WHO)
            assert (await site.end(trust)).state is JobState.DONE

    run_async(test())


def test_policies_that_only_report_bind_no_verb() -> None:
    policy = FULL.replace("num-vfs = 2", 'num-vfs = 2\nrepair = "report"')

    async def test() -> None:
        async with made_site(policy=policy) as site:
            await loaded(site)
            job = site.engine.lifecycle.set_num_vfs(A, 3, CountOptions(), WHO)
            assert (await site.end(job)).state is JobState.DONE
            vf = site.vfs()[0].address
            for verb in (
                site.engine.lifecycle.bind(vf, "pci-stub", False, WHO),
                site.engine.lifecycle.set_attributes(vf, make_wish({"vlan": 7, "mac": MAC}), WHO),
            ):
                assert (await site.end(verb)).state is JobState.DONE

    run_async(test())


def test_one_address_for_vfs_of_two_pfs_is_a_conflict() -> None:
    """By one match, or by two files; only all PFs together show it."""

    async def test() -> None:
        async with made_site(watching=True, policy=BOTH) as site:
            for pf, other in ((A, B), (B, A)):
                assert site.standing(pf).condition is Condition.CONFLICT
                assert f"{pf} and one of {other} would both have {MAC}" in site.standing(pf).reason
                assert "10-test.toml:6" in site.standing(pf).reason
            await site.until_idle()
            assert site.writes == []
            site.write_policy(of_one(str(A)))
            site.write_policy(of_one(str(B), MAC.upper()), "20.toml")
            await site.engine.policy.reload()
            assert site.standing(B).condition is Condition.CONFLICT
            site.write_policy(of_one(str(B), "02:00:00:00:00:bb"), "20.toml")
            await site.engine.policy.reload()
            for pf, mac in ((A, MAC), (B, "02:00:00:00:00:bb")):
                await site.until_in_sync(pf)
                assert [vf.mac for vf in site.attributes(pf)] == [mac]

    run_async(test())


def test_a_pf_that_comes_may_make_a_conflict_and_take_it_away_again() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=of_one("0000:0[17]:00.0")) as site:
            await site.until_in_sync()
            site.backend.plug("igb", C)
            await site.until(lambda: site.standing(C).condition is Condition.CONFLICT)
            assert site.standing().condition is Condition.CONFLICT
            await site.until_idle()
            assert (len(site.vfs()), site.vfs(C)) == (1, [])  # nobody acts
            site.backend.unplug(C)
            await site.until_in_sync()

    run_async(test())


def test_a_conflict_keeps_nobody_else_from_being_planned_and_applied() -> None:
    other = POLICY_OF_A.replace("num-vfs = 2", "num-vfs = 3")

    async def test() -> None:
        async with made_site(policy=POLICY_OF_A) as site:
            site.write_policy(other, "20.toml")
            site.write_policy(POLICY_OF_A.replace(":01:", ":02:"), "30.toml")
            await loaded(site)
            plans = await site.engine.campaign.plan([], False)
            assert [step.action for step in plans[A]] == [Action.LEAVE]
            assert "20.toml:5" in str(plans[A][0].refusal)
            job = await site.end(site.engine.campaign.apply([], False, digest_all(plans), WHO))
            assert isinstance(job.error, PolicyConflict)
            assert (site.drivers(), site.drivers(B)) == ([], ["vfio-pci"] * 2)
            for ask in (site.engine.campaign.plan([A], False), site.engine.campaign.plan([B, A], False)):
                with pytest.raises(PolicyConflict):
                    await ask
            with pytest.raises(PolicyConflict):
                site.engine.campaign.apply([A], False, "", WHO)
            pf = site.engine.inventory.get_pf(A)
            assert site.engine.rulebook.driver_for(pf, 0) == ""
            assert not list((await site.engine.rulebook.attributes_for(pf, 0)).items())

    run_async(test())


def test_a_pf_without_a_policy_has_no_plan() -> None:
    async def test() -> None:
        async with made_site(policy=POLICY_OF_A) as site:
            await loaded(site)
            with pytest.raises(InvalidArgument, match=f"No policy is about {B}"):
                await site.engine.campaign.plan([B], False)
            with pytest.raises(InvalidArgument):
                site.engine.campaign.apply([A, B], False, "", WHO)
            (site.policies / "10-test.toml").unlink()
            await loaded(site)
            assert await site.engine.campaign.plan([], False) == {}
            job = await site.end(site.engine.campaign.apply([], False, "", WHO))
            assert job.outcome.startswith("Unchanged: ")

    run_async(test())


def test_exactly_the_plan_that_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what changes between the question and the adapter's turn is noticed."""

    async def test() -> None:
        async with made_site(policy=POLICY_OF_A) as site:
            await loaded(site)
            shown = digest_all(await site.engine.campaign.plan([A], False))
            site.other(f"{A}/sriov_numvfs", "1")
            job = await site.apply(expected=shown)
            assert isinstance(job.error, PolicyConflict)
            assert len(site.vfs()) == 1
            shown = digest_all(await site.engine.campaign.plan([A], False))
            look = site.engine.campaign.plan

            async def look_and_be_overtaken(*args: Any) -> Any:
                plans = await look(*args)
                site.other(f"{A}/sriov_numvfs", "0")
                return plans

            with monkeypatch.context() as patch:
                patch.setattr(site.engine.campaign, "plan", look_and_be_overtaken)
                job = await site.apply(expected=shown)
            assert isinstance(job.error, PolicyConflict)
            assert "has changed since it was shown: make 2 VFs" in job.outcome
            assert site.vfs() == []
            shown = digest_all(await site.engine.campaign.plan([A], False))
            assert (await site.apply(expected=shown)).state is JobState.DONE
            assert site.drivers() == ["vfio-pci"] * 2

    run_async(test())


def test_a_cancelled_apply_cancels_what_it_has_begun() -> None:
    async def test() -> None:
        async with made_site(policy=POLICY_OF_A) as site:
            await loaded(site)
            site.backend.inject_fault(Fault(Verb.SET_NUM_VFS, A, delay_usec=100_000))
            job = site.engine.campaign.apply([A], False, "", WHO)
            await site.until(lambda: site.writes)
            job.cancel()
            await site.end(job)
            assert (job.state, type(job.error)) == (JobState.CANCELLED, Cancelled)
            assert site.drivers() == ["", ""]  # what the kernel was doing then; nothing after it
            assert not any("set-vf-attribute" in write for write in site.writes)

    run_async(test())


def test_the_last_good_text_outlives_the_daemon(tmp_path: Path) -> None:
    async def test() -> None:
        state = str(tmp_path / "db")
        async with made_site(policy=POLICY_OF_A, state=state) as site:
            await loaded(site)
        async with made_site(policy="[match", state=state) as site:
            await site.engine.rulebook.load()
            assert site.engine.rulebook.outdated == ("10-test.toml",)
            assert site.engine.rulebook.find(site.engine.inventory.get_pf(A)) is not None

    run_async(test())


def test_a_disk_that_takes_nothing_keeps_no_daemon_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The policies are in force, what has to be done is refused, and done when it can be."""

    async def test() -> None:
        async with made_site(policy=POLICY_OF_A, state=str(tmp_path / "db")) as site:
            with taking_nothing(site.engine.store):
                await site.engine.start_policy()
                await site.until(lambda: site.standing().condition is Condition.REFUSED, "the refusal")
                assert "cannot be written" in site.standing().reason
                assert "last good policies" in caplog.text
                assert site.writes == []
            await site.apply()
            assert site.drivers() == ["vfio-pci"] * 2

    run_async(test())


def test_an_interrupted_intent_keeps_no_daemon_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays open when the disk does not take its outcome, for the next start."""

    async def refuse(_store: Store, _intent: int, _outcome: str) -> None:
        raise BackendFailed("no space")

    async def test() -> None:
        state = str(tmp_path / "db")
        async with made_site(state=state) as site:
            await site.engine.store.begin(str(A.slot), "uid 0", Script("making 2 VFs", ()))
        with monkeypatch.context() as full:
            full.setattr(Store, "finish", refuse)
            async with made_site(state=state):
                pass
        async with made_site(state=state) as site:
            assert len(site.engine._saved.intents) == 1
        async with made_site(state=state) as site:
            assert site.engine._saved.intents == ()

    run_async(test())


def test_no_vf_is_left_without_attributes_and_with_a_driver() -> None:
    """A VF whose isolation could not be set is not handed out."""

    async def test() -> None:
        async with made_site(policy=FULL) as site:
            await loaded(site)
            site.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, A, errno=errno.EIO))
            job = await site.apply()
            assert job.state is JobState.FAILED
            assert site.drivers() == ["", ""]
            site.backend.clear_faults()
            assert (await site.apply()).state is JobState.DONE
            assert site.drivers() == ["igbvf", "vfio-pci"]

    run_async(test())


def test_what_comes_out_on_the_way_stops_only_what_needs_it() -> None:
    """VF 1 shall have what the driver turns out not to know; VF 0 and its address have nothing to do with
    it."""
    policy = POLICY_OF_A + '[vf."1"]\nlink-state = "enable"\n'

    async def test() -> None:
        async with made_site(policy=policy) as site:
            await loaded(site)
            job = await site.apply()
            assert isinstance(job.error, NotSupported)
            assert "igb cannot set link-state" in job.outcome
            macs = await site.engine.identities.macs_of(A, 2)
            assert [vf.mac for vf in site.attributes()] == [macs[0], NO_MAC]
            assert site.drivers() == ["", ""]  # none is handed out
            site.clear()
            assert isinstance((await site.apply()).error, NotSupported)
            assert site.writes == []

    run_async(test())


def test_an_address_that_nobody_asked_for_fails_no_policy() -> None:
    drivers = [
        replace(each, link=replace(each.link, attributes=frozenset({Attribute.VLAN})))
        if each.name == "igb"
        else each
        for each in DRIVERS
    ]

    async def test() -> None:
        async with made_site(policy=FULL, drivers=drivers) as site:
            await loaded(site)
            assert (await site.apply()).state is JobState.DONE
            assert (site.drivers(), site.attributes()[0].vlan) == (["igbvf", "vfio-pci"], 100)
            site.clear()
            assert (await site.apply()).outcome.startswith("Unchanged: ")

    run_async(test())
