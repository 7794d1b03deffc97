"""Runs in the guest, as whatever user: which signals of sriovd the bus delivers to him.

    python3 listening.py

Prints "ready", then path and member of each signal, and on SIGTERM "end", when everything that was sent
before has come: the bus delivers in order, and answers a last call.
"""

from __future__ import annotations

import asyncio
import signal

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message

BUS, BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
RULE = "type='signal',sender='org.sriovd1'"


def hear(message: Message) -> None:
    if message.message_type is MessageType.SIGNAL and message.sender != BUS:
        print(message.path, message.member, flush=True)


async def main() -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    bus.add_message_handler(hear)
    await bus.call(Message(BUS, BUS_PATH, BUS, "AddMatch", signature="s", body=[RULE]))
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print("ready", flush=True)
    await ended.wait()
    await bus.call(Message(BUS, BUS_PATH, BUS, "GetId"))
    print("end", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
