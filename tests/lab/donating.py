"""Runs in the guest as a tenant: has the VF at an address traced into its own memory.

    python3 donating.py ADDRESS OWNER

prints `started` and what Start returned, then every record as it comes, until the trace has ended: its
number, its transaction, its type and its operation; then how many were damaged and lost.
"""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import sys
import time

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType
from dbus_next.message import Message
from dbus_next.signature import Variant

sys.path.insert(0, "/usr/lib/sriovd")
from sriovd.trace.reader import TraceReader
from sriovd.trace.source import MemorySource

SIZE = 1 << 20
DEADLINE_S = 120.0


def make_memory() -> int:
    fd = os.memfd_create("trace", os.MFD_CLOEXEC | 2)  # MFD_ALLOW_SEALING
    os.posix_fallocate(fd, 0, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


async def start(address: str, owner: str, fd: int) -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    reply = await bus.call(
        Message(
            destination="org.sriovd1", path="/org/sriovd1", interface="org.sriovd1.Manager",
            member="StartTrace", signature="sha{sv}", body=[address, 0, {"owner": Variant("s", owner)}],
            unix_fds=[fd],
        )
    )  # fmt: skip
    assert reply is not None
    print("started", reply.error_name or "", *reply.body, flush=True)


def main(address: str, owner: str) -> None:
    fd = make_memory()
    asyncio.run(start(address, owner, fd))
    reader = TraceReader(MemorySource(mmap.mmap(fd, 0)))
    ends = time.monotonic() + DEADLINE_S
    active = True
    while active and time.monotonic() < ends:
        active = reader.is_active
        for entry in reader.read():
            record = entry.record
            print(entry.sequence, record.transaction, record.type.name, record.operation, flush=True)
        time.sleep(0.02)
    print("damaged", reader.damaged, "lost", reader.lost)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
