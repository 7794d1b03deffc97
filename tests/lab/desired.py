"""A policy for the lab's machine, and what the kernel says of it: `ip link` and sysfs, never sriovd.

Rule of this module: it puts policy files where people put them and looks at the result from outside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tests.lab.client import IGB0, IGB1, NVME, PHYSICAL_FUNCTION, Client, function_path, kernel_vfs
from tests.lab.guest import Guest
from tests.lab.tenant import pf_interface
from tests.lab.waiting import wait_until

FILE = "/etc/sriovd/site.toml"
VLAN, QOS = 100, 3
SITE = """\
[[policy]]
[policy.match]
driver = "igb"
[policy.functions]
num-vfs = 7
driver = "vfio-pci"
[policy.vf.defaults]
spoof-check = true
trust = false
[policy.vf."0-3"]
vlan = 100
qos = 3

[[policy]]
[policy.match]
class = "nvme"
[policy.functions]
num-vfs = 120
driver = "vfio-pci"
"""
COUNTS = {IGB0: 7, IGB1: 7, NVME: 120}
FEW = 16
SMALL_SITE = SITE.replace("num-vfs = 120", f"num-vfs = {FEW}")  # where the NVMe PF is only one of several
SMALL_COUNTS = COUNTS | {NVME: FEW}
TEAR_DOWN = (
    "systemctl stop sriovd; for pf in {pfs}; do echo 0 > /sys/bus/pci/devices/$pf/sriov_numvfs & done; wait"
)
CONVERGE_S = 90.0


def policy_states(client: Client) -> dict[str, str]:
    """PolicyState of every PF."""
    return {pf: client.get(function_path(pf), PHYSICAL_FUNCTION, "PolicyState") for pf in COUNTS}


def wait_in_sync(client: Client, deadline_s: float = CONVERGE_S) -> None:
    """Until sriovd says of every PF that it is as its policy says."""
    wait_until(
        lambda: set(policy_states(client).values()) == {"in-sync"},
        deadline_s,
        f"all in sync: {policy_states(client)}",
    )


def wait_pf_in_sync(client: Client, pf: str, deadline_s: float = 60.0) -> None:
    """Until sriovd says that this PF is as its policy says."""
    wait_until(
        lambda: client.get(function_path(pf), PHYSICAL_FUNCTION, "PolicyState") == "in-sync",
        deadline_s,
        f"{pf} in sync",
    )


@contextmanager
def policy_file(client: Client, text: str = SITE, file: str = FILE) -> Iterator[None]:
    """The policy in force. Afterwards there is none, and no VF."""
    client.guest.put(file, text.encode())
    client.guest.run("systemctl reload sriovd", timeout_s=60.0)
    try:
        yield
    finally:
        tear_down(client.guest)
        client.guest.run(f"rm -f {file}; systemctl start sriovd", timeout_s=60.0)


def tear_down(guest: Guest) -> None:
    """As after a boot: no VF, no daemon; its memory stays."""
    guest.run(TEAR_DOWN.format(pfs=" ".join(COUNTS)), timeout_s=120.0)


def link_vfs(guest: Guest, pf: str) -> list[Mapping[str, Any]]:
    """The VFs of `pf` as `ip link` has them, by index."""
    (link,) = json.loads(guest.run(f"ip -json link show {pf_interface(guest, pf)}").stdout)
    return list(link.get("vfinfo_list", []))


def assert_as_the_site_says(guest: Guest, counts: Mapping[str, int] = COUNTS) -> None:
    """`ip link` and sysfs agree with SITE, or with SMALL_SITE and its `counts`."""
    for pf, count in counts.items():
        numvfs = guest.run(f"cat /sys/bus/pci/devices/{pf}/sriov_numvfs").stdout.strip()
        assert numvfs == str(count), pf
        assert list(kernel_vfs(guest, pf).values()) == ["vfio-pci"] * count, pf
    for pf in (IGB0, IGB1):
        vfs = link_vfs(guest, pf)
        assert len(vfs) == COUNTS[pf]
        macs = {vf["address"] for vf in vfs}
        assert len(macs) == len(vfs), macs
        for vf in vfs:
            assert int(vf["address"][:2], 16) & 3 == 2, vf  # unicast, locally administered
            assert vf["spoofchk"] is True, vf
            assert vf["trust"] is False, vf
            told = [each for each in vf.get("vlan_list", []) if each]  # without a VLAN: [{}]
            vlan = [(each["vlan"], each.get("qos", 0)) for each in told]
            assert vlan == ([(VLAN, QOS)] if vf["vf"] <= 3 else []), vf
