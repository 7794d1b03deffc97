"""Routes method calls to whoever answers them, and sees to it that each gets exactly one reply.

First it is known what the caller may see (sight.py): what he does not see, is not there. Reads are answered
at once then (standard.py); a verb runs as a task of its own. The reply is sent where the task ends, however
it ends, after the signals of what it changed. What a call may cost is bounded (limits.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sriovd.bus.calls import Call, ReceivedFds
from sriovd.bus.connection import Connection
from sriovd.bus.contract import Contract, ContractMismatch, Method
from sriovd.bus.errors import (
    InvalidArgs,
    LimitsExceeded,
    UnknownInterface,
    UnknownMethod,
    UnknownObject,
    reply_for,
)
from sriovd.bus.introspect import STANDARD_INTERFACES
from sriovd.bus.limits import CallLimiter, Limits
from sriovd.bus.message import MAX_MESSAGE_BYTES, MessageTooLarge
from sriovd.bus.signature import Value
from sriovd.bus.standard import StandardInterfaces
from sriovd.bus.tree import Tree
from sriovd.bus.visibility import Sight, View
from sriovd.bus.wire import Buffer, close_fds, encode_body
from sriovd.core.trace.transaction import transaction

_WAITING_AT_MOST = 4096  # calls of one connection, until it is known what it may see

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called. sender: unique bus name; uid: of its process; interactive: may be asked for a password.
    is_operator: sees everything; seen: the paths of what others see."""

    sender: str
    uid: int
    interactive: bool
    is_operator: bool = False
    seen: Container[str] = frozenset()
    _fds: ReceivedFds = field(default_factory=lambda: ReceivedFds([]), repr=False)

    def __str__(self) -> str:
        return f"uid {self.uid} ({self.sender})"

    def take_fd(self, number: int) -> int:
        """Keep a descriptor that came as an argument: it is closed by its new owner, not after the call."""
        return self._fds.take(number)

    def sees(self, path: str) -> bool:
        """Whether the object at `path` is there for this caller, if it is there at all."""
        return self.is_operator or path in self.seen


Handler = Callable[..., Awaitable[tuple[Value, ...]]]
"""`async def verb(caller, path, *arguments)`: returns one value for each result in the contract."""


class Sights(Protocol):
    """sight.py: what each connection may see."""

    def known(self, sender: str) -> Sight | None:
        """None when it takes a question."""

    async def learn(self, sender: str) -> Sight:
        """Ask. Raises BusError."""


class Dispatcher:
    """Answers all calls that come in over one connection, from now on.

    handlers: one for each method of the contract, by interface and name; else ContractMismatch is raised.
    """

    def __init__(
        self,
        connection: Connection,
        contract: Contract,
        tree: Tree,
        handlers: Mapping[tuple[str, str], Handler],
        sights: Sights,
        limits: Limits | None = None,
    ) -> None:
        _check_handlers(contract, handlers)
        self._connection = connection
        self._contract = contract
        self._tree = tree
        self._handlers = dict(handlers)
        self._limiter = CallLimiter(limits or Limits())
        self._sights = sights
        self._standard = StandardInterfaces(contract, tree.root)
        self._waiting: dict[str, list[Call]] = {}  # by sender, until it is known what he may see
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        connection.on_call = self._on_call

    async def close(self) -> None:
        """Cancel what is running; every caller gets its reply. The connection stays open."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _on_call(self, call: Call) -> None:
        try:
            self._limiter.admit(call.sender, call.size_bytes, self._loop.time())
            sight = self._sights.known(call.sender)
            if sight is None or call.sender in self._waiting:
                self._keep_waiting(call)
                return
        except Exception as error:
            self._refuse(call, error)
        else:
            self._take(call, sight)

    def _keep_waiting(self, call: Call) -> None:
        """Until the caller's sight is known; his calls keep their order."""
        waiting = self._waiting.setdefault(call.sender, [])
        if len(waiting) >= _WAITING_AT_MOST:
            raise LimitsExceeded(f"{len(waiting)} calls of yours wait to be looked at")
        waiting.append(call)
        if len(waiting) == 1:
            task = self._loop.create_task(self._sights.learn(call.sender))
            self._tasks.add(task)
            task.add_done_callback(lambda done: self._end_waiting(call.sender, done))

    def _end_waiting(self, sender: str, task: asyncio.Task[Sight]) -> None:
        self._tasks.discard(task)
        for call in self._waiting.pop(sender):
            try:
                sight = task.result()
            except (Exception, asyncio.CancelledError) as error:
                self._refuse(call, error)
            else:
                self._take(call, sight)

    def _take(self, call: Call, sight: Sight) -> None:
        try:
            interface, method = self._find_method(call, sight.view)
            if interface in STANDARD_INTERFACES:
                self._answer_at_once(call, interface, method, sight.view)
            else:
                self._start_verb(call, interface, method, sight)
        except Exception as error:
            self._refuse(call, error, sight)

    def _answer_at_once(self, call: Call, interface: str, method: Method, view: View) -> None:
        body = self._standard.answer(call, interface, view)
        self._tree.flush()
        self._send(call, method, body)
        call.fds.close()

    def _start_verb(self, call: Call, interface: str, method: Method, sight: Sight) -> None:
        arguments = call.body
        self._limiter.start(call.sender, self._loop.time())
        task = self._loop.create_task(
            self._run_verb(call, interface, arguments, sight), name=_describe(call)
        )
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._finish_verb(call, method, sight, done))

    async def _run_verb(
        self, call: Call, interface: str, arguments: tuple[Value, ...], sight: Sight
    ) -> tuple[Value, ...]:
        caller = Caller(call.sender, sight.uid, call.interactive, sight.is_operator, sight.view, call.fds)
        with self._limiter.running_for(sight.uid), transaction(call.member, str(caller)):
            return await self._handlers[interface, call.member](caller, call.path, *arguments)

    def _finish_verb(
        self, call: Call, method: Method, sight: Sight, task: asyncio.Task[tuple[Value, ...]]
    ) -> None:
        """Reply here and not in the coroutine: a task cancelled before it first runs never enters that."""
        self._tasks.discard(task)
        self._limiter.finish(call.sender)
        if task.cancelled():
            self._refuse(call, asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._refuse(call, error, sight)
        else:
            self._reply(call, method, task.result())

    def _reply(self, call: Call, method: Method, values: tuple[Value, ...]) -> None:
        try:
            body = encode_body(method.out_signature, values)
            self._tree.flush()
            self._send(call, method, body)
            call.fds.close()
        except Exception as error:
            close_fds(values)
            self._refuse(call, error)

    def _send(self, call: Call, method: Method, body: Buffer) -> None:
        try:
            self._connection.send_return(call, method.out_signature, body)
        except MessageTooLarge:
            raise LimitsExceeded(
                f"the answer has more than the {MAX_MESSAGE_BYTES} bytes of a message"
            ) from None

    def _refuse(self, call: Call, error: BaseException, sight: Sight | None = None) -> None:
        """The reply to a call that failed: after the signals too, for something may have changed before."""
        call.fds.close()
        reply = reply_for(error, _describe(call), sight is not None and sight.is_operator)
        try:
            self._tree.flush()
        except Exception:
            _log.exception("signals were lost")
        self._connection.send_error(call, reply.name, reply.text)

    def _find_method(self, call: Call, view: View) -> tuple[str, Method]:
        """The interface and method that `call` means. Raises BusRefusal."""
        if not view.has_node(call.path):
            raise UnknownObject(f"there is no object '{call.path}'")
        present = (*view.interfaces_at(call.path), *self._standard.interfaces_at(call.path))
        if call.interface and call.interface not in present:
            raise UnknownInterface(f"object '{call.path}' has no interface '{call.interface}'")
        for interface in (call.interface,) if call.interface else present:
            method = self._methods_of(interface).get(call.member)
            if method is not None:
                _check_arguments(method, call)
                return interface, method
        raise UnknownMethod(f"{call.interface or call.path} has no method '{call.member}'")

    def _methods_of(self, interface: str) -> Mapping[str, Method]:
        return (STANDARD_INTERFACES.get(interface) or self._contract.interfaces[interface]).methods


def _check_handlers(contract: Contract, handlers: Mapping[tuple[str, str], Handler]) -> None:
    wanted = {
        (name, method) for name, interface in contract.interfaces.items() for method in interface.methods
    }
    if wanted != handlers.keys():
        wrong = ", ".join(sorted(f"{interface}.{member}" for interface, member in wanted ^ handlers.keys()))
        raise ContractMismatch(f"methods without a handler, or handlers without a method: {wrong}")


def _check_arguments(method: Method, call: Call) -> None:
    if call.signature == method.in_signature:
        return
    wanted = ", ".join(f"{argument.name}: {argument.signature}" for argument in method.in_args)
    takes = f"takes ({wanted}), signature '{method.in_signature}'" if wanted else "takes no arguments"
    raise InvalidArgs(f"{method.name} {takes}; the call has signature '{call.signature}'")


def _describe(call: Call) -> str:
    return f"{call.interface.rpartition('.')[2]}.{call.member}" if call.interface else call.member
