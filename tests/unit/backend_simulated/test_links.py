"""VF attributes of the simulated host beyond what the conformance suite can see: other drivers, many VFs,
hangs, carriers that take their time."""

from __future__ import annotations

import dataclasses
import errno

import pytest

from sriovd.backend.base import Fault, LinkChanged
from sriovd.backend.simulated.drivers import DRIVERS, Driver, LinkSupport
from sriovd.backend.steps import Access, StepResult, Verb
from sriovd.backend.vf_attributes import Attribute, LinkReport, VfAttributes, parse_report
from sriovd.pci import PciAddress
from tests.unit.backend_simulated.support import (
    IGB,
    IGB2,
    NVME,
    VF,
    VF1,
    Sim,
    run_async,
    script,
    step,
    until,
)

PF = PciAddress.parse(IGB)
DLB = "0000:05:00.0"
# A NIC with as many VFs as there may be in one netlink attribute, and a driver that can set everything.
WIDE = LinkSupport(attributes=frozenset(Attribute), reports_vfs=True, trust=False, speed_mbps=100_000)


def widen(driver: Driver) -> Driver:
    if driver.name != "dlb":
        return driver
    return dataclasses.replace(driver, has_netdev=True, link=WIDE)


@pytest.fixture
def wide(root: str) -> Sim:
    return Sim(root, machine=(("dlb", DLB),), drivers=tuple(map(widen, DRIVERS)))


def ask(sim: Sim, pf: str, request: str) -> str:
    """The errno's name of a request, or `ok`."""
    path = f"bus/pci/devices/{pf}/net"
    call = sim.kernel.start(Access.LINK, path, f"{Verb.SET_VF_ATTRIBUTE} {request}".encode())
    while call.advance() is not None:
        pass
    return errno.errorcode[call.error.errno or 0] if call.error else "ok"


def read(sim: Sim, pf: str) -> LinkReport:
    call = sim.kernel.start(Access.LINK, f"bus/pci/devices/{pf}/net", f"{Verb.READ_LINK} vfs".encode())
    while call.advance() is not None:
        pass
    assert call.error is None
    return parse_report(call.value.decode())


def test_a_driver_that_can_everything_keeps_everything_for_256_vfs(wide: Sim) -> None:
    wide.must(f"{DLB}/sriov_drivers_autoprobe", "0")
    wide.must(f"{DLB}/sriov_numvfs", "256")
    for request in (
        "255 mac 02:00:00:00:00:ff", "255 vlan 7 1 802.1ad", "255 rate 10 100000", "255 link-state disable",
        "255 rss-query on", "255 trust on", "255 spoof-check off", "255 node-guid 00:00:00:00:00:00:00:01",
    ):  # fmt: skip
        assert ask(wide, DLB, request) == "ok", request
    report = read(wide, DLB)
    assert len(report.vfs) == 256
    assert report.vfs[255] == VfAttributes(
        mac="02:00:00:00:00:ff", vlan=7, qos=1, vlan_protocol="802.1ad", spoof_check=False, trust=True,
        min_tx_rate=10, max_tx_rate=100_000, link_state="disable", rss_query=True,
        node_guid="00:00:00:00:00:00:00:01",
    )  # fmt: skip
    assert {report.vfs[index].mac for index in range(255)} == {"00:00:00:00:00:00"}
    assert ask(wide, DLB, "255 rate 0 100001") == "EINVAL"
    assert ask(wide, DLB, "256 trust on") == "EINVAL"


def test_a_change_is_told_while_the_interface_is_on(sim: Sim) -> None:
    sim.enable(IGB, 1)
    assert ask(sim, IGB, "0 trust on") == "ok"
    assert sim.changed_links() == [IGB]
    assert ask(sim, IGB, "0 link-state auto") == "ENOTSUP"
    assert sim.changed_links() == []
    sim.backend.switch_interface(PF, on=False)
    assert sim.changed_links() == [IGB]
    assert ask(sim, IGB, "0 trust off") == "ok"
    assert sim.changed_links() == []
    assert read(sim, IGB).vfs[0].trust is False


def test_somebody_else_is_told_why_not(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.backend.set_vf_attribute(PF, "0 vlan 5 0 802.1Q")
    assert read(sim, IGB).vfs[0].vlan == 5
    for address, request, reason in (
        (IGB, "1 trust on", "Invalid argument"),
        (IGB, "0 colour red", "Invalid argument"),
        (NVME, "0 trust on", "No such device"),
        ("0000:7f:00.0", "0 trust on", "No such file or directory"),
    ):
        with pytest.raises(ValueError, match=f"'{request}' on {address}: {reason}"):
            sim.backend.set_vf_attribute(PciAddress.parse(address), request)


def test_faults_meet_both_verbs(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, PF, errno=errno.EAGAIN, times=1))
    assert ask(sim, IGB, "0 trust on") == "EAGAIN"
    assert ask(sim, IGB, "0 trust on") == "ok"
    sim.backend.inject_fault(Fault(Verb.READ_LINK, PF, errno=errno.ENOMEM, times=1))
    with pytest.raises(AssertionError):
        read(sim, IGB)
    assert read(sim, IGB).vfs[0].trust is True


def test_a_hang_holds_the_lock_of_all_interfaces(sim: Sim) -> None:
    async def main() -> None:
        sim.enable(IGB, 1)
        sim.backend.inject_fault(Fault(Verb.SET_VF_ATTRIBUTE, PF, hang=True, times=1))
        hung = sim.backend.run(
            IGB, script((step(Verb.SET_VF_ATTRIBUTE, IGB, "0 trust on"),)), lambda _: None
        )
        other = sim.backend.run(IGB2, script((step(Verb.READ_LINK, IGB2),)), lambda _: None)
        await until(lambda: other.describe().wchan == "rtnl_lock")
        assert not other.finished.done()
        sim.backend.clear_faults()
        results: list[StepResult] = [
            step for run in (hung, other) for chain in await run.finished for step in chain.results
        ]
        assert [result.errno for result in results] == [0, 0]
        assert results[1].value == "link mtu=1500 min-mtu=68 max-mtu=9216 up=1"

    run_async(main)


def test_a_rate_waits_for_the_carrier_that_new_vfs_cost(root: str) -> None:
    sim = Sim(root, time_scale=0.1)

    async def main() -> None:
        sim.enable(IGB, 1)
        assert sim.read(f"{IGB}/net/eth0/operstate") == "down\n"
        assert ask(sim, IGB, "0 rate 0 100") == "EINVAL"
        assert ask(sim, IGB, "0 rate 0 0") == "ok"
        sim.events()
        async for event in sim.backend.events():
            if isinstance(event, LinkChanged):
                break
        assert sim.read(f"{IGB}/net/eth0/operstate") == "up\n"
        assert ask(sim, IGB, "0 rate 0 100") == "ok"

    run_async(main)


def test_a_vf_without_an_address_chooses_one_until_its_reset(sim: Sim) -> None:
    sim.enable(IGB, 2)
    assert ask(sim, IGB, "1 mac 02:00:00:00:00:0b") == "ok"
    sim.changed_links()
    for vf in (VF, VF1):
        sim.bind(vf, "igbvf")
    own = sim.read(f"{VF}/net/eth2/address").strip()
    given = sim.read(f"{VF1}/net/eth3/address").strip()
    assert [read(sim, IGB).vfs[index].mac for index in (0, 1)] == [own, given]
    assert given == "02:00:00:00:00:0b"
    for vf in (VF, VF1):
        sim.must("drivers/igbvf/unbind", vf)
        sim.must(f"{vf}/reset", "1")
    assert sim.changed_links() == []
    assert [read(sim, IGB).vfs[index].mac for index in (0, 1)] == ["00:00:00:00:00:00", given]
