"""Runs in the guest: how long sriovd takes to answer property reads, over one connection, for a while.

    python3 latency.py SECONDS PATH INTERFACE PROPERTY

prints count, median, p99 and maximum in milliseconds. Uses sriovd's own client code, because a busctl for
each read would measure the start of busctl.
"""

from __future__ import annotations

import asyncio
import sys
import time

sys.path.insert(0, "/usr/lib/sriovd")

from sriovd.bus.connection import Connection

PAUSE_S = 0.005


async def main(seconds: float, path: str, interface: str, name: str) -> None:
    connection = await Connection.open("system")
    taken_ms: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        await connection.call(
            "org.sriovd1", path, "org.freedesktop.DBus.Properties", "Get", "ss", (interface, name)
        )
        taken_ms.append((time.monotonic() - began) * 1e3)
        await asyncio.sleep(PAUSE_S)
    taken_ms.sort()
    p99 = taken_ms[int(len(taken_ms) * 0.99)]
    print(f"{len(taken_ms)} {taken_ms[len(taken_ms) // 2]:.1f} {p99:.1f} {taken_ms[-1]:.1f}")
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]), *sys.argv[2:]))
