"""Runs an entry over many inputs and says what came of it.

Rule: an input is judged by its outcome (the documented errors, or a value), by the processor time that it
takes and by the memory that the process grows by: limits that no honest input comes near. Inputs with an
outcome not seen before are kept, as stock for further ones.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from tests.fuzz.entry import Entry
from tests.fuzz.mutate import Mutator

MOST_SECONDS = 1.0  # of processor time, for one input
MOST_GROWTH_BYTES = 64 << 20
_WEIGHED_BYTES = 512  # a shorter input cannot make the process grow by much unseen: others repeat it
_MANY_TICKS_SEC = 0.05  # from here on processor time counts, which some machines know in steps of 4 ms
_POOL = 256
_DEEPEST = 24  # lines that tell one outcome from another
_PEAK = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # of glibc: some 10 us
_NOW = re.compile(rb"^VmRSS:\s+(\d+) kB", re.MULTILINE)


class TakesTooLong(BaseException):
    """Not an Exception: parsers that catch all of those must not catch this."""


@dataclass(slots=True)
class Report:
    """What came of a run. `crash`: the first input that is a defect, and `reason` why; None for none.
    `outcomes`: how many different ones there were."""

    inputs: int = 0
    seconds: float = 0.0
    outcomes: int = 0
    slowest_sec: float = 0.0
    slowest_bytes: int = 0
    growth_bytes: int = 0
    crash: bytes | None = None
    reason: str = ""


@dataclass(slots=True)
class Runner:
    """Judges inputs of one entry, one after the other."""

    entry: Entry
    report: Report = field(default_factory=Report)
    _seen: set[tuple[str, int]] = field(default_factory=set)

    def judge(self, data: bytes) -> bool:
        """Whether the outcome is a new one. After a defect, report.crash is set."""
        self.report.inputs += 1
        weighed = len(data) >= _WEIGHED_BYTES
        before = _reset_peak() if weighed else 0
        began, began_busy = time.perf_counter(), time.process_time()
        outcome = self._try(data)
        seconds, busy = time.perf_counter() - began, time.process_time() - began_busy
        growth = _read_status(_PEAK) - before if weighed else 0
        self._measure(data, busy if seconds > _MANY_TICKS_SEC else seconds, growth)
        is_new = outcome not in self._seen
        self._seen.add(outcome)
        self.report.outcomes = len(self._seen)
        return is_new

    def _try(self, data: bytes) -> tuple[str, int]:
        """What comes of it, and where. Raises what is not documented."""
        try:
            with _limit(MOST_SECONDS):
                return _shape(self.entry.parse(data)), 0
        except self.entry.errors as error:
            return type(error).__name__, _place(error)
        except (Exception, TakesTooLong) as error:
            self._blame(data, f"{type(error).__name__}: {error!s:.200}")
            raise

    def _measure(self, data: bytes, seconds: float, growth: int) -> None:
        report = self.report
        if seconds > report.slowest_sec:
            report.slowest_sec, report.slowest_bytes = seconds, len(data)
        report.growth_bytes = max(report.growth_bytes, growth)
        if growth > MOST_GROWTH_BYTES:
            self._blame(data, f"the process grew by {growth >> 20} MiB")

    def _blame(self, data: bytes, reason: str) -> None:
        self.report.crash, self.report.reason = data, reason


def make_inputs(entry: Entry, seed: int) -> tuple[list[bytes], Mutator]:
    """The stock that a run begins with, and what makes more of it."""
    stock = [b"", *entry.seeds()]
    return stock, Mutator(f"{entry.name} {seed}", entry.words, entry.max_bytes, is_json=entry.is_json)


def run(entry: Entry, inputs: int, seed: int = 0) -> Report:
    """The seeds, then as many more as make `inputs`; ends at the first defect. Raises what was raised."""
    runner = Runner(entry)
    began = time.monotonic()
    try:
        for _ in _drive(runner, inputs, seed):
            if runner.report.crash is not None:
                raise AssertionError(runner.report.reason)
    finally:
        runner.report.seconds = time.monotonic() - began
        _last[entry.name] = runner.report
    return runner.report


_last: dict[str, Report] = {}


def last_report(entry: Entry) -> Report:
    """Of the last run of the entry, also of one that has found a defect."""
    return _last[entry.name]


def _drive(runner: Runner, inputs: int, seed: int) -> Iterator[None]:
    stock, mutator = make_inputs(runner.entry, seed)
    for data in stock:
        runner.judge(data)
        yield
    for _ in range(inputs - len(stock)):
        data = mutator.make(stock)
        if runner.judge(data) and len(stock) < _POOL:
            stock.append(data)
        yield


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Processor time, since other processes may have the machine."""
    former = signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, former)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise TakesTooLong(f"more than {MOST_SECONDS} s of processor time")


def _shape(value: object) -> str:
    """What kind of a value it is, roughly."""
    if isinstance(value, tuple | list):
        return ",".join(type(each).__name__ for each in value[:8])
    return type(value).__name__


def _place(error: BaseException) -> int:
    """Where an error was raised, or the one that it was made of, as a number: the lines on the way."""
    traceback = (error.__cause__ or error).__traceback__
    number = depth = 0
    while traceback is not None and depth < _DEEPEST:
        number = number * 4099 + traceback.tb_lineno & 0xFFFF_FFFF
        traceback, depth = traceback.tb_next, depth + 1
    return number


def _reset_peak() -> int:
    """Forget the largest size that the process ever had (proc(5), clear_refs); its size now. Before that the
    allocator gives back what it keeps of what was freed: into that a process grows unseen."""
    _trim(0)
    with open("/proc/self/clear_refs", "wb", buffering=0) as file:
        file.write(b"5")
    return _read_status(_NOW)


def _read_status(pattern: re.Pattern[bytes]) -> int:
    fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        match = pattern.search(os.read(fd, 4096))
    finally:
        os.close(fd)
    return int(match[1]) << 10 if match else 0
