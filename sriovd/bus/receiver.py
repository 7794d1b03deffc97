"""The incoming half of a connection: cuts what a socket delivers into whole messages with their descriptors.

Knows lengths, nothing of what a message says. A message over the bound is delivered without its body, so
that its sender can be told; no peer can make the daemon hold or decode more than the bound. A few messages
are handled per turn of the event loop, so that a flood from one client does not keep the others waiting.
"""

from __future__ import annotations

import array
import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from sriovd.bus.foreign_fds import can_receive, close_foreign
from sriovd.bus.message import PROLOGUE_BYTES, MalformedMessage, Prologue, read_prologue
from sriovd.outside import add_reader

CHUNK_BYTES = 64 << 10
MAX_INCOMING_BYTES = 256 << 10
MESSAGES_PER_TURN = 16
_ANCILLARY_BYTES = socket.CMSG_SPACE(253 * 4)  # SCM_MAX_FD, the most that the kernel passes at once
_LOST = -1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Frame:
    """One message. header: up to the body; body: empty when `oversized`: it was discarded."""

    header: bytes
    body: bytes
    oversized: bool


class FdQueue:
    """Descriptors in the order of arrival; each message takes as many as its header says."""

    def __init__(self) -> None:
        self._waiting: deque[int] = deque()

    def add(self, fds: list[int], truncated: bool) -> None:
        """truncated: the kernel could not deliver all (RLIMIT_NOFILE), or was not to; the gap is marked."""
        self._waiting.extend(fds)
        if truncated:
            self._waiting.append(_LOST)

    def take(self, count: int) -> list[int] | None:
        """The next `count` descriptors; None, with those that came closed, when some were lost."""
        taken: list[int] = []
        while len(taken) < count and self._waiting:
            number = self._waiting.popleft()
            if number == _LOST:
                break
            taken.append(number)
        if len(taken) == count:
            return taken
        close_foreign(taken)
        return None

    def close(self) -> None:
        """Close all that nobody took."""
        waiting, self._waiting = self._waiting, deque()
        close_foreign(number for number in waiting if number != _LOST)


class Receiver:
    """Reads one socket. on_frame: called with each message; on_lost: called once, with the reason."""

    def __init__(
        self,
        sock: socket.socket,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[str], None],
        max_bytes: int = MAX_INCOMING_BYTES,
    ) -> None:
        self.fds = FdQueue()
        self._sock = sock
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._discard = 0  # bytes of an oversized message still to come
        self._closed = False
        self._paused = False  # not reading until what has come is handled
        self._number = sock.fileno()
        add_reader(self._number, self._on_readable)

    def close(self) -> None:
        """Stop reading and close the descriptors that no message has taken."""
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._number)
            self.fds.close()

    def _on_readable(self) -> None:
        try:
            room = _ANCILLARY_BYTES if can_receive() else 0
            data, ancillary, flags, _ = self._sock.recvmsg(CHUNK_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._on_lost(f"reading from the bus failed: {error.strerror or error}")
            return
        self.fds.add(_descriptors_in(ancillary), bool(flags & socket.MSG_CTRUNC))
        if not data:
            self._on_lost("the bus closed the connection")
            return
        self._buffer += data
        self._handle_some()

    def _handle_some(self) -> None:
        """Handle a few messages; read on once all that came has been handled."""
        for _ in range(MESSAGES_PER_TURN):
            if self._closed:
                return
            try:
                frame = self._next_frame()
            except MalformedMessage as error:
                self._on_lost(f"the bus sent nonsense: {error}")
                return
            if frame is None:
                self._set_paused(False)
                return
            self._on_frame(frame)
        self._set_paused(True)
        self._loop.call_soon(self._handle_some)

    def _set_paused(self, paused: bool) -> None:
        if paused and not self._paused:
            self._loop.remove_reader(self._number)
        elif self._paused and not paused:
            add_reader(self._number, self._on_readable)
        self._paused = paused

    def _next_frame(self) -> Frame | None:
        """Cut the next message off the buffer; None when it is not complete yet."""
        self._skip_discarded()
        if self._discard or len(self._buffer) < PROLOGUE_BYTES:
            return None
        prologue = read_prologue(self._buffer)
        if prologue.header_bytes + prologue.body_bytes > self._max_bytes:
            return self._cut_oversized(prologue)
        if len(self._buffer) < prologue.header_bytes + prologue.body_bytes:
            return None
        return Frame(self._cut(prologue.header_bytes), self._cut(prologue.body_bytes), False)

    def _cut_oversized(self, prologue: Prologue) -> Frame | None:
        if prologue.header_bytes > self._max_bytes:
            self._discard_unread(prologue)
            return None
        if len(self._buffer) < prologue.header_bytes:
            return None
        self._discard = prologue.body_bytes
        return Frame(self._cut(prologue.header_bytes), b"", True)

    def _discard_unread(self, prologue: Prologue) -> None:
        """Drop a message whose very header is over the bound, unread: nobody sends that by mistake.

        How many descriptors it has is not known then, but that all that wait are its own is: they came with
        its first byte, earlier messages have taken theirs, and no later one can be in a buffer this small.
        """
        _log.warning("discarded a message with a header of %d bytes", prologue.header_bytes)
        self.fds.close()
        self._discard = prologue.header_bytes + prologue.body_bytes
        self._skip_discarded()

    def _skip_discarded(self) -> None:
        skipped = min(self._discard, len(self._buffer))
        del self._buffer[:skipped]
        self._discard -= skipped

    def _cut(self, count: int) -> bytes:
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data


def _descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return fds.tolist()
