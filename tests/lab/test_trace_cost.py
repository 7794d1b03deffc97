"""What tracing costs on a real kernel: 120 VFs, all leased, that are bound while they are traced."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest

from tests.lab.client import NVME, Client

COUNT = 120
ROUNDS = 5
LIMIT = 1.05
PROGRAMS = ("tracing.py", "binding.py")


@pytest.mark.timeout(600)
def test_120_traced_vfs_are_bound_as_quickly(client: Client) -> None:
    """By the median of the rounds that are traced, and of those that are not; they take turns in one boot.
    udev runs meanwhile."""
    client.set_num_vfs(NVME, COUNT)
    for name in PROGRAMS:
        client.guest.put(f"/run/cost/tests/lab/{name}", Path(__file__).with_name(name).read_bytes())
    command = ["env", "-C", "/run/cost", "python3", "-m", "tests.lab.binding", NVME, str(ROUNDS)]
    *lines, records = client.guest.run(command, timeout_s=400.0).stdout.splitlines()
    rounds = [[float(word) for word in line.split()] for line in lines]
    untraced, traced = ([sum(each[at : at + 2]) for each in rounds] for at in (0, 3))
    ratio = statistics.median(traced) / statistics.median(untraced)
    quickest = min(traced) / min(untraced)
    cpu = [each[5] / each[2] for each in rounds]
    print(*(f"untraced {each[:3]}, traced {each[3:]}" for each in rounds), sep="\n")
    print(f"{COUNT} VFs traced / untraced: {ratio:.3f}; by the quickest rounds {quickest:.3f}")
    print(f"{records} records a round; CPU time of the daemon's process: {statistics.median(cpu):.3f}")
    print("load of the machine around the guest:", *(f"{each:.2f}" for each in os.getloadavg()))
    assert int(records) >= COUNT * 2 * 4
    assert ratio <= LIMIT
