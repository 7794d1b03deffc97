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

from sriovd.core import errors
from sriovd.core.trace.guard import guarded
from sriovd.trace.record import Status

# What has failed, other than what was not begun.
_TRIED = (
    errors.Stuck, errors.BindFailed, errors.ResetFailed, errors.NumVfsRejected, errors.TimedOut,
    errors.Cancelled, errors.BackendFailed,
)  # fmt: skip


class Trace(Protocol):
    """Where a transaction has left something: core/trace/stream.py."""

    def put_ends(self) -> None:
        """Transactions of which there are records have ended."""


class Outcome(NamedTuple):
    """How a transaction has ended. `error`: its kind, empty for none; `message`: what a refusal says. Not
    the error itself, which holds all that it came through."""

    status: Status = Status.OK
    error: str = ""
    message: str = ""


WELL = Outcome()


class Branch(NamedTuple):
    """Where a transaction is in one trace."""

    number: int
    parent: int


@dataclass(eq=False, slots=True)
class Transaction:
    """`operation`: the verb, or the job's. `requester`: who asked, in words. `parent`: what caused it.
    `began_nsec`, `ended_nsec`: CLOCK_MONOTONIC; 0: not yet. `branches`: its ids in the traces that have
    records of it; `spoken_for`: those whose owner asked for it."""

    operation: str
    requester: str
    parent: Transaction | None = None
    began_nsec: int = 0
    branches: dict[Trace, Branch] = field(default_factory=dict)
    spoken_for: set[Trace] = field(default_factory=set)
    ended_nsec: int = 0
    outcome: Outcome = WELL

    def has_ended(self, before_nsec: int) -> bool:
        """Whether it was over by then."""
        return 0 < self.ended_nsec < before_nsec


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
    over.ended_nsec, over.outcome = time.monotonic_ns(), outcome_of(error)
    for trace in over.branches:
        _tell_end(trace)


@guarded
def _tell_end(trace: Trace) -> None:
    trace.put_ends()


def outcome_of(error: BaseException | None) -> Outcome:
    """How something went that has ended so."""
    if error is None:
        return WELL
    refused = isinstance(error, errors.SriovdError) and not isinstance(error, _TRIED)
    message = error.message if isinstance(error, errors.SriovdError) else ""
    return Outcome(Status.REFUSED if refused else Status.FAILED, type(error).__name__, message)
