"""What causes what: every call, job and recovery is a transaction, and what is done meanwhile is its.

Rule: a transaction is passed on as tasks are made (contextvars), so nothing between a call and a kernel
write has to know of it. It has no number of its own: each VF's trace gives it one when something of it
happens to that VF, so the numbers of one trace tell nothing of another.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(eq=False, frozen=True, slots=True)
class Transaction:
    """`operation`: the verb, or the job's. `requester`: who asked, in words. `parent`: what caused it."""

    operation: str
    requester: str
    parent: Transaction | None = None


CURRENT: ContextVar[Transaction | None] = ContextVar("transaction", default=None)


def begin(operation: str, requester: str) -> Transaction:
    """What the current task does from now on is this transaction, caused by the one before."""
    transaction = Transaction(operation, requester, CURRENT.get())
    CURRENT.set(transaction)
    return transaction
