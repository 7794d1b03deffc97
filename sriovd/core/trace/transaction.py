"""What causes what: every call and job is a transaction, and what is done meanwhile is its.

Rule: a transaction is passed on as tasks are made (contextvars), so nothing between a call and a kernel
write has to know of it. It has no number of its own: each VF's trace gives it one when something of it
happens to that VF, so the numbers of one trace tell nothing of another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from sriovd.core.trace.guard import guarded


class Trace(Protocol):
    """Where a transaction has left something: core/trace/stream.py."""

    def put_end(self, transaction: Transaction, error: BaseException | None) -> None:
        """The transaction has ended; `error`: by that."""


class Branch(NamedTuple):
    """Where a transaction is in one trace."""

    number: int
    parent: int


@dataclass(eq=False, slots=True)
class Transaction:
    """`operation`: the verb, or the job's. `requester`: who asked, in words. `parent`: what caused it.
    `began_nsec`: CLOCK_MONOTONIC. `branches`: its ids in the traces that have any for it. `touched`: the
    traces in which something of it is; `spoken_for`: those whose owner asked for it."""

    operation: str
    requester: str
    parent: Transaction | None = None
    began_nsec: int = 0
    branches: dict[Trace, Branch] = field(default_factory=dict)
    touched: dict[Trace, None] = field(default_factory=dict)  # in their order
    spoken_for: set[Trace] = field(default_factory=set)
    is_over: bool = False


CURRENT: ContextVar[Transaction | None] = ContextVar("transaction", default=None)


def speaks_for(transaction: Transaction | None, trace: Trace) -> bool:
    """Whether the owner of that trace has asked for the transaction, or for what has caused it."""
    while transaction is not None and trace not in transaction.spoken_for:
        transaction = transaction.parent
    return transaction is not None


def current_requester() -> str:
    """For whom the current task works: who asked for the transaction, or sriovd itself."""
    transaction = CURRENT.get()
    return transaction.requester if transaction is not None else "sriovd"


@contextmanager
def transaction(operation: str, requester: str) -> Iterator[Transaction]:
    """What the current task does meanwhile, and the tasks that it starts, is this transaction, caused by the
    one before. What ends it by an exception is told to the traces, too."""
    new = Transaction(operation, requester, CURRENT.get(), time.monotonic_ns())
    token = CURRENT.set(new)
    try:
        yield new
    except BaseException as error:
        _end(new, error)
        raise
    else:
        _end(new, None)
    finally:
        CURRENT.reset(token)


def _end(over: Transaction, error: BaseException | None) -> None:
    over.is_over = True
    for trace in over.touched:
        _tell_end(trace, over, error)


@guarded
def _tell_end(trace: Trace, over: Transaction, error: BaseException | None) -> None:
    trace.put_end(over, error)
