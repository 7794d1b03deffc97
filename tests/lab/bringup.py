"""Runs in the guest: how long it takes to make VFs and bind them, by different means. Standard library only.

    python3 bringup.py MEANS PF COUNT DRIVER

prints the seconds from the first write, or the start of the command, until the last VF is bound. MEANS:
`floor`, one process with the fewest writes that do it; `sriovd`, one call with busctl; `shell`, the loop
that people put into boot scripts; `driverctl`. VFs are destroyed again, untimed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable

DEVICES = "/sys/bus/pci/devices"
SHELL_LOOP = """
echo 0 > $1/sriov_drivers_autoprobe
echo $2 > $1/sriov_numvfs
for link in $1/virtfn*; do
    vf=$(basename $(readlink $link))
    echo $3 > $link/driver_override
    echo $vf > /sys/bus/pci/drivers_probe
done
"""


def write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def list_vfs(pf: str) -> list[str]:
    directory = f"{DEVICES}/{pf}"
    links = sorted(
        (name for name in os.listdir(directory) if name.startswith("virtfn")), key=lambda n: int(n[6:])
    )
    return [os.path.basename(os.readlink(f"{directory}/{link}")) for link in links]


def make_vfs(pf: str, count: int) -> None:
    write(f"{DEVICES}/{pf}/sriov_drivers_autoprobe", "0")
    write(f"{DEVICES}/{pf}/sriov_numvfs", str(count))


def floor(pf: str, count: int, driver: str) -> None:
    """sriov_drivers_autoprobe, sriov_numvfs, and for each VF driver_override and drivers_probe."""
    make_vfs(pf, count)
    for vf in list_vfs(pf):
        write(f"{DEVICES}/{vf}/driver_override", driver)
        write("/sys/bus/pci/drivers_probe", vf)


def sriovd(pf: str, count: int, driver: str) -> None:
    manager = ["busctl", "call", "org.sriovd1", "/org/sriovd1", "org.sriovd1.Manager"]
    request = ["SetNumVFs", "sua{sv}", pf, str(count), "1", "driver", "s", driver]
    subprocess.run([*manager, *request], check=True, stdout=subprocess.DEVNULL)


def shell(pf: str, count: int, driver: str) -> None:
    subprocess.run(["sh", "-ec", SHELL_LOOP, "sh", f"{DEVICES}/{pf}", str(count), driver], check=True)


def driverctl(pf: str, count: int, driver: str) -> None:
    make_vfs(pf, count)
    for vf in list_vfs(pf):
        subprocess.run(["driverctl", "--nosave", "set-override", vf, driver], check=True)


MEANS: dict[str, Callable[[str, int, str], None]] = {
    "floor": floor,
    "sriovd": sriovd,
    "shell": shell,
    "driverctl": driverctl,
}


def settle() -> None:
    """Let udev finish, so that one measurement does not pay for another."""
    subprocess.run(["udevadm", "settle"], check=True)


def check_bound(pf: str, count: int, driver: str) -> None:
    bound = [os.path.basename(os.readlink(f"{DEVICES}/{vf}/driver")) for vf in list_vfs(pf)]
    assert bound == [driver] * count, bound


def clean_up(pf: str) -> None:
    """Destroy the VFs the way they were made, so that sriovd's picture needs no catching up."""
    write(f"{DEVICES}/{pf}/sriov_numvfs", "0")
    write(f"{DEVICES}/{pf}/sriov_drivers_autoprobe", "1")
    settle()


def forget_ids(pf: str, driver: str) -> None:
    """driverctl gives the driver the VFs' ids for ever (new_id): it would be the default of all to come."""
    directory = f"{DEVICES}/{pf}"
    with open(f"{directory}/vendor") as vendor, open(f"{directory}/sriov_vf_device") as device:
        ids = f"{vendor.read().strip().removeprefix('0x')} {device.read().strip()}"
    with contextlib.suppress(OSError):  # ENODEV: it had not been given them
        write(f"/sys/bus/pci/drivers/{driver}/remove_id", ids)


def main(means: str, pf: str, count_text: str, driver: str) -> None:
    count = int(count_text)
    subprocess.run(["systemctl", "start" if means == "sriovd" else "stop", "sriovd"], check=True)
    settle()
    began = time.monotonic()
    MEANS[means](pf, count, driver)
    seconds = time.monotonic() - began
    check_bound(pf, count, driver)
    clean_up(pf)
    forget_ids(pf, driver)
    print(f"{seconds:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
