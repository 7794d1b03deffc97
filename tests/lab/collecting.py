"""Runs in the guest as a tenant: collects the error data of a VF over D-Bus, by both deliveries.

    python3 collecting.py ADDRESS OWNER

prints one line of JSON: "document" as CollectErrorData gave it, "seals" and "mode" of its descriptor,
"same": whether ReadErrorData gave the same but for the moment, "refused": what Inspect of its registers
ended with, empty for nothing. Whoever is told to come again later does so.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import sys
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType
from dbus_next.message import Message
from dbus_next.signature import Variant


async def ask(bus: MessageBus, member: str, address: str, owner: str, *more: str) -> Message:
    """A call of the Manager; its reply, which is not that it comes too early."""
    while True:
        body: list[Any] = [address, *more, {"owner": Variant("s", owner)}]
        message = Message(
            destination="org.sriovd1",
            path="/org/sriovd1",
            interface="org.sriovd1.Manager",
            member=member,
            signature="s" * (1 + len(more)) + "a{sv}",
            body=body,
        )
        reply = await bus.call(message)
        assert reply is not None
        wait = re.search(r"come again in ([\d.]+) s", str(reply.body))
        if not wait:
            return reply
        await asyncio.sleep(float(wait[1]))


async def main(address: str, owner: str) -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    collected = await ask(bus, "CollectErrorData", address, owner)
    read = await ask(bus, "ReadErrorData", address, owner)
    inspected = await ask(bus, "Inspect", address, owner, "registers")
    if not collected.unix_fds:
        sys.exit(f"refused: {collected.error_name} {collected.body}")
    fd = collected.unix_fds[0]
    document = json.loads(os.pread(fd, 1 << 24, 0))
    array = json.loads(bytes(read.body[0]))
    told = {
        "document": document,
        "seals": fcntl.fcntl(fd, fcntl.F_GET_SEALS),
        "mode": fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE,
        "same": still(array) == still(document),
        "refused": inspected.error_name or "",
    }
    print(json.dumps(told))


def still(document: dict[str, Any]) -> dict[str, Any]:
    """What does not change from moment to moment."""
    return {name: value for name, value in document.items() if name not in ("taken_usec", "now", "trace")}


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
