"""A container with a VF's VFIO group, by a CDI file that the test writes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.lab.client import FUNCTION, IGB0, Client, function_path
from tests.lab.container import CDI_FOLDER, cdi_spec, make_image, run_container, write_cdi

VF = "0000:01:10.0"
KIND, NAME = "sriovd.org/vf", "lease-1"
# What podman gives every container anyway.
USUAL_NODES = {"console", "full", "null", "pts/ptmx", "random", "tty", "urandom", "zero"}
LOOK = "find /dev -type c; echo opening; : <>/dev/vfio/$GROUP && echo opened"


@pytest.fixture
def group(client: Client) -> Iterator[int]:
    """The IOMMU group of a VF on vfio-pci. Afterwards no CDI file is left."""
    make_image(client.guest)
    client.set_num_vfs(IGB0, 2, driver="vfio-pci")
    yield int(client.get(function_path(VF), FUNCTION, "IOMMUGroup"))
    client.guest.run(f"rm -rf {CDI_FOLDER}")


def test_container_gets_the_nodes_of_its_device_and_no_others(client: Client, group: int) -> None:
    guest = client.guest
    nodes = ["/dev/vfio/vfio", f"/dev/vfio/{group}"]
    write_cdi(guest, "sriovd.json", cdi_spec(KIND, NAME, nodes, {"GROUP": str(group)}))
    began = time.monotonic()
    result = run_container(guest, f"{KIND}={NAME}", LOOK).check()
    print(f"podman run: {time.monotonic() - began:.1f} s")
    found = {line for line in result.stdout.splitlines() if line.startswith("/dev/vfio")}
    others = {line.removeprefix("/dev/") for line in result.stdout.splitlines() if line.startswith("/dev/")}
    assert found == set(nodes)
    assert others - USUAL_NODES == {node.removeprefix("/dev/") for node in nodes}
    assert "opened" in result.stdout
    other_group = next(
        name for name in guest.run("ls /dev/vfio").stdout.split() if name not in ("vfio", str(group))
    )
    assert f"/dev/vfio/{other_group}" not in result.stdout


def test_unknown_device_is_refused_by_name(client: Client, group: int) -> None:
    write_cdi(client.guest, "sriovd.json", cdi_spec(KIND, NAME, ["/dev/vfio/vfio"], {}))
    result = run_container(client.guest, f"{KIND}=lease-2", "true")
    assert result.status in (125, 126)
    assert f"{KIND}=lease-2" in result.stderr


def test_invalid_file_beside_does_not_disturb(client: Client, group: int) -> None:
    """A file that somebody else broke takes away its own devices only."""
    guest = client.guest
    write_cdi(guest, "broken.json", "{")
    write_cdi(guest, "sriovd.json", cdi_spec(KIND, NAME, [f"/dev/vfio/{group}"], {"GROUP": str(group)}))
    result = run_container(guest, f"{KIND}={NAME}", LOOK)
    assert "opened" in result.stdout, result
