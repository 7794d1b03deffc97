"""Descriptors that outlive the daemon: systemd keeps them and hands them to the next one.

Rule: names are `lease-N`. systemd drops a descriptor whose other end was closed meanwhile, so a lease
without one has lost its owner. Where no systemd started the daemon, nothing is kept.
systemd: FileDescriptorStoreMax= in systemd.service(5), sd_pid_notify_with_fds(3).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import stat

from systemd import daemon

_log = logging.getLogger(__name__)
_PREFIX = "lease-"
_NAME = re.compile(rf"{_PREFIX}([1-9]\d{{0,18}})", re.ASCII)


def keep_descriptor(number: int, fd: int) -> None:
    """Let the descriptor of the lease of that number outlive the daemon."""
    daemon.notify(f"FDSTORE=1\nFDNAME={_PREFIX}{number}", fds=[fd])


def drop_descriptor(number: int) -> None:
    """It is wanted no more."""
    daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={_PREFIX}{number}")


def take_descriptors() -> dict[int, socket.socket]:
    """What former daemons have kept, by the lease's number. What nobody knows is closed, and systemd forgets
    it."""
    kept: dict[int, socket.socket] = {}
    for fd, name in daemon.listen_fds_with_names().items():
        match = _NAME.fullmatch(name)
        if match and int(match[1]) not in kept and stat.S_ISSOCK(os.fstat(fd).st_mode):
            kept[int(match[1])] = socket.socket(fileno=fd)
        else:
            _log.warning("systemd has kept a descriptor %r that nobody knows", name)
            os.close(fd)
            if match is None:
                daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
    return kept
