"""Runs in the guest: an orchestrator that leases and releases, in a hurry. By two D-Bus libraries.

python3 orchestrator.py NAME LEASES AT_ONCE    prints a line for each lease: VF, first and last second
python3 orchestrator.py NAME hold              takes a lease by descriptor, prints the VF, and waits
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType
from dbus_next.message import Message
from dbus_next.signature import Variant as NextVariant

sys.path.insert(0, "/usr/lib/sriovd")

from sriovd.bus.connection import Connection
from sriovd.bus.signature import Variant

NAME, ROOT, MANAGER = "org.sriovd1", "/org/sriovd1", "org.sriovd1.Manager"
WISH = {"class": Variant("s", "network")}


async def ask(connection: Connection, method: str, signature: str, *arguments: Any) -> tuple[Any, ...]:
    return await connection.call(NAME, ROOT, MANAGER, method, signature, arguments, 120.0)


async def lease_and_release(connection: Connection, owner: str, turns: list[int]) -> None:
    while turns:
        turns.pop()
        lease, vf, state = await ask(connection, "Lease", "sa{sv}", owner, WISH)
        began = time.monotonic()
        assert state == "active", state
        await asyncio.sleep(0)
        ended = time.monotonic()  # before the release is asked for: it is ours until then
        await ask(connection, "Release", "tsa{sv}", int(lease.rpartition("/")[2]), owner, {})
        print(vf, began, ended, flush=True)


async def hold(owner: str) -> None:
    """By another library: sriovd's own client closes the descriptors of replies."""
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    body = [owner, {"class": NextVariant("s", "network")}]
    call = Message(NAME, ROOT, MANAGER, "Acquire", signature="sa{sv}", body=body)
    reply = await bus.call(call)
    assert reply is not None
    print(reply.body[2], reply.unix_fds, flush=True)
    await asyncio.sleep(3600)


async def main(owner: str, what: str, at_once: str = "1") -> None:
    if what == "hold":
        await hold(owner)
    connection = await Connection.open("system")
    turns = list(range(int(what)))
    await asyncio.gather(*(lease_and_release(connection, owner, turns) for _ in range(int(at_once))))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
