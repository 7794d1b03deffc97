"""The guest itself: the kernel that was asked for, the devices of the layout, and a stock userland around
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.channel import RequestFailed
from tests.lab.guest import CommandFailed, Guest
from tests.lab.layout import Igb
from tests.lab.waiting import wait_until

IGB_PF_ID = "0x8086:0x10c9"
NVME_PF_ID = "0x1b36:0x0010"


def total_vfs_of_pfs(guest: Guest) -> dict[str, list[int]]:
    """vendor:device -> sriov_totalvfs of each PF in the guest."""
    script = (
        "cd /sys/bus/pci/devices; for d in */sriov_totalvfs; do d=${d%/*};"
        "echo $(cat $d/vendor):$(cat $d/device) $(cat $d/sriov_totalvfs); done"
    )
    totals: dict[str, list[int]] = {}
    for line in guest.run(script).stdout.splitlines():
        identifier, total = line.split()
        totals.setdefault(identifier, []).append(int(total))
    return totals


def igb_count(guest: Guest) -> int:
    return len(total_vfs_of_pfs(guest).get(IGB_PF_ID, []))


def test_kernel_is_the_one_asked_for(guest: Guest, lab_kernel: str) -> None:
    assert guest.run("uname -r").stdout.startswith(f"{lab_kernel}.")


def test_pfs_of_the_layout_are_there(guest: Guest) -> None:
    assert total_vfs_of_pfs(guest) == {IGB_PF_ID: [Igb.vfs, Igb.vfs], NVME_PF_ID: [127]}


def test_every_pf_has_an_iommu_group(guest: Guest) -> None:
    groups = guest.run(
        "cd /sys/bus/pci/devices; for d in */sriov_totalvfs; do readlink ${d%/*}/iommu_group; done"
    ).stdout.split()
    assert len(set(groups)) == 3, groups


def test_systemd_is_running(guest: Guest) -> None:
    state = guest.run("systemctl is-system-running", check=False).stdout.strip()
    assert state == "running", guest.run("systemctl --failed --no-legend --plain").stdout


def test_busctl_talks_to_the_system_bus(guest: Guest) -> None:
    answer = guest.run("busctl call org.freedesktop.DBus /org/freedesktop/DBus org.freedesktop.DBus GetId")
    assert answer.stdout.startswith('s "')


def test_work_tree_is_installed(guest: Guest) -> None:
    assert guest.run("command -v sriovd").stdout.strip() == "/usr/sbin/sriovd"
    assert guest.run("systemctl show --property=LoadState --value sriovd.service").stdout.strip() == "loaded"


def test_device_can_be_plugged_and_unplugged(guest: Guest) -> None:
    (port,) = guest.layout.empty_ports()
    before = igb_count(guest)
    guest.plug("igb", "plugged", port)
    wait_until(lambda: igb_count(guest) == before + 1, 30.0, "a third igb PF")
    guest.unplug("plugged")
    wait_until(lambda: igb_count(guest) == before, 30.0, "the third igb PF to go")


def test_unknown_device_is_refused_by_name(guest: Guest) -> None:
    with pytest.raises(RequestFailed, match=r"GenericError.*no-such-device"):
        guest.plug("no-such-device", "plugged", "rp4")


def test_command_past_its_deadline_is_killed(guest: Guest) -> None:
    with pytest.raises(CommandFailed, match="did not end in time"):
        guest.run("sleep 1000", timeout_s=0.5)
    assert guest.run("pgrep -fx 'sleep 1000'", check=False).status == 1


def test_files_larger_than_a_chunk_travel(guest: Guest) -> None:
    data = bytes(range(256)) * 10_000  # 2.5 MB: more than two requests each way
    guest.put("/run/lab-test/file", data)
    assert guest.get("/run/lab-test/file") == data


def test_logs_are_collected(guest: Guest, tmp_path: Path) -> None:
    guest.run("logger --tag lab-test 'a line to find again'")
    guest.collect(tmp_path)
    assert "lab-test" in (tmp_path / "journal.txt").read_text()
    entries = [json.loads(line) for line in (tmp_path / "journal.json").read_text().splitlines()]
    assert any(entry.get("MESSAGE") == "a line to find again" for entry in entries)
    assert "Linux version" in (tmp_path / "dmesg.txt").read_text()
    assert {"serial.log", "qemu.log"} <= {path.name for path in tmp_path.iterdir()}


def test_switch_layout_boots(boot_guest: Callable[[str], Guest]) -> None:
    guest = boot_guest("switch")
    assert total_vfs_of_pfs(guest) == {IGB_PF_ID: [Igb.vfs, Igb.vfs]}
    ports = guest.run("cat /sys/bus/pci/drivers/pcieport/0000:*/device").stdout.split()
    assert sorted(set(ports) & {"0x8232", "0x8233"}) == [
        "0x8232",
        "0x8233",
    ]  # x3130 upstream, xio3130 downstream
