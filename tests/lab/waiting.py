"""Waiting for a condition, never for a time.

Rule: no operation of the lab waits without a deadline, and the one that passes says what it waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

POLL_INTERVAL_S = 0.1


class DeadlineExceeded(Exception):
    """What was waited for did not happen in time."""


def wait_until(predicate: Callable[[], Value], deadline_s: float, what: str) -> Value:
    """The first true value of `predicate`, called about ten times a second.

    DeadlineExceeded after `deadline_s` seconds, with `what` and the last value.

    >>> wait_until(lambda: guest.exists("/dev/vfio/11"), 5.0, "a VFIO group for the VF")
    """
    end_s = time.monotonic() + deadline_s
    while not (value := predicate()):
        if time.monotonic() >= end_s:
            raise DeadlineExceeded(f"{what}: not within {deadline_s:g} s; last seen: {value!r}")
        time.sleep(POLL_INTERVAL_S)
    return value
