"""Adapters are brought up side by side: all together in the time of the slowest."""

from __future__ import annotations

from pathlib import Path

from tests.lab.client import Client
from tests.lab.desired import COUNTS, SITE, policy_file

GOAL, LIMIT = 1.2, 1.5  # of the slowest adapter alone
ROUNDS = 3
REPORT = SITE.replace('driver = "vfio-pci"', 'driver = "vfio-pci"\nrepair = "report"')


def measure(client: Client, *pfs: str) -> float:
    """Seconds of Apply for these PFs, from no VFs."""
    return float(client.guest.run(["python3", "/root/applying.py", *pfs], timeout_s=180.0).stdout)


def test_all_take_as_long_as_the_slowest(client: Client) -> None:
    """By the sums of alternating rounds in one boot.

    Kernels 6.1 to 7.2 make VFs under one lock for the whole host, so what can be side by side is the rest:
    attributes and binds. The limit is what holds on an emulated machine with neighbours; the goal is the
    one that is printed beside the figure.
    """
    client.guest.put("/root/applying.py", Path(__file__).with_name("applying.py").read_bytes())
    alone: dict[str, list[float]] = {pf: [] for pf in COUNTS}
    together: list[float] = []
    with policy_file(client, REPORT):
        for _ in range(ROUNDS):
            for pf, seconds in alone.items():
                seconds.append(measure(client, pf))
            together.append(measure(client, *COUNTS))
    ratio = sum(together) / slowest(alone)
    print(f"together / slowest = {ratio:.2f} (the goal is {GOAL}): {together} / {alone}")
    assert ratio <= LIMIT, (together, alone)


def slowest(alone: dict[str, list[float]]) -> float:
    """The sum of the adapter that takes longest."""
    return max(sum(seconds) for seconds in alone.values())
