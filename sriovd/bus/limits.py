"""How much one caller may ask for: calls at a time, and calls per second. Pure; the clock is passed in.

A caller's record is dropped as soon as it says no more than a fresh one would (nothing running, bucket full
again), so memory is bounded by what callers do now, and nobody has to watch who leaves the bus.
"""

from __future__ import annotations

from dataclasses import dataclass

from sriovd.bus.errors import LimitsExceeded

_BYTES_PER_TOKEN = 1024
_SWEEP_AT = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """max_calls_per_sender, max_calls: verbs running at a time, for one caller and for all together.

    rate_per_s, burst: calls (a KiB of arguments counts as one more) per caller, sustained and at once. The
    burst lets `busctl tree` walk a host with 16,384 VFs.
    """

    max_calls_per_sender: int = 32
    max_calls: int = 256
    rate_per_s: float = 1000.0
    burst: float = 40000.0


@dataclass(slots=True)
class _Sender:
    tokens: float
    at_s: float
    running: int = 0


class CallLimiter:
    """Counts the calls of every caller."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._senders: dict[str, _Sender] = {}
        self._running = 0
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._senders)

    def admit(self, sender: str, size_bytes: int, now_s: float) -> None:
        """One call has come in. now_s: monotonic seconds. Raises LimitsExceeded when it is one too many."""
        record = self._record(sender, now_s)
        cost = 1.0 + size_bytes // _BYTES_PER_TOKEN
        if record.tokens < cost:
            limits = self._limits
            raise LimitsExceeded(
                f"too many calls: {limits.burst:g} at once, then {limits.rate_per_s:g} per second"
            )
        record.tokens -= cost

    def start(self, sender: str, now_s: float) -> None:
        """A verb starts; finish() must follow. Raises LimitsExceeded when too many run."""
        record = self._record(sender, now_s)
        if record.running >= self._limits.max_calls_per_sender:
            raise LimitsExceeded(f"{record.running} calls of yours are running: wait for one of them to end")
        if self._running >= self._limits.max_calls:
            raise LimitsExceeded(f"{self._running} calls are running: try again later")
        record.running += 1
        self._running += 1

    def finish(self, sender: str) -> None:
        """A verb that start() counted has ended."""
        self._senders[sender].running -= 1
        self._running -= 1

    def _record(self, sender: str, now_s: float) -> _Sender:
        if sender not in self._senders and len(self._senders) >= self._sweep_at:
            self._sweep(now_s)
        record = self._senders.setdefault(sender, _Sender(self._limits.burst, now_s))
        self._refill(record, now_s)
        return record

    def _refill(self, record: _Sender, now_s: float) -> None:
        gained = (now_s - record.at_s) * self._limits.rate_per_s
        record.tokens = min(self._limits.burst, record.tokens + gained)
        record.at_s = now_s

    def _sweep(self, now_s: float) -> None:
        """Drop the records that are as good as fresh; the next sweep comes when the rest has doubled."""
        for sender, record in list(self._senders.items()):
            self._refill(record, now_s)
            if not record.running and record.tokens >= self._limits.burst:
                del self._senders[sender]
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._senders))
