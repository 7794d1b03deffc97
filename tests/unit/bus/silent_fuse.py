"""A FUSE file system with one file, /file, whose server never answers FLUSH.

Rule: it is a process of its own, `python silent_fuse.py DIRECTORY`, which opens no file of its own file
system: when it ends, so does the kernel's connection to it, and whoever waits for it goes on. Needs root.
Linux: include/uapi/linux/fuse.h, Documentation/filesystems/fuse.rst.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOOKUP, _FORGET, _GETATTR, _OPEN, _RELEASE, _FLUSH, _INIT, _OPENDIR = 1, 2, 3, 14, 18, 25, 26, 27
_SILENT = (_FORGET, _RELEASE, _FLUSH)
_ENOENT, _ENOSYS = 2, 38
_ROOT, _FILE = 1, 2
_REQUEST_BYTES = 1 << 18
_PR_SET_PDEATHSIG, _MS_NOSUID, _MS_NODEV, _MNT_DETACH = 1, 2, 4, 2


class CannotMount(Exception):
    """There is no /dev/fuse here, or one may not mount."""


libc = ctypes.CDLL(None, use_errno=True)


def _attributes(node: int) -> bytes:
    """struct fuse_attr."""
    mode = 0o40755 if node == _ROOT else 0o100666
    return struct.pack("<6Q10I", node, 0, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def _answer(code: int, node: int, body: bytes) -> tuple[int, bytes]:
    """An errno, and what follows the header."""
    if code == _INIT:
        return 0, struct.pack("<4I2HI40x", 7, 31, 0, 0, 12, 9, 4096)  # struct fuse_init_out
    if code == _LOOKUP and body == b"file\0":
        return 0, struct.pack("<4Q2I", _FILE, 0, 60, 60, 0, 0) + _attributes(_FILE)
    if code == _GETATTR:
        return 0, struct.pack("<Q2I", 60, 0, 0) + _attributes(node)
    if code in (_OPEN, _OPENDIR):
        return 0, struct.pack("<QII", 0, 0, 0)
    return _ENOENT if code == _LOOKUP else _ENOSYS, b""


def _serve(device: int) -> None:
    """Until the file system is unmounted."""
    while True:
        request = os.read(device, _REQUEST_BYTES)
        length, code, unique, node = struct.unpack_from("<IIQQ", request)
        if code not in _SILENT:
            error, body = _answer(code, node, request[40:length])
            os.write(device, struct.pack("<IiQ", 16 + len(body), -error, unique) + body)


def _main(directory: str) -> None:
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if libc.mount(b"silent", os.fsencode(directory), b"fuse", _MS_NOSUID | _MS_NODEV, options):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    print("ready", flush=True)
    _serve(device)


@contextmanager
def mounted(directory: str) -> Iterator[str]:
    """Path of the file. Raises CannotMount."""
    server = subprocess.Popen(
        [sys.executable, __file__, directory], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.stdout is not None and server.stderr is not None
    with server:
        try:
            if server.stdout.readline() != "ready\n":
                raise CannotMount(server.stderr.read().strip().splitlines()[-1])
            yield f"{directory}/file"
        finally:
            server.kill()  # whoever waits for it goes on
            server.wait()
            libc.umount2(os.fsencode(directory), _MNT_DETACH)


if __name__ == "__main__":
    _main(sys.argv[1])
