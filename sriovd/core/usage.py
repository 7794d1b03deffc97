"""Whether functions are in use: asks the host who holds them and the leases whose they are, and lets the
rules judge.

Rule: reads only; the answer is true for the moment it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sriovd.backend.base import Backend, Holder
from sriovd.core import rules
from sriovd.core.inventory import Function
from sriovd.pci import PciAddress


class Usage:
    """Knows who is asked. `lease_of`: whose lease a function is under, in words; empty for nobody's."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.lease_of: Callable[[PciAddress], str] = lambda _: ""

    async def refuse_used(self, functions: Sequence[Function], force: bool) -> None:
        """Raises InUse when somebody uses one of `functions`; nobody is asked when that shall not matter."""
        if functions and not force:
            rules.check_unused(await self.users_of(functions))

    async def users_of(self, functions: Sequence[Function]) -> Mapping[PciAddress, str]:
        """Who uses each of `functions`, in words; absent: nobody."""
        holders = await self.holders_of([each.address for each in functions])
        described = (
            (each.address, rules.describe_use(each, holders, self.lease_of(each.address)))
            for each in functions
        )
        return {address: text for address, text in described if text}

    async def holders_of(self, addresses: Sequence[PciAddress]) -> Mapping[PciAddress, Sequence[Holder]]:
        """The processes that hold each open; absent: none."""
        return await self._backend.find_holders(addresses)
