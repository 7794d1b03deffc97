"""The descriptors that hold leases: an owner has one end of a socket pair and its copies, the daemon the
other.

Rule: nothing but the end of the last copy is ever looked at. The owner cannot write (its end is shut down
for that), so it can neither fill anything nor wake the daemon, be it by reading; and the ends are few, for
all and for each user. What the daemon tells through them is for whoever reads: it never waits for that, and
keeps only the number of what did not fit.
Linux: unix(7), and net/unix/af_unix.c: unix_poll (EPOLLHUP when both directions are shut down),
unix_stream_sendmsg (what is shorter than half the buffer goes whole or not at all).
"""

from __future__ import annotations

import json
import select
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sriovd.core.errors import PoolExhausted
from sriovd.outside import add_reader

AT_MOST = 512  # half of what a process may have open unless told otherwise (getrlimit(2), RLIMIT_NOFILE)
AT_MOST_PER_USER = 128  # except root
_ROOT_UID = 0
_ONLY_HANGUPS = 0  # EPOLLHUP and EPOLLERR are told without being asked for
_UNREAD_BYTES = 16384  # of each end; the kernel doubles it for its bookkeeping (socket(7), SO_SNDBUF)
_TEXT_CHARACTERS = 256  # of a text in an event: with all of them escaped, a line goes whole


@dataclass(eq=False, frozen=True, slots=True)
class Ends:
    """The two ends for one lease; `uid`: whose it is."""

    uid: int
    own: socket.socket
    theirs: socket.socket


class Descriptors:
    """The daemon's ends. `on_closed` is told the lease whose last copy was closed. `keep` and `drop` put an
    end into what outlives the daemon, by its lease's number, and take it out again."""

    def __init__(
        self,
        on_closed: Callable[[int], None],
        keep: Callable[[int, int], None] = lambda _number, _fd: None,
        drop: Callable[[int], None] = lambda _number: None,
    ) -> None:
        self._on_closed = on_closed
        self._keep = keep
        self._drop = drop
        self._ends: dict[int, tuple[socket.socket, int]] = {}  # with the user
        self._numbers: dict[int, int] = {}  # of the leases, by file descriptor
        self._users: Counter[int] = Counter()
        self._lost: Counter[int] = Counter()  # events that did not fit, by lease
        self._poll: select.epoll | None = None

    def __len__(self) -> int:
        return self._users.total()

    def make(self, uid: int) -> Ends:
        """Both ends for a lease to be; watch() or discard() must follow. Raises PoolExhausted."""
        own = self._users[uid]
        if len(self) >= AT_MOST or (uid != _ROOT_UID and own >= AT_MOST_PER_USER):
            raise PoolExhausted(
                f"sriovd keeps no more descriptors of leases; {own} are yours.",
                "Release some, or call Lease, which needs none.",
            )
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        theirs.shutdown(socket.SHUT_WR)
        self._users[uid] += 1
        return Ends(uid, ours, theirs)

    def watch(self, number: int, own: socket.socket, uid: int) -> None:
        """The lease of that number is held by the other end of `own`, which make() has made."""
        self._ends[number] = own, uid
        self._numbers[own.fileno()] = number
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)
        self._keep(number, own.fileno())
        self._hangups.register(own.fileno(), _ONLY_HANGUPS)

    def take_up(self, number: int, own: socket.socket, uid: int) -> None:
        """As watch, for an end that has outlived a former daemon."""
        self._users[uid] += 1
        self.watch(number, own, uid)

    def tell(self, number: int, event: Mapping[str, str | int]) -> None:
        """Write `event` as one line of JSON to the owner of the lease, if a descriptor holds it. What an
        owner who does not read has no room for is dropped, and counted: "lost" of the next line that fits
        says how many lines are missing before it."""
        own, _ = self._ends.get(number, (None, 0))
        if own is None:
            return
        lost = {"lost": self._lost[number]} if number in self._lost else {}
        try:
            own.send(_write_line({**event, **lost}), socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._lost[number] += 1
        except OSError:
            return  # the last copy was closed, which is told by itself
        else:
            self._lost.pop(number, None)

    def discard(self, ends: Ends) -> None:
        """Nobody gets the other end: a lease that it holds loses its owner."""
        ends.theirs.close()
        if self._numbers.get(ends.own.fileno()) is None and ends.own.fileno() >= 0:
            ends.own.close()
            self._leave(ends.uid)

    def close(self, number: int) -> None:
        """The lease is over, whoever ended it."""
        own, uid = self._ends.pop(number, (None, 0))
        if own is not None:
            self._hangups.unregister(own.fileno())
            del self._numbers[own.fileno()]
            self._lost.pop(number, None)
            own.close()
            self._leave(uid)
            self._drop(number)

    @property
    def _hangups(self) -> select.epoll:
        """Tells of closed ends, from the first end on."""
        if self._poll is None:
            self._poll = select.epoll()
            add_reader(self._poll.fileno(), self._look)
        return self._poll

    def _look(self) -> None:
        for fd, _ in self._hangups.poll(0):
            number = self._numbers.get(fd)
            if number is not None:
                self.close(number)
                self._on_closed(number)

    def _leave(self, uid: int) -> None:
        self._users[uid] -= 1
        if not self._users[uid]:
            del self._users[uid]


def _write_line(event: Mapping[str, str | int]) -> bytes:
    short = {
        name: value[:_TEXT_CHARACTERS] if isinstance(value, str) else value for name, value in event.items()
    }
    return json.dumps(short).encode() + b"\n"
