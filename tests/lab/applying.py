"""Runs in the guest: how long Apply takes for some PFs. Standard library only.

python3 applying.py PF...    prints the seconds of one Apply by busctl; the VFs go again
"""

from __future__ import annotations

import subprocess
import sys
import time

MANAGER = ("org.sriovd1", "/org/sriovd1", "org.sriovd1.Manager")


def ask(*words: str) -> None:
    subprocess.run(["busctl", "--quiet", "--timeout=100", "call", *MANAGER, *words], check=True)


def main(*pfs: str) -> None:
    began = time.monotonic()
    options = ["2", "functions", "as", str(len(pfs)), *pfs, "wait-usec", "t", "90000000"]
    ask("Apply", "sa{sv}", "", *options)
    seconds = time.monotonic() - began
    for pf in pfs:
        ask("SetNumVFs", "sua{sv}", pf, "0", "0")
    subprocess.run(["udevadm", "settle"], check=True)
    print(f"{seconds:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
