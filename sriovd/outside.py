"""Descriptors on which the outside is heard: the kernel, the bus, helper processes, owners.

Rule: what comes from outside has no cause inside. The event loop calls a reader in the context of whoever
has registered it, for as long as it is registered, and a caller's transaction is part of that context
(core/trace/transaction.py): the hang-up of one owner would be done in the name of another, whose call had
made the first descriptor. So every reader is registered here, without a context.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import Context
from typing import Any


def add_reader(source: int | socket.socket, callback: Callable[..., object], *arguments: Any) -> None:
    """As the event loop's add_reader, which also says how it ends (remove_reader)."""
    Context().run(asyncio.get_running_loop().add_reader, source, callback, *arguments)
