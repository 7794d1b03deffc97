"""Two orchestrators lease side by side, and a program that dies with its lease."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

from tests.lab.client import FUNCTION, IGB0, IGB1, NAME, Client
from tests.lab.trace import WriteTrace
from tests.lab.waiting import wait_until

LEASES = int(os.environ.get("LAB_LEASES", "60"))
AT_ONCE = 4
SCRIPT = "/root/orchestrator.py"


def test_never_the_same_vf_twice(client: Client) -> None:
    guest = client.guest
    guest.put(SCRIPT, Path(__file__).with_name("orchestrator.py").read_bytes())
    for pf in (IGB0, IGB1):
        client.set_num_vfs(pf, 7, driver="vfio-pci")
    began = time.monotonic()
    running = [
        guest.start(["python3", SCRIPT, owner, str(LEASES // 2), str(AT_ONCE)], timeout_s=500.0)
        for owner in ("one", "two")
    ]
    lines = [line.split() for each in running for line in each.wait().check().stdout.splitlines()]
    print(f"{LEASES} leases in {time.monotonic() - began:.1f} s")
    assert len(lines) == LEASES
    spans: dict[str, list[tuple[float, float]]] = {}
    for vf, first, last in lines:
        spans.setdefault(vf, []).append((float(first), float(last)))
    for vf, own in spans.items():
        own.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(own)), vf
    print(f"{len(spans)} VFs were leased, {min(map(len, spans.values()))} times at least")
    for pf in (IGB0, IGB1):
        assert set(client.vfs(pf).values()) == {"vfio-pci"}
    assert guest.run("busctl --list tree org.sriovd1 | grep -c /lease/ || true").stdout.strip() == "0"


def test_lease_ends_with_its_owner(client: Client) -> None:
    guest = client.guest
    guest.put(SCRIPT, Path(__file__).with_name("orchestrator.py").read_bytes())
    client.set_num_vfs(IGB0, 2, driver="vfio-pci")
    owner = guest.start(["python3", SCRIPT, "program", "hold"], timeout_s=120.0)
    said = wait_until(lambda: owner.output().stdout, 60.0, "the lease")
    vf_path = said.split()[0]
    address = client.get(vf_path, FUNCTION, "Address")
    assert "program" in client.refused("Reset", "sa{sv}", address, 0).text
    guest.run("systemctl restart sriovd", timeout_s=60.0)  # its end of the descriptor outlives the daemon
    (path,) = guest.run("busctl --list tree org.sriovd1 | grep /lease/").stdout.split()
    assert client.get(path, f"{NAME}.Lease", "State") == "active"
    with WriteTrace(guest) as trace:
        owner.signal(signal.SIGKILL)
        wait_until(
            lambda: not guest.run("busctl --list tree org.sriovd1 | grep /lease/ || true").stdout,
            30.0,
            "the lease's end",
        )
        assert f"{address}/reset" in [write.target for write in trace.writes()]
    client.ask("Reset", "sa{sv}", address, 0)  # nobody's any more
