"""The writing of traces against an owner who does what he can to the memory, and over kill -9."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sriovd.core.trace import ledger as ledger_words
from sriovd.core.trace.buffer import BufferWriter, Mode
from sriovd.core.trace.ledger import Account, Ledger, make_ledger
from sriovd.trace import layout
from sriovd.trace.reader import TraceReader
from sriovd.trace.source import MemorySource
from tests.simulated.process import REPOSITORY
from tests.simulated.test_trace_buffers import mapped, read
from tests.unit.core.trace.buffers import FILE, VF, make_memfd, make_record

SECONDS = 2.0  # that a hostile owner gets


# An owner who does what he can.

SCRIBBLER = """
import ctypes, mmap, os, random, sys
fd, seed = int(sys.argv[1]), int(sys.argv[2])
memory = mmap.mmap(fd, 0)
size, chance, libc = len(memory), random.Random(seed), ctypes.CDLL(None)
print(flush=True)
while True:
    at = chance.randrange(0, size - 512)
    memory[at : at + 512] = chance.randbytes(512)
    memory[0:256] = chance.randbytes(256)
    memory[128:136] = chance.choice((0, 1, 2**63, 2**64 - 1, chance.randrange(2000))).to_bytes(8, "little")
    if not chance.randrange(16):
        libc.fallocate(fd, 3, ctypes.c_long(chance.randrange(size // 4096) * 4096), ctypes.c_long(8192))
"""


@contextmanager
def scribbling(fd: int) -> Iterator[None]:
    """Another process writes random bytes everywhere, and punches holes."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIBBLER, str(fd), "11"], pass_fds=[fd], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
        assert process.poll() is None, "the owner has died, and not the daemon"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def between_guards(fd: int, size: int) -> Iterator[memoryview]:
    """`fd` mapped right between two pages that nobody may touch."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    whole = libc.mmap(None, size + 8192, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    fixed = mmap.MAP_SHARED | 0x10  # MAP_FIXED
    inside = libc.mmap(whole + 4096, size, mmap.PROT_READ | mmap.PROT_WRITE, fixed, fd, 0)
    assert inside == whole + 4096
    with memoryview((ctypes.c_ubyte * size).from_address(inside)) as view:
        yield view.cast("B")
    libc.munmap(whole, size + 8192)


@pytest.mark.parametrize("mode", Mode)
def test_an_owner_who_writes_everywhere_all_the_time_changes_nothing(mode: Mode) -> None:
    """The memory lies between two pages at which any access would end the test."""
    fd = make_memfd(size := 64 << 12)
    book = make_ledger()
    slot = Ledger(book).claim(Account(1, mode is Mode.DROP, FILE))
    with between_guards(fd, size) as memory:
        writer = BufferWriter(memory, slot)
        writer.publish(VF)
        spent, lost = [], 0
        with scribbling(fd):
            ends = time.monotonic() + SECONDS
            count = 0
            while time.monotonic() < ends:
                count += 1
                record = make_record(count, "x" * (count % 200))
                began = time.perf_counter_ns()
                writer.write(record)
                spent.append(time.perf_counter_ns() - began)
                account = slot.read()
                assert account.next_transaction == count + 1
                assert account.producer + account.lost == count
                assert account.lost >= lost
                lost = account.lost
        spent.sort()
        assert count > 1000
        assert spent[len(spent) * 99 // 100] < 2_000_000, "a write has stalled"
        writer.publish(VF)
        header = layout.decode_header(bytes(memory[: layout.HEADER_BYTES]), size)
        assert (header.producer, header.next_transaction) == (account.producer, count + 1)
        writer.end()
        memory.release()
    os.close(fd)
    os.close(book)


# Killed, and the next.

WRITER = """
import mmap, sys
from sriovd.core.trace.buffer import BufferWriter
from sriovd.core.trace.ledger import Ledger
from tests.unit.core.trace.buffers import VF, make_record
buffer, book = int(sys.argv[1]), int(sys.argv[2])
(slot,) = Ledger(book).used()
writer = BufferWriter(mmap.mmap(buffer, 0), slot)
writer.publish(VF)
print(flush=True)
while True:
    writer.write(make_record(writer.next_transaction))
"""


@pytest.mark.parametrize("mode", Mode)
def test_kill_9_leaves_what_reads_cleanly_and_goes_on(mode: Mode) -> None:
    fd, book = make_memfd(4 << 12), make_ledger()
    slot = Ledger(book).claim(Account(1, mode is Mode.DROP, FILE))
    chance, last = random.Random(4), 0
    for kills in range(1, 13):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(fd), str(book)],
            pass_fds=[fd, book], stdout=subprocess.PIPE, cwd=REPOSITORY,
        )  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        _read_for(fd, chance.uniform(0.0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        entries = read(fd)
        ids = [entry.record.transaction for entry in entries]
        assert ids == sorted(set(ids))
        assert all(number < slot.words[ledger_words.NEXT_TRANSACTION] for number in ids)
        assert not entries or ids[-1] >= last
        last = max(last, *ids, 0)
        account = slot.read()
        untold = account.next_transaction - 1 - account.producer - account.lost
        assert 0 <= untold <= kills, "each kill may cost the one record that was being written"
    assert last > 100
    os.close(fd)
    os.close(book)


def _read_for(fd: int, seconds: float) -> None:
    """Its owner reads while it is written."""
    with mapped(fd) as memory:
        reader = TraceReader(MemorySource(memory))
        ends = time.monotonic() + seconds
        before = 0
        while time.monotonic() < ends:
            for entry in reader.read():
                assert entry.record == make_record(entry.record.transaction) or entry.record.lost
                assert entry.record.transaction > before
                before = entry.record.transaction
            reader.release()
        assert reader.damaged == 0
