"""One helper process as the daemon sees it: started, spoken to, waited for.

Rule: everything here is non-blocking and driven by the event loop; only os.posix_spawn takes time (a vfork).
Death is told by a pidfd, after everything that the helper said has been delivered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress

from sriovd.backend.base import Evidence
from sriovd.backend.linux import helper
from sriovd.backend.linux.registry import StatusFile
from sriovd.outside import add_reader

_BLOCKED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_RECEIVE_BYTES = 65536
_ROOM_FOR_A_DESCRIPTOR = socket.CMSG_SPACE(4)  # a helper does one job at a time


class HelperProcess:
    """A running helper. `on_message(kind, payload)` gets what it says, `on_death(how)` its end.

    What it says of an open file is ("opened", (errno, descriptor)); the descriptor, -1 with an errno, is the
    listener's.
    """

    def __init__(self, root: str, status_directory: str) -> None:
        """Start it. A job can be sent at once and waits in the socket until it is up. Raises OSError."""
        self.on_message: Callable[[str, object], None] = lambda _kind, _payload: None
        self.on_death: Callable[[str], None] = lambda _how: None
        self._loop = asyncio.get_running_loop()
        self._incoming = bytearray()
        self._outgoing = bytearray()
        self._descriptors: list[int] = []  # that have come, and not yet the word of them
        self._socket, theirs = socket.socketpair()
        with theirs:
            try:
                self.pid = _spawn(theirs.fileno(), root, status_directory)
            except OSError:
                self._socket.close()
                raise
        self._pidfd = os.pidfd_open(self.pid)
        self._socket.setblocking(False)
        try:
            self.status = StatusFile(status_directory, self.pid)
        except OSError:
            self._socket.close()  # which ends it
            os.close(self._pidfd)
            raise
        add_reader(self._socket, self._receive)
        add_reader(self._pidfd, self._exited)

    def send(self, message: object) -> None:
        """Give it a job."""
        self._outgoing += helper.frame(message)
        self._flush()

    def read_evidence(self) -> Evidence:
        """The step that it is in."""
        return self.status.read_evidence()

    def release(self) -> None:
        """Close the socket: an idle helper ends at once, one at work after its chain. It is no longer
        listened to, but still waited for, lest it become a zombie."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()

    def forget(self, *, remove_status: bool) -> None:
        """Let go of it altogether."""
        self.release()
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.status.close(remove=remove_status)
        while self._descriptors:
            os.close(self._descriptors.pop())

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._socket.send(self._outgoing)]
        except BlockingIOError:
            self._loop.add_writer(self._socket, self._flush)
            return
        except OSError:  # it has died; _exited tells
            self._outgoing.clear()
        self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            if self._read_socket():
                return
            self._loop.remove_reader(self._socket)  # end of file: _exited follows

    def _read_socket(self) -> bool:
        """Deliver what has come; False at the end."""
        try:
            data, rights, *_ = self._socket.recvmsg(
                _RECEIVE_BYTES, _ROOM_FOR_A_DESCRIPTOR, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return False
        self._incoming += data
        self._descriptors += [int.from_bytes(descriptor, sys.byteorder) for _, _, descriptor in rights]
        while isinstance(message := helper.unframe(self._incoming), tuple):
            kind, payload = message
            if kind == "opened":
                payload = (payload, self._descriptors.pop() if self._descriptors else -1)
            self.on_message(kind, payload)
        return bool(data)

    def _exited(self) -> None:
        with suppress(BlockingIOError):
            while self._socket.fileno() >= 0 and self._read_socket():
                pass
        how = _reap(self._pidfd)
        on_death = self.on_death
        step = self.read_evidence().step
        self.forget(remove_status=True)
        on_death(f"helper pid {self.pid} {how} at step: {step}")


def _spawn(socket_fd: int, root: str, status_directory: str) -> int:
    """Start the program with `socket_fd` as standard input and an empty environment; its pid."""
    arguments = [sys.executable, "-I", "-S", helper.__file__, root, status_directory]
    return os.posix_spawn(
        sys.executable,
        arguments,
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, socket_fd, 0)],
        setsigmask=_BLOCKED,
    )


def _reap(pidfd: int) -> str:
    """How the process ended, in words."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:  # somebody else has waited for it
        result = None
    if result is None:
        return "ended in an unknown way"
    if result.si_code == os.CLD_EXITED:
        return f"exited with status {result.si_status}"
    return f"was killed by {signal.Signals(result.si_status).name}"
