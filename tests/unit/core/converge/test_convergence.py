"""For random policies and random states of the host: applying reaches the policy or stops at a typed
refusal, then nothing is left to be planned, and no VF in use was destroyed or rebound.

What the host shall look like is worked out here once more, from the random choices, and compared with the
simulated kernel's own devices.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sriovd.backend.base import Fault, Holder
from sriovd.backend.simulated.device import Device
from sriovd.backend.simulated.drivers import DRIVERS, Driver, LinkSupport
from sriovd.backend.steps import Verb
from sriovd.backend.vf_attributes import VLAN_PROTOCOLS, Attribute
from sriovd.core.errors import InvalidArgument, NumVfsRejected
from sriovd.core.jobs import Job, JobState
from tests.unit.core.converge.site import A, B, Site, made_site, run_async

EXAMPLES = int(os.environ.get("SRIOVD_EXAMPLES", "100"))
LIMIT = 7  # of igb
VF_DRIVERS = ("igbvf", "vfio-pci", "pci-stub")

attributes = st.fixed_dictionaries(
    {},
    optional={
        "mac": st.just("stable"),
        "vlan": st.sampled_from([0, 5, 100]),
        "spoof-check": st.booleans(),
        "trust": st.booleans(),
        "max-tx-rate": st.sampled_from([0, 100, 5000]),
        "link-state": st.sampled_from(["auto", "enable"]),
        "rss-query": st.booleans(),
        "driver": st.sampled_from([*VF_DRIVERS, "default", "none"]),
    },
)


@dataclass(frozen=True)
class Policy:
    """What is wished: the keys of [functions], of [vf.defaults], and of single VFs."""

    functions: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    single: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def count(self) -> int | None:
        return self.functions.get("num-vfs")

    def of(self, index: int) -> dict[str, Any]:
        """What VF `index` shall be."""
        driver = {"driver": self.functions["driver"]} if "driver" in self.functions else {}
        return {**driver, **self.defaults, **self.single.get(index, {})}

    def text(self) -> str:
        named = {f'vf."{index}"': keys for index, keys in self.single.items()}
        tables = {"functions": self.functions, "vf.defaults": self.defaults, **named}
        lines = ["[match]", f'address = "{A}"']
        for name, keys in tables.items():
            lines += [f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]
        return "\n".join(lines)


def _toml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


@st.composite
def make_policies(draw: st.DrawFn) -> Policy:
    functions = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "num-vfs": st.integers(0, LIMIT + 1),
                "driver": st.sampled_from([*VF_DRIVERS, "default", "none"]),
            },
        )
    )
    count = int(str(functions.get("num-vfs", 4)))
    if count == 0:
        return Policy(functions)
    single = draw(st.dictionaries(st.integers(0, count - 1), attributes, max_size=2))
    return Policy(functions, draw(attributes), single)


@dataclass(frozen=True)
class VfState:
    """How a VF is before. `use`: by whom it is used: "", "held" or "leased"."""

    driver: str = ""
    use: str = ""
    vlan: int = 0
    quarantined: bool = False


vf_states = st.builds(
    VfState,
    driver=st.sampled_from(["", *VF_DRIVERS]),
    use=st.sampled_from(["", "", "", "held", "leased"]),
    vlan=st.sampled_from([0, 0, 5]),
    quarantined=st.sampled_from([False, False, False, True]),
)
faults = st.builds(
    Fault,
    verb=st.sampled_from(
        [Verb.SET_VF_ATTRIBUTE] * 3 + [Verb.BIND, Verb.SET_NUM_VFS, Verb.UNBIND, Verb.READ_LINK, Verb.PROBE]
    ),
    errno=st.sampled_from([errno.EOPNOTSUPP, errno.EINVAL, errno.EAGAIN, errno.EIO, errno.ENODEV]),
    times=st.integers(0, 4),
)


@st.composite
def make_links(draw: st.DrawFn) -> LinkSupport:
    """What a PF driver can; mostly as igb."""
    own = next(driver.link for driver in DRIVERS if driver.name == "igb")
    able = draw(st.sets(st.sampled_from([*own.attributes, *own.attributes, Attribute.LINK_STATE])))
    return draw(
        st.sampled_from(
            [own, own, replace(own, attributes=frozenset(able)), replace(own, reports_vfs=False)]
        )
    )


@dataclass(frozen=True)
class World:
    """A host before. `up`: whether the PF's interface is on; `grants`: how many VFs its driver makes."""

    vfs: tuple[VfState, ...] = ()
    link: LinkSupport = field(default_factory=LinkSupport)
    fault: Fault | None = None
    up: bool = True
    grants: int = 0


worlds = st.builds(
    World,
    vfs=st.lists(vf_states, max_size=4).map(tuple),
    link=make_links(),
    fault=st.none() | faults,
    up=st.booleans(),
    grants=st.sampled_from([0, 0, 0, 3]),
)


def drivers_of(world: World) -> tuple[Driver, ...]:
    def change(driver: Driver) -> Driver:
        if driver.name != "igb" or driver.sriov is None:
            return driver
        return replace(driver, link=world.link, sriov=replace(driver.sriov, grants=world.grants))

    return tuple(change(driver) for driver in DRIVERS)


async def arrange(site: Site, world: World, held: bool) -> dict[int, Device]:
    """Make the host what `world` says, behind sriovd's back; the VFs that are in use, by index. `held`: VFs
    are held open, too: what forces those waits for ever (drivers/vfio/vfio_main.c)."""
    used: dict[int, Device] = {}
    leased = set()
    site.backend.switch_interface(A, on=False)
    if world.up:
        site.backend.switch_interface(A, on=True)
    for pf, count in ((A, len(world.vfs)), (B, 2)):
        if count:
            site.other(f"{pf}/sriov_drivers_autoprobe", "0")
            site.other(f"{pf}/sriov_numvfs", str(count))
    for index, (vf, before) in enumerate(zip(site.vfs(), world.vfs, strict=False)):
        if before.driver:
            site.other_binds(vf, before.driver)
        if held and before.use == "held" and before.driver == "vfio-pci":
            site.backend.open_device(vf.address, Holder(100 + index, "qemu"))
            used[index] = vf
        if before.use == "leased":
            leased.add(vf.address)
            used[index] = vf
        if before.vlan and Attribute.VLAN in world.link.attributes and world.link.reports_vfs:
            site.backend.set_vf_attribute(A, f"{index} vlan {before.vlan} 0 {VLAN_PROTOCOLS[0]}")
    site.engine.usage.lease_of = lambda address: "'a' (uid 1, lease 1)" if address in leased else ""
    await site.engine.picture.rescan()
    for vf, before in zip(site.vfs(), world.vfs, strict=False):
        if before.quarantined:
            site.engine.inventory.quarantine(vf.address, "of a test")
    if world.fault is not None:
        site.backend.inject_fault(world.fault)
    site.clear()
    return used


async def differences(site: Site, policy: Policy, leased: frozenset[int], gives: bool) -> list[str]:
    """In what the host is not as `policy` says, by the kernel's own devices. `leased`: VFs whose driver is
    their lease's; `gives`: nothing keeps sriovd from giving VFs addresses."""
    found = []
    vfs = site.vfs()
    macs = await site.engine.identities.macs_of(A, len(vfs))
    if policy.count not in (None, len(vfs)):
        found.append(f"{len(vfs)} VFs")
    for index, vf in enumerate(vfs):
        wish, driver = policy.of(index), vf.driver_name if vf.driver else ""
        wanted = wish.pop("driver", driver)
        right = {"default": "igbvf", "none": ""}.get(wanted, wanted)
        if index not in leased and driver != right:
            found.append(f"VF {index} is on {driver or 'none'}, not {wanted}")
        have = dict(site.attributes()[index].items()) if site.attributes() else {}
        if wish.pop("mac", "") == "stable" or (gives and policy.count is not None and have):
            wish["mac"] = macs[index]
        found += [f"VF {index}: {key}" for key, value in wish.items() if have.get(key) != value]
    return found


def check_untouched(site: Site, used: Mapping[int, Device], before: Mapping[int, str], force: bool) -> None:
    """No VF in use was destroyed or rebound, and the PF without a policy was left alone."""
    for index, vf in used.items():
        if force:
            continue
        now = site.vfs()[index] if index < len(site.vfs()) else None
        assert now is vf, f"VF {index} was destroyed in use"
        assert (vf.driver_name if vf.driver else "") == before[index], f"VF {index} was rebound in use"
    neighbours = {str(B), *(str(vf) for vf in site.vfs(B))}
    assert not [write for write in site.writes if any(each in write for each in neighbours)]


def show(site: Site) -> Any:
    """The host as it is."""
    return site.drivers(), site.drivers(B), list(site.attributes()), list(site.attributes(B))


async def plan(site: Site, force: bool) -> list[Any]:
    return list((await site.engine.campaign.plan([A], force))[A])


def check_typed(job: Job) -> None:
    assert job.state is JobState.FAILED, job.outcome
    assert job.error is not None
    assert "defect" not in job.outcome
    assert job.error.message


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(worlds, make_policies(), st.booleans())
@example(World((VfState("igbvf"),) * 4), Policy({"num-vfs": LIMIT + 1}), False)
def test_applying_reaches_the_policy_or_is_refused(world: World, policy: Policy, force: bool) -> None:
    run_async(_converge(world, policy, force))


async def _converge(world: World, policy: Policy, force: bool) -> None:
    async with made_site(drivers=drivers_of(world)) as site:
        used = await arrange(site, world, held=not force)
        before = {index: vf.driver_name if vf.driver else "" for index, vf in used.items()}
        leased = frozenset(i for i, vf in enumerate(world.vfs) if vf.use == "leased")
        site.write_policy(policy.text())
        await site.engine.rulebook.load()
        assert not site.engine.rulebook.problems, policy.text()
        job = await site.apply(force=force)
        check_untouched(site, used, before, force)
        if job.state is not JobState.DONE:
            check_typed(job)
            site.backend.clear_faults()
            job = await site.apply(force=force)
            check_untouched(site, used, before, force)
        steps = await plan(site, force)
        cannot = world.fault is not None and world.fault.errno == errno.EOPNOTSUPP
        gives = Attribute.MAC in world.link.attributes and not cannot
        if job.state is JobState.DONE:
            assert not steps
            assert await differences(site, policy, leased, gives) == []
        else:
            check_typed(job)
            assert steps
        site.clear()
        state = show(site)
        again = await site.apply(force=force)
        assert again.state is job.state
        assert show(site) == state
        if job.state is JobState.DONE or steps[0].refusal is not None:
            assert site.writes == []
        else:  # no plan can know that: how many VFs a driver makes, or how fast the link is
            assert isinstance(job.error, NumVfsRejected | InvalidArgument), job.outcome
