"""How often a user may ask for what costs more than a call: some at once, then so many per time. Pure; the
clock is passed in.

Rule: whoever asks pays, whatever the answer, so nobody learns anything by asking fast. The bucket of a user
who has not asked for a while is forgotten, so memory is bounded by who asks now. The administrator does not
pay: operators look at many VFs at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from sriovd.bus.errors import LimitsExceeded

_SWEEP_AT = 64
_EXEMPT_UID = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """`what`: is asked for, in words. `burst`: at once. `rate_per_s`: afterwards."""

    what: str
    burst: int
    rate_per_s: float


class Pacer:
    """Counts what users ask for."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._full_at_s: dict[int, float] = {}  # when the bucket of each user is full again
        self._sweep_at = _SWEEP_AT

    def __len__(self) -> int:
        return len(self._full_at_s)

    def spend(self, uid: int, now_s: float) -> None:
        """The user asks once. now_s: monotonic seconds. Raises LimitsExceeded saying when to come again."""
        if uid == _EXEMPT_UID:
            return
        pace = self._pace
        cost_s, patience_s = 1 / pace.rate_per_s, (pace.burst - 1) / pace.rate_per_s
        full_at_s = max(self._full_at_s.get(uid, now_s), now_s)
        wait_s = full_at_s - now_s - patience_s
        if wait_s > 1e-9:  # what adding up fractions of seconds leaves
            raise LimitsExceeded(
                f"too much asked for: {pace.what} are given {pace.burst} at once, then one in {cost_s:g} s;"
                f" come again in {wait_s:.2f} s"
            )
        self._full_at_s[uid] = full_at_s + cost_s
        if len(self._full_at_s) > self._sweep_at:
            self._sweep(now_s)

    def _sweep(self, now_s: float) -> None:
        """Forget whose buckets are full; the next sweep comes when the rest has doubled."""
        self._full_at_s = {uid: at_s for uid, at_s in self._full_at_s.items() if at_s > now_s}
        self._sweep_at = max(_SWEEP_AT, 2 * len(self._full_at_s))
