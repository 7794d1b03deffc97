"""A tenant's memory before it is mapped: what it is, whether it will do, and whether there is room.

Rule: nothing is asked of a descriptor that its donor could delay or fake. Whether it can be sealed is the
kernel's own answer (mm/memfd.c memfd_fcntl asks no filesystem), so a FUSE file is never even looked at. Only
memory that can neither shrink nor grow is mapped: an access beyond its end would kill the daemon (SIGBUS).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from sriovd.core.errors import BackendFailed, InvalidArgument, PoolExhausted

PAGE_BYTES = 4096
SMALLEST_BYTES = 2 * PAGE_BYTES  # the header's page, and one of records
LARGEST_BYTES = PAGE_BYTES + (4 << 20)
BUFFERS = 512  # for all; each is a descriptor here and one that systemd keeps
BUFFERS_PER_USER = 32  # except root, as the next
BYTES_PER_USER = 32 << 20
BYTES = 256 << 20
_TMPFS_MAGIC = 0x01021994  # include/uapi/linux/magic.h; hugetlbfs, which can be sealed, too, has another
_BLOCK_BYTES = 512  # of st_blocks, whatever the filesystem's are (stat(2))
_STATFS_BYTES = 256  # more than struct statfs has anywhere; f_type is its first long on every 64-bit machine

FileId = tuple[int, int]
"""st_dev and st_ino."""


@dataclass(frozen=True, slots=True)
class Donation:
    """What a descriptor is. `seals`: F_SEAL_*; None when it cannot have any, then nothing else was read.
    `access`: O_RDWR and the like. `filesystem`: its magic. `mode`, `uid`, `blocks`: as stat(2) has them."""

    seals: int | None = None
    access: int = 0
    filesystem: int = 0
    mode: int = 0
    uid: int = 0
    size_bytes: int = 0
    blocks: int = 0
    file: FileId = (0, 0)


def read_donation(fd: int) -> Donation:
    """What `fd` is. Never waits for anybody."""
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL; EBADF of one that was opened with O_PATH
        return Donation()
    found = os.fstat(fd)
    return Donation(
        seals, fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE, _read_magic(fd), found.st_mode, found.st_uid,
        found.st_size, found.st_blocks, (found.st_dev, found.st_ino),
    )  # fmt: skip


def _read_magic(fd: int) -> int:
    """The filesystem's magic, which Python's os.fstatvfs leaves out. Raises BackendFailed."""
    buffer = (ctypes.c_long * (_STATFS_BYTES // ctypes.sizeof(ctypes.c_long)))()
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, buffer):
        raise BackendFailed(f"fstatfs failed: {os.strerror(ctypes.get_errno())}.")
    return int(buffer[0])


def check_donation(given: Donation, uid: int, *, trusted: bool, used: Collection[FileId]) -> None:
    """Whether `given` can be a trace of user `uid`'s; `trusted`: anybody's will do. `used`: what is a trace
    already. Raises InvalidArgument naming what is wrong and what would be right."""
    if given.seals is None:
        raise _refuse("cannot be sealed", "Give one of memfd_create with MFD_ALLOW_SEALING.")
    if not stat.S_ISREG(given.mode) or given.filesystem != _TMPFS_MAGIC:
        raise _refuse("is no ordinary memory", "Give one of memfd_create without MFD_HUGETLB.")
    if given.access != os.O_RDWR:
        raise _refuse("is not open for reading and writing", "Give it as memfd_create made it.")
    if not trusted and given.uid != uid:
        raise _refuse(f"belongs to user {given.uid}", f"Give memory that user {uid} has made.")
    _check_seals(given.seals)
    _check_size(given)
    if given.file in used:
        raise _refuse("is the buffer of another trace", "Give each trace a memfd of its own.")


def _check_seals(seals: int) -> None:
    missing = [name for name, bit in _WANTED.items() if not seals & bit]
    if missing:
        raise _refuse(f"lacks {' and '.join(missing)}", "Add them with fcntl F_ADD_SEALS.")
    refused = [name for name, bit in _REFUSED.items() if seals & bit]
    if refused:
        raise _refuse(f"has {' and '.join(refused)}, and sriovd is to write to it", "Make one without.")


_WANTED = {"F_SEAL_SHRINK": fcntl.F_SEAL_SHRINK, "F_SEAL_GROW": fcntl.F_SEAL_GROW}
_REFUSED = {
    "F_SEAL_WRITE": fcntl.F_SEAL_WRITE,
    "F_SEAL_FUTURE_WRITE": 0x10,
}  # the latter: Python 3.13 names it


def _check_size(given: Donation) -> None:
    size = given.size_bytes
    if size % PAGE_BYTES or not SMALLEST_BYTES <= size <= LARGEST_BYTES:
        raise _refuse(
            f"has {size} bytes",
            f"Give a multiple of {PAGE_BYTES}, from {SMALLEST_BYTES} to {LARGEST_BYTES}.",
        )
    if given.blocks * _BLOCK_BYTES < size:  # what is written first is charged to the writer
        raise _refuse("has pages that are not allocated", "Call posix_fallocate before the seals are added.")


def _refuse(what: str, hint: str) -> InvalidArgument:
    return InvalidArgument(f"The descriptor of the buffer {what}.", hint)


def check_room(uid: int, size_bytes: int, traces: Iterable[tuple[int, int]], *, trusted: bool) -> None:
    """Whether user `uid` may have one more buffer of that size. `traces`: user and bytes of each that there
    is. `trusted`: the user's own share does not count. Raises PoolExhausted."""
    every = list(traces)
    own = [size for user, size in every if user == uid]
    if not trusted and (len(own) >= BUFFERS_PER_USER or sum(own) + size_bytes > BYTES_PER_USER):
        raise PoolExhausted(
            f"User {uid} has {len(own)} trace buffers of {sum(own)} bytes;"
            f" there may be {BUFFERS_PER_USER} of {BYTES_PER_USER}.",
            "Stop some, or give a smaller one.",
        )
    together = sum(size for _, size in every)
    if len(every) >= BUFFERS or together + size_bytes > BYTES:
        raise PoolExhausted(
            f"There are {len(every)} trace buffers of {together} bytes, and more are not taken.",
            "ReadTail needs no buffer.",
        )
