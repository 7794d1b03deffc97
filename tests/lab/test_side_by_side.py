"""Adapters are brought up side by side: all together in the time of the slowest."""

from __future__ import annotations

from pathlib import Path

from tests.lab.client import Client
from tests.lab.desired import COUNTS, SITE, policy_file

LIMIT = 1.2  # of the slowest adapter alone
ROUNDS_AT_LEAST, ROUNDS_AT_MOST = 3, 8
REPORT = SITE.replace('driver = "vfio-pci"', 'driver = "vfio-pci"\nrepair = "report"')


def measure(client: Client, *pfs: str) -> float:
    """Seconds of Apply for these PFs, from no VFs."""
    return float(client.guest.run(["python3", "/root/applying.py", *pfs], timeout_s=180.0).stdout)


def test_all_take_as_long_as_the_slowest(client: Client) -> None:
    """By the sums of alternating rounds in one boot; they go on until within the limit, as in test_nvme.py.

    Kernels 6.1 to 7.2 make VFs under one lock for the whole host, so what can be side by side is the rest:
    attributes and binds.
    """
    client.guest.put("/root/applying.py", Path(__file__).with_name("applying.py").read_bytes())
    alone: dict[str, list[float]] = {pf: [] for pf in COUNTS}
    together: list[float] = []
    with policy_file(client, REPORT):
        while len(together) < ROUNDS_AT_LEAST or (
            len(together) < ROUNDS_AT_MOST and sum(together) > LIMIT * slowest(alone)
        ):
            for pf, seconds in alone.items():
                seconds.append(measure(client, pf))
            together.append(measure(client, *COUNTS))
    print(f"together / slowest = {sum(together) / slowest(alone):.2f}: {together} / {alone}")
    assert sum(together) <= LIMIT * slowest(alone), (together, alone)


def slowest(alone: dict[str, list[float]]) -> float:
    """The sum of the adapter that takes longest."""
    return max(sum(seconds) for seconds in alone.values())
