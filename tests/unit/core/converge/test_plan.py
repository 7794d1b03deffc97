"""Plans as a literal table: how a PF is, what its policy says, which steps come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from sriovd.backend.vf_attributes import Attribute, VfAttributes
from sriovd.core.converge.plan import Desired, PfState, digest, format_indexes, plan_pf
from sriovd.core.errors import InUse, NotSupported, NumVfsRejected, SriovdError
from sriovd.core.inventory import Function
from sriovd.core.policy.model import PfWish, Setting
from sriovd.core.policy.problems import Place
from tests.unit.core.minikernel import PF, make_pf, make_vf

MACS = {index: f"02:00:00:00:00:{index:02x}" for index in range(8)}
NEW = VfAttributes(mac="00:00:00:00:00:00", spoof_check=True, trust=False, link_state="auto")
SET = "set-attributes"


def say(**values: Any) -> dict[str, Setting]:
    return {name: Setting(value, Place("p.toml", 1)) for name, value in values.items()}


def desire(functions: Mapping[str, Any] | None = None, **defaults: Any) -> Desired:
    return Desired("p.toml:1", PfWish(say(**(functions or {})), say(**defaults)))


def make_state(
    drivers: tuple[str, ...] = (), *, nic: bool = False, pf_driver: str = "igb", **more: Any
) -> PfState:
    """A PF with a VF for each of `drivers`. `nic`: with a network interface and VF attributes."""
    facts = replace(
        make_pf(), driver=pf_driver, net_interfaces=("eth0",) if nic else (), class_code=0x020000
    )
    vfs = {index: Function(make_vf(index, driver=driver), 1) for index, driver in enumerate(drivers)}
    told = {index: replace(NEW, mac=MACS[index]) for index in vfs} if nic else None
    return PfState(**{"pf": Function(facts, 1), "vfs": vfs, "attributes": told, "macs": MACS, **more})


@dataclass(frozen=True)
class Case:
    """`steps`: kind and description of each; `refusal`: of the last, and what it says."""

    name: str
    state: PfState
    desired: Desired
    steps: tuple[tuple[str, str], ...] = ()
    refusal: type[SriovdError] | None = None
    says: str = ""
    force: bool = False
    more: dict[str, Any] = field(default_factory=dict)


USED = {1: "VF 0000:01:10.2 is held open by qemu (pid 7)"}
CASES = (
    Case("nothing is said", make_state(("igbvf", "")), desire()),
    Case("all is right", make_state(("igbvf",) * 2), desire({"num_vfs": 2}, driver="igbvf")),
    Case("default is any of the host's", make_state(("igbvf",)), desire(driver="default")),
    Case("none of its own is none", make_state(("",)), desire(driver="none")),
    Case("no VFs, and none wanted", make_state(), desire({"num_vfs": 0})),
    Case(
        "made and bound at once", make_state(), desire({"num_vfs": 3}, driver="vfio-pci"),
        (("create-vfs", "make 3 VFs on vfio-pci"),),
    ),
    Case("made, of no driver said", make_state(), desire({"num_vfs": 3}), (("create-vfs", "make 3 VFs"),)),
    Case(
        "attributes before the driver", make_state(nic=True),
        desire({"num_vfs": 2}, driver="vfio-pci", vlan=5),
        (
            ("create-vfs", "make 2 VFs"),
            (SET, "VF 0: mac 02:00:00:00:00:00, vlan 5"), (SET, "VF 1: mac 02:00:00:00:00:01, vlan 5"),
            ("bind", "bind VFs 0-1 to vfio-pci"),
        ),
    ),
    Case(
        "another number", make_state(("",)), desire({"num_vfs": 2}, driver="none"),
        (("destroy-vfs", "destroy the 1 VFs"), ("create-vfs", "make 2 VFs on none")),
    ),
    Case(
        "none any more", make_state(("", "")), desire({"num_vfs": 0}),
        (("destroy-vfs", "destroy the 2 VFs"),),
    ),
    Case(
        "too many for the driver", make_state(), desire({"num_vfs": 8}), (("create-vfs", "make 8 VFs"),),
        NumVfsRejected, "allows 7",
    ),
    Case(
        "none are destroyed for what cannot be", make_state(("",)), desire({"num_vfs": 8}),
        (("destroy-vfs", "destroy the 1 VFs"),), NumVfsRejected, "allows 7", force=True,
    ),
    Case(
        "none are destroyed for what cannot be set",
        make_state(("",), nic=True, unsupported={Attribute.TRUST}),
        desire({"num_vfs": 2}, trust=True), (("destroy-vfs", "destroy the 1 VFs"),), NotSupported, "trust",
    ),
    Case(
        "a PF without driver", make_state(pf_driver=""), desire({"num_vfs": 1}),
        (("create-vfs", "make 1 VFs"),), NumVfsRejected, "no driver",
    ),
    Case(
        "in use, to be destroyed", make_state(("", ""), users=USED), desire({"num_vfs": 0}),
        (("destroy-vfs", "destroy the 2 VFs"),), InUse, "qemu (pid 7)",
    ),
    Case(
        "in use, and forced", make_state(("", ""), users=USED), desire({"num_vfs": 0}),
        (("destroy-vfs", "destroy the 2 VFs"),), force=True,
    ),
    Case(
        "what nobody uses is bound first", make_state(("igbvf",) * 3, users=USED), desire(driver="vfio-pci"),
        (("bind", "bind VFs 0,2 to vfio-pci"), ("bind", "bind VFs 1 to vfio-pci")), InUse, "qemu (pid 7)",
    ),
    Case(
        "in use and on the right driver", make_state(("igbvf", "vfio-pci"), users=USED),
        desire(driver="vfio-pci"), (("bind", "bind VFs 0 to vfio-pci"),),
    ),
    Case(
        "a rebind is forced", make_state(("igbvf",) * 2, users=USED), desire(driver="vfio-pci"),
        (("bind", "bind VFs 0-1 to vfio-pci"),), force=True,
    ),
    Case(
        "the driver of a leased VF is the lease's", make_state(("igbvf",) * 2, users=USED, kept={1}),
        desire(driver="vfio-pci"), (("bind", "bind VFs 0 to vfio-pci"),), force=True,
    ),
    Case(
        "attributes are repaired in use, too", make_state(("", ""), nic=True, users=USED), desire(vlan=5),
        ((SET, "VF 0: vlan 0 to 5"), (SET, "VF 1: vlan 0 to 5")),
    ),
    Case(
        "no interface", make_state(("",)), desire(vlan=5), ((SET, "set attributes of 1 VFs"),),
        NotSupported, "no network interface",
    ),
    Case(
        "cannot", make_state(("",), nic=True, unsupported={Attribute.TRUST}), desire(trust=True),
        ((SET, "VF 0: trust off to on"),), NotSupported, "igb cannot set trust",
    ),
    Case(
        "what is so needs no support", make_state(("",), nic=True, unsupported={Attribute.TRUST}),
        desire(trust=False),
    ),
    Case(
        "a new VF may be so by itself", make_state(nic=True, unsupported={Attribute.LINK_STATE}),
        desire({"num_vfs": 1}, link_state="auto"),
        (("create-vfs", "make 1 VFs"), (SET, "VF 0: mac 02:00:00:00:00:00, link-state auto")),
    ),
    Case(
        "untold", make_state(("",), nic=True), desire(rss_query=True), ((SET, "VF 0: rss-query on"),),
        NotSupported, "does not tell rss-query",
    ),
    Case(
        "nothing is told of a VF", make_state(("",), nic=True, attributes={}), desire(vlan=5),
        ((SET, "VF 0: vlan 5"),), NotSupported, "does not tell vlan",
    ),
    Case(
        "what nobody asked for needs no telling",
        make_state(("",), nic=True, attributes={}), desire({"num_vfs": 1}),
    ),
    Case(
        "what nobody asked for needs no support", make_state(nic=True, unsupported={Attribute.MAC}),
        desire({"num_vfs": 1}, driver="vfio-pci"), (("create-vfs", "make 1 VFs on vfio-pci"),),
    ),
    Case(
        "what was asked for needs it", make_state(nic=True, unsupported={Attribute.MAC}),
        desire({"num_vfs": 1}, mac="stable"),
        (("create-vfs", "make 1 VFs"), (SET, "VF 0: mac 02:00:00:00:00:00")),
        NotSupported, "mac",
    ),
    Case(
        "a NIC's VF has its own address",
        make_state(("",), nic=True, attributes={0: NEW}), desire({"num_vfs": 1}),
        ((SET, "VF 0: mac 00:00:00:00:00:00 to 02:00:00:00:00:00"),),
    ),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_plans(case: Case) -> None:
    steps = plan_pf(case.state, case.desired, case.force)
    assert tuple((str(step.action), step.description) for step in steps) == case.steps
    refusals = [step.refusal for step in steps]
    assert not any(refusals[:-1])
    last = refusals[-1] if refusals else None
    assert type(last) is (case.refusal or type(None)), last
    assert case.says in str(last or "")
    for step in steps:
        assert step.pf == PF
        assert "p.toml:1" in step.reason


def test_a_name_is_that_of_exactly_these_steps() -> None:
    """The words of a refusal do not count; whether there is one does."""
    two, three = (plan_pf(make_state(), desire({"num_vfs": count})) for count in (2, 3))
    assert digest(two) == digest(plan_pf(make_state(), desire({"num_vfs": 2})))
    used, others = (plan_pf(make_state(("",), users={0: who}), desire({"num_vfs": 0})) for who in ("a", "b"))
    free = plan_pf(make_state(("",)), desire({"num_vfs": 0}))
    assert digest(used) == digest(others)
    assert len({digest(each) for each in (two, three, used, free, ())}) == 5


@pytest.mark.parametrize(
    ("indexes", "text"), [([], ""), ([3], "3"), ([2, 0, 1], "0-2"), ([0, 2, 3, 4, 9], "0,2-4,9")]
)
def test_indexes_as_people_read_them(indexes: list[int], text: str) -> None:
    assert format_indexes(indexes) == text
