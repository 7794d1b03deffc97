"""Whatever anybody attaches to a call, closing it keeps nobody waiting."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sriovd.bus import foreign_fds
from sriovd.bus.calls import ReceivedFds
from sriovd.bus.connection import Connection
from sriovd.bus.foreign_fds import THREADS_AT_MOST, WAITING_AT_MOST, Closer, is_small_memfd
from sriovd.bus.message import Field, Kind, body_fields, encode_field, encode_message
from sriovd.bus.receiver import MAX_INCOMING_BYTES, Receiver
from sriovd.bus.wire import encode_body

from .silent_fuse import CannotMount, mounted
from .support import in_loop, open_fds, until

AT_ONCE_SEC = 1.0  # a hang lasts as long as the test lets it


def closing_threads() -> int:
    return sum(thread.name == "close" for thread in threading.enumerate())


def pipes(count: int) -> list[int]:
    """Descriptors of as many pipes."""
    made = []
    for _ in range(count):
        reading, writing = os.pipe()
        os.close(writing)
        made.append(reading)
    return made


@pytest.fixture(autouse=True)
def closer(monkeypatch: pytest.MonkeyPatch) -> Closer:
    fresh = Closer()
    monkeypatch.setattr(foreign_fds, "_closer", fresh)
    return fresh


class Hanging:
    """os.close, which does not return for some descriptors."""

    def __init__(self) -> None:
        self.slow: set[int] = set()
        self.callers: set[int] = set()  # threads that have closed one of those
        self.gate = threading.Event()
        self._close = os.close

    def __call__(self, number: int) -> None:
        if number in self.slow:
            self.callers.add(threading.get_ident())
            assert self.gate.wait(60)
            self.slow.discard(number)
        self._close(number)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    fake = Hanging()
    monkeypatch.setattr(os, "close", fake)
    yield fake
    fake.gate.set()
    deadline = time.monotonic() + 10
    while closing_threads():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def until_sync(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition))


def test_what_does_not_close_hangs_in_a_bounded_number_of_threads(
    closer: Closer, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(open_fds())
    given = pipes(THREADS_AT_MOST + WAITING_AT_MOST)
    hanging.slow.update(given)
    with caplog.at_level(logging.WARNING):
        closer.close(given[:-1])
        until_sync(lambda: len(hanging.callers) == THREADS_AT_MOST)
        assert not closer.is_full
        closer.close(given[-1:])
        assert closer.is_full
        assert closer.is_full
    assert len(hanging.callers) == closing_threads() == THREADS_AT_MOST
    assert threading.get_ident() not in hanging.callers
    assert len(caplog.records) == 1, "it is told once"
    hanging.gate.set()
    until_sync(lambda: not closing_threads())
    assert len(open_fds()) == before
    assert not closer.is_full


def test_threads_come_again_and_nothing_leaks(closer: Closer) -> None:
    before = len(open_fds())
    for _ in range(50):
        closer.close(pipes(7))
        closer.close([os.memfd_create("x"), os.eventfd(0), socket.socket(socket.AF_UNIX).detach()])
    until_sync(lambda: not closing_threads())
    assert len(open_fds()) == before


def test_a_thread_that_cannot_be_had_is_had_later(closer: Closer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(open_fds())

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        closer.close(pipes(3))
    assert len(open_fds()) == before + 3
    closer.close(pipes(1))
    until_sync(lambda: not closing_threads())
    assert len(open_fds()) == before


def test_only_small_memfds_are_closed_at_once(tmp_path: Path) -> None:
    def judge(number: int) -> bool:
        try:
            return is_small_memfd(number)
        finally:
            os.close(number)

    large = os.memfd_create("large")
    os.posix_fallocate(large, 0, 65 << 20)
    sealed = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(sealed, 1 << 40)  # and nothing of it is there
    fcntl.fcntl(sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    assert judge(os.memfd_create("plain"))
    assert judge(sealed)
    assert not judge(large)
    assert not judge(pipes(1)[0])
    assert not judge(os.eventfd(0))
    assert not judge(select.epoll().fileno())
    assert not judge(os.open(tmp_path, os.O_RDONLY))
    with suppress(OSError):  # somebody's own tmpfs, which closing may end
        assert not judge(os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR))


def test_nobody_but_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(_number: int) -> os.stat_result:
        raise AssertionError("it was asked")

    (given,) = pipes(1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", asked)
        assert not is_small_memfd(given)
    os.close(given)


@contextmanager
def lingering() -> Iterator[int]:
    """A TCP socket whose last close(2) waits for a peer that does not read."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    sender.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            sender.send(bytes(1 << 20))
    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
    with peer:
        yield sender.detach()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # resets it


def _message(kind: Kind, count: int, signature: str = "", values: tuple[Any, ...] = ()) -> bytes:
    """That says `count` descriptors come with it."""
    body = encode_body(signature, values)
    fields = [encode_field(Field.UNIX_FDS, count), encode_field(Field.PATH, "/x")]
    fields += [encode_field(Field.MEMBER, "X"), *body_fields(signature, body)]
    return encode_message(kind, 7, fields, body)


MESSAGES = {
    "a call": _message(Kind.CALL, 1),
    "a call that is too large": _message(Kind.CALL, 1, "s", ("x" * MAX_INCOMING_BYTES,)),
    "a call that lacks descriptors": _message(Kind.CALL, 2),
    "a header that is too large": struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 0, 1, 2 * MAX_INCOMING_BYTES),
    "a reply": _message(Kind.RETURN, 1),
    "a signal": _message(Kind.SIGNAL, 1),
    "no message that takes it": b"l",
}


@pytest.mark.parametrize("what", MESSAGES)
@in_loop
async def test_nobody_waits_for_a_socket_that_lingers(what: str) -> None:
    """Its closing hangs indeed, however it comes; the connection's copy is the last one."""
    with lingering() as given:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        connection = Connection(ours)
        began = time.monotonic()
        socket.send_fds(theirs, [MESSAGES[what][:16]], [given])
        os.close(given)
        for start in range(16, len(MESSAGES[what]), 1 << 14):
            await asyncio.get_running_loop().sock_sendall(theirs, MESSAGES[what][start : start + (1 << 14)])
        if what in ("a call that lacks descriptors", "no message that takes it"):
            await until(lambda: connection._receiver.fds._waiting or closing_threads())
            connection._receiver.close()
        await until(closing_threads)
        assert time.monotonic() - began < AT_ONCE_SEC
        connection._lose("the test is over")
        theirs.close()
    await until(lambda: not closing_threads())


def test_files_whose_server_does_not_answer(tmp_path: Path, closer: Closer) -> None:
    """Not over a bus: dbus-daemon hangs on them itself (seen with 1.14)."""
    place = tmp_path / "silent"
    place.mkdir()
    try:
        with mounted(str(place)) as path:
            given = [os.open(path, os.O_RDWR) for _ in range(THREADS_AT_MOST + 1)]
            began = time.monotonic()
            ReceivedFds(given).close()
            closer.close(pipes(1))
            assert time.monotonic() - began < AT_ONCE_SEC
            until_sync(lambda: len(closer._waiting) == len(given) + 1 - THREADS_AT_MOST)
            assert closing_threads() == THREADS_AT_MOST
    except CannotMount as error:
        print(f"no FUSE file can be made here: {error}")
        pytest.skip(f"no FUSE file can be made here: {error}")
    until_sync(lambda: not closing_threads())
    assert not any(str(place) in each for each in open_fds())


@in_loop
async def test_none_is_received_while_too_many_hang(hanging: Hanging, closer: Closer) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    receiver = Receiver(ours, lambda _frame: None, lambda _reason: None)
    given = pipes(THREADS_AT_MOST + WAITING_AT_MOST)
    hanging.slow.update(given)
    closer.close(given)
    await until(lambda: len(hanging.callers) == THREADS_AT_MOST)
    (spare,) = pipes(1)
    before = len(open_fds())
    socket.send_fds(theirs, [b"x"], [spare])
    await until(lambda: receiver._buffer)
    assert len(open_fds()) == before
    assert receiver.fds.take(1) is None, "the message is not told that its descriptor is lost"
    hanging.gate.set()
    await until(lambda: not closing_threads())
    socket.send_fds(theirs, [b"y"], [spare])
    await until(lambda: len(receiver._buffer) == 2)
    (received,) = receiver.fds.take(1) or []
    assert not os.get_inheritable(received), "helpers would have it, too"
    receiver.close()
    for each in (received, spare):
        os.close(each)
    ours.close()
    theirs.close()
