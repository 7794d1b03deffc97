"""Runs in the guest as a tenant: opens the VFIO group of a lease over D-Bus.

    python3 opening.py LEASE OWNER

prints the group's flags (VFIO_GROUP_FLAGS_VIABLE is 1), then the error that a second request gets while the
first descriptor is open; or `refused`, the error and its sentence.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import sys

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType
from dbus_next.message import Message

VFIO_GROUP_GET_STATUS = ord(";") << 8 | 100 + 3  # include/uapi/linux/vfio.h
STATUS = struct.Struct("=II")  # argsz, flags


def ask(lease: int, owner: str) -> Message:
    return Message(
        destination="org.sriovd1",
        path="/org/sriovd1",
        interface="org.sriovd1.Manager",
        member="OpenGroup",
        signature="ts",
        body=[lease, owner],
    )


async def main(lease: int, owner: str) -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    reply = await bus.call(ask(lease, owner))
    assert reply is not None
    if not reply.unix_fds:
        print("refused", reply.error_name, *reply.body)
        return
    group = reply.unix_fds[0]
    status = fcntl.ioctl(group, VFIO_GROUP_GET_STATUS, STATUS.pack(STATUS.size, 0))
    print("flags", STATUS.unpack(status)[1])
    second = await bus.call(ask(lease, owner))
    assert second is not None
    print("second", second.error_name)
    os.close(group)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
