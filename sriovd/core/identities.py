"""The administrative MAC address of each VF place: one per PF and index, generated once, kept for ever.

Rule: an address is on disk before any VF gets it. Locally administered and unicast (IEEE 802, the second
bit of the first octet set, the first clear); zero or vendor-chosen addresses mean different things to
different drivers, so none is left to chance.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping

from sriovd.core.store import Store
from sriovd.pci import PciAddress

_LOCAL_UNICAST = 0x02


class Identities:
    """All addresses that were ever given."""

    def __init__(self, store: Store, macs: Mapping[tuple[PciAddress, int], str]) -> None:
        self._store = store
        self._macs = dict(macs)
        self._taken = set(self._macs.values())
        self._lock = asyncio.Lock()

    async def macs_of(self, pf: PciAddress, count: int) -> Mapping[int, str]:
        """The addresses of the first `count` VFs of `pf` by index; those that are missing are made."""
        async with self._lock:  # else two callers would make two addresses for one place
            missing = {(pf, index): self._make() for index in range(count) if (pf, index) not in self._macs}
            if missing:
                await self._store.put_macs(missing)
                self._macs |= missing
        return {index: self._macs[pf, index] for index in range(count)}

    def _make(self) -> str:
        while True:
            octets = bytes((_LOCAL_UNICAST, *os.urandom(5)))
            mac = octets.hex(":")
            if mac not in self._taken:
                self._taken.add(mac)
                return mac
