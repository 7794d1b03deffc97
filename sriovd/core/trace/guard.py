"""What is told to tracing must not harm who tells it.

Rule: a defect of tracing costs a record and is logged, and never an operation, an event or the reply to a
call. So whatever tells tracing anything goes through here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

_log = logging.getLogger(__name__)
_Told = ParamSpec("_Told")


def guarded(tell: Callable[_Told, None]) -> Callable[_Told, None]:
    """`tell`, which raises nothing."""

    @wraps(tell)
    def tell_safely(*told: _Told.args, **named: _Told.kwargs) -> None:
        try:
            tell(*told, **named)
        except Exception:
            _log.exception("A record was lost for a defect of sriovd")

    return tell_safely
