"""Runs in the guest as a tenant: donates memory for the trace of its VF, and asks for what it may not have.

    python3 tracing.py VF OWNER MODE KIB [unfreeze]

prints "tracing PID FD CAPACITY", after which /proc/PID/fd/FD is the trace; with `unfreeze` it then asks all
the time for its VF to be unfrozen. Ends when it is killed, or its standard input ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message
from dbus_next.signature import Variant

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
PAUSE_S = 0.1
ASKERS = 3  # a VF is not locked out for long


def make_buffer(size: int) -> int:
    """Memory that cannot change its size, all of it there."""
    fd = os.memfd_create("trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.posix_fallocate(fd, 0, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


async def ask(bus: MessageBus, member: str, signature: str, body: list[Any], *fds: int) -> Message:
    reply = await bus.call(
        Message(
            destination="org.sriovd1", path="/org/sriovd1", interface="org.sriovd1.Manager",
            member=member, signature=signature, body=body, unix_fds=list(fds),
        )
    )  # fmt: skip
    assert reply is not None
    return reply


async def main(vf: str, owner: str, mode: str, kib: str, *more: str) -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    fd = make_buffer(int(kib) * 1024)
    options = {"owner": Variant("s", owner), "mode": Variant("s", mode)}
    reply = await ask(bus, "StartTrace", "sha{sv}", [vf, 0, options], fd)
    if reply.message_type is MessageType.ERROR:
        sys.exit(f"{reply.error_name}: {reply.body}")
    print("tracing", os.getpid(), fd, reply.body[0], flush=True)
    if "unfreeze" in more:
        await asyncio.gather(*(keep_asking(bus, vf, owner) for _ in range(ASKERS)))
    await asyncio.sleep(3600)


async def keep_asking(bus: MessageBus, vf: str, owner: str) -> None:
    while True:
        await ask(bus, "Unfreeze", "ssa{sv}", [vf, owner, {}])
        await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
