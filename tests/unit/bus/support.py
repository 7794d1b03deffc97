"""A small service on the bus layer, run in the test's own event loop, and the clients that drive it.

The service is written as sriovd's own verbs are: handlers that return their results or raise. What it does
is told by tests/unit/bus/contract.xml.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import io
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec

from dbus_next._private.unmarshaller import Unmarshaller
from dbus_next.aio.message_bus import MessageBus
from dbus_next.constants import BusType
from dbus_next.message import Message

from sriovd.bus.connection import Connection
from sriovd.bus.contract import Contract, load_contract
from sriovd.bus.dispatch import Caller, Dispatcher
from sriovd.bus.limits import Limits
from sriovd.bus.options import parse_options
from sriovd.bus.polkit import Authority
from sriovd.bus.sight import Sights
from sriovd.bus.signature import Variant
from sriovd.bus.tree import ROOT, Tree
from sriovd.bus.visibility import Shares
from sriovd.bus.wire import Fd
from sriovd.core.errors import InUse

NAME = "org.sriovd1"
THING = "org.example.Thing"
PART = "org.example.Part"
CONTRACT = Path(__file__).with_name("contract.xml")
TEST_TIMEOUT_S = 60.0

P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in an event loop of its own, with a deadline."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), TEST_TIMEOUT_S))

    return run


async def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def thing(name: str = "n", **changed: Any) -> dict[str, Any]:
    """The properties of a Thing."""
    values = {"Name": name, "Driver": "igb", "Count": 7, "Blob": b"\1\2", "Clock": 0, "Details": {}}
    return values | changed


def object_path(number: int) -> str:
    """A path for the numbered thing."""
    return f"{ROOT}/function/_{number}"


@dataclass
class Service:
    """The service under test. inodes, kept: what TakeFd has seen; gate: lets Wait return."""

    address: str
    connection: Connection
    contract: Contract
    tree: Tree
    shares: Shares = field(default_factory=Shares)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    kept: list[int] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    waiting: int = 0
    dispatcher: Dispatcher = field(init=False)

    def serve(self, limits: Limits | None = None) -> None:
        """Start answering."""
        methods: dict[str, Callable[..., Awaitable[tuple[Any, ...]]]] = {
            "Echo": self.echo,
            "WhoAmI": self.who_am_i,
            "Fail": self.fail,
            "Wait": self.wait,
            "Rename": self.rename,
            "TakeFd": self.take_fd,
            "GiveFd": self.give_fd,
        }
        handlers = {(THING, member): handler for member, handler in methods.items()}
        authority = Authority(self.connection, private=True)
        sights = Sights(self.connection, authority, self.tree, self.shares)
        self.dispatcher = Dispatcher(self.connection, self.contract, self.tree, handlers, sights, limits)

    async def echo(
        self, _caller: Caller, _path: str, text: str, options: dict[str, Variant]
    ) -> tuple[str, int]:
        return text, parse_options(options, {"count": "u"}).get("count", 1)

    async def who_am_i(self, caller: Caller, _path: str) -> tuple[str, int, bool]:
        return caller.sender, caller.uid, caller.interactive

    async def fail(self, _caller: Caller, path: str, kind: str) -> tuple[Any, ...]:
        if kind == "typed":
            raise InUse(f"{path} is open", "Close it.")
        if kind == "unexpected":
            raise KeyError("secret detail")
        if kind == "cancelled":
            raise asyncio.CancelledError
        if kind == "descriptors":
            return tuple(Fd(number) for number in os.pipe())
        return {"bad type": ("text",), "too many": (1, 2), "too big": (1 << 40,), "none": ()}[kind]

    async def wait(self, _caller: Caller, _path: str) -> tuple[()]:
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1
        return ()

    async def rename(self, _caller: Caller, path: str, driver: str) -> tuple[()]:
        self.tree.update(path, THING, {"Driver": driver})
        self.tree.add(object_path(900), {THING: thing()})
        return ()

    async def take_fd(self, caller: Caller, _path: str, number: int, keep: bool) -> tuple[int]:
        if keep:
            self.kept.append(caller.take_fd(number))
        return (os.fstat(number).st_ino,)

    async def give_fd(self, _caller: Caller, _path: str, owned: bool) -> tuple[Fd]:
        reading, writing = os.pipe()
        os.write(writing, b"hello")
        os.close(writing)
        if not owned:
            self.given.append(reading)
        return (Fd(reading, owned),)


@asynccontextmanager
async def running_service(
    address: str, objects: int = 1, limits: Limits | None = None, flushes_itself: bool = True
) -> AsyncIterator[Service]:
    """The service on the bus at `address`, with the root and `objects` things.

    flushes_itself: whether the tree announces changes at the end of a tick, or only when it is told to.
    """
    connection = await Connection.open(address)
    contract = load_contract(CONTRACT)
    schedule = None if flushes_itself else lambda _: None
    tree = Tree(contract, connection.send_signal, schedule=schedule)
    service = Service(address, connection, contract, tree)
    service.tree.add(ROOT, {THING: thing("root")})
    for number in range(objects):
        service.tree.add(object_path(number), {THING: thing(f"n{number}")})
    service.tree.flush()
    service.serve(limits)
    await connection.request_name(NAME)
    try:
        yield service
    finally:
        service.gate.set()
        await service.dispatcher.close()
        await connection.close()


@dataclass(frozen=True)
class Output:
    """What a command printed. status: its exit status."""

    status: int
    text: str


async def busctl(address: str, *arguments: str, command: tuple[str, ...] = ()) -> Output:
    """Run busctl as a user would. command: put before it."""
    process = await asyncio.create_subprocess_exec(
        *command, "busctl", f"--address={address}", "--no-pager", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    text, _ = await process.communicate()
    assert process.returncode is not None
    return Output(process.returncode, text.decode())


class Client:
    """A second connection, by dbus-next, that also collects signals."""

    def __init__(self, bus: MessageBus) -> None:
        self.bus = bus
        self.name = bus.unique_name or ""
        self.signals: list[Message] = []
        self.order: list[str] = []

    @classmethod
    @asynccontextmanager
    async def connected(cls, address: str) -> AsyncIterator[Client]:
        bus = await MessageBus(
            bus_address=address, bus_type=BusType.SESSION, negotiate_unix_fd=True
        ).connect()
        client = cls(bus)
        bus.add_message_handler(client._collect)
        await client.call("AddMatch", "s", f"type='signal',sender='{NAME}'", to="org.freedesktop.DBus")
        try:
            yield client
        finally:
            bus.disconnect()  # type: ignore[no-untyped-call]

    def _collect(self, message: Message) -> bool:
        if message.message_type.name == "SIGNAL" and message.interface != "org.freedesktop.DBus":
            self.signals.append(message)
            self.order.append(message.member)
            return True
        if message.message_type.name == "METHOD_RETURN":
            self.order.append("reply")
        return False

    async def call(
        self, member: str, signature: str = "", *body: Any, to: str = NAME, path: str = object_path(0),
        interface: str = THING, fds: list[int] | None = None,
    ) -> Message:  # fmt: skip
        """Call a method; the reply, error or not."""
        if to == "org.freedesktop.DBus":
            path, interface = "/org/freedesktop/DBus", to
        message = Message(
            destination=to, path=path, interface=interface, member=member, signature=signature,
            body=list(body),            unix_fds=fds or [],
        )  # fmt: skip
        reply = await self.bus.call(message)
        assert reply is not None
        return reply

    def named(self, member: str) -> list[Message]:
        """The signals of that name so far."""
        return [signal for signal in self.signals if signal.member == member]


def decode_message(data: bytes) -> Message:
    """One whole message, as the library reads it."""
    decoder = Unmarshaller(io.BytesIO(data))  # type: ignore[no-untyped-call]
    message: Message = decoder.unmarshall()  # type: ignore[no-untyped-call]
    return message


def open_fds() -> set[str]:
    """The descriptors of this process, by number and what they refer to. Those that other tests have left to
    the garbage collector are closed first, and not while somebody counts."""
    gc.collect()
    found: set[str] = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the listing's own
            continue
    return found
