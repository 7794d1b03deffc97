"""kill -9 of the daemon at random moments of a bring-up of 7 + 7 + 120 VFs with attributes and leases.

How often is $LAB_KILLS's to say: each time costs some twenty seconds, most of it the kernel's.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from tests.lab.client import IGB0, IGB1, NAME, NVME, ROOT, Client, kernel_vfs
from tests.lab.desired import (
    COUNTS,
    QOS,
    VLAN,
    assert_as_the_site_says,
    link_vfs,
    policy_file,
    tear_down,
    wait_in_sync,
)
from tests.lab.guest import Guest
from tests.lab.trace import WriteTrace

KILLS = int(os.environ.get("LAB_KILLS", "3"))
OWNER = "orchestrator"
LEASED = {IGB0: 0, NVME: 5}  # PF -> index
KILL = "kill -9 $(systemctl show --value -p MainPID sriovd)"
LAST_VFS = [f"/sys/bus/pci/devices/{pf}/virtfn{count - 1}" for pf, count in COUNTS.items()]
ALL_BOUND = " && ".join(f"test -e {vf}/driver" for vf in LAST_VFS)
BRING_UP = f"systemctl start sriovd; date +%s.%N; until {ALL_BOUND}; do sleep 0.05; done; date +%s.%N"
HELPERS_GONE = "while pgrep -x sriovd-helper -P 1 > /dev/null; do sleep 0.1; done"


@pytest.fixture
def brought_up(client: Client) -> Iterator[Client]:
    """All VFs there, and one of igb's and one of NVMe's leased."""
    with policy_file(client):
        wait_in_sync(client)
        for pf, index in LEASED.items():
            vf = list(kernel_vfs(client.guest, pf))[index]
            client.ask("Lease", "sa{sv}", OWNER, 1, "address", "s", vf)
        yield client
        for path in leases(client):
            client.call(path, f"{NAME}.Lease", "Release", "sa{sv}", OWNER, 0)


def leases(client: Client) -> dict[str, str]:
    """State by object path."""
    paths = client.guest.run("busctl --list tree org.sriovd1 | grep /lease/ || true").stdout.split()
    return {path: client.get(path, f"{NAME}.Lease", "State") for path in paths}


def right_vfs(guest: Guest, macs: dict[str, list[str]]) -> set[str]:
    """The VFs that are already as the policy says."""
    right = {vf for vf, driver in kernel_vfs(guest, NVME).items() if driver == "vfio-pci"}
    for pf in (IGB0, IGB1):
        told = link_vfs(guest, pf)
        for index, (vf, driver) in enumerate(kernel_vfs(guest, pf).items()):
            info = told[index]
            vlan = [(each["vlan"], each.get("qos", 0)) for each in info.get("vlan_list", []) if each]
            wanted = [(VLAN, QOS)] if index <= 3 else []
            if driver == "vfio-pci" and info["address"] == macs[pf][index] and vlan == wanted:
                right.add(vf)
    return right


@pytest.mark.timeout(7200)
def test_killed_at_random_moments(brought_up: Client) -> None:
    client, guest = brought_up, brought_up.guest
    macs = {pf: [vf["address"] for vf in link_vfs(guest, pf)] for pf in (IGB0, IGB1)}
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    tear_down(guest)
    began, ended = map(float, guest.run(BRING_UP, timeout_s=120.0).stdout.split())
    whole_s = ended - began
    wait_in_sync(client)
    print(f"seed {seed}; undisturbed {whole_s:.1f} s from readiness to the last bind")
    for number in range(KILLS):
        tear_down(guest)
        client.start()
        after_s = chance.uniform(0.0, whole_s)
        # systemd would start it again at once: held back until the killed one's helpers have ended
        guest.run(f"sleep {after_s:.3f}; {KILL}; systemctl stop sriovd", timeout_s=60.0)
        guest.run(HELPERS_GONE, timeout_s=60.0)
        right = right_vfs(guest, macs)
        with WriteTrace(guest) as trace:
            client.start()
            wait_in_sync(client)
            touched = {
                vf for write in trace.writes() for vf in right if vf in write.target or vf == write.text
            }
        assert touched == set(), (seed, number, after_s)
        assert_as_the_site_says(guest)
        assert {pf: [vf["address"] for vf in link_vfs(guest, pf)] for pf in macs} == macs
        assert len(leases(client)) == len(LEASED)
        assert set(leases(client).values()) == {"active"}, (seed, number, after_s)
        print(f"{number}: killed after {after_s:.2f} s, {len(right)} VFs were right")
    assert client.get(ROOT, f"{NAME}.Manager", "PolicyProblems") == []
