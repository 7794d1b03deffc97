"""make demo: sriovd on a simulated host tells its story. Each step is a command that a user would type, and
its real output; the story ends with an error if a step goes other than told."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

SERVICE = "org.sriovd1"
MANAGER = f"busctl call {SERVICE} /org/sriovd1 {SERVICE}.Manager"
SIMULATOR = f"busctl call {SERVICE} /org/sriovd1/simulator {SERVICE}.Simulator"
PF = "/org/sriovd1/function/_0000_01_00_0"
VF = "/org/sriovd1/function/_0000_01_10_0"


@dataclass(frozen=True)
class Step:
    """`says`: what the output must contain. `fails`: whether a refusal is the point."""

    title: str
    command: str
    says: str
    fails: bool = False


POLICY = """\
[match]
address = "0000:02:00.*"
[functions]
num-vfs = 4
driver = "vfio-pci"
[vf.defaults]
vlan = 100
"""
STORY = (
    Step(
        "What is there? Two NICs, an NVMe drive and an accelerator, found by capability.",
        f"busctl tree {SERVICE}",
        "_0000_01_00_0",
    ),
    Step(
        "One of the NICs in detail.",
        f"busctl introspect {SERVICE} {PF} {SERVICE}.PhysicalFunction",
        ".SetNumVFs",
    ),
    Step(
        "Four VFs, bound to vfio-pci, ready for virtual machines; no other driver came near them.",
        f"{MANAGER} SetNumVFs 'sua{{sv}}' 0000:01:00.0 4 1 driver s vfio-pci",
        '"done"',
    ),
    Step(
        "The first VF as its user sees it.",
        f"busctl introspect {SERVICE} {VF} {SERVICE}.Function",
        '"vfio-pci"',
    ),
    Step(
        "More VFs than there can be: a refusal that says what would be right.",
        f"{MANAGER} SetNumVFs 'sua{{sv}}' 0000:01:00.0 9 0",
        "allows 7",
        fails=True,
    ),
    Step(
        "Another number while VFs exist: the kernel cannot, and sriovd destroys nothing by itself.",
        f"{MANAGER} SetNumVFs 'sua{{sv}}' 0000:01:00.0 2 0",
        "Set 0 VFs first",
        fails=True,
    ),
    Step(
        "A virtual machine takes the VF (the simulated host plays it) ...",
        f"{SIMULATOR} OpenDevice sus 0000:01:10.0 4711 qemu",
        "",
    ),
    Step(
        "... and nobody pulls it away from under it.",
        f"{MANAGER} Bind 'ssa{{sv}}' 0000:01:10.0 default 0",
        "qemu (pid 4711)",
        fails=True,
    ),
    Step(
        "It ends; now the VF goes back to the host's own driver.",
        f"{SIMULATOR} CloseDevice s 0000:01:10.0",
        "",
    ),
    Step("", f"{MANAGER} Bind 'ssa{{sv}}' 0000:01:10.0 default 0", '"done"'),
    Step(
        "",
        f"busctl get-property {SERVICE} {VF} {SERVICE}.Function Driver NetworkInterfaces",
        '"igbvf"',
    ),
    Step(
        "A driver that fails: the VF gets its old driver back.",
        f"{SIMULATOR} InjectFault 'ssa{{sv}}' bind 0000:01:10.2 2 errno s EIO times u 1",
        "",
    ),
    Step("", f"{MANAGER} Bind 'ssa{{sv}}' 0000:01:10.2 pci-stub 0", "EIO", fails=True),
    Step(
        "",
        f"busctl get-property {SERVICE} /org/sriovd1/function/_0000_01_10_2 {SERVICE}.Function Driver",
        '"vfio-pci"',
    ),
    Step(
        "120 NVMe VFs in one call, bound.",
        f"{MANAGER} SetNumVFs 'sua{{sv}}' 0000:03:00.0 120 1 driver s pci-stub",
        '"done"',
    ),
    Step(
        "A policy file says what the other NIC shall look like.",
        f"cat > $POLICY/nic.toml <<'END'\n{POLICY}END\n"
        f"{MANAGER} Reload 'a{{sv}}' 0 && {MANAGER} Apply 'sa{{sv}}' '' 0",
        '"done"',
    ),
    Step(
        "Its VFs have a VLAN, and addresses that are theirs for ever.",
        f"{MANAGER} GetVFAttributes s 0000:02:10.0",
        '"vlan" u 100',
    ),
    Step(
        "Somebody changes that by hand; it is put right.",
        f"{SIMULATOR} SetVFAttribute ss 0000:02:00.0 '0 vlan 55 0 802.1Q'\n{MANAGER} Apply 'sa{{sv}}' '' 0",
        '"done"',
    ),
    Step("", f"{MANAGER} GetVFAttributes s 0000:02:10.0", '"vlan" u 100'),
    Step(
        "A lease: one of these VFs, for an owner, until it is released.",
        f"{MANAGER} Lease 'sa{{sv}}' vm-17 1 pf s 0000:02:00.0",
        '"active"',
    ),
    Step(
        "Its policy and its lease protect it.",
        f"{MANAGER} SetNumVFs 'sua{{sv}}' 0000:02:00.0 0 0",
        "wants 4 VFs",
        fails=True,
    ),
    Step("", f"{MANAGER} Release 'tsa{{sv}}' 1 vm-17 0", '"done"'),
)


@contextmanager
def daemon(policy: str) -> Iterator[str]:
    """sriovd on a simulated host and a private bus, with policy files in the directory `policy`; gives the
    bus's address."""
    options = ["--simulated", "--private-bus", "--log-level", "error", "--policy", policy]
    process = subprocess.Popen(
        [sys.executable, "-m", "sriovd", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("Bus address: "):
                yield line.removeprefix("Bus address: ").strip()
                return
        raise SystemExit("sriovd did not start")
    finally:
        process.terminate()
        process.wait(timeout=10)


def play(step: Step, environment: dict[str, str]) -> bool:
    """Run one step and show it; whether it went as told."""
    if step.title:
        print(f"\n\033[1m# {step.title}\033[0m")
    print(f"$ {step.command}")
    done = subprocess.run(
        step.command, shell=True, env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    output = done.stdout + done.stderr
    print(output.rstrip())
    return step.says in output and (done.returncode != 0) == step.fails


def wait_for_name(environment: dict[str, str]) -> None:
    """Until sriovd has its name on the bus."""
    deadline = time.monotonic() + 15
    while subprocess.run(
        ["busctl", "call", SERVICE, "/org/sriovd1", "org.freedesktop.DBus.Peer", "Ping"],
        env=environment,
        capture_output=True,
        check=False,
    ).returncode:
        if time.monotonic() > deadline:
            raise SystemExit("sriovd did not come to the bus")
        time.sleep(0.05)


def main() -> int:
    """Tell the story; 1 if it went wrong."""
    with tempfile.TemporaryDirectory(prefix="sriovd-demo-") as policy, daemon(policy) as address:
        environment = {
            **os.environ, "DBUS_SYSTEM_BUS_ADDRESS": address, "SYSTEMD_PAGER": "cat", "POLICY": policy
        }  # fmt: skip
        wait_for_name(environment)
        for step in STORY:
            if not play(step, environment):
                print(f"This did not go as told: expected {step.says!r}.")
                return 1
    print("\nThat was sriovd. The same on a real kernel: make lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
