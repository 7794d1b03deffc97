"""Users on a private bus, where all connections are of one user: chosen ones for chosen connections.

Rule: nothing of this is in the product. What the bus would say of a connection, and polkit of a user, is
replaced where the daemon asks for it; everything behind that is as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sriovd.bus import actions
from sriovd.bus.dispatch import Caller
from sriovd.bus.polkit import Authority
from sriovd.bus.sight import Sights
from sriovd.core.errors import NotAuthorized
from tests.simulated.client import Client

ROOT_USER = 0
ALL_ACTIONS = frozenset(
    value for value in vars(actions).values() if isinstance(value, str) and value.startswith("org.sriovd1.")
)


@dataclass
class Users:
    """Whose each connection is (root's, unless told), and what polkit lets each user do."""

    rights: dict[int, Collection[str]] = field(default_factory=dict)
    connections: dict[str, int] = field(default_factory=dict)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """For daemons that are started from now on."""
        users = self

        async def uid_of(_sights: Sights, sender: str) -> int:
            return users.connections.get(sender, ROOT_USER)

        class Polkit(Authority):
            """Says what `rights` say; root is not asked about."""

            async def check(
                self, caller: Caller, action: str, details: Mapping[str, str] | None = None
            ) -> None:
                if not self.trusts(caller) and action not in users.rights.get(caller.uid, ()):
                    raise NotAuthorized(f"polkit does not allow {action} to the caller")

        monkeypatch.setattr(Sights, "uid_of", uid_of)
        monkeypatch.setattr("sriovd.daemon.Authority", Polkit)

    @asynccontextmanager
    async def connected(self, address: str, uid: int) -> AsyncIterator[Client]:
        """A client of that user."""
        async with Client.connected(address) as client:
            self.connections[client.connection.unique_name] = uid
            yield client
