"""What the next daemon is left: read back as it was, and believed no more than anything that comes back."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest

from sriovd.core.errors import PoolExhausted
from sriovd.core.trace import ledger
from sriovd.core.trace.donation import BUFFERS
from sriovd.core.trace.ledger import LEDGER_BYTES, Account, Ledger, make_ledger

ACCOUNT = Account(
    7, drops=True, file=(0x1F00003, 2**63 + 5), next_transaction=44, producer=31, lost=12, told=9
)


def test_what_is_written_comes_back_to_the_next_daemon() -> None:
    fd = make_ledger()
    Ledger(fd).claim(ACCOUNT)
    (slot,) = Ledger(fd).used()
    assert slot.read() == ACCOUNT
    slot.free()
    assert list(Ledger(fd).used()) == []
    os.close(fd)


def test_there_is_room_for_every_buffer_and_no_more() -> None:
    fd = make_ledger()
    book = Ledger(fd)
    slots = [book.claim(replace(ACCOUNT, lease=number)) for number in range(1, BUFFERS + 1)]
    with pytest.raises(PoolExhausted):
        book.claim(ACCOUNT)
    slots[100].free()
    book.claim(replace(ACCOUNT, lease=4711))
    assert {slot.read().lease for slot in Ledger(fd).used()} == {*range(1, BUFFERS + 1), 4711} - {101}
    os.close(fd)


@pytest.mark.parametrize("size", [0, 64, LEDGER_BYTES - 1, LEDGER_BYTES + 4096])
def test_another_size_is_no_ledger(size: int) -> None:
    fd = os.memfd_create("odd")
    os.ftruncate(fd, size)
    with pytest.raises(ValueError, match=f"has {size} bytes"):
        Ledger(fd)
    os.close(fd)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        (ledger.LEASE, 2**63), (ledger.PRODUCER, 2**63), (ledger.LOST, 2**64 - 1), (ledger.LOST, 8),
        (ledger.TOLD + 1, 13), (ledger.NEXT_TRANSACTION, 0), (ledger.NEXT_TRANSACTION, 2**63),
        (ledger.FLAGS, 2), (ledger.FLAGS, 2**31),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(word: int, value: int) -> None:
    fd = make_ledger()
    slot = Ledger(fd).claim(ACCOUNT)
    slot.words[word] = value
    with pytest.raises(ValueError, match="a trace's"):
        slot.read()
    os.close(fd)


def test_of_random_bytes_nothing_worse_comes() -> None:
    fd = make_ledger()
    chance = random.Random(3)
    for _ in range(20):
        os.pwrite(fd, chance.randbytes(LEDGER_BYTES), 0)
        for slot in Ledger(fd).used():
            try:
                slot.read()
            except ValueError:
                continue
    os.close(fd)
