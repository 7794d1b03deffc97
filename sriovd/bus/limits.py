"""How much one caller may ask for: calls at a time, and calls per second. Pure; the clock is passed in.

A caller's record is dropped as soon as it says no more than a fresh one would (nothing running, bucket full
again), so memory is bounded by what callers do now, and nobody has to watch who leaves the bus.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sriovd.bus.errors import LimitsExceeded

_BYTES_PER_TOKEN = 1024
_SWEEP_AT = 64


@dataclass(frozen=True, slots=True)
class Limits:
    """max_calls_per_sender, max_calls_per_user, max_calls: verbs running at a time, for one connection, for
    all of one user, and for all users together. The latter two do not bind `exempt_uid`: a tenant with many
    connections can keep other tenants waiting at worst, never the administrator.

    rate_per_s, burst: calls (a KiB of arguments counts as one more) per caller, sustained and at once. The
    burst lets `busctl tree` walk a host with 16,384 VFs.
    """

    max_calls_per_sender: int = 32
    max_calls_per_user: int = 64
    max_calls: int = 256
    exempt_uid: int = 0
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
        self._users: dict[int, int] = {}  # calls running
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
            raise _too_many(record.running)
        record.running += 1

    def finish(self, sender: str) -> None:
        """A verb that start() counted has ended."""
        self._senders[sender].running -= 1

    @contextmanager
    def running_for(self, uid: int) -> Iterator[None]:
        """A started verb, once it is known whose it is. Raises LimitsExceeded when too many run."""
        if uid != self._limits.exempt_uid:
            self._check_user(uid)
        self._users[uid] = self._users.get(uid, 0) + 1
        try:
            yield
        finally:
            self._users[uid] -= 1
            if not self._users[uid]:
                del self._users[uid]

    def _check_user(self, uid: int) -> None:
        own = self._users.get(uid, 0)
        if own >= self._limits.max_calls_per_user:
            raise _too_many(own)
        together = sum(count for user, count in self._users.items() if user != self._limits.exempt_uid)
        if together >= self._limits.max_calls:
            raise LimitsExceeded("too many calls are running: try again later")

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


def _too_many(own: int) -> LimitsExceeded:
    return LimitsExceeded(f"{own} calls of yours are running: wait for one of them to end")
