"""The names of the inspections, and what their answers consist of.

Rule: names only, for those who show them; what each does is in table.py, which is loaded when somebody asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

Value = str | bool | int | bytes | Sequence[str] | Mapping[str, int]
Shown = Mapping[str, Value]


class Inspection(StrEnum):
    """What can be looked up."""

    RESOURCES = "resources"
    ATTRIBUTES = "attributes"
    REGISTERS = "registers"
    DRIVER = "driver"
    COUNTERS = "counters"
    RECOVERY = "recovery"
