"""Policies and VF attributes as a client meets them: Plan, Apply, Reload, properties, refusals, busctl."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sriovd.bus.signature import Variant
from tests.simulated.client import (
    IGB0,
    IGB1,
    JOB,
    MANAGER,
    NVME,
    PHYSICAL_FUNCTION,
    ROOT,
    VF0,
    VIRTUAL_FUNCTION,
    Client,
    Refusal,
    function_path,
)
from tests.simulated.process import DaemonProcess, busctl, running_daemon, wait_until
from tests.unit.bus.support import in_loop

POLICY = """[match]
address = "0000:0[12]:00.0"
[functions]
num-vfs = 2
driver = "vfio-pci"
repair = "report"
[vf."0"]
vlan = 100
"""


def names(*addresses: str) -> Variant:
    return Variant("as", list(addresses))


@dataclass(frozen=True)
class Site:
    """A daemon and its policy files."""

    daemon: DaemonProcess
    policies: Path

    def write(self, text: str, name: str = "10-nic.toml") -> None:
        (self.policies / name).write_text(text)


@contextmanager
def made_site(directory: Path, root: str, policy: str = POLICY) -> Iterator[Site]:
    policies = directory / "policies"
    policies.mkdir()
    (policies / "10-nic.toml").write_text(policy)
    with running_daemon(directory, root, "--policy", str(policies)) as daemon:
        yield Site(daemon, policies)


@pytest.fixture
def site(tmp_path: Path, root: str) -> Iterator[Site]:
    """A host whose policy only reports, so that nothing happens by itself."""
    with made_site(tmp_path, root) as site:
        yield site


async def plan(client: Client, **options: Variant) -> tuple[str, list[tuple[str, ...]]]:
    name, steps = await client.ask("Plan", "a{sv}", options)
    return str(name), [tuple(step) for step in steps]


async def apply(client: Client, plan: str = "", **options: Variant) -> tuple[str, str]:
    path, state = await client.ask("Apply", "sa{sv}", plan, options)
    return str(path), str(state)


async def standing(client: Client, pf: str) -> tuple[str, str]:
    values = await client.get_all(function_path(pf), PHYSICAL_FUNCTION)
    return values["PolicyState"], values["PolicyReason"]


async def until_state(client: Client, pf: str, state: str) -> None:
    async with asyncio.timeout(10.0):
        while (await standing(client, pf))[0] != state:
            await asyncio.sleep(0.01)


@in_loop
async def test_a_plan_shows_what_would_be_done_and_changes_nothing(site: Site) -> None:
    async with Client.connected(site.daemon.address) as client:
        await until_state(client, IGB0, "drifted")
        name, steps = await plan(client)
        assert {step[0] for step in steps} == {function_path(IGB0), function_path(IGB1)}
        kinds = [(kind, what) for path, kind, what, _, _ in steps if path == function_path(IGB0)]
        assert [kind for kind, _ in kinds] == ["create-vfs", "set-attributes", "set-attributes", "bind"]
        assert kinds[0][1] == "make 2 VFs"
        assert kinds[1][1].startswith("VF 0: mac ") and kinds[1][1].endswith(", vlan 100")
        assert kinds[3][1] == "bind VFs 0-1 to vfio-pci"
        source = f"{site.policies}/10-nic.toml:1"
        assert all(source in why and not refused for _, _, _, why, refused in steps)
        assert await plan(client) == (name, steps)
        assert await client.vfs(IGB0) == {}
        _, one = await plan(client, functions=names(IGB1))
        assert {step[0] for step in one} == {function_path(IGB1)}


@in_loop
async def test_apply_does_exactly_the_plan_and_both_adapters_side_by_side(site: Site) -> None:
    async with Client.connected(site.daemon.address) as client:
        name, _ = await plan(client)
        path, state = await apply(client, name)
        assert state == "done"
        assert set(await client.get(path, JOB, "Objects")) == {function_path(IGB0), function_path(IGB1)}
        for pf in (IGB0, IGB1):
            assert list((await client.vfs(pf)).values()) == ["vfio-pci"] * 2
            assert (await standing(client, pf)) == ("in-sync", "")
        ((attributes),) = await client.ask("GetVFAttributes", "s", VF0)
        assert attributes["vlan"].value == 100
        assert (await plan(client))[1] == []
        path, _ = await apply(client)
        assert await client.get(path, JOB, "Outcome") == ("Unchanged: 2 adapters are as their policies say.")
        with_policy = [pf for pf in (IGB0, IGB1, NVME) if (await standing(client, pf))[0] != "none"]
        assert with_policy == [IGB0, IGB1]


@in_loop
async def test_a_plan_of_before_is_refused(site: Site) -> None:
    async with Client.connected(site.daemon.address) as client:
        name, _ = await plan(client)
        await client.set_num_vfs(IGB0, 1)
        refusal = await client.refused("Apply", "sa{sv}", name, {})
        refusal.check("PolicyConflict", "have changed since that plan was shown", "Plan")
        assert len(await client.vfs(IGB0)) == 1
        assert await client.vfs(IGB1) == {}
        name, _ = await plan(client, functions=names(IGB1))
        assert (await apply(client, name, functions=names(IGB1)))[1] == "done"
        assert len(await client.vfs(IGB0)) == 1


@in_loop
async def test_a_vf_in_use_is_spared_unless_the_plan_says_force(site: Site) -> None:
    async with Client.connected(site.daemon.address) as client:
        await client.set_num_vfs(IGB0, 3, driver="vfio-pci")
        await client.simulate("OpenDevice", "sus", VF0, 7, "qemu")
        _, steps = await plan(client, functions=names(IGB0))
        assert [step[1] for step in steps] == ["destroy-vfs"]
        assert f"In use: VF {VF0} is held open by qemu (pid 7)" in steps[0][4]
        refusal = await client.refused("Apply", "sa{sv}", "", {"functions": names(IGB0)})
        refusal.check("InUse", "qemu (pid 7)")
        assert (await standing(client, IGB0))[0] in ("refused", "drifted")
        _, forced = await plan(client, functions=names(IGB0), force=Variant("b", True))
        assert [step[1] for step in forced][:2] == ["destroy-vfs", "create-vfs"]
        assert not any(step[4] for step in forced)
        assert len(await client.vfs(IGB0)) == 3
        await client.simulate("CloseDevice", "s", VF0)


@in_loop
async def test_a_broken_file_is_told_everywhere_and_the_last_good_stays(site: Site) -> None:
    async with Client.connected(site.daemon.address) as client:
        (problems,) = await client.ask("Reload", "a{sv}", {})
        assert problems == []
        site.write(POLICY.replace("num-vfs", "num-vf"))
        (problems,) = await client.ask("Reload", "a{sv}", {})
        where = f"{site.policies}/10-nic.toml:4: [functions] num-vf: unknown key; did you mean num-vfs?"
        assert problems == [where]
        assert await client.get(ROOT, MANAGER, "PolicyProblems") == [where]
        assert where in site.daemon.said()
        assert (await plan(client))[1][0][2] == "make 2 VFs"
        site.write(POLICY)
        assert await client.ask("Reload", "a{sv}", {}) == ([],)
        assert await client.get(ROOT, MANAGER, "PolicyProblems") == []


def test_a_policy_that_repairs_acts_by_itself(tmp_path: Path, root: str) -> None:
    """At start, and when somebody else changes an attribute."""

    @in_loop
    async def check(site: Site) -> None:
        async with Client.connected(site.daemon.address) as client:
            for pf in (IGB0, IGB1):
                await until_state(client, pf, "in-sync")
                assert list((await client.vfs(pf)).values()) == ["vfio-pci"] * 2
            refusal = await client.refused("SetNumVFs", "sua{sv}", IGB0, 0, {})
            refusal.check("PolicyConflict", "wants 2 VFs", "Reload")
            await client.simulate("SetVFAttribute", "ss", IGB0, "0 vlan 7 0 802.1Q")
            async with asyncio.timeout(10.0):
                while (await attributes_of(client, VF0))["vlan"] != 100:
                    await asyncio.sleep(0.02)
            await until_state(client, IGB0, "in-sync")
            assert "VF 0: vlan 7 to 100" in site.daemon.said()

    with made_site(tmp_path, root, POLICY.replace('repair = "report"\n', "")) as site:
        check(site)


async def attributes_of(client: Client, vf: str) -> dict[str, Any]:
    (values,) = await client.ask("GetVFAttributes", "s", vf)
    return {name: value.value for name, value in values.items()}


# VF attributes, on the host that most tests share.


@in_loop
async def test_attributes_by_address_and_on_the_object(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        wish = {
            "mac": Variant("s", "02:00:00:00:00:AA"),
            "vlan": Variant("u", 7),
            "trust": Variant("b", True),
        }
        _, state = await client.ask("SetVFAttributes", "sa{sv}a{sv}", VF0, wish, {})
        assert state == "done"
        have = await attributes_of(client, VF0)
        assert (have["mac"], have["vlan"], have["trust"]) == ("02:00:00:00:00:aa", 7, True)
        assert (have["min-mtu"], have["max-mtu"]) == (68, 9216)
        path = function_path(VF0)
        wish = {"vlan": Variant("i", 0)}  # any integer that fits
        job, _ = await client.call(path, VIRTUAL_FUNCTION, "SetAttributes", "a{sv}a{sv}", wish, {})
        assert await client.get(job, JOB, "Outcome") == f"Set attributes of 1 VFs of {IGB0}."
        (values,) = await client.call(path, VIRTUAL_FUNCTION, "GetAttributes")
        assert values["vlan"].value == 0


Setup = Callable[[Client], Awaitable[object]]


async def one_vf(client: Client) -> None:
    await client.set_num_vfs(IGB0, 1)


async def nvme_vf(client: Client) -> None:
    await client.set_num_vfs(NVME, 1)


@dataclass(frozen=True)
class Case:
    """Attributes that are refused. says: parts of the sentence."""

    attributes: Mapping[str, Variant]
    error: str
    says: tuple[str, ...]
    address: str = VF0
    setup: Setup = one_vf

    def __str__(self) -> str:
        return "-".join((self.error, *self.attributes, self.address))


VLAN = {"vlan": Variant("u", 5)}
CASES = (
    Case({"vlna": Variant("u", 5)}, "InvalidArgument", ("'vlna'", "'vlan'")),
    Case({"vlan": Variant("s", "5")}, "InvalidArgument", ("'vlan'", "'s'", "'u'")),
    Case({"vlan": Variant("i", -1)}, "InvalidArgument", ("-1 does not fit",)),
    Case({"vlan": Variant("u", 4095)}, "InvalidArgument", ("4095", "0 to 4094")),
    Case({"qos": Variant("u", 8)}, "InvalidArgument", ("qos", "0 to 7")),
    Case({"trust": Variant("u", 1)}, "InvalidArgument", ("'trust'", "'b'")),
    Case({"mac": Variant("s", "x")}, "InvalidArgument", ("mac", "six hexadecimal pairs")),
    Case({"mac": Variant("s", "01:00:00:00:00:01")}, "InvalidArgument", ("unicast",)),
    Case({"mac": Variant("s", "00:00:00:00:00:00")}, "InvalidArgument", ("not zero",)),
    Case({"link-state": Variant("s", "up")}, "InvalidArgument", ("'auto' or 'enable' or 'disable'",)),
    Case({"vlan-protocol": Variant("s", "qinq")}, "InvalidArgument", ("'802.1Q' or '802.1ad'",)),
    Case(
        {"min-tx-rate": Variant("u", 9), "max-tx-rate": Variant("u", 5)},
        "InvalidArgument", ("min-tx-rate 9 is more than max-tx-rate 5",),
    ),
    Case({"link-state": Variant("s", "enable")}, "NotSupported", ("link-state",)),
    Case({"rss-query": Variant("b", True)}, "NotSupported", ("does not tell rss-query",)),
    Case(VLAN, "InvalidArgument", (IGB0, "is a PF"), address=IGB0),
    Case(VLAN, "NoSuchFunction", ("0000:77:00.0",), address="0000:77:00.0"),
    Case(VLAN, "InvalidArgument", ("nonsense",), address="nonsense"),
    Case(VLAN, "NotSupported", (NVME, "no network interface"), address="0000:03:00.1", setup=nvme_vf),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
@in_loop
async def test_refused_attributes(host: DaemonProcess, case: Case) -> None:
    async with Client.connected(host.address) as client:
        await case.setup(client)
        before = await attributes_of(client, VF0) if case.setup is one_vf else {}
        wish = dict(case.attributes)
        refusal = await client.refused("SetVFAttributes", "sa{sv}a{sv}", case.address, wish, {})
        refusal.check(case.error, *case.says)
        if before:
            assert await attributes_of(client, VF0) == before


@in_loop
async def test_refused_questions(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await one_vf(client)
        for address, error in ((IGB0, "InvalidArgument"), ("0000:77:00.0", "NoSuchFunction")):
            (await client.refused("GetVFAttributes", "s", address)).check(error, address)
        unknown: dict[str, Refusal] = {
            "Plan": await client.refused("Plan", "a{sv}", {"froce": Variant("b", True)}),
            "Apply": await client.refused("Apply", "sa{sv}", "", {"froce": Variant("b", True)}),
            "Reload": await client.refused("Reload", "a{sv}", {"froce": Variant("b", True)}),
            "SetVFAttributes": await client.refused(
                "SetVFAttributes", "sa{sv}a{sv}", VF0, {}, {"froce": Variant("b", True)}
            ),
        }
        for refusal in unknown.values():
            refusal.check("InvalidArgument", "'froce'")
        bodies: dict[str, tuple[str, ...]] = {"Plan": (), "Apply": ("",)}
        for member, body in bodies.items():
            for addresses, error, says in (
                ([IGB0], "InvalidArgument", f"No policy is about {IGB0}"),
                ([VF0], "InvalidArgument", "is a VF"),
                (["x"], "InvalidArgument", "x"),
            ):
                signature = "sa{sv}" if body else "a{sv}"
                options = {"functions": names(*addresses)}
                (await client.refused(member, signature, *body, options)).check(error, says)
        assert await plan(client) == ("e3b0c44298fc1c14", [])
        assert (await apply(client))[1] == "done"


def test_busctl_is_enough(site: Site) -> None:
    """Everything by hand, as the README shows."""
    call = ("call", "org.sriovd1", ROOT, MANAGER)
    address = site.daemon.address
    shown = busctl(address, *call, "Plan", "a{sv}", "0").stdout
    assert "make 2 VFs" in shown
    name = shown.split('"')[1]
    done = busctl(address, *call, "Apply", "sa{sv}", name, "1", "functions", "as", "1", IGB0)
    assert done.returncode != 0
    assert "PolicyConflict" in done.stderr  # the plan was for both
    assert '"done"' in busctl(address, *call, "Apply", "sa{sv}", name, "0").stdout
    set_vlan = ("SetVFAttributes", "sa{sv}a{sv}", VF0, "1", "max-tx-rate", "u", "100", "0")
    assert busctl(address, *call, *set_vlan).returncode == 0
    assert '"max-tx-rate" u 100' in busctl(address, *call, "GetVFAttributes", "s", VF0).stdout
    wait_until(
        lambda: "in-sync" in busctl(
            address, "get-property", "org.sriovd1", function_path(IGB0), PHYSICAL_FUNCTION, "PolicyState"
        ).stdout,
        "in sync",
    )  # fmt: skip
    assert busctl(address, *call, "Reload", "a{sv}", "0").stdout == "as 0\n"
