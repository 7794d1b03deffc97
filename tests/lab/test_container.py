"""A container with a leased VF, by the CDI name of the lease and nothing else."""

from __future__ import annotations

import json

from tests.lab.client import IGB0, NAME, Client
from tests.lab.container import CDI_FOLDER, make_image, run_container

LOOK = "env; find /dev/vfio; group=$(ls /dev/vfio | grep -v vfio); : <>/dev/vfio/$group && echo opened"


def test_podman_starts_a_container_with_a_leased_vf(client: Client) -> None:
    guest = client.guest
    make_image(guest)
    client.set_num_vfs(IGB0, 2, driver="vfio-pci")
    lease, function, state = client.ask("Lease", "sa{sv}", "container-1", 1, "pf", "s", IGB0)
    assert state == "active"
    device = client.get(lease, f"{NAME}.Lease", "CDIDevice")
    address = client.get(function, f"{NAME}.Function", "Address")
    group = client.get(function, f"{NAME}.Function", "IOMMUGroup")
    (file,) = guest.run(f"ls {CDI_FOLDER}").stdout.split()
    assert json.loads(guest.run(f"cat {CDI_FOLDER}/{file}").stdout)["cdiVersion"] == "0.3.0"
    output = run_container(guest, device, LOOK).check().stdout
    assert f"SRIOVD_VF={address}" in output
    assert {line for line in output.splitlines() if line.startswith("/dev/vfio/")} == {
        "/dev/vfio/vfio",
        f"/dev/vfio/{group}",
    }
    assert "opened" in output
    number = int(lease.rpartition("/")[2])
    client.ask("Release", "tsa{sv}", number, "container-1", 0)
    assert guest.run(f"ls {CDI_FOLDER}").stdout == ""
    assert run_container(guest, device, "true").status in (125, 126)
