"""When a socket with events is read: at once, and with pauses in a storm.

Rule: knows no event; who reads says how many there were. A pause delays what the socket keeps, and loses
nothing that its buffer holds.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from sriovd.outside import add_reader

# In a storm (120 VFs come with some 400 events) every wake-up costs as much as a bind; a pause lets events
# gather. The first events of a storm, which may tell of an error, are taken at once.
_STORM_EVENTS = 32  # so many without _STORM_PAUSE_SEC of silence are a storm
_STORM_PAUSE_SEC = 0.1
# While a job runs, which looks by itself at what it touches: on two CPUs, taking 120 VFs' events meanwhile
# makes it a third slower, and taking 32 before the pause one by one still a twentieth.
_DEFERRED_STORM_EVENTS = 4
DEFERRED_PAUSE_SEC = 2.0
# As long as a recovery is silent between its first and its last events: the kernel's own try takes a second.
_HURRY_SEC = 5.0


class Pace:
    """Calls `receive` when the socket has something and no storm is being waited out."""

    def __init__(self, receive: Callable[[], None]) -> None:
        self._receive = receive
        self._socket: socket.socket | None = None
        self._seen_in_a_row = 0
        self._last_seen_sec = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._deferred = False
        self._hurry_until_sec = 0.0

    def start(self, source: socket.socket) -> None:
        """Watch `source`, which stays the caller's."""
        self._socket = source
        self._resume()

    def stop(self) -> None:
        """Watch no more."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket = None

    def defer(self, deferred: bool) -> None:
        """Make the pauses of a storm long, or ordinary again."""
        self._deferred = deferred
        if not deferred and self._pause is not None:  # not at once: the job's reply goes first
            self._pause.cancel()
            self._pause = asyncio.get_running_loop().call_later(_STORM_PAUSE_SEC, self._resume)

    def hurry(self) -> None:
        """Do not wait for a storm's end: end the pause, and begin none for a while."""
        loop = asyncio.get_running_loop()
        self._hurry_until_sec = loop.time() + _HURRY_SEC
        if self._pause is not None:
            self._pause.cancel()
            self._resume()

    def count(self, events: int) -> None:
        """So many have been read in one go."""
        now_sec = asyncio.get_running_loop().time()
        if now_sec - self._last_seen_sec > 2 * _STORM_PAUSE_SEC:
            self._seen_in_a_row = 0
        self._last_seen_sec = now_sec
        self._seen_in_a_row += events

    def rest(self) -> None:
        """The socket has been read empty: in a storm, leave it alone for a while."""
        enough, pause_sec = (
            (_DEFERRED_STORM_EVENTS, DEFERRED_PAUSE_SEC)
            if self._deferred
            else (_STORM_EVENTS, _STORM_PAUSE_SEC)
        )
        loop = asyncio.get_running_loop()
        if loop.time() < self._hurry_until_sec:
            return
        if self._seen_in_a_row >= enough and self._socket is not None:
            loop.remove_reader(self._socket)
            self._pause = loop.call_later(pause_sec, self._resume)

    def go_on(self) -> None:
        """The socket may not be empty, and yet nothing more may come: receive again soon."""
        asyncio.get_running_loop().call_soon(self._receive_more)

    def _receive_more(self) -> None:
        if self._socket is not None and self._pause is None:
            self._receive()

    def _resume(self) -> None:
        self._pause = None
        if self._socket is not None:
            add_reader(self._socket, self._receive)
