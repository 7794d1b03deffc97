"""Writing a trace into its owner's memory, who reads it meanwhile and may write whatever he likes there.

Rule: how far the trace is comes from the ledger, never from here; of the owner's memory only `consumer` is
read, and what makes no sense there means a full buffer. A record counts once its producer is in the ledger,
and is seen once it is in the header: a daemon that is killed in between leaves what reads cleanly, and the
next writes on.
"""

from __future__ import annotations

import mmap
import sys
import time
from enum import StrEnum

from sriovd.core.trace import ledger
from sriovd.core.trace.ledger import LedgerSlot
from sriovd.pci import PciAddress
from sriovd.trace import layout
from sriovd.trace.layout import Flag, Header
from sriovd.trace.record import Record

# Words of the header.
_PRODUCER, _LOST, _NEXT_TRANSACTION, _CONSUMER = (
    offset >> 3 for offset in (layout.PRODUCER, layout.LOST, layout.NEXT_TRANSACTION, layout.CONSUMER)
)

_IS_LITTLE = sys.byteorder == "little"
_VF = layout.find_offset(layout.HEADER_FIELDS, "vf")


class Mode(StrEnum):
    """What happens when the buffer is full."""

    OVERWRITE = "overwrite"  # the oldest record makes room
    DROP = "drop"  # the new one is lost


class BufferWriter:
    """`memory`: the mapped buffer, as large as was checked (core/trace/donation.py). `slot`: of the ledger,
    which says how far the trace is, at first and after a restart."""

    def __init__(self, memory: mmap.mmap | memoryview, slot: LedgerSlot) -> None:
        """Raises ValueError when the slot makes no sense."""
        account = slot.read()
        self._bytes = memoryview(memory)
        self._words = self._bytes.cast("Q")  # each is stored at once
        self._account = slot.words
        self._drops = account.drops
        self._lease = account.lease
        self._producer = account.producer
        self._lost = account.lost
        self._told = account.told
        self._next_transaction = account.next_transaction
        self.capacity = (len(self._bytes) - layout.HEADER_BYTES) // layout.RECORD_BYTES

    @property
    def next_transaction(self) -> int:
        """Above all ids that were written."""
        return self._next_transaction

    def publish(self, vf: PciAddress) -> None:
        """Write the header, over whatever is there. When a trace goes on, what it began with stays, and so
        does what its reader has written. `vf`: where the VF is now."""
        page = layout.encode_header(
            Header(
                vf,
                self.capacity,
                self._flags | Flag.ACTIVE,
                time.monotonic_ns(),
                time.time_ns(),
                self._lease,
            )
        )
        written = _VF if self._producer else layout.HEADER_BYTES
        self._bytes[:written] = page[:written]
        self._publish_counters()

    def end(self) -> None:
        """Say that nobody writes to it any more."""
        self._bytes[layout.FLAGS] = self._flags
        self._words.release()
        self._bytes.release()

    @property
    def _flags(self) -> Flag:
        return Flag.DROP if self._drops else layout.NO_FLAGS

    def write(self, record: Record) -> None:
        """Append it, or count it as lost."""
        following = record.transaction + 1
        if following > self._next_transaction:
            # Before an id is seen: the next daemon's are above it, whenever this one is killed.
            self._next_transaction = self._account[ledger.NEXT_TRANSACTION] = following
        if self._drops and self._is_full():
            self._lost += 1
            self._account[ledger.LOST] = self._lost
        else:
            self._append(record)
        self._publish_counters()

    def _append(self, record: Record) -> None:
        after = self._producer + 1
        start = layout.HEADER_BYTES + self._producer % self.capacity * layout.RECORD_BYTES
        untold = self._lost - self._told
        body = layout.encode_record(record._replace(lost=record.lost + untold) if untold else record)
        self._words[start >> 3] = 0  # the same in every byte order
        self._bytes[start + layout.BODY : start + layout.RECORD_BYTES] = body
        self._words[start >> 3] = _swap(after)
        self._told = self._account[ledger.TOLD + (after & 1)] = self._lost
        self._producer = self._account[ledger.PRODUCER] = after

    def _is_full(self) -> bool:
        oldest = self._producer - self.capacity
        consumer = _swap(self._words[_CONSUMER])
        return not oldest < consumer <= self._producer

    def _publish_counters(self) -> None:
        lost = self._lost if self._drops else max(0, self._producer - self.capacity + 1)
        self._words[_LOST] = _swap(lost)
        self._words[_NEXT_TRANSACTION] = _swap(self._next_transaction)
        self._words[_PRODUCER] = _swap(self._producer)


def _swap(word: int) -> int:
    """A word of this machine's as the format has it, little-endian, or the other way round."""
    return word if _IS_LITTLE else int.from_bytes(word.to_bytes(8, "little"), "big")
