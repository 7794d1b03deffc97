"""Whether what drivers say is followed: while somebody traces, and a little longer.

Rule: who begins and ends a trace again and again costs the host no more than who goes on. To begin to follow
means to open the journal and to make an instance in tracefs, and to end it waits for the kernel, all in the
event loop. Each who begins asks for it, because what has failed meanwhile is begun again then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LINGER_SEC = 30.0


class Attention:
    """`follow`: begins, and ends, to follow them; who begins again begins only what has failed."""

    def __init__(self, follow: Callable[[bool], None]) -> None:
        self._follow = follow
        self._end: asyncio.TimerHandle | None = None

    def want(self, wanted: bool) -> None:
        """One more traces from now on, or nobody any more."""
        if self._end is not None:
            self._end.cancel()
            self._end = None
        if not wanted:
            self._end = asyncio.get_running_loop().call_later(LINGER_SEC, self._follow, False)
        else:
            self._follow(True)
