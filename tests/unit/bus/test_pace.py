"""Who asks often is told when to come again; who does not is forgotten. And what a sealed document is."""

from __future__ import annotations

import fcntl
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.bus.errors import LimitsExceeded
from sriovd.bus.pace import Pace, Pacer
from sriovd.bus.sealed import seal

PACE = Pace("error data", 4, 0.2)


def test_some_at_once_then_one_after_the_other() -> None:
    pacer = Pacer(PACE)
    for _ in range(4):
        pacer.spend(1000, 100.0)
    with pytest.raises(LimitsExceeded, match=r"4 at once, then one in 5 s; come again in 5.00 s"):
        pacer.spend(1000, 100.0)
    with pytest.raises(LimitsExceeded, match=r"come again in 1.50 s"):
        pacer.spend(1000, 103.5)
    pacer.spend(1001, 100.0)
    pacer.spend(1000, 105.0)
    with pytest.raises(LimitsExceeded, match=r"come again in 5.00 s"):
        pacer.spend(1000, 105.0)


def test_the_administrator_does_not_wait() -> None:
    pacer = Pacer(PACE)
    for _ in range(100):
        pacer.spend(0, 100.0)
    assert len(pacer) == 0


@given(st.lists(st.floats(0, 20), max_size=60))
def test_nobody_gets_more_than_his_share(pauses: list[float]) -> None:
    pacer, now_s, given_at = Pacer(PACE), 1000.0, list[float]()
    for pause in pauses:
        now_s += pause
        try:
            pacer.spend(1000, now_s)
        except LimitsExceeded:
            continue
        given_at.append(now_s)
    for first in range(len(given_at)):
        for last in range(first, len(given_at)):
            most = 4 + (given_at[last] - given_at[first]) * 0.2
            assert last - first + 1 <= most + 1e-6


@given(st.lists(st.floats(0, 20), max_size=40))
def test_who_comes_when_he_is_told_to_is_served(pauses: list[float]) -> None:
    pacer, now_s = Pacer(PACE), 1000.0
    for pause in pauses:
        now_s += pause
        try:
            pacer.spend(1000, now_s)
        except LimitsExceeded as error:
            now_s += float(str(error).rpartition(" in ")[2].removesuffix(" s")) + 0.01
            pacer.spend(1000, now_s)


def test_memory_is_bounded_by_who_asks_now() -> None:
    pacer, now_s = Pacer(PACE), 0.0
    for uid in range(1, 20_000):
        now_s += 0.1
        pacer.spend(uid, now_s)
    assert len(pacer) <= 150  # fifty have asked within the last five seconds


def test_a_sealed_document_can_be_read_and_nothing_else() -> None:
    fd = seal("test", b"document")
    try:
        assert os.pread(fd, 100, 0) == b"document"
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == seals
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        with pytest.raises(PermissionError):
            os.ftruncate(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), 0)
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0, "whoever reads begins at its begin"
    finally:
        os.close(fd)
