"""Desired state on a real kernel: one policy file, drift, and nothing written where nothing differs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.client import IGB0, IGB1, NVME, PHYSICAL_FUNCTION, Client, function_path, kernel_vfs
from tests.lab.desired import (
    SITE,
    SMALL_COUNTS,
    SMALL_SITE,
    VLAN,
    assert_as_the_site_says,
    link_vfs,
    policy_file,
    policy_states,
    wait_in_sync,
)
from tests.lab.tenant import pf_interface
from tests.lab.trace import WriteTrace
from tests.lab.waiting import wait_until

REPAIR_S = 30.0
EMPTY_PLAN = 0


@pytest.fixture
def site(client: Client) -> Iterator[Client]:
    """Two igb PFs and the NVMe PF under one policy file, all as it says; the igbs' interfaces are up."""
    guest = client.guest
    with policy_file(client, SMALL_SITE):
        wait_in_sync(client)
        for pf in (IGB0, IGB1):
            guest.run(f"ip link set {pf_interface(guest, pf)} up")
        yield client


def test_after_a_start_the_host_is_as_the_file_says(client: Client) -> None:
    """The daemon starts with the file in place and no VF on the host, as at boot."""
    guest = client.guest
    with policy_file(client, "# nothing yet\n"):
        guest.run("systemctl stop sriovd", timeout_s=60.0)
        guest.put("/etc/sriovd/site.toml", SITE.encode())
        client.start()
        wait_in_sync(client)
        assert_as_the_site_says(guest)
        with WriteTrace(guest) as trace:
            (plan, steps) = client.ask("Plan", "a{sv}", 0)
            assert len(steps) == EMPTY_PLAN
            client.ask("Apply", "sa{sv}", plan, 0)
            client.ask("Apply", "sa{sv}", "", 0)
            guest.run("systemctl restart sriovd", timeout_s=60.0)
            wait_in_sync(client)
            assert trace.writes() == []
        assert_as_the_site_says(guest)


def test_drift_is_noticed_and_repaired(site: Client) -> None:
    guest = site.guest
    interface = pf_interface(guest, IGB0)
    macs = [vf["address"] for vf in link_vfs(guest, IGB1)]
    with WriteTrace(guest) as trace:
        guest.run(f"ip link set {interface} vf 1 vlan 55")
        wait_until(
            lambda: link_vfs(guest, IGB0)[1]["vlan_list"][0]["vlan"] == VLAN, REPAIR_S, "the VLAN again"
        )
        index = guest.run(f"cat /sys/class/net/{interface}/ifindex").stdout.strip()
        assert {write.target for write in trace.writes()} == {index}  # that attribute, and nothing else
    vf = list(kernel_vfs(guest, IGB0))[2]
    guest.run(f"echo {vf} > /sys/bus/pci/drivers/vfio-pci/unbind")
    wait_until(lambda: kernel_vfs(guest, IGB0)[vf] == "vfio-pci", REPAIR_S, "the driver again")
    guest.run(f"echo 0 > /sys/bus/pci/devices/{IGB1}/sriov_numvfs", timeout_s=60.0)
    wait_until(lambda: len(kernel_vfs(guest, IGB1)) == 7, REPAIR_S, "7 VFs again")
    wait_in_sync(site)
    assert_as_the_site_says(guest, SMALL_COUNTS)
    assert [each["address"] for each in link_vfs(guest, IGB1)] == macs
    journal = guest.run("journalctl -u sriovd -o cat --since=-120s").stdout
    for told in ("vlan 55 to 100", "bind VFs 2 to vfio-pci", "make 7 VFs"):
        assert told in journal, told


def test_report_only_says_so_and_writes_nothing(client: Client) -> None:
    guest = client.guest
    report = SMALL_SITE.replace("num-vfs = 7", 'num-vfs = 7\nrepair = "report"')
    with policy_file(client, SMALL_SITE):
        wait_in_sync(client)
        guest.put("/etc/sriovd/site.toml", report.encode())
        guest.run("systemctl reload sriovd", timeout_s=60.0)
        wait_in_sync(client)
        vf = list(kernel_vfs(guest, IGB0))[2]
        with WriteTrace(guest) as trace:
            guest.run(f"echo {vf} > /sys/bus/pci/drivers/vfio-pci/unbind")
            wait_until(lambda: policy_states(client)[IGB0] == "drifted", REPAIR_S, "the drift told")
            reason = client.get(function_path(IGB0), PHYSICAL_FUNCTION, "PolicyReason")
            assert "only reported" in reason
            assert "bind VFs 2 to vfio-pci" in reason
            assert policy_states(client)[NVME] == "in-sync"
            assert trace.writes() == []
        client.ask("Apply", "sa{sv}", "", 0)  # asked for, it is done
        assert kernel_vfs(guest, IGB0)[vf] == "vfio-pci"


def test_a_broken_file_is_told_by_line_and_changes_nothing(site: Client) -> None:
    guest = site.guest
    with WriteTrace(guest) as trace:
        guest.put("/etc/sriovd/site.toml", SMALL_SITE.replace("num-vfs = 7", "num-vfz = 7").encode())
        (problems,) = site.ask("Reload", "a{sv}", 0)
        assert len(problems) == 1
        assert problems[0].startswith("/etc/sriovd/site.toml:5:"), problems
        assert "num-vfs" in problems[0]
        wait_in_sync(site)
        assert trace.writes() == []
    guest.put("/etc/sriovd/site.toml", SMALL_SITE.encode())
    assert site.ask("Reload", "a{sv}", 0) == [[]]
