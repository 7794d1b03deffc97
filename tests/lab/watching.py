"""Runs in the guest: everything that sriovd announces of recovery, and owners who do not wait to be told.

    python3 watching.py [unfreeze=ADDRESS,OWNER]... [kill=PATH,STATE]...

One connection, so that announcements and answers have the order in which sriovd sent them. Prints JSON, one
object a line, until SIGTERM, with CLOCK_MONOTONIC in microseconds:

- {"ready": ...} when nothing is missed any more,
- {"usec", "path", "state", "cause", "reason"} for each StateChanged,
- {"asked", "usec", "vf", "answer"} when the answer to Unfreeze, asked again and again, is another than
  before: the state, or the error's name without its prefix,
- {"killed": usec, "state"}: the daemon, by SIGKILL, as soon as that object announces that state; once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType, MessageType
from dbus_next.message import Message

NAME, ROOT, MANAGER = "org.sriovd1", "/org/sriovd1", "org.sriovd1.Manager"
RULE = "type='signal',interface='org.sriovd1.Recovery',member='StateChanged'"
PAUSE_S = 0.01


def tell(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def now_usec() -> int:
    return time.monotonic_ns() // 1000


class Watcher:
    """`pid`: the daemon's. `kills`: [path, state] that have not been announced yet."""

    def __init__(self, bus: MessageBus, pid: int, kills: list[list[str]]) -> None:
        self._bus, self._pid, self._kills = bus, pid, kills
        bus.add_message_handler(self.on_message)

    def on_message(self, message: Message) -> None:
        if message.message_type is not MessageType.SIGNAL or message.member != "StateChanged":
            return
        state, cause, reason = message.body
        pair = [message.path, state]
        if pair in self._kills:
            self._kills.remove(pair)
            os.kill(self._pid, signal.SIGKILL)
            tell(killed=now_usec(), state=state)
        tell(usec=now_usec(), path=message.path, state=state, cause=cause, reason=reason)

    async def unfreeze(self, vf: str, owner: str) -> None:
        last = ""
        while True:
            asked = now_usec()
            reply = await self._bus.call(
                Message(NAME, ROOT, MANAGER, "Unfreeze", signature="ssa{sv}", body=[vf, owner, {}])
            )
            assert reply is not None
            name = (reply.error_name or "").removeprefix(f"{NAME}.Error.")
            answer = name or reply.body[0]
            if answer != last:
                tell(asked=asked, usec=now_usec(), vf=vf, answer=answer)
                last = answer
            await asyncio.sleep(PAUSE_S)


def main_pid() -> int:
    command = ["systemctl", "show", "--value", "-p", "MainPID", "sriovd"]
    return int(subprocess.check_output(command))


async def main(*arguments: str) -> None:
    pairs = [(word.partition("=")[0], word.partition("=")[2].split(",")) for word in arguments]
    bus = await MessageBus(bus_type=BusType.SYSTEM).connect()
    watcher = Watcher(bus, main_pid(), [value for key, value in pairs if key == "kill"])
    add = Message("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "AddMatch")
    add.signature, add.body = "s", [RULE]
    await bus.call(add)
    tell(ready=now_usec())
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()  # by SIGTERM
    await asyncio.gather(ended, *(watcher.unfreeze(*value) for key, value in pairs if key == "unfreeze"))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
