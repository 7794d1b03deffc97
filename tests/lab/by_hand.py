"""Runs in the guest: how long adapters take that a fatal error has killed, by hand. Standard library only.

    PYTHONPATH=/root python3 -m tests.lab.by_hand ORDER PF...

kills each PF with 7 VFs by aer_inject and prints the seconds from the error until the last VF is bound
again, then what each step took. ORDER: `right`, one process with the fewest steps, for each PF a thread;
`naive`, which first resets a VF. sriovd must not be running. Afterwards there are no VFs.

The right order begins by taking the interface down: igb's error handler has disabled NAPI, and removing a PF
whose interface is up disables it once more, which never ends and holds the rtnl lock (igb_main.c, 6.12).
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

from tests.lab.bringup import DEVICES, check_bound, clean_up, list_vfs, make_vfs, settle, write

COUNT, DRIVER, VLAN = 7, "vfio-pci", 100
MALFORMED_TLP = 0x40000
GIVEN_UP = "AER: device recovery failed"


class Laps:
    """What each step of one PF took."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.texts: list[str] = []

    def end(self, step: str) -> None:
        now = time.monotonic()
        self.texts.append(f"{step} {now - self._last:.2f}")
        self._last = now


def interface_of(pf: str) -> str:
    (name,) = os.listdir(f"{DEVICES}/{pf}/net")
    return name


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def configure(pf: str) -> None:
    """Interface up, MAC and VLAN of all VFs. udev may be about to give a new interface its name."""
    while True:
        name = interface_of(pf)
        vfs = [f"link set {name} vf {n} mac 02:02:{pf[5:7]}:00:00:{n:02x} vlan {VLAN}" for n in range(COUNT)]
        try:
            return ip(f"link set {name} up", *vfs)
        except subprocess.CalledProcessError:
            if name == interface_of(pf):
                raise


def bind(pf: str) -> None:
    for vf in list_vfs(pf):
        write(f"{DEVICES}/{vf}/driver_override", DRIVER)
        write("/sys/bus/pci/drivers_probe", vf)


def inject(pf: str) -> None:
    """drivers/pci/pcie/aer_inject.c struct aer_error_inj."""
    domain, bus, place = pf.split(":")
    device, function = place.split(".")
    numbers = (int(bus, 16), int(device, 16), int(function), 0, MALFORMED_TLP, 0, 0, 0, 0, 0)
    error = struct.pack("=4BII4II", *numbers, int(domain, 16))
    descriptor = os.open("/dev/aer_inject", os.O_WRONLY)
    os.write(descriptor, error)
    os.close(descriptor)


def await_kernel(messages: int, count: int) -> None:
    """Until the kernel has given up `count` adapters. `messages`: /dev/kmsg, read one record at a time."""
    while count:
        select.select([messages], [], [])
        count -= GIVEN_UP in os.read(messages, 8192).decode()


def revive(pf: str, order: str, laps: Laps) -> None:
    port = os.path.dirname(os.path.realpath(f"{DEVICES}/{pf}"))
    if order == "naive":
        with suppress(OSError):  # ENOTTY, after 70 s
            write(f"{DEVICES}/{list_vfs(pf)[0]}/reset", "1")
        laps.end("reset of a VF")
    ip(f"link set {interface_of(pf)} down")
    laps.end("link down")
    write(f"{DEVICES}/{pf}/remove", "1")
    laps.end("remove")
    write(f"{port}/rescan", "1")
    laps.end("rescan")
    make_vfs(pf, COUNT)
    laps.end("VFs")
    configure(pf)
    laps.end("link up and attributes")
    bind(pf)
    laps.end("binds")


def prepare(pf: str) -> None:
    """7 bound VFs, and a carrier."""
    make_vfs(pf, COUNT)
    configure(pf)
    bind(pf)
    carrier = Path(f"/sys/class/net/{interface_of(pf)}/operstate")
    while "up" not in carrier.read_text():
        time.sleep(0.1)


def main(order: str, *pfs: str) -> None:
    subprocess.run(["modprobe", "--all", "aer_inject", DRIVER], check=True)
    for pf in pfs:
        prepare(pf)
    settle()
    messages = os.open("/dev/kmsg", os.O_RDONLY)
    os.lseek(messages, 0, os.SEEK_END)
    began = time.monotonic()
    laps = {pf: Laps() for pf in pfs}
    for pf in pfs:
        inject(pf)
    await_kernel(messages, len(pfs))
    for pf in pfs:
        laps[pf].end("the kernel's own try")
    threads = [Thread(target=revive, args=(pf, order, laps[pf])) for pf in pfs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - began
    for pf in pfs:
        check_bound(pf, COUNT, DRIVER)
        clean_up(pf)
    print(f"{seconds:.3f}", *(f"{pf}: {', '.join(laps[pf].texts)}" for pf in pfs), sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
