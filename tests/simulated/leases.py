"""What tests about leases look at."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.simulated.client import LEASE, Client

OWNER = "vm"


async def leases(client: Client) -> dict[str, dict[str, Any]]:
    """The properties of every lease's object."""
    return {path: each[LEASE] for path, each in (await client.managed()).items() if LEASE in each}


async def until_leases(client: Client, **wanted: Any) -> None:
    """Until exactly one lease has these properties; without any: until there is none."""
    async with asyncio.timeout(20):
        while True:
            found = list((await leases(client)).values())
            if not wanted and not found:
                return
            if wanted and len(found) == 1 and wanted.items() <= found[0].items():
                return
            await asyncio.sleep(0.01)
