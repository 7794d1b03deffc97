"""Who is an operator: root, and whom polkit lets inspect. Everybody else sees what is his (visibility.py).

Rule: a caller's user is asked from the bus once, for unique names are never used twice; polkit is asked
without a dialog, and its answer counts for a few seconds, so that reading costs no question each and who
loses the right loses the sight. Many calls of one connection share a question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sriovd.bus.connection import BUS, BUS_PATH, Connection
from sriovd.bus.polkit import Authority
from sriovd.bus.tree import Tree
from sriovd.bus.visibility import Shares, Sight, TenantView

SIGHT_SEC = 5.0  # how long polkit's answer counts
_AT_MOST = 256  # connections that are remembered

_Kept = TypeVar("_Kept")


class Sights:
    """The sight of every connection that calls. `clock`: monotonic seconds."""

    def __init__(
        self,
        connection: Connection,
        authority: Authority,
        tree: Tree,
        shares: Shares,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._connection = connection
        self._authority = authority
        self._tree = tree
        self._shares = shares
        self._clock = clock or asyncio.get_running_loop().time
        self._uids: dict[str, int] = {}
        self._known: dict[str, tuple[Sight, float]] = {}  # until when

    def known(self, sender: str) -> Sight | None:
        """What `sender` (a unique name) may see, if that needs no question."""
        sight, until_sec = self._known.get(sender, (None, 0.0))
        return sight if sight is not None and self._clock() < until_sec else None

    async def learn(self, sender: str) -> Sight:
        """The same, with the questions that it takes. Raises BusError: the sender may have left."""
        uid = await self.uid_of(sender)
        until_sec = self._clock() + SIGHT_SEC
        if self._authority.trusts_user(uid):
            sight, until_sec = Sight(uid, self._tree, is_operator=True), float("inf")
        elif await self._authority.may_inspect(sender, uid):
            sight = Sight(uid, self._tree, is_operator=True)
        else:
            sight = Sight(uid, TenantView(self._tree, self._shares, uid), is_operator=False)
        _keep(self._known, sender, (sight, until_sec))
        return sight

    async def uid_of(self, sender: str) -> int:
        """The caller's user. Raises BusError."""
        if sender not in self._uids:
            (uid,) = await self._connection.call(BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", (sender,))
            _keep(self._uids, sender, uid)
        return self._uids[sender]


def _keep(kept: dict[str, _Kept], sender: str, value: _Kept) -> None:
    """The oldest goes for a new one."""
    kept.pop(sender, None)
    if len(kept) >= _AT_MOST:
        del kept[next(iter(kept))]
    kept[sender] = value
