"""The words in which policies and recovery speak of errors. Pure.

Rule: the order of a vocabulary is its meaning: the later word is the stricter answer, the heavier rung.
"""

from __future__ import annotations

from enum import StrEnum


class Storm(StrEnum):
    """What is done when a function has more correctable errors within a minute than its policy bears."""

    IGNORE = "ignore"
    REPORT = "report"
    FREEZE = "freeze"


class Response(StrEnum):
    """What is done about an error that cannot be corrected."""

    REPORT = "report"  # it is told, and nothing is done: not for fatal errors
    RECOVER = "recover"
    QUARANTINE = "quarantine"


class Rung(StrEnum):
    """A way to bring a dead adapter back; each destroys more than the one before."""

    KERNEL = "kernel"
    FUNCTION_RESET = "function-reset"
    DRIVER_REBIND = "driver-rebind"
    REMOVE_RESCAN = "remove-rescan"


class Permission(StrEnum):
    """Who lets VFs go on after their adapter has recovered."""

    AUTOMATIC = "automatic"  # sriovd, when their owners have had their time
    MANUAL = "manual"  # each owner
