"""The buffers of a trace walk: memory that owners donate, and what each can read there over all daemons.

Rule: what is held against the tail is what an owner reads, and not what the desk believes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

from sriovd.core.engine import Engine
from sriovd.core.lease.record import Lease
from sriovd.core.trace.buffer import Mode
from sriovd.core.trace.desk import TraceDesk
from sriovd.trace.record import Record, RecordType
from tests.unit.core.trace.buffers import FakeStore, make_memfd, read_trace

_BYTES = 4096 * 17  # 256 records


@dataclass(slots=True)
class _Buffer:
    """`producer`: how far it is, as its owner has read at last."""

    memory: mmap.mmap
    uid: int
    producer: int = 0
    is_over: bool = False


class Buffers:
    """`told`: of broken promises."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._store = FakeStore()
        self._buffers: dict[int, _Buffer] = {}  # by lease, which is never used again
        self._desk: TraceDesk

    def attach(self, engine: Engine) -> None:
        """The desk of that engine, which has not begun."""
        self._desk = TraceDesk(engine.recorder, engine.leases.vf_address, self._store.shelf())
        engine.leases.listen(lambda _: None, self.stop)

    def take_up(self, engine: Engine) -> None:
        """Go on with what the engine before has left."""
        kept, ledger = self._store.hand_out()
        if ledger is not None:
            self._desk.restore(kept, ledger, engine.leases.get)

    def kill(self) -> None:
        """As the kernel does for a process."""
        for trace in self._desk._traces.values():
            trace.writer._words.release()
            trace.writer._bytes.release()
            trace.memory.close()

    def start(self, lease: Lease, *, history: bool) -> None:
        """The owner gives memory, once."""
        if lease.number in self._buffers:
            return
        fd = make_memfd(_BYTES)
        self._desk.start(lease, lease.uid, fd, Mode.OVERWRITE, history=history, trusted=True)
        self._buffers[lease.number] = _Buffer(mmap.mmap(fd, 0), lease.uid)
        os.close(fd)

    def stop(self, lease: Lease) -> None:
        """The owner does, or the lease is over."""
        self._desk.end(lease)
        if lease.number in self._buffers:
            self._read(lease.number)
            self._buffers[lease.number].is_over = True

    def check(self, tails: dict[int, Sequence[Record]]) -> None:
        """Every buffer as its owner reads it now; `tails`: of the leases that there are."""
        for number, buffer in self._buffers.items():
            before = buffer.producer
            records = self._read(number)
            if buffer.is_over and buffer.producer != before:
                self.told.append(f"lease {number} or its trace was over, and {records[-1]} was written")
            tail = tails.get(number)
            if tail and records and not buffer.is_over:
                common = min(len(tail), len(records))
                if [*map(_cut, tail[-common:])] != [*map(_cut, records[-common:])]:
                    self.told.append(f"the buffer of lease {number} has other records than the tail")

    def _read(self, number: int) -> list[Record]:
        buffer = self._buffers[number]
        header, found = read_trace(buffer.memory)
        buffer.producer = header.producer
        records = [record for _, record in found]
        fresh = [record.transaction for record in records if record.type is not RecordType.END]
        if fresh != sorted(set(fresh)) or (fresh and header.next_transaction <= fresh[-1]):
            self.told.append(f"the ids in the buffer of lease {number} do not rise: {fresh}")
        if [sequence for sequence, _ in found] != list(
            range(header.producer - len(found) + 1, header.producer + 1)
        ):
            self.told.append(f"the buffer of lease {number} has gaps")
        return records

    def close(self) -> None:
        """Nothing is left open."""
        for buffer in self._buffers.values():
            buffer.memory.close()
        self._store.close()


def _cut(record: Record) -> tuple[int, int, int, str, str]:
    """What is in both of a record whose text may be cut off."""
    return record.transaction, record.parent, record.type, record.operation, record.arguments[:100]
