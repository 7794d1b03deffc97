"""A recorder that records nothing, for a host of which nothing is recorded.

Rule: buffers are taken and given back as with any other; nothing is ever written to them but what the desk
itself has to say.
"""

from __future__ import annotations

from collections.abc import Sequence

from sriovd.core.lease.pool import Place
from sriovd.core.trace.desk import Sink
from sriovd.trace.record import Record


class Unrecorded:
    """A Recording (core/trace/desk.py)."""

    def attach(self, lease_number: int, sink: Sink, history: bool) -> None:
        """There is nothing to give it."""

    def detach(self, lease_number: int) -> None:
        """It was never given anything."""

    def next_transaction(self, _lease_number: int) -> int:
        """The first."""
        return 1

    def seed(self, lease_number: int, next_transaction: int) -> None:
        """There will be none."""

    def tail(self, _place: Place, _lease_number: int = 0) -> Sequence[Record]:
        """Nothing."""
        return ()
