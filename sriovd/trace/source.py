"""Where a reader gets a trace's bytes from: memory, or a file.

Rule: a file is mapped only if it is sealed against shrinking, as what sriovd writes to is; touching a mapped
page that is gone would kill the reader. Any other file is read, a record at a time. Short reads are errors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from typing import Protocol

from sriovd.trace.layout import TraceError


class Source(Protocol):
    """`size`: in bytes, when it was opened."""

    size: int

    def read(self, offset: int, size: int) -> bytes:
        """A copy of these bytes. Raises TraceError if they are not there."""

    def store(self, offset: int, value: int, /) -> None:
        """Write an aligned field of 8 bytes in one piece. Raises TraceError if it cannot be written."""


class MemorySource:
    """Bytes, or mapped memory."""

    def __init__(self, memory: bytes | bytearray | mmap.mmap | memoryview) -> None:
        self._memory = memory
        self.size = len(memory)

    def read(self, offset: int, size: int) -> bytes:
        """See Source. One call of memcpy, so an aligned field of 8 bytes is read in one piece."""
        copy = bytes(self._memory[offset : offset + size])
        if len(copy) != size:
            raise TraceError(f"it ends before byte {offset + size}")
        return copy

    def store(self, offset: int, value: int, /) -> None:
        """See Source."""
        if sys.byteorder == "big":
            value = int.from_bytes(value.to_bytes(8, "little"), "big")
        try:
            with memoryview(self._memory) as view, view.cast("B") as octets, octets.cast("Q") as words:
                words[offset // 8] = value
        except TypeError as read_only:
            raise TraceError("it was opened for reading only") from read_only


class FileSource:
    """A file that may shrink under the reader."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size

    def read(self, offset: int, size: int) -> bytes:
        """See Source."""
        try:
            copy = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise TraceError(f"it cannot be read: {error.strerror}") from error
        if len(copy) != size:
            raise TraceError(f"it ends before byte {offset + size}")
        return copy

    def store(self, _offset: int, _value: int, /) -> None:
        """See Source: only memory that somebody writes to is worth it."""
        raise TraceError("it is a copy, which nobody writes to: name the buffer itself, /proc/PID/fd/N")


@contextlib.contextmanager
def open_source(path: str, writable: bool = False) -> Iterator[Source]:
    """The file at `path`, until the end. Raises TraceError, which does not name the path."""
    try:
        # Not blocking: a FIFO's opening would wait for a writer.
        descriptor = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise TraceError(_explain(error)) from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise TraceError("it is not a regular file or a memfd")
        if not status.st_size or not _is_sealed(descriptor):
            yield FileSource(descriptor, status.st_size)
            return
        with _map(descriptor, status.st_size, writable) as memory:
            yield MemorySource(memory)
    finally:
        os.close(descriptor)


def _map(descriptor: int, size: int, writable: bool) -> mmap.mmap:
    access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, access)
    except (OSError, ValueError, OverflowError) as error:
        raise TraceError(f"it cannot be mapped: {error}") from error


def _is_sealed(descriptor: int) -> bool:
    try:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except OSError:  # EINVAL: a file system that has no seals
        return False


def _explain(error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"it cannot be opened: {error}"
    steps = {
        errno.EACCES: "; a buffer is its owner's: run this as the user who has leased the VF",
        errno.ENOENT: "; give the path of a saved buffer, or /proc/PID/fd/N of a process that has one",
    }
    return f"it cannot be opened: {error.strerror}{steps.get(error.errno or 0, '')}"
