"""Whether functions are in use: asks the host who holds them, and lets the rules judge.

Rule: reads only; the answer is true for the moment it was given.
"""

from __future__ import annotations

from collections.abc import Sequence

from sriovd.backend.base import Backend
from sriovd.core import rules
from sriovd.core.inventory import Function


async def refuse_used(backend: Backend, functions: Sequence[Function], force: bool) -> None:
    """Raises InUse when somebody uses one of `functions`; nobody is asked when that shall not matter."""
    if functions and not force:
        holders = await backend.find_holders([each.address for each in functions])
        rules.check_unused(functions, holders)
