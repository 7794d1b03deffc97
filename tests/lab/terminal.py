"""Joins the user's terminal to the guest's serial console.

Rule of this module: the terminal's settings are restored whatever happens, and Ctrl-] always leaves, so a
hung guest cannot keep the terminal.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LEAVE_KEY = b"\x1d"  # Ctrl-]
POLL_INTERVAL_S = 1.0


@contextmanager
def raw_terminal(descriptor: int) -> Iterator[None]:
    """Hands every key to the guest; a descriptor that is no terminal is left alone."""
    if not os.isatty(descriptor):
        yield
        return
    saved = termios.tcgetattr(descriptor)
    tty.setraw(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)


def relay(console: socket.socket, ended: Callable[[], bool]) -> None:
    """Carries bytes both ways until Ctrl-], end of input, QEMU's end, or until `ended()`, which is asked
    whenever a second passes in silence.
    """
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    with raw_terminal(keys):
        while True:
            readable, _, _ = select.select([keys, console], [], [], POLL_INTERVAL_S)
            if not readable and ended():
                return
            if console in readable:
                if not (data := console.recv(65536)):
                    return
                os.write(screen, data)
            if keys in readable:
                data = os.read(keys, 1024)
                if not data or LEAVE_KEY in data:
                    return
                console.sendall(data)
