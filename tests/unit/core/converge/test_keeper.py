"""The watch over drift: what is noticed, believed, repaired, only reported, given up, and left alone."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from sriovd.backend.base import Fault, Holder
from sriovd.backend.model import PROFILES
from sriovd.backend.steps import Verb
from sriovd.core.converge import keeper
from sriovd.core.converge.standing import Condition
from sriovd.core.jobs import JobState
from sriovd.core.lifecycle import CountOptions
from sriovd.pci import PciAddress
from tests.unit.core.converge.site import POLICY_OF_A, A, B, Site, made_site, run_async

VLAN = '[vf."0"]\nvlan = 100\n'
REPORT = POLICY_OF_A + 'repair = "report"\n'
C = PciAddress.parse("0000:07:00.0")
POLICY_OF_C = '[match]\naddress = "0000:07:00.0"\n[functions]\nnum-vfs = 1\ndriver = "vfio-pci"\n'


def in_sync(site: Site) -> bool:
    return site.standing().condition is Condition.IN_SYNC


async def converged(site: Site) -> None:
    """A is as its policy says, and everything that its bring-up has caused is over."""
    await site.until_in_sync()
    await site.until_idle()
    site.clear()


def test_a_start_brings_the_host_to_its_policy_and_a_second_one_writes_nothing() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            await converged(site)
            assert site.drivers() == ["vfio-pci"] * 2
            assert site.attributes()[0].vlan == 100
            await site.engine.policy.reload()
            await site.until_idle()
            assert in_sync(site)
            assert (site.writes, site.drivers(B)) == ([], [])

    run_async(test())


@pytest.mark.parametrize("drift", ["rebind", "unbind", "vlan", "no VFs"])
def test_drift_is_noticed_and_repaired(drift: str) -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            await converged(site)
            before = [site.drivers(), site.attributes()[0]]
            match drift:
                case "rebind":
                    site.other_binds(site.vfs()[1], "pci-stub")
                case "unbind":
                    site.other_binds(site.vfs()[1], "")
                case "vlan":
                    site.backend.set_vf_attribute(A, "0 vlan 7 0 802.1Q")
                case "no VFs":
                    site.other(f"{A}/sriov_numvfs", "0")
            assert [site.drivers(), site.attributes()[:1]] != [before[0], [before[1]]]
            await site.until(lambda: site.writes, "a repair")
            await converged(site)
            assert [site.drivers(), site.attributes()[0]] == before

    run_async(test())


@pytest.mark.parametrize("drift", ["rebind", "vlan"])
def test_what_is_only_to_be_reported_is_not_repaired(drift: str) -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=REPORT + VLAN) as site:
            await site.until(lambda: site.standing().condition is Condition.DRIFTED, "told")
            assert site.writes == []  # nor is it brought there at start
            assert (await site.apply()).state is JobState.DONE
            await converged(site)
            if drift == "rebind":
                site.other_binds(site.vfs()[1], "pci-stub")
            else:
                site.backend.set_vf_attribute(A, "0 vlan 7 0 802.1Q")
            await site.until(lambda: site.standing().condition is Condition.DRIFTED, "told")
            await site.until_idle()
            assert site.writes == []
            reason = site.standing().reason
            assert reason.startswith("only reported, as the policy says: ")
            assert ("bind VFs 1 to vfio-pci" if drift == "rebind" else "VF 0: vlan 7 to 100") in reason

    run_async(test())


def test_a_driverless_moment_is_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody rebinds a VF to the same driver: in between it has none."""
    monkeypatch.setattr(keeper, "PAUSE_SEC", 0.1)

    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A) as site:
            await converged(site)
            vf = site.vfs()[0]
            site.other(f"{vf}/driver/unbind", str(vf))
            await site.until_look()
            site.other("drivers/vfio-pci/bind", str(vf))
            await site.until_idle()
            assert in_sync(site)
            assert site.writes == []

    run_async(test())


def test_looks_that_disagree_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody rebinds one VF after the other: something is always amiss, never the same for long."""
    monkeypatch.setattr(keeper, "PAUSE_SEC", 0.02)

    async def test() -> None:
        async with made_site(
            watching=True, policy=POLICY_OF_A.replace("num-vfs = 2", "num-vfs = 7")
        ) as site:
            await converged(site)
            for vf in site.vfs():
                site.reads = 0
                site.other(f"{vf}/driver/unbind", str(vf))
                await site.until_look()
                site.other("drivers/vfio-pci/bind", str(vf))
            await site.until_idle()
            assert in_sync(site)
            assert site.writes == []

    run_async(test())


def test_a_repair_that_does_not_last_is_given_up_and_apply_tries_again() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            await converged(site)
            repairs = 0
            while site.standing().condition is not Condition.REFUSED:
                site.backend.set_vf_attribute(A, "0 vlan 7 0 802.1Q")
                await site.until(
                    lambda: (
                        site.attributes()[0].vlan == 100 or site.standing().condition is Condition.REFUSED
                    )
                )
                await site.until_idle()
                repairs += 1
                assert repairs <= keeper.REPAIRS + 2
            assert site.standing().reason.startswith("tried 5 times, and it does not last: VF 0: vlan")
            assert site.attributes()[0].vlan == 7
            assert (await site.apply()).state is JobState.DONE
            assert site.attributes()[0].vlan == 100
            await converged(site)
            site.backend.set_vf_attribute(A, "0 vlan 8 0 802.1Q")
            await site.until(lambda: site.attributes()[0].vlan == 100, "repaired again")

    run_async(test())


def test_a_stuck_adapter_is_looked_at_again_when_it_is_back(short_deadlines: None) -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            site.engine.executor.on_recovered = site.engine.policy.note_adapter
            await converged(site)
            site.backend.inject_fault(Fault(Verb.READ_LINK, A, hang=True))
            site.other_binds(site.vfs()[1], "pci-stub")
            await site.until(lambda: site.standing().condition is Condition.UNKNOWN, "stuck")
            assert "is stuck" in site.standing().reason
            site.backend.clear_faults()
            await site.until(lambda: site.drivers() == ["vfio-pci"] * 2, "repaired")
            await converged(site)

    run_async(test())


def test_policies_come_go_break_and_are_masked() -> None:
    async def test() -> None:
        async with made_site(watching=True) as site:
            reload = site.engine.policy.reload
            assert site.standing().condition is Condition.NONE
            site.write_policy(POLICY_OF_A)
            await reload()
            assert site.standing().condition is Condition.UNKNOWN
            await converged(site)
            site.write_policy(POLICY_OF_A.replace("num-vfs = 2", "num-vfs = two"))
            await reload()
            assert "10-test.toml:5" in site.engine.rulebook.problems[0]
            await converged(site)  # the last good text stays in force
            site.other_binds(site.vfs()[0], "")
            await site.until(lambda: site.drivers() == ["vfio-pci"] * 2, "repaired")
            await converged(site)
            for text in ("", None):
                site.write_policy(POLICY_OF_A)
                await reload()
                await converged(site)
                if text is None:
                    (site.policies / "10-test.toml").unlink()
                else:
                    site.write_policy(text)
                await reload()
                assert site.standing().condition is Condition.NONE
                assert site.standing().source == ""
                site.other_binds(site.vfs()[0], "pci-stub")
                await site.until_idle()
                assert (site.writes, site.reads) == ([], 0)
                site.other_binds(site.vfs()[0], "vfio-pci")

    run_async(test())


def test_a_policy_that_goes_during_a_look_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "PAUSE_SEC", 0.05)

    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A) as site:
            await converged(site)
            site.other_binds(site.vfs()[0], "pci-stub")
            await site.until_look()
            (site.policies / "10-test.toml").unlink()
            await site.engine.policy.reload()
            await site.until_idle()
            assert site.standing().condition is Condition.NONE
            assert site.writes == []

    run_async(test())


def test_a_pf_that_is_plugged_in_gets_what_its_policy_says() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_C) as site:
            site.backend.plug("igb", C)
            await site.until(lambda: C in site.backend.host.devices and site.drivers(C) == ["vfio-pci"])
            await site.until_in_sync(C)
            site.backend.unplug(C)
            await site.until(lambda: site.standing(C).condition is Condition.NONE, "forgotten")
            site.backend.plug("igb", C)
            await site.until_in_sync(C)
            assert site.drivers(C) == ["vfio-pci"]

    run_async(test())


def test_a_pf_driver_may_come_later() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A, not_loaded=["igb"]) as site:
            await site.until(lambda: site.standing().condition is Condition.REFUSED, "refused")
            assert "no driver" in site.standing().reason
            site.backend.load_driver("igb")
            await converged(site)
            assert site.drivers() == ["vfio-pci"] * 2

    run_async(test())


def test_a_policy_may_be_about_a_driver_that_comes_later() -> None:
    policy = POLICY_OF_A.replace('address = "0000:01:00.*"', 'driver = "igb"')

    async def test() -> None:
        async with made_site(watching=True, policy=policy, not_loaded=["igb"]) as site:
            await site.until_idle()
            assert site.standing().condition is Condition.NONE
            site.backend.load_driver("igb")
            await converged(site)
            assert (site.drivers(), site.drivers(B)) == (["vfio-pci"] * 2, ["vfio-pci"] * 2)

    run_async(test())


def test_nothing_is_read_when_nothing_happens() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            await converged(site)
            await site.until_idle()
            assert (site.reads, site.writes) == (0, [])
            site.other(f"{B}/sriov_numvfs", "2")  # of a PF without a policy
            await site.until(lambda: len(site.engine.inventory.vfs_of(B)) == 2, "seen")
            await site.until_idle()
            assert (site.reads, site.writes) == (0, [])

    run_async(test())


def test_a_bring_up_costs_at_most_two_looks_more() -> None:
    """A link event comes for each of the fourteen requests, and a uevent for each VF."""

    async def test() -> None:
        policy = POLICY_OF_A.replace("num-vfs = 2", "num-vfs = 7") + "[vf.defaults]\nvlan = 5\n"
        async with made_site(watching=True, time_scale=0.02) as site:
            site.write_policy(policy)
            await site.engine.policy.reload()
            await site.until_in_sync()
            await site.until_idle()
            assert site.drivers() == ["vfio-pci"] * 7
            assert site.reads <= 2 + 2  # before and after the requests, and two looks at their echoes

    run_async(test())


def test_a_refusal_of_one_pf_stops_no_other_of_its_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROFILES, "igb", replace(PROFILES["igb"], physical_functions=2))
    policy = POLICY_OF_A.replace("num-vfs = 2", "num-vfs = 1")

    async def test() -> None:
        async with made_site(policy=policy) as site:
            await site.engine.rulebook.load()
            other = PciAddress.parse("0000:01:00.1")
            site.backend.inject_fault(Fault(Verb.SET_NUM_VFS, A, errno=errno.ENOMEM))
            job = await site.apply(A, other)
            assert job.state is JobState.FAILED
            assert "no room" in job.outcome
            assert (site.drivers(), site.drivers(other)) == ([], ["vfio-pci"])
            assert site.standing().condition is Condition.REFUSED
            assert site.standing(other).condition is Condition.IN_SYNC

    run_async(test())


def test_in_use_attributes_are_repaired_and_drivers_are_not() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            await converged(site)
            site.other_binds(site.vfs()[1], "pci-stub")
            leased = site.vfs()[1].address
            site.engine.usage.lease_of = lambda vf: "'a' (uid 1, lease 1)" if vf == leased else ""
            site.backend.open_device(site.vfs()[0].address, Holder(7, "qemu"))
            site.backend.set_vf_attribute(A, "0 vlan 7 0 802.1Q")
            await site.until(lambda: site.attributes()[0].vlan == 100, "repaired")
            await converged(site)  # the driver of a leased VF is its lease's
            assert site.drivers() == ["vfio-pci", "pci-stub"]
            site.write_policy((POLICY_OF_A + VLAN).replace('"vfio-pci"', '"pci-stub"'))
            await site.engine.policy.reload()
            await site.until(lambda: site.standing().condition is Condition.REFUSED, "refused")
            assert "held open by qemu (pid 7)" in site.standing().reason
            assert (site.drivers(), site.writes) == (["vfio-pci", "pci-stub"], [])
            site.backend.close_device(site.vfs()[0].address)
            site.engine.policy.note_pf(A)
            await site.until(lambda: site.drivers() == ["pci-stub"] * 2, "bound when it is free")

    run_async(test())


def test_an_apply_and_a_repair_that_meet_do_it_once() -> None:
    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            await converged(site)
            for asked in (False, True):
                site.other(f"{A}/sriov_numvfs", "0")
                if asked:
                    await site.until_look()
                    assert (await site.apply()).state is JobState.DONE
                await site.until(lambda: site.drivers() == ["vfio-pci"] * 2, "repaired")
                await site.until_in_sync()
                await site.until_idle()
                assert len([each for each in site.writes if "sriov_numvfs" in each]) == 1
                site.clear()

    run_async(test())


def test_a_look_waits_for_the_job_of_a_verb() -> None:
    """What is half done by sriovd itself is no drift."""
    policy = POLICY_OF_A.replace("num-vfs = 2\n", "")

    async def test() -> None:
        async with made_site(watching=True, policy=policy, time_scale=0.1) as site:
            await site.until_in_sync()
            options = CountOptions(driver="vfio-pci")
            job = await site.end(site.engine.lifecycle.set_num_vfs(A, 7, options, "uid 0"))
            assert job.state is JobState.DONE
            await site.until_idle()
            assert site.drivers() == ["vfio-pci"] * 7
            assert "ApplyPolicy" not in {each.operation for each in site.jobs()}
            assert site.standing().condition is Condition.IN_SYNC

    run_async(test())


def test_events_that_were_lost_are_made_up_for() -> None:
    """The kernel tells of nothing, and then that it did not."""

    async def test() -> None:
        async with made_site(watching=True, policy=POLICY_OF_A + VLAN) as site:
            await converged(site)
            site.backend.switch_interface(A, on=False)
            await site.until_look()
            await site.until_idle()
            site.backend.set_vf_attribute(A, "0 vlan 7 0 802.1Q")  # silent while the interface is down
            await site.until_idle()
            assert site.attributes()[0].vlan == 7
            site.backend.lose_events(1)
            site.other(f"{B}/sriov_numvfs", "1")
            await site.until(lambda: site.attributes()[0].vlan == 100, "repaired")

    run_async(test())
