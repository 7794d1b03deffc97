"""Which descriptors are taken, and what those are told who give others."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from sriovd.core.errors import InvalidArgument, PoolExhausted
from sriovd.core.trace.donation import (
    BUFFERS,
    BUFFERS_PER_USER,
    BYTES,
    LARGEST_BYTES,
    Donation,
    check_donation,
    check_room,
    read_donation,
)
from tests.unit.core.trace.buffers import SEALS, make_memfd

UID = 1000
TMPFS, HUGETLBFS = 0x01021994, 0x958458F6
GOOD = Donation(SEALS, os.O_RDWR, TMPFS, 0o100600, UID, 8192, 16, (1, 7))
MFD_HUGETLB = 4
_NR_MEMFD_SECRET = 447  # on every machine (include/uapi/asm-generic/unistd.h)


def complaint(given: Donation, *, trusted: bool = False, used: tuple[tuple[int, int], ...] = ()) -> str:
    with pytest.raises(InvalidArgument) as refused:
        check_donation(given, UID, trusted=trusted, used=used)
    assert refused.value.hint
    return str(refused.value)


@pytest.mark.parametrize(
    "given",
    [
        GOOD,
        replace(GOOD, size_bytes=LARGEST_BYTES, blocks=LARGEST_BYTES // 512),
        replace(GOOD, blocks=4096),  # a huge page
        replace(GOOD, seals=SEALS | fcntl.F_SEAL_SEAL | 0x20),  # F_SEAL_EXEC
    ],
)
def test_what_is_right_is_taken(given: Donation) -> None:
    check_donation(given, UID, trusted=False, used={(1, 8), (2, 7)})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Donation(), "cannot be sealed. Give one of memfd_create"),
        (replace(GOOD, mode=0o140600), "no ordinary memory"),
        (replace(GOOD, filesystem=HUGETLBFS), "memory. Give one of memfd_create without MFD_HUGETLB"),
        (replace(GOOD, access=os.O_RDONLY), "not open for reading and writing"),
        (replace(GOOD, access=os.O_WRONLY), "not open for reading and writing"),
        (replace(GOOD, uid=UID + 1), "belongs to user 1001"),
        (replace(GOOD, uid=0), "belongs to user 0"),
        (replace(GOOD, seals=0), "lacks F_SEAL_SHRINK and F_SEAL_GROW. Add them"),
        (replace(GOOD, seals=fcntl.F_SEAL_SHRINK), "lacks F_SEAL_GROW."),
        (replace(GOOD, seals=fcntl.F_SEAL_GROW), "lacks F_SEAL_SHRINK."),
        (replace(GOOD, seals=fcntl.F_SEAL_SEAL), "lacks F_SEAL_SHRINK"),  # /dev/shm
        (replace(GOOD, seals=SEALS | fcntl.F_SEAL_WRITE), "has F_SEAL_WRITE"),
        (replace(GOOD, seals=SEALS | 0x10), "has F_SEAL_FUTURE_WRITE"),
        (replace(GOOD, size_bytes=0), "has 0 bytes"),
        (replace(GOOD, size_bytes=4096), "has 4096 bytes. Give a multiple of 4096, from 8192 to 4198400"),
        (replace(GOOD, size_bytes=8191), "has 8191 bytes"),
        (replace(GOOD, size_bytes=8193), "has 8193 bytes"),
        (replace(GOOD, size_bytes=LARGEST_BYTES + 4096, blocks=1 << 20), "has 4202496 bytes"),
        (replace(GOOD, size_bytes=1 << 62, blocks=1 << 60), "Give a multiple"),
        (replace(GOOD, blocks=15), "not allocated. Call posix_fallocate"),
        (replace(GOOD, blocks=0), "posix_fallocate"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(given: Donation, words: str) -> None:
    assert words in complaint(given)


def test_one_buffer_is_one_traces() -> None:
    assert "another trace" in complaint(GOOD, used=(GOOD.file,))


def test_root_gives_anybodys_and_nothing_else_is_let_through() -> None:
    check_donation(replace(GOOD, uid=4), 0, trusted=True, used=())
    assert "lacks" in complaint(replace(GOOD, seals=0), trusted=True)


# Real descriptors.


def test_a_memfd_is_read_as_it_is() -> None:
    fd = make_memfd(8192)
    given, found = read_donation(fd), os.fstat(fd)
    assert given == Donation(
        SEALS, os.O_RDWR, TMPFS, found.st_mode, os.getuid(), 8192, 16, (found.st_dev, found.st_ino)
    )
    check_donation(given, os.getuid(), trusted=False, used=())
    os.close(fd)


def reopened(flags: int) -> int:
    fd = make_memfd()
    other = os.open(f"/proc/self/fd/{fd}", flags)
    os.close(fd)
    return other


def pipe() -> int:
    reading, writing = os.pipe()
    os.close(writing)
    return reading


def unlinked_file(directory: str) -> int:
    path = f"{directory}/sriovd-test-{os.getpid()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    os.unlink(path)
    os.posix_fallocate(fd, 0, 8192)
    return fd


def secret_memory() -> int:
    fd = int(ctypes.CDLL(None, use_errno=True).syscall(_NR_MEMFD_SECRET, 0))
    if fd < 0:
        pytest.skip("this kernel has no memfd_secret")
    os.ftruncate(fd, 8192)
    return fd


def huge_memory() -> int:
    fd = os.memfd_create("huge", 2 | MFD_HUGETLB)
    os.ftruncate(fd, 2 << 20)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    return fd


def punched() -> int:
    fd = make_memfd()
    mode = 1 | 2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
    done = ctypes.CDLL(None, use_errno=True).fallocate(fd, mode, ctypes.c_long(4096), ctypes.c_long(4096))
    assert done == 0
    return fd


HOSTILE: dict[str, tuple[Callable[[], int], str]] = {
    "a socket": (lambda: socket.socket(socket.AF_UNIX).detach(), "cannot be sealed"),
    "a pipe": (pipe, "cannot be sealed"),
    "a device": (lambda: os.open("/dev/zero", os.O_RDWR), "cannot be sealed"),
    "a directory": (lambda: os.open("/", os.O_RDONLY), "cannot be sealed"),
    "a file on a disk": (lambda: os.open(__file__, os.O_RDONLY), "cannot be sealed"),
    "a file of sysfs": (lambda: os.open("/sys/kernel/profiling", os.O_RDONLY), "cannot be sealed"),
    "an event descriptor": (lambda: os.eventfd(0), "cannot be sealed"),
    "a path only": (lambda: reopened(os.O_PATH), "cannot be sealed"),
    "memory that nobody sees": (secret_memory, "cannot be sealed"),
    "a file of /dev/shm": (lambda: unlinked_file("/dev/shm"), "lacks F_SEAL_SHRINK and F_SEAL_GROW"),
    "memory of huge pages": (huge_memory, "no ordinary memory"),
    "memory to read only": (lambda: reopened(os.O_RDONLY), "not open for reading and writing"),
    "memory to write only": (lambda: reopened(os.O_WRONLY), "not open for reading and writing"),
    "an unsealed memfd": (lambda: make_memfd(seals=0), "lacks F_SEAL_SHRINK and F_SEAL_GROW"),
    "one that may shrink": (lambda: make_memfd(seals=fcntl.F_SEAL_GROW), "lacks F_SEAL_SHRINK"),
    "one that is not to be written": (lambda: make_memfd(seals=SEALS | fcntl.F_SEAL_WRITE), "F_SEAL_WRITE"),
    "one for others to read": (lambda: make_memfd(seals=SEALS | 0x10), "F_SEAL_FUTURE_WRITE"),
    "one too small": (lambda: make_memfd(4096), "has 4096 bytes"),
    "an empty one": (lambda: make_memfd(0), "has 0 bytes"),
    "an odd one": (lambda: make_memfd(10000), "has 10000 bytes"),
    "a huge one": (lambda: make_memfd(1 << 40, allocate=False), "has 1099511627776 bytes"),
    "one without its pages": (lambda: make_memfd(allocate=False), "posix_fallocate"),
    "one with a hole": (punched, "posix_fallocate"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_tenant_may_think_of_is_refused(what: str) -> None:
    make, words = HOSTILE[what]
    try:
        fd = make()
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"{what} cannot be had here: {error}")
    try:
        with pytest.raises(InvalidArgument, match=words):
            check_donation(read_donation(fd), os.getuid(), trusted=False, used=())
    finally:
        os.close(fd)


def test_a_file_that_its_donor_serves_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A FUSE file's stat and statfs are its donor's to answer, or not."""

    def asked(_fd: int) -> os.stat_result:
        raise AssertionError("it was asked")

    reading, _writing = os.pipe()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", asked)
        assert read_donation(reading) == Donation()


# Room.


def test_a_user_has_his_share_and_all_have_theirs() -> None:
    some = [(UID, 8192)] * (BUFFERS_PER_USER - 1)
    check_room(UID, 8192, some, trusted=False)
    with pytest.raises(PoolExhausted, match="User 1000 has 32"):
        check_room(UID, 8192, [*some, (UID, 8192)], trusted=False)
    check_room(UID, 8192, [*some, (UID, 8192)], trusted=True)
    check_room(UID + 1, 8192, [*some, (UID, 8192)], trusted=False)
    with pytest.raises(PoolExhausted, match="33554432 bytes"):
        check_room(UID, 8192, [(UID, 4 << 20)] * 8, trusted=False)
    with pytest.raises(PoolExhausted, match=f"{BUFFERS} trace buffers"):
        check_room(0, 8192, [(uid, 8192) for uid in range(BUFFERS)], trusted=True)
    with pytest.raises(PoolExhausted, match="bytes, and more"):
        check_room(0, 8192, [(uid, 4 << 20) for uid in range(BYTES >> 22)], trusted=True)
