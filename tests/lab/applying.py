"""Runs in the guest: how long it takes to bring several PFs up, by different means. Standard library only.

    PYTHONPATH=/root python3 -m tests.lab.applying MEANS PF...

prints the seconds until each PF is as tests/lab/desired.py SITE says; the VFs go again, untimed. MEANS:
`sriovd`, one Apply by busctl; `by-hand`, sriovd stopped, and for each PF a thread with the fewest writes
that do it and one `ip -batch`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from threading import Thread

from tests.lab.bringup import DEVICES, check_bound, clean_up, list_vfs, make_vfs, settle, write

MANAGER = ("org.sriovd1", "/org/sriovd1", "org.sriovd1.Manager")
DRIVER = "vfio-pci"


def apply(pfs: list[str]) -> None:
    options = ["2", "functions", "as", str(len(pfs)), *pfs, "wait-usec", "t", "90000000"]
    command = ["busctl", "--quiet", "--timeout=100", "call", *MANAGER, "Apply", "sa{sv}", "", *options]
    subprocess.run(command, check=True)


def by_hand(pfs: list[str]) -> None:
    threads = [Thread(target=bring_up, args=(pf,)) for pf in pfs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def bring_up(pf: str) -> None:
    make_vfs(pf, count_of(pf))
    set_attributes(pf)
    for vf in list_vfs(pf):
        write(f"{DEVICES}/{vf}/driver_override", DRIVER)
        write("/sys/bus/pci/drivers_probe", vf)


def count_of(pf: str) -> int:
    return 7 if has_interface(pf) else 120


def has_interface(pf: str) -> bool:
    return os.path.isdir(f"{DEVICES}/{pf}/net")


def set_attributes(pf: str) -> None:
    if not has_interface(pf):
        return
    (name,) = os.listdir(f"{DEVICES}/{pf}/net")
    octets = pf[5:10]  # another address for each PF
    lines = [
        f"link set {name} vf {index} mac 02:01:{octets}:00:{index:02x} spoofchk on trust off"
        + (" vlan 100 qos 3" if index <= 3 else "")
        for index in range(count_of(pf))
    ]
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


MEANS: dict[str, Callable[[list[str]], None]] = {"sriovd": apply, "by-hand": by_hand}


def main(means: str, *pfs: str) -> None:
    subprocess.run(["systemctl", "start" if means == "sriovd" else "stop", "sriovd"], check=True)
    settle()
    began = time.monotonic()
    MEANS[means](list(pfs))
    seconds = time.monotonic() - began
    for pf in pfs:
        check_bound(pf, count_of(pf), DRIVER)
    for pf in pfs:
        clean_up(pf)
    print(f"{seconds:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
