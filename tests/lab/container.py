"""A tenant's container inside the guest: podman, an image that is made there, and devices by CDI.

Rule of this module: nothing comes from a network and nothing is given to a container but what a CDI device
says. The format: https://github.com/cncf-tags/container-device-interface, SPEC.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.lab.guest import Guest, Result

IMAGE = "localhost/tenant"
CDI_FOLDER = "/run/cdi"
CDI_VERSION = "0.3.0"
RUN_TIMEOUT_S = 60.0
MAKE_IMAGE = f"""
podman image exists {IMAGE} && exit
set -e
root=$(mktemp -d)
trap 'rm -rf $root' EXIT
mkdir $root/bin $root/dev $root/proc $root/sys
cp /bin/busybox $root/bin
for name in sh ls cat env find; do ln -s busybox $root/bin/$name; done
tar -C $root -c . | podman import --quiet - {IMAGE}
"""


def make_image(guest: Guest) -> None:
    """An image with busybox and nothing else, once per guest."""
    guest.run(MAKE_IMAGE, timeout_s=RUN_TIMEOUT_S)


def cdi_spec(
    kind: str, name: str, nodes: Sequence[str], environment: Mapping[str, str], version: str = CDI_VERSION
) -> dict[str, Any]:
    """One device `kind`=`name` that brings device nodes and variables into a container."""
    edits = {
        "deviceNodes": [{"path": node} for node in nodes],
        "env": [f"{key}={value}" for key, value in environment.items()],
    }
    return {"cdiVersion": version, "kind": kind, "devices": [{"name": name, "containerEdits": edits}]}


def write_cdi(guest: Guest, file: str, content: Mapping[str, Any] | str) -> None:
    """A CDI file by its name; a string is written as it stands."""
    text = content if isinstance(content, str) else json.dumps(content)
    guest.put(f"{CDI_FOLDER}/{file}", text.encode())


def run_container(guest: Guest, device: str, script: str) -> Result:
    """Runs a shell script in a container with the CDI device VENDOR/CLASS=NAME, as root, without network.

    The Result is the script's, or podman's with status 125 or 126 when it did not run.
    """
    argv = ["podman", "run", "--rm", "--network=none", f"--device={device}", IMAGE, "/bin/sh", "-c", script]
    return guest.run(argv, timeout_s=RUN_TIMEOUT_S, check=False)
