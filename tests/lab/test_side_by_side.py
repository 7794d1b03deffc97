"""Adapters are brought up side by side: all together in the time of the slowest, and what the kernel's own
lock adds to it."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from tests.lab.client import IGB0, NVME, Client
from tests.lab.desired import COUNTS, SITE, policy_file
from tests.lab.trace import WriteTrace

FACTOR = 1.2
ROUNDS = 3
REPORT = SITE.replace('driver = "vfio-pci"', 'driver = "vfio-pci"\nrepair = "report"')
AT_THE_UNITS_WEIGHT = ("systemd-run", "--quiet", "--pipe", "--wait", "--property=CPUWeight=1000")
COMMAND = ("env", "PYTHONPATH=/root", "python3", "-m", "tests.lab.applying")


def measure(client: Client, means: str, *pfs: str) -> float:
    """Seconds until these PFs are as the policy says, from no VFs."""
    before = AT_THE_UNITS_WEIGHT if means == "by-hand" else ()
    command = [*before, *COMMAND, means, *pfs]
    return float(client.guest.run(command, timeout_s=180.0).stdout)


def test_no_adapter_waits_for_another(client: Client) -> None:
    """Every PF's VFs are asked for before the first VF of any is bound, as the kernel sees it."""
    put_scripts(client)
    with policy_file(client, REPORT), WriteTrace(client.guest) as trace:
        measure(client, "sriovd", *COUNTS)
        targets = [write.target for write in trace.writes()]
    first_bind = next(place for place, target in enumerate(targets) if target.endswith("/bind"))
    for pf in COUNTS:
        assert targets.index(f"{pf}/sriov_numvfs") < first_bind, targets


def test_all_take_as_long_as_the_slowest(client: Client) -> None:
    """By the medians of alternating rounds in one boot.

    Kernels of 2025-26 hold one lock of the whole host while a PF driver makes its VFs
    (drivers/pci/pci-sysfs.c sriov_numvfs_store, pci_lock_rescan_remove), igb's reset of 0.35 s and the 0.1 s
    that the specification wants included. So nobody brings these three up in the time of the slowest: the
    fewest writes, from three threads, take 1.5 to 1.7 of it. What that lock costs by hand, in the same boot,
    is what all together may take longer than the slowest; both ratios are printed.
    """
    put_scripts(client)
    alone: dict[str, list[float]] = {IGB0: [], NVME: []}  # the second igb PF is like the first
    together: list[float] = []
    by_hand: dict[str, list[float]] = {"alone": [], "together": []}
    with policy_file(client, REPORT):
        for _ in range(ROUNDS):
            for pf, seconds in alone.items():
                seconds.append(measure(client, "sriovd", pf))
            together.append(measure(client, "sriovd", *COUNTS))
            by_hand["alone"].append(measure(client, "by-hand", NVME))
            by_hand["together"].append(measure(client, "by-hand", *COUNTS))
    slowest, whole = max(map(median, alone.values())), median(together)
    hand_alone, hand_whole = median(by_hand["alone"]), median(by_hand["together"])
    allowed = slowest + max(hand_whole - hand_alone, 0.0)
    print(f"together / slowest = {whole / slowest:.2f}, by hand {hand_whole / hand_alone:.2f}")
    print(f"together / (slowest + what the lock costs by hand) = {whole / allowed:.2f}")
    assert whole <= FACTOR * allowed, (together, alone, by_hand)


def put_scripts(client: Client) -> None:
    for script in ("applying.py", "bringup.py"):
        client.guest.put(f"/root/tests/lab/{script}", Path(__file__).with_name(script).read_bytes())
