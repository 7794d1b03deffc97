"""How far each trace is, in memory of the daemon's own: what the next daemon needs to go on.

Rule: nothing here is ever read from a tenant's memory, so nothing that a tenant writes counts. Each word is
stored at once, and in an order in which a daemon that is killed between any two leaves a trace that goes on
exactly (core/trace/buffer.py). What a former daemon has left is checked as anything that comes back is.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

from sriovd.core.errors import PoolExhausted
from sriovd.core.trace.donation import BUFFERS, FileId

# The words of a slot. TOLD: of how many lost records the records tell: for an even and an odd producer, so
# that a new one counts together with its producer.
LEASE, PRODUCER, LOST, TOLD, _, NEXT_TRANSACTION, FLAGS, INODE = range(8)
DROPS = 1  # a bit of FLAGS; above it is st_dev
SLOT_BYTES = 64
LEDGER_BYTES = BUFFERS * SLOT_BYTES
_DEVICE_SHIFT = 32
_LARGEST = 2**63 - 1
_LARGEST_DEVICE = 2**32 - 1  # the kernel's dev_t (include/linux/types.h)


@dataclass(frozen=True, slots=True)
class Account:
    """How far the trace of a lease is. `drops`: new records are dropped when the buffer is full, otherwise
    old ones are overwritten. `producer`: records ever written; `lost`: records ever dropped;
    `told`: of how many of those the records tell. `file`: the buffer."""

    lease: int
    drops: bool
    file: FileId
    next_transaction: int = 1
    producer: int = 0
    lost: int = 0
    told: int = 0

    def check(self) -> None:
        """Raises ValueError naming what makes no sense."""
        limits = {
            "lease": (1, self.lease, _LARGEST),
            "next transaction": (1, self.next_transaction, _LARGEST),
            "producer": (0, self.producer, _LARGEST),
            "count of lost records": (0, self.lost, _LARGEST),
            "count of told losses": (0, self.told, self.lost),
        }
        for name, (lowest, value, highest) in limits.items():
            if not lowest <= value <= highest:
                raise ValueError(f"a trace's {name} is {value}, not from {lowest} to {highest}")


class LedgerSlot:
    """The words of one trace; `words`: eight of 64 bits, each stored at once."""

    def __init__(self, words: memoryview) -> None:
        self.words = words

    @property
    def is_free(self) -> bool:
        """Whether it is nobody's."""
        return not self.words[LEASE]

    def read(self) -> Account:
        """Raises ValueError."""
        words = self.words
        flags = words[FLAGS] & ((1 << _DEVICE_SHIFT) - 1)
        if flags & ~DROPS:
            raise ValueError(f"a trace's flags are {flags:#x}")
        account = Account(
            words[LEASE], bool(flags & DROPS), (words[FLAGS] >> _DEVICE_SHIFT, words[INODE]),
            words[NEXT_TRANSACTION], words[PRODUCER], words[LOST], words[TOLD + (words[PRODUCER] & 1)],
        )  # fmt: skip
        account.check()
        return account

    def write(self, account: Account) -> None:
        """The lease last: without one it is free."""
        device, inode = account.file
        words = self.words
        words[NEXT_TRANSACTION], words[PRODUCER], words[LOST] = (
            account.next_transaction, account.producer, account.lost,
        )  # fmt: skip
        words[TOLD] = words[TOLD + 1] = account.told
        words[FLAGS] = (device & _LARGEST_DEVICE) << _DEVICE_SHIFT | (DROPS if account.drops else 0)
        words[INODE] = inode
        words[LEASE] = account.lease

    def free(self) -> None:
        """It is nobody's."""
        self.words[LEASE] = 0


class Ledger:
    """The slots. Its memory is a descriptor that can outlive the daemon."""

    def __init__(self, fd: int) -> None:
        """Maps what is there; `fd` stays the caller's. Raises ValueError when it is no ledger, OSError."""
        if (size := os.fstat(fd).st_size) != LEDGER_BYTES:
            raise ValueError(f"the ledger of traces has {size} bytes, not {LEDGER_BYTES}")
        self._map = mmap.mmap(fd, LEDGER_BYTES)
        words = memoryview(self._map).cast("Q")
        per_slot = SLOT_BYTES // words.itemsize
        starts = range(0, len(words), per_slot)
        self._slots = [LedgerSlot(words[start : start + per_slot]) for start in starts]

    def claim(self, account: Account) -> LedgerSlot:
        """A slot for a new trace. Raises PoolExhausted."""
        slot = next((each for each in self._slots if each.is_free), None)
        if slot is None:
            raise PoolExhausted(f"There are {BUFFERS} traces, and more are not kept.", "Stop some.")
        slot.write(account)
        return slot

    def used(self) -> Iterator[LedgerSlot]:
        """The slots that are somebody's."""
        return (each for each in self._slots if not each.is_free)


def make_ledger() -> int:
    """A descriptor of an empty one. Raises OSError."""
    fd = os.memfd_create("sriovd-traces")  # close-on-exec unless told otherwise
    os.ftruncate(fd, LEDGER_BYTES)
    return fd
