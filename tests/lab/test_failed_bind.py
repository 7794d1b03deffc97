"""A bind that fails leaves the original driver and override: an NVMe VF without resources refuses nvme."""

from __future__ import annotations

import pytest

from tests.lab.client import NVME, Client

VF = "0000:03:00.1"


def override(client: Client) -> str:
    return client.guest.run(f"cat /sys/bus/pci/devices/{VF}/driver_override").stdout.strip()


@pytest.mark.parametrize("original", ["", "vfio-pci"])
@pytest.mark.parametrize("wanted", ["nvme", "default"])
def test_driver_and_override_are_as_they_were(client: Client, original: str, wanted: str) -> None:
    client.set_num_vfs(NVME, 1)
    if original:
        client.bind(VF, original)
    refusal = client.refused("Bind", "ssa{sv}", VF, wanted, 0)
    assert refusal.name == "BindFailed", refusal
    assert VF in refusal.text
    assert client.functions()[VF] == original
    assert override(client) == (original or "(null)")
    assert client.bind(VF, "pci-stub")[1] == "done"  # and it can be asked for the next thing


def test_one_that_fails_takes_all_others_back(client: Client) -> None:
    client.set_num_vfs(NVME, 3)
    client.bind_vfs(NVME, "pci-stub")
    refusal = client.refused("BindVFs", "ssa{sv}", NVME, "nvme", 0)
    assert refusal.name == "BindFailed", refusal
    assert set(client.vfs(NVME).values()) == {"pci-stub"}


def test_vfs_that_cannot_be_bound_are_not_left_behind(client: Client) -> None:
    refusal = client.refused("SetNumVFs", "sua{sv}", NVME, 3, 1, "driver", "s", "nvme")
    assert refusal.name == "BindFailed", refusal
    assert client.vfs(NVME) == {}
