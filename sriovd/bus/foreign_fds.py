"""Closing descriptors that came from outside, which may wait for whoever has made them.

Rule: the event loop closes nothing but small memfds; those the kernel frees alone. All others are closed by
threads, of which a bounded number may hang. When more wait for those than a few, no descriptors are received
any more: the kernel drops them on the way, and calls that need theirs are refused.

close(2) waits, for as long as its maker likes: for the FLUSH of a FUSE file, where no signal reaches it
(fs/fuse/file.c fuse_flush); for the peer of a TCP socket with SO_LINGER, even of one in a UNIX socket's
queue (net/ipv4/af_inet.c inet_release); for the mutex of a pipe, or of an epoll instance that watches
whatever it is, while somebody's page fault in FUSE memory holds that (fs/pipe.c pipe_release,
fs/eventpoll.c eventpoll_release_file). And it takes as long as there is to be freed: memory, a virtual
machine, a file system that is unmounted already. A memfd has no flush, cannot be polled, and is on a mount
of the kernel's that stays. Its name in /proc proves nothing: a file of a detached mount can have the same.

A descriptor that waits for a thread is in the daemon's table still, and a helper that is started meanwhile
hangs on its copy; that is why few may wait.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from functools import cache

THREADS_AT_MOST = 16
WAITING_AT_MOST = 64  # as many as come with one message of honest senders, and more
_LARGEST_BYTES = 64 << 20  # that are freed in some 10 ms
_BLOCK_BYTES = 512  # of st_blocks (stat(2))

_log = logging.getLogger(__name__)


class Closer:
    """Closes descriptors; from one event loop. Its threads end when there is nothing to close."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        self._threads = 0
        self._was_full = False

    @property
    def is_full(self) -> bool:
        """Whether no more should be received."""
        full = len(self._waiting) >= WAITING_AT_MOST
        if full and not self._was_full:
            _log.warning(
                "%d descriptors that came over the bus wait for %d others whose closing hangs;"
                " no more are received until one of those is closed",
                len(self._waiting), THREADS_AT_MOST,
            )  # fmt: skip
        self._was_full = full
        return full

    def close(self, numbers: Iterable[int]) -> None:
        """They are closed now or later, and nobody's any more. Never waits for them."""
        for number in numbers:
            if is_small_memfd(number):
                os.close(number)
            else:
                self._waiting.append(number)
        self._staff()

    def _staff(self) -> None:
        """Threads for what waits, as far as there may be."""
        with self._lock:
            missing = min(len(self._waiting), THREADS_AT_MOST - self._threads)
            self._threads += missing
        for number in range(missing):
            thread = threading.Thread(target=self._close_some, name="close", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # there can be no more; what waits is closed with what comes next
                _log.warning("Descriptors that came over the bus stay open: %s", error)
                with self._lock:
                    self._threads -= missing - number
                return

    def _close_some(self) -> None:
        while (number := self._next()) is not None:
            with suppress(OSError):  # it is closed all the same
                os.close(number)

    def _next(self) -> int | None:
        """What a thread closes next; None ends it. Both in one, lest something waits that no thread sees."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._threads -= 1
            return None


def is_small_memfd(number: int) -> bool:
    """Whether it is a memfd that is freed at once. Nobody but the kernel is asked: what can be sealed
    (mm/memfd.c memfd_fcntl) is memory, and so its stat is no server's answer."""
    try:
        fcntl.fcntl(number, fcntl.F_GET_SEALS)
    except OSError:
        return False
    found = os.fstat(number)
    return found.st_dev == _memfd_device() and found.st_blocks * _BLOCK_BYTES <= _LARGEST_BYTES


@cache
def _memfd_device() -> int:
    """The kernel's own mount (mm/shmem.c shm_mnt), where nobody else can make files."""
    fd = os.memfd_create("device")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


_closer = Closer()  # of the process, as its table of descriptors is


def close_foreign(numbers: Iterable[int]) -> None:
    """As Closer.close."""
    _closer.close(numbers)


def can_receive() -> bool:
    """Whether descriptors should be received."""
    return not _closer.is_full
