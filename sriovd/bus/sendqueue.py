"""The outgoing half of a connection: a bounded queue in front of a non-blocking socket.

Knows bytes and descriptors, nothing of D-Bus. A full socket (EAGAIN) is a normal state: what is left waits
until the socket takes more. Descriptors leave with the first byte of their message, once, and are closed
then.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

MAX_QUEUED_BYTES = 64 << 20
BATCH_BYTES = 256 << 10
BATCH_MESSAGES = 64


class QueueFull(Exception):
    """The peer has not read for so long that the queue has reached its bound."""


class SendQueue:
    """Messages on their way to one socket, in order.

    on_lost: called once with the reason when the socket refuses for good. max_bytes: bound of what may wait.
    """

    def __init__(
        self, sock: socket.socket, on_lost: Callable[[str], None], max_bytes: int = MAX_QUEUED_BYTES
    ) -> None:
        self._sock = sock
        self._on_lost = on_lost
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting_bytes = 0
        self._armed = False  # a write is scheduled, or the socket is watched for room
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Queue one message; `fds` are ours from now on. Raises QueueFull (and closes `fds`)."""
        if self._closed or self._waiting_bytes + len(message) > self._max_bytes:
            _close_all(fds)
            if self._closed:
                return
            raise QueueFull(f"the bus has not read the last {self._waiting_bytes} bytes")
        self._waiting.append((memoryview(message), list(fds)))
        self._waiting_bytes += len(message)
        self._empty.clear()
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._write_first)

    @property
    def waiting_bytes(self) -> int:
        """How much has been queued and not yet been taken by the kernel."""
        return self._waiting_bytes

    async def drain(self) -> None:
        """Wait until everything queued has been handed to the kernel, or the queue is closed."""
        await self._empty.wait()

    def close(self) -> None:
        """Stop writing, forget what waits and close its descriptors."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_writer(self._sock)
        for _, fds in self._waiting:
            _close_all(fds)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._empty.set()

    def _write_first(self) -> None:
        """The write in the tick after put(): most often all goes out, and the socket needs no watching."""
        if not self._closed and not self._write():
            self._loop.add_writer(self._sock, self._write_more)

    def _write_more(self) -> None:
        if self._write():
            self._loop.remove_writer(self._sock)

    def _write(self) -> bool:
        """Write until the queue is empty (True) or the socket is full (False)."""
        try:
            while self._waiting:
                self._drop_sent(self._send_batch())
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._on_lost(f"writing to the bus failed: {error.strerror or error}")
            return True
        self._armed = False
        self._empty.set()
        return True

    def _send_batch(self) -> int:
        """One sendmsg(). A message with descriptors goes alone: they must not travel with another."""
        first, fds = self._waiting[0]
        if fds:
            rights = array.array("i", fds)
            sent = self._sock.sendmsg([first], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            self._waiting[0] = (first, [])
            _close_all(fds)
            return sent
        return self._sock.sendmsg(self._next_batch())

    def _next_batch(self) -> list[memoryview]:
        batch: list[memoryview] = []
        size = 0
        for data, fds in self._waiting:
            if fds or size >= BATCH_BYTES or len(batch) >= BATCH_MESSAGES:
                break
            batch.append(data)
            size += len(data)
        return batch

    def _drop_sent(self, sent: int) -> None:
        self._waiting_bytes -= sent
        while sent:
            data, fds = self._waiting[0]
            if sent < len(data):
                self._waiting[0] = (data[sent:], fds)
                return
            self._waiting.popleft()
            sent -= len(data)


def _close_all(fds: Sequence[int]) -> None:
    for number in fds:
        os.close(number)
