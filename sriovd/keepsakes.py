"""Descriptors that outlive the daemon: systemd keeps them and hands them to the next one.

Rule: `lease-N` holds the lease of that number, `trace-N` is the buffer that its owner has donated, and
`trace-ledger` tells how far the traces are. systemd drops a descriptor whose other end was closed meanwhile,
so a lease without one has lost its owner. Where no systemd started the daemon, nothing is kept.
systemd: FileDescriptorStoreMax= in systemd.service(5), sd_pid_notify_with_fds(3).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat
from dataclasses import dataclass, field

from systemd import daemon

_log = logging.getLogger(__name__)
_LEASE, _TRACE, _LEDGER = "lease-", "trace-", "trace-ledger"
_NAME = re.compile(r"(lease-|trace-)([1-9]\d{0,18})|trace-ledger", re.ASCII)


@dataclass(slots=True)
class Kept:
    """What former daemons have kept, by the lease's number; `ledger`: None when there is none."""

    leases: dict[int, socket.socket] = field(default_factory=dict)
    traces: dict[int, int] = field(default_factory=dict)
    ledger: int | None = None

    def take(self, name: str, fd: int) -> bool:
        """Whether it is something that can be used."""
        match, mode = _NAME.fullmatch(name), os.fstat(fd).st_mode
        number = int(match[2]) if match and match[2] else 0
        if name == _LEDGER and self.ledger is None and stat.S_ISREG(mode):
            self.ledger = fd
        elif name.startswith(_LEASE) and number and number not in self.leases and stat.S_ISSOCK(mode):
            self.leases[number] = socket.socket(fileno=fd)
        elif name.startswith(_TRACE) and number and number not in self.traces and stat.S_ISREG(mode):
            self.traces[number] = fd
        else:
            return False
        return True


def keep_lease(number: int, fd: int) -> None:
    """Let the descriptor of the lease of that number outlive the daemon."""
    _keep(f"{_LEASE}{number}", fd)


def drop_lease(number: int) -> None:
    """It is wanted no more."""
    _drop(f"{_LEASE}{number}")


def keep_trace(number: int, fd: int) -> None:
    """As keep_lease, for the buffer of its trace."""
    _keep(f"{_TRACE}{number}", fd)


def drop_trace(number: int) -> None:
    """It is wanted no more."""
    _drop(f"{_TRACE}{number}")


def keep_ledger(fd: int) -> None:
    """As keep_lease, for what tells how far the traces are."""
    _keep(_LEDGER, fd)


def drop_ledger() -> None:
    """It is wanted no more."""
    _drop(_LEDGER)


def _keep(name: str, fd: int) -> None:
    daemon.notify(f"FDSTORE=1\nFDNAME={name}", fds=[fd])


def _drop(name: str) -> None:
    daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def take_descriptors() -> Kept:
    """What former daemons have kept. What nobody knows is closed, and systemd forgets it."""
    kept = Kept()
    for fd, name in daemon.listen_fds_with_names().items():
        if not kept.take(name, fd):
            _log.warning("systemd has kept a descriptor %r that nobody knows", name)
            os.close(fd)
            if _NAME.fullmatch(name) is None:
                _drop(name)
    return kept
