"""What is taken from the D-Bus library: bus addresses, authentication and the decoder of values.

The only module that imports one. Of dbus-next nothing else is used: its sending half takes a full socket
(EAGAIN) for a lost connection, its receiving half dies of one message that it cannot read, and its service
half has the defects that the tests of this folder name.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from dataclasses import dataclass

from sriovd.bus.calls import BadBody, ConnectFailed
from sriovd.bus.message import Field, Kind, MalformedMessage, field_type
from sriovd.bus.signature import Value, Variant
from sriovd.partial_import import without_package

with without_package("dbus_next"):  # which loads its GLib half, too
    from dbus_next._private.address import get_bus_address, parse_address
    from dbus_next._private.unmarshaller import Unmarshaller
    from dbus_next.auth import AuthExternal
    from dbus_next.constants import BusType
    from dbus_next.errors import AuthError, InvalidAddressError
    from dbus_next.signature import SignatureTree, SignatureType
    from dbus_next.signature import Variant as LibraryVariant

CONNECT_TIMEOUT_S = 25.0

_BUS_TYPES = {"system": BusType.SYSTEM, "session": BusType.SESSION}
_SIGNATURES_KEPT = 512
_FIELDS_TYPE = SignatureTree("a(yv)").types[0]
_VALUES_AT_MOST = 16384  # of one message: as many as a host has VFs
_VARIANT_COST = 16  # in values: what the library makes of each costs as much

_KNOWN_FIELDS = frozenset(Field)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a received message. order: its byte order mark; fields: values by their code (Field)."""

    order: int
    kind: int
    flags: int
    serial: int
    fields: dict[int, Value]

    def text(self, field: Field) -> str:
        """A field that is a string; "" when it is absent."""
        return str(self.fields.get(field, ""))


async def connect_socket(address: str) -> socket.socket:
    """A connected, authenticated socket to "system", "session" or a D-Bus address. Raises ConnectFailed."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            return await _connect_any(address)
    except TimeoutError:
        reason = f"no answer within {CONNECT_TIMEOUT_S:g} s"
        raise ConnectFailed(f"cannot connect to the bus at '{address}': {reason}") from None
    except (OSError, AuthError, InvalidAddressError, ValueError, KeyError) as error:
        raise ConnectFailed(f"cannot connect to the bus at '{address}': {error}") from error


class _Decoder(Unmarshaller):
    """The library's decoder over bytes that are all here already.

    It takes 2 us for a byte of a message, and keeps 400 bytes for a letter of a signature: what others send
    is bounded, so that no message holds the daemon up for longer than some 30 ms. What was asked for, of
    the bus and of polkit, is as large as it is: `is_asked`."""

    def __init__(self, data: bytes, order: int, offset: int, is_asked: bool) -> None:
        super().__init__(None)  # type: ignore[no-untyped-call]
        self.buf, self.endian, self.offset = bytearray(data), order, offset
        self._room = math.inf if is_asked else _VALUES_AT_MOST

    def read_argument(self, type_: SignatureType) -> Value:
        self._spend(1)
        return super().read_argument(type_)  # type: ignore[no-untyped-call]

    def read_variant(self, _: SignatureType | None = None) -> LibraryVariant:
        self._spend(_VARIANT_COST + self.buf[self.offset])  # which is the length of its signature
        return super().read_variant()  # type: ignore[no-untyped-call,no-any-return]

    def _spend(self, cost: int) -> None:
        self._room -= cost
        if self._room < 0:
            raise ValueError("too many values")


def read_header(data: bytes) -> Header:
    """The header of a message, whose first bytes `data` are. Fields unknown here are kept. Raises
    MalformedMessage.
    """
    try:
        decoder = _decoder(data, data[0], offset=8)
        serial = decoder.read_uint32()  # type: ignore[no-untyped-call]
        fields = dict(_read_field(*each) for each in decoder.read_argument(_FIELDS_TYPE))
    except Exception as error:  # whatever the library stumbles over: it must not end the connection
        raise MalformedMessage(f"a header that cannot be read ({error})") from error
    return Header(data[0], data[1], data[2], serial, fields)


def read_values(header: Header, body: bytes, fds: tuple[int, ...]) -> tuple[Value, ...]:
    """The values of a body as plain Python; `fds` are the descriptors that came with it. Raises BadBody."""
    try:
        decoder = _decoder(body, header.order, is_asked=header.kind == Kind.RETURN)
        types = SignatureTree._get(header.text(Field.SIGNATURE)).types
        return tuple(_to_plain(kind, decoder.read_argument(kind), fds) for kind in types)
    except Exception as error:  # as above
        _log.info("a message body cannot be read", exc_info=True)
        raise BadBody("the arguments cannot be read") from error


def _read_field(code: int, found: LibraryVariant) -> tuple[int, Value]:
    """A field of a header. One that is known must have the type that it has."""
    if code in _KNOWN_FIELDS and found.signature != field_type(Field(code)):
        raise ValueError(f"field {code} has type '{found.signature}'")
    return code, found.value


def _decoder(data: bytes, order: int, offset: int = 0, is_asked: bool = False) -> _Decoder:
    if len(SignatureTree._cache) > _SIGNATURES_KEPT:
        SignatureTree._cache.clear()  # it never forgets one by itself, and clients choose the signatures
    return _Decoder(data, order, offset, is_asked)


def _to_plain(kind: SignatureType | None, value: Value, fds: tuple[int, ...]) -> Value:
    """The library's value as our own: Variant of ours, descriptors instead of their index."""
    assert kind is not None  # the library leaves it empty only for a signature it refuses
    if "v" not in kind.signature and "h" not in kind.signature:
        return value
    if isinstance(value, LibraryVariant):
        return Variant(value.signature, _to_plain(value.type, value.value, fds))
    if kind.token == "h":
        return fds[value]
    if isinstance(value, dict):
        key_type, value_type = kind.children[0].children
        return {_to_plain(key_type, k, fds): _to_plain(value_type, v, fds) for k, v in value.items()}
    children = kind.children if kind.token == "(" else kind.children * len(value)
    return [_to_plain(child, item, fds) for child, item in zip(children, value, strict=True)]


async def _connect_any(address: str) -> socket.socket:
    text = address
    if address in _BUS_TYPES:
        text = get_bus_address(_BUS_TYPES[address])  # type: ignore[no-untyped-call]
    last_error: Exception = InvalidAddressError(f"no address of a UNIX socket in '{text}'")
    for kind, options in parse_address(text):  # type: ignore[no-untyped-call]
        if kind != "unix" or not options.keys() & {"path", "abstract"}:
            continue
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            target = options["path"] if "path" in options else "\0" + options["abstract"]
            await asyncio.get_running_loop().sock_connect(sock, target)
            await _authenticate(sock)
            return sock
        except (OSError, AuthError) as error:
            sock.close()
            last_error = error
        except BaseException:
            sock.close()
            raise
    raise last_error


async def _authenticate(sock: socket.socket) -> None:
    """The SASL exchange: EXTERNAL (our uid, told by the kernel) and descriptor passing."""
    loop = asyncio.get_running_loop()
    authenticator = AuthExternal()  # type: ignore[no-untyped-call]
    line: str = authenticator._authentication_start(negotiate_unix_fd=True)
    await loop.sock_sendall(sock, b"\0" + f"{line}\r\n".encode())
    while line != "BEGIN":
        answer = b""
        while not answer.endswith(b"\r\n"):
            byte = await loop.sock_recv(sock, 1)
            if not byte:
                raise AuthError("the bus closed the connection")
            answer += byte
        line = authenticator._receive_line(answer[:-2].decode())
        await loop.sock_sendall(sock, f"{line}\r\n".encode())
