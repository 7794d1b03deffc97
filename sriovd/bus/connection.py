"""A connection to a message bus: calls in, replies and signals out, calls to other services.

A lost connection is not repaired: `closed` says why, the process ends, and systemd starts it again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from sriovd.bus.calls import (
    BadBody,
    Call,
    CallTimedOut,
    ConnectionLost,
    NameTaken,
    ReceivedFds,
    RemoteError,
    ServiceMissing,
)
from sriovd.bus.message import Field, Flag, Kind, MalformedMessage, body_fields, encode_field, encode_message
from sriovd.bus.receiver import MAX_INCOMING_BYTES, Frame, Receiver
from sriovd.bus.sendqueue import QueueFull, SendQueue
from sriovd.bus.signature import Value, Variant
from sriovd.bus.transport import Header, connect_socket, read_header, read_values
from sriovd.bus.wire import Buffer, WireError, close_fds, encode_body

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
CALL_TIMEOUT_S = 25.0  # what libdbus and sd-bus use
CLOSE_TIMEOUT_S = 2.0

_MISSING = {
    f"{BUS}.Error.ServiceUnknown",
    f"{BUS}.Error.NameHasNoOwner",
    f"{BUS}.Error.Spawn.ServiceNotFound",
}
_NAME_OWNER, _ALREADY_OWNER, _DO_NOT_QUEUE = 1, 4, 4

_log = logging.getLogger(__name__)


class Watch:
    """A subscription made by Connection.watch_name()."""

    def __init__(self, connection: Connection, name: str, on_gone: Callable[[], object]) -> None:
        self.name = name
        self.on_gone = on_gone
        self._connection = connection

    async def cancel(self) -> None:
        """Stop watching; harmless when the name has gone already."""
        await self._connection._unwatch(self)


class Connection:
    """One connection to a bus. Made by open(); use it from the event loop it was opened in.

    unique_name: ours on this bus. closed: resolves, once, with the reason when the connection is over.
    on_call: set by whoever answers method calls; without it, callers are told that there is nothing here.
    """

    def __init__(self, sock: socket.socket, max_incoming_bytes: int = MAX_INCOMING_BYTES) -> None:
        self.unique_name = ""
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.on_call: Callable[[Call], None] | None = None
        self._sock = sock
        self._serial = 0
        self._pending: dict[int, asyncio.Future[tuple[Value, ...]]] = {}
        self._watches: dict[str, list[Watch]] = {}
        self._queue = SendQueue(sock, self._lose)
        self._receiver = Receiver(sock, self._on_frame, self._lose, max_incoming_bytes)

    @classmethod
    async def open(cls, address: str) -> Connection:
        """Connect to "system", "session" or a D-Bus address. Raises ConnectFailed, or another BusError."""
        connection = cls(await connect_socket(address))
        try:
            (connection.unique_name,) = await connection.call(BUS, BUS_PATH, BUS, "Hello")
        except BaseException:
            connection._lose("the bus did not say hello")
            raise
        return connection

    @property
    def queued_bytes(self) -> int:
        """How much of what was sent the kernel has not taken yet, because the bus reads slowly."""
        return self._queue.waiting_bytes

    async def close(self) -> None:
        """Send what is queued, as far as the bus takes it within CLOSE_TIMEOUT_S, then disconnect."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._queue.drain()
        self._lose("closed by ourselves")

    async def request_name(self, name: str) -> None:
        """Become the owner of a bus name. Raises NameTaken, RemoteError (the bus policy refuses it)."""
        (answer,) = await self.call(BUS, BUS_PATH, BUS, "RequestName", "su", (name, _DO_NOT_QUEUE))
        if answer not in (_NAME_OWNER, _ALREADY_OWNER):
            raise NameTaken(f"the bus name '{name}' belongs to another process: is sriovd running already?")

    async def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Value] = (),
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> tuple[Value, ...]:
        """Call a method of another service; the values of its reply.

        Raises RemoteError (ServiceMissing when nobody answers to `destination`), CallTimedOut,
        ConnectionLost, WireError when `body` cannot be sent as `signature`.
        """
        if self.closed.done():
            raise ConnectionLost(self.closed.result())
        names = ((Field.PATH, path), (Field.INTERFACE, interface), (Field.MEMBER, member))
        fields = [encode_field(field, text) for field, text in (*names, (Field.DESTINATION, destination))]
        serial = self._next_serial()
        answer: asyncio.Future[tuple[Value, ...]] = asyncio.get_running_loop().create_future()
        self._pending[serial] = answer
        try:
            self._send(Kind.CALL, serial, fields, signature, encode_body(signature, list(body)))
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError:
            raise CallTimedOut(f"{destination} has not answered {member} within {timeout_s:g} s") from None
        finally:
            self._pending.pop(serial, None)

    def send_return(self, call: Call, signature: str, body: Buffer) -> None:
        """Answer `call`. Raises WireError, with the descriptors still the caller's, when it is too large."""
        self._reply(call, Kind.RETURN, [], signature, body)

    def send_error(self, call: Call, name: str, text: str) -> None:
        """Answer `call` with an error; `text` may contain anything."""
        clean = text.replace("\0", "\\0").encode(errors="backslashreplace").decode()
        self._reply(
            call, Kind.ERROR, [encode_field(Field.ERROR_NAME, name)], "s", encode_body("s", (clean,))
        )

    def send_signal(self, path: str, interface: str, member: str, signature: str, body: Buffer) -> None:
        """Broadcast a signal. One that cannot be sent is logged and lost: nobody waits for it."""
        names = ((Field.PATH, path), (Field.INTERFACE, interface), (Field.MEMBER, member))
        try:
            fields = [encode_field(field, text) for field, text in names]
            self._send(Kind.SIGNAL, self._next_serial(), fields, signature, body, Flag.NO_REPLY_EXPECTED)
        except WireError as error:
            _log.error("signal %s.%s of %s was not sent: %s", interface, member, path, error)

    async def watch_name(self, name: str, on_gone: Callable[[], object]) -> Watch:
        """Call `on_gone` once when the unique name leaves the bus; at once if it has left already.

        One exact match rule per name, so that other clients' coming and going never wakes the daemon.
        """
        watch = Watch(self, name, on_gone)
        self._watches.setdefault(name, []).append(watch)
        try:
            if len(self._watches[name]) == 1:
                await self.call(BUS, BUS_PATH, BUS, "AddMatch", "s", (_gone_rule(name),))
            (present,) = await self.call(BUS, BUS_PATH, BUS, "NameHasOwner", "s", (name,))
        except BaseException:
            await self._unwatch(watch)
            raise
        if not present:
            self._on_name_gone(name)
        return watch

    async def _unwatch(self, watch: Watch) -> None:
        watches = self._watches.get(watch.name, [])
        if watch in watches:
            watches.remove(watch)
            if not watches:
                self._forget_name(watch.name)

    def _forget_name(self, name: str) -> None:
        self._watches.pop(name, None)
        fields = [
            encode_field(Field.PATH, BUS_PATH),
            encode_field(Field.INTERFACE, BUS),
            encode_field(Field.MEMBER, "RemoveMatch"),
            encode_field(Field.DESTINATION, BUS),
        ]
        body = encode_body("s", (_gone_rule(name),))
        self._send(Kind.CALL, self._next_serial(), fields, "s", body, Flag.NO_REPLY_EXPECTED)

    def _on_name_gone(self, name: str) -> None:
        watches = self._watches.get(name, [])
        if watches:
            self._forget_name(name)
        for watch in watches:
            watch.on_gone()

    def _reply(self, call: Call, kind: Kind, fields: list[bytes], signature: str, body: Buffer) -> None:
        if call.no_reply:
            close_fds(body.fds)
            return
        addressed = [encode_field(Field.DESTINATION, call.sender), *fields]
        addressed.append(bytes(encode_body("(yv)", ((Field.REPLY_SERIAL, Variant("u", call.serial)),))))
        self._send(kind, self._next_serial(), addressed, signature, body, Flag.NO_REPLY_EXPECTED)

    def _send(
        self, kind: Kind, serial: int, fields: list[bytes], signature: str, body: Buffer, flags: int = 0
    ) -> None:
        message = encode_message(kind, serial, fields + body_fields(signature, body), body, flags)
        numbers = [fd.number if fd.owned else os.dup(fd.number) for fd in body.fds]
        try:
            self._queue.put(message, numbers)
        except QueueFull as error:
            self._lose(str(error))

    def _next_serial(self) -> int:
        self._serial = self._serial % 0xFFFFFFFF + 1
        return self._serial

    def _lose(self, reason: str) -> None:
        """The connection is over. Idempotent."""
        if self.closed.done():
            return
        self.closed.set_result(reason)
        self._queue.close()
        self._receiver.close()
        self._sock.close()
        for answer in self._pending.values():
            if not answer.done():
                answer.set_exception(ConnectionLost(reason))

    def _on_frame(self, frame: Frame) -> None:
        try:
            header = read_header(frame.header)
        except MalformedMessage as error:
            _log.warning("dropped a message: %s", error)
            return
        numbers = self._receiver.fds.take(int(header.fields.get(Field.UNIX_FDS, 0)))
        fds = ReceivedFds(numbers or [])
        if header.kind == Kind.CALL:
            self._on_call_frame(header, frame, fds, numbers is None)
            return
        try:
            self._on_other(header, partial(_read_body, header, frame, fds, numbers is None))
        finally:
            fds.close()

    def _on_call_frame(self, header: Header, frame: Frame, fds: ReceivedFds, fds_lost: bool) -> None:
        call = Call(
            sender=header.text(Field.SENDER),
            path=header.text(Field.PATH),
            interface=header.text(Field.INTERFACE),
            member=header.text(Field.MEMBER),
            signature=header.text(Field.SIGNATURE),
            serial=header.serial,
            interactive=bool(header.flags & Flag.ALLOW_INTERACTIVE_AUTHORIZATION),
            no_reply=bool(header.flags & Flag.NO_REPLY_EXPECTED),
            size_bytes=len(frame.header) + len(frame.body),
            fds=fds,
            read_body=partial(_read_body, header, frame, fds, fds_lost),
        )
        if self.on_call is None:
            fds.close()
            self.send_error(call, f"{BUS}.Error.UnknownObject", f"there is no object '{call.path}' yet")
            return
        self.on_call(call)

    def _on_other(self, header: Header, read_body: Callable[[], tuple[Value, ...]]) -> None:
        if header.kind == Kind.SIGNAL:
            if header.text(Field.SENDER) == BUS and header.text(Field.MEMBER) == "NameOwnerChanged":
                name, _, new_owner = read_body()
                if not new_owner:
                    self._on_name_gone(name)
            return
        answer = self._pending.get(header.fields.get(Field.REPLY_SERIAL, 0))
        if answer is None or answer.done():
            return
        try:
            values = read_body()
        except BadBody as error:
            answer.set_exception(error)
            return
        if header.kind == Kind.RETURN:
            answer.set_result(values)
        elif header.kind == Kind.ERROR:
            answer.set_exception(_remote_error(header.text(Field.ERROR_NAME), values))


def _remote_error(name: str, values: tuple[Value, ...]) -> RemoteError:
    text = values[0] if values and isinstance(values[0], str) else ""
    return (ServiceMissing if name in _MISSING else RemoteError)(name, text)


def _gone_rule(name: str) -> str:
    origin = f"type='signal',sender='{BUS}',path='{BUS_PATH}',interface='{BUS}',member='NameOwnerChanged'"
    return f"{origin},arg0='{name}',arg2=''"


def _read_body(header: Header, frame: Frame, fds: ReceivedFds, fds_lost: bool) -> tuple[Value, ...]:
    """The values of a body. Raises BadBody."""
    if frame.oversized:
        raise BadBody(f"the message is too large: at most {MAX_INCOMING_BYTES} bytes are taken")
    if fds_lost:
        raise BadBody("file descriptors of the message were lost on the way: too many are open")
    return read_values(header, frame.body, fds.numbers)
