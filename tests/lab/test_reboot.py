"""What is there again after the host was rebooted: what policy says, and leases."""

from __future__ import annotations

from tests.lab.client import IGB0, IGB1, NAME, NVME, Client, kernel_vfs
from tests.lab.desired import assert_as_the_site_says, link_vfs, policy_file, wait_in_sync

OWNER = "orchestrator"


def link_addresses(client: Client) -> dict[str, list[str]]:
    """The MAC addresses of the igbs' VFs, by index."""
    return {pf: [vf["address"] for vf in link_vfs(client.guest, pf)] for pf in (IGB0, IGB1)}


def test_after_a_boot_the_host_is_as_before(client: Client) -> None:
    guest = client.guest
    with policy_file(client):
        wait_in_sync(client)
        leases = []
        for pf, index in ((IGB1, 2), (NVME, 7)):
            vf = list(kernel_vfs(guest, pf))[index]
            path, function, _ = client.ask("Lease", "sa{sv}", OWNER, 1, "address", "s", vf)
            leases.append((path, function))
        addresses = link_addresses(client)
        guest.run("systemctl enable sriovd", timeout_s=60.0)
        try:
            guest.reboot()
            wait_in_sync(client)
            assert_as_the_site_says(guest)
            assert link_addresses(client) == addresses
            for path, function in leases:
                assert client.get(path, f"{NAME}.Lease", "State") == "active"
                assert client.get(path, f"{NAME}.Lease", "Function") == function
                client.call(path, f"{NAME}.Lease", "Release", "sa{sv}", OWNER, 0)
        finally:
            guest.run("systemctl disable sriovd", timeout_s=60.0)
