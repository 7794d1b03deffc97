"""Runs in the guest as root: leases all VFs of a PF, and has them all bound, traced and untraced by turns.

    python3 -m tests.lab.binding PF ROUNDS

prints for each round how long binding all of them to each of DRIVERS took, untraced and traced, in seconds;
then the CPU time that the daemon's own process had for it. Last of all, how many records there were.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.signature import Variant

from tests.lab.tracing import ask, make_buffer

DRIVERS = ("pci-stub", "vfio-pci")
BUFFER_BYTES = 64 << 10
PRODUCER = 64  # its offset in the header: sriovd/trace/layout.py
TICKS_PER_SEC = os.sysconf("SC_CLK_TCK")


def list_vfs(pf: str) -> list[str]:
    directory = Path(f"/sys/bus/pci/devices/{pf}")
    count = len(list(directory.glob("virtfn*")))
    return [os.path.basename(os.readlink(directory / f"virtfn{index}")) for index in range(count)]


def read_cpu_s(pid: str) -> float:
    """User and system time of a process: proc(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SEC


class Tenants:
    """Root, in the name of one for each VF."""

    def __init__(self, bus: MessageBus, vfs: list[str]) -> None:
        self._bus = bus
        self._leases: dict[str, str] = {}
        self._fds = {vf: make_buffer(BUFFER_BYTES) for vf in vfs}
        self.pid = subprocess.check_output(
            ["systemctl", "show", "--value", "-p", "MainPID", "sriovd"], text=True
        ).strip()

    async def _ask(self, member: str, signature: str, *body: Any, fds: tuple[int, ...] = ()) -> list[Any]:
        reply = await ask(self._bus, member, signature, list(body), *fds)
        assert reply.message_type is not MessageType.ERROR, (member, body, reply.error_name, reply.body)
        return list(reply.body)

    async def lease(self) -> None:
        for number, vf in enumerate(self._fds):
            options = {"address": Variant("s", vf)}
            lease, _, state = await self._ask("Lease", "sa{sv}", f"vm-{number}", options)
            assert state == "active", (vf, state)
            self._leases[vf] = lease.rpartition("/")[2]

    async def release(self) -> None:
        for number, lease in enumerate(self._leases.values()):
            await self._ask("Release", "tsa{sv}", int(lease), f"vm-{number}", {})

    async def trace(self) -> None:
        """What came before is not written: it is no part of what is measured."""
        for number, (vf, fd) in enumerate(self._fds.items()):
            options = {"owner": Variant("s", f"vm-{number}"), "history": Variant("b", False)}
            await self._ask("StartTrace", "sha{sv}", vf, 0, options, fds=(fd,))

    async def stop(self) -> int:
        """How many records there were."""
        for number, vf in enumerate(self._fds):
            await self._ask("StopTrace", "sa{sv}", vf, {"owner": Variant("s", f"vm-{number}")})
        return sum(int.from_bytes(os.pread(fd, 8, PRODUCER), "little") for fd in self._fds.values())

    async def bind(self, pf: str) -> list[float]:
        """Seconds of each bind, and of the daemon's CPU time until udev and it have taken that in."""
        settle()
        times, cpu_s = [], read_cpu_s(self.pid)
        for driver in DRIVERS:
            began = time.monotonic()
            _, state = await self._ask("BindVFs", "ssa{sv}", pf, driver, {"force": Variant("b", True)})
            assert state == "done", state
            times.append(time.monotonic() - began)
        settle()
        return [*times, read_cpu_s(self.pid) - cpu_s]


def settle() -> None:
    subprocess.run(["udevadm", "settle"], check=True)


async def main(pf: str, rounds: str) -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    tenants, records = Tenants(bus, list_vfs(pf)), 0
    await tenants.lease()
    for number in range(int(rounds)):
        found: dict[bool, list[float]] = {}
        for traced in (False, True) if number % 2 else (True, False):
            if traced:
                await tenants.trace()
            found[traced] = await tenants.bind(pf)
            records = await tenants.stop() if traced else records
        print(*(f"{each:.3f}" for traced in (False, True) for each in found[traced]), flush=True)
    await tenants.release()
    print(records)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
