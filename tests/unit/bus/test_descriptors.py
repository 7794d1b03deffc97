"""The descriptors of leases: only their end is told, and there are few."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from typing import Any

import pytest

from sriovd.bus import descriptors
from sriovd.bus.descriptors import Descriptors
from sriovd.core.errors import PoolExhausted
from sriovd.core.trace.transaction import current_requester, transaction

from .support import in_loop, open_fds, until

ALICE, BOB = 1000, 1001


class Kept:
    """What was told."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.kept: dict[int, int] = {}
        self.ends = Descriptors(self.closed.append, self.kept.__setitem__, self._drop)

    def _drop(self, number: int) -> None:
        del self.kept[number]


@in_loop
async def test_the_last_copy_counts() -> None:
    told, before = Kept(), open_fds()
    for number in (1, 2, 3):
        ends = told.ends.make(ALICE)
        told.ends.watch(number, ends.own, ALICE)
        assert told.kept[number] == ends.own.fileno()
        copy = os.dup(ends.theirs.fileno())
        ends.theirs.close()
        await asyncio.sleep(0)
        assert told.closed == list(range(1, number))
        os.close(copy)
        await until(lambda number=number: told.closed == list(range(1, number + 1)))  # type: ignore[misc]
    assert (told.kept, len(told.ends)) == ({}, 0)
    assert len(open_fds()) == len(before) + 1  # the epoll


@in_loop
async def test_a_hangup_is_done_in_nobodys_name() -> None:
    """Not in that of whose call was the first."""
    causes: list[str] = []
    ends = Descriptors(lambda _: causes.append(current_requester()), lambda _, __: None, lambda _: None)
    for number, uid in ((1, ALICE), (2, BOB)):
        with transaction("Acquire", f"uid {uid}"):
            made = ends.make(uid)
            ends.watch(number, made.own, uid)
        made.theirs.close()
        await until(lambda number=number: len(causes) == number)  # type: ignore[misc]
    assert causes == ["sriovd"] * 2


@in_loop
async def test_the_owner_can_neither_write_nor_send_descriptors() -> None:
    told = Kept()
    ends = told.ends.make(ALICE)
    told.ends.watch(1, ends.own, ALICE)
    with pytest.raises(BrokenPipeError):
        ends.theirs.send(b"x")
    with pytest.raises(BrokenPipeError):
        socket.send_fds(ends.theirs, [b"x"], [0])
    woken = 0

    def note() -> None:
        nonlocal woken
        woken += 1

    told.ends._look = note  # type: ignore[method-assign]
    for _ in range(50):
        await asyncio.sleep(0)
    assert (woken, told.closed) == (0, [])
    ends.theirs.close()


@in_loop
async def test_a_lease_that_is_over_hangs_up() -> None:
    told = Kept()
    ends = told.ends.make(ALICE)
    told.ends.watch(1, ends.own, ALICE)
    told.ends.close(1)
    told.ends.close(1)
    assert (ends.theirs.recv(1), told.closed, told.kept, len(told.ends)) == (b"", [], {}, 0)
    ends.theirs.close()


@in_loop
async def test_what_nobody_gets_is_closed() -> None:
    told, before = Kept(), open_fds()
    told.ends.discard(told.ends.make(ALICE))
    assert (open_fds(), len(told.ends)) == (before, 0)
    watched = told.ends.make(ALICE)
    told.ends.watch(1, watched.own, ALICE)
    told.ends.discard(watched)
    await until(lambda: told.closed == [1])
    over = told.ends.make(ALICE)
    told.ends.watch(2, over.own, ALICE)
    told.ends.close(2)
    told.ends.discard(over)
    assert (told.closed, len(told.ends), len(open_fds())) == ([1], 0, len(before) + 1)


@in_loop
async def test_there_are_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "AT_MOST_PER_USER", 2)
    monkeypatch.setattr(descriptors, "AT_MOST", 5)
    told = Kept()
    alices = [told.ends.make(ALICE) for _ in range(2)]
    with pytest.raises(PoolExhausted, match="; 2 are yours"):
        told.ends.make(ALICE)
    others = [told.ends.make(uid) for uid in (BOB, 0, 0)]
    with pytest.raises(PoolExhausted):
        told.ends.make(0)
    told.ends.discard(alices.pop())
    told.ends.watch(1, (again := told.ends.make(ALICE)).own, ALICE)
    told.ends.close(1)
    again.theirs.close()
    for ends in (*alices, *others):
        told.ends.discard(ends)
    assert (len(told.ends), told.ends._users) == (0, {})


@in_loop
async def test_an_end_that_has_outlived_a_daemon_is_watched_as_before() -> None:
    first, second = Kept(), Kept()
    ends = first.ends.make(ALICE)
    kept = socket.socket(fileno=os.dup(ends.own.fileno()))
    first.ends.watch(7, ends.own, ALICE)
    first.ends.close(7)
    second.ends.take_up(7, kept, ALICE)
    assert len(second.ends) == 1
    ends.theirs.close()
    await until(lambda: second.closed == [7])


def lines_of(end: socket.socket) -> list[dict[str, Any]]:
    """What can be read now."""
    end.setblocking(False)
    data = b""
    try:
        while chunk := end.recv(1 << 20):
            data += chunk
    except BlockingIOError:
        pass
    assert data.endswith(b"\n") or not data
    return [json.loads(line) for line in data.splitlines()]


@in_loop
async def test_an_owner_reads_what_is_told_and_then_the_end() -> None:
    told = Kept()
    ends = told.ends.make(ALICE)
    told.ends.watch(1, ends.own, ALICE)
    told.ends.tell(1, {"state": "frozen", "reason": "Täter"})
    told.ends.tell(2, {"state": "online"})
    assert lines_of(ends.theirs) == [{"state": "frozen", "reason": "Täter"}]
    told.ends.tell(1, {"state": "online"})
    told.ends.close(1)
    assert lines_of(ends.theirs) == [{"state": "online"}]
    assert ends.theirs.recv(1) == b""
    told.ends.tell(1, {"state": "frozen"})
    ends.theirs.close()


@in_loop
async def test_what_a_slow_reader_has_no_room_for_is_counted_and_nothing_waits_for_him() -> None:
    told = Kept()
    ends = told.ends.make(ALICE)
    told.ends.watch(1, ends.own, ALICE)
    for _ in range(2):
        for number in range(1000):
            told.ends.tell(1, {"number": number})
        first = lines_of(ends.theirs)
        assert 40 <= len(first) < 200
        assert [line["number"] for line in first] == list(range(len(first)))
        told.ends.tell(1, {"number": 1000})
        told.ends.tell(1, {"number": 1001})
        assert lines_of(ends.theirs) == [{"number": 1000, "lost": 1000 - len(first)}, {"number": 1001}]
    told.ends.close(1)
    assert not told.ends._lost
    ends.theirs.close()


@in_loop
async def test_a_line_goes_whole_whatever_its_texts_are() -> None:
    told = Kept()
    ends = told.ends.make(ALICE)
    told.ends.watch(1, ends.own, ALICE)
    longest = dict.fromkeys(("state", "cause", "reason"), "🔥" * 5000)
    for _ in range(10):
        told.ends.tell(1, longest)
    lines = lines_of(ends.theirs)
    assert lines
    assert lines[0] == {name: text[:256] for name, text in longest.items()}
    ends.theirs.close()


@in_loop
async def test_neither_an_unread_line_nor_reading_one_is_a_hangup() -> None:
    told = Kept()
    ends = told.ends.make(ALICE)
    told.ends.watch(1, ends.own, ALICE)
    looked = 0

    def note() -> None:
        nonlocal looked
        looked += 1

    told.ends._look, original = note, told.ends._look  # type: ignore[method-assign]
    for number in range(100):
        told.ends.tell(1, {"number": number})
        await asyncio.sleep(0)
    lines_of(ends.theirs)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (looked, told.closed) == (0, [])
    told.ends._look = original  # type: ignore[method-assign]
    told.ends.tell(1, {"number": 0})
    ends.theirs.close()  # with a line unread
    told.ends.tell(1, {"number": 1})
    told.ends._look()
    assert (told.closed, len(told.ends)) == ([1], 0)
