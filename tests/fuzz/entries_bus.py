"""Parsers of what comes over D-Bus: anybody may send it."""

from __future__ import annotations

import asyncio
import socket
from functools import cache
from typing import Any

from sriovd.bus import policy_verbs, recovery_verbs
from sriovd.bus.calls import BadBody
from sriovd.bus.connection import Connection
from sriovd.bus.lease_verbs import _OPTIONS, _parse_wish
from sriovd.bus.message import Field, Kind, MalformedMessage, body_fields, encode_field, encode_message
from sriovd.bus.options import parse_options
from sriovd.bus.paths import encode_path_element, is_object_path
from sriovd.bus.receiver import MAX_INCOMING_BYTES, Receiver
from sriovd.bus.signature import MAX_SIGNATURE_BYTES, SignatureError, Variant, parse_signature
from sriovd.bus.transport import Header, read_header, read_values
from sriovd.bus.wire import Fd, WireError, encode_body
from sriovd.core.attributes import make_wish
from sriovd.core.errors import InvalidArgument, PoolExhausted
from sriovd.core.lease.choose import Candidate, choose
from tests.fuzz.entry import NO_ERRORS, Entry, to_text
from tests.unit.core.recovery.samples import PF, VF

BUS = "sriovd.bus"
_SIGNATURES = (
    "a{sv}",
    "sa{sv}",
    "su",
    "av",
    "ay",
    "aau",
    "(ybnqiuxtdsog)",
    "a(sa{sv})",
    "v",
    "hs",
    "a{vs}",
    "",
)
_OPTION_VALUES = {
    "pf": Variant("s", "0000:01:00.0"), "vendor": Variant("u", 0x8086), "class": Variant("s", "network"),
    "spread": Variant("s", "numa"), "numa-node": Variant("n", -1), "wait-usec": Variant("u", 7),
    "vlan": Variant("u", 100), "mac": Variant("s", "02:00:00:00:00:01"), "trust": Variant("b", True),
    "slot": Variant("s", "0000:01:00"), "x": Variant("a(sv)", [("y", Variant("v", Variant("ay", b"z")))]),
}  # fmt: skip
_SETTINGS = ("vlan", "mac", "trust")
_VALUES: tuple[tuple[str, list[Any]], ...] = (
    ("a{sv}", [_OPTION_VALUES]),
    ("sa{sv}", ["0000:01:00.0", {"force": Variant("b", True)}]),
    ("su", ["0000:01:00.0", 7]),
    ("av", [[Variant("u", 1), Variant("as", ["x", "y"]), Variant("(yt)", (1, 2**64 - 1))]]),
    ("(ybnqiuxtdsog)", [(1, True, -1, 2, -3, 4, -5, 6, 0.5, "s", "/o", "a{sv}")]),
    ("hs", [Fd(0, owned=False), "with a descriptor"]),
)
_WORDS = (
    *(text.encode() for text in _SIGNATURES), b"a", b"(", b")", b"{", b"}", b"\1v\0", b"\1s\0", b"\0",
    b"\4\0\0\0", b"\xff\xff\xff\xff", b"\1\0\0\0", b"\0\0\0\4", b"\x02ay\0",
)  # fmt: skip


def make_call(signature: str, values: list[Any], **more: Any) -> bytes:
    """A method call as the bus hands it over."""
    body = encode_body(signature, values)
    fields = [
        encode_field(Field.PATH, "/org/sriovd1"),
        encode_field(Field.INTERFACE, "org.sriovd1.Manager"),
        encode_field(Field.MEMBER, "Lease"),
        encode_field(Field.SENDER, ":1.7"),
        *body_fields(signature, body),
    ]
    return encode_message(more.get("kind", Kind.CALL), 7, fields, body)


def _messages() -> tuple[bytes, ...]:
    calls = [make_call(signature, values) for signature, values in _VALUES]
    kinds = [make_call("s", ["x"], kind=kind) for kind in (Kind.RETURN, Kind.ERROR, Kind.SIGNAL)]
    return (*calls, *kinds)


def _bodies() -> tuple[bytes, ...]:
    """The signature, NUL, then what it describes."""
    return tuple(
        signature.encode() + b"\0" + bytes(encode_body(signature, values)) for signature, values in _VALUES
    )


def header_of(signature: str) -> Header:
    """Of a call with such a body."""
    return Header(ord("l"), Kind.CALL, 0, 7, {Field.SIGNATURE: signature})


def _cut(data: bytes) -> tuple[str, bytes]:
    """The signature, of as many letters as the bus lets through, and the body."""
    signature, _, body = data.partition(b"\0")
    return to_text(signature[:MAX_SIGNATURE_BYTES]), body


def _read(data: bytes) -> tuple[Any, ...]:
    signature, body = _cut(data)
    return read_values(header_of(signature), body, (0,))


def _read_and_write(data: bytes) -> object:
    """What could be read can be written, but for what only the library takes."""
    signature, _ = _cut(data)
    return encode_body(signature, _read(data))


def _options(data: bytes) -> object:
    """A verb's options and what becomes of them."""
    (options,) = read_values(header_of("a{sv}"), data, ())
    settings = {key: value.value for key, value in options.items() if key in _SETTINGS}
    given = parse_options({key: options[key] for key in options if key not in settings}, _OPTIONS)
    return _parse_wish(given), make_wish(settings)


def _option_seeds() -> tuple[bytes, ...]:
    bodies = [encode_body("a{sv}", [{key: value}]) for key, value in _OPTION_VALUES.items()]
    return (*map(bytes, bodies), bytes(encode_body("a{sv}", [_OPTION_VALUES])))


_TEXT_OPTIONS = tuple(sorted(key for key, signature in _OPTIONS.items() if signature == "s"))
_VF = Candidate(VF, PF, 0, 0, "igbvf", 0x8086, 0x10CA, 0x020000, "igb", ("eth0", "ens1f0"))


def _wish(data: bytes) -> object:
    """The first byte chooses an option of Lease, the rest is what somebody has written for it."""
    key = _TEXT_OPTIONS[data[0] % len(_TEXT_OPTIONS)] if data else "netdev"
    return choose([_VF], _parse_wish({key: to_text(data[1:])}), {})


def _wish_seeds() -> tuple[bytes, ...]:
    texts = (b"0000:01:10.0", b"0000:01:00", b"network", b"igb", b"ens*", b"[!a]?[0-9]", b"numa")
    return tuple(bytes((number,)) + text for number in range(len(_TEXT_OPTIONS)) for text in texts)


def _targets(data: bytes) -> None:
    text = to_text(data)
    for parse in (recovery_verbs._parse_target, lambda each: policy_verbs._addresses({"functions": [each]})):
        try:
            parse(text)
        except InvalidArgument:
            continue


def _path(data: bytes) -> object:
    return is_object_path("/" + encode_path_element(to_text(data))), is_object_path(to_text(data))


class _Ends:
    """A connection to a bus that is played here, outside of any event loop."""

    def __init__(self) -> None:
        loop = asyncio.new_event_loop()
        ours, self._theirs = socket.socketpair()
        self.connection = loop.run_until_complete(self._connect(ours))
        self.receiver: Receiver = self.connection._receiver
        self.connection.on_call = self._answer

    async def _connect(self, ours: socket.socket) -> Connection:
        ours.setblocking(False)
        return Connection(ours)

    def _answer(self, call: Any) -> None:
        call.fds.close()
        try:
            call.body  # noqa: B018  a property that reads it
        except BadBody:
            return


@cache
def _ends() -> _Ends:
    return _Ends()


def _stream(data: bytes) -> object:
    """What a bus sends, cut into messages."""
    receiver, frames = _ends().receiver, []
    receiver._buffer, receiver._discard = bytearray(data), 0
    while (frame := receiver._next_frame()) is not None:
        frames.append(frame)
    return frames


def _message(data: bytes) -> None:
    """One message, as far as its handler."""
    for frame in _stream(data):  # type: ignore[attr-defined]
        _ends().connection._on_frame(frame)


ENTRIES = (
    Entry(
        "dbus-stream",
        _stream,
        (MalformedMessage,),
        _messages,
        (f"{BUS}.receiver", f"{BUS}.message"),
        _WORDS,
        MAX_INCOMING_BYTES * 2,
    ),
    Entry(
        "dbus-message",
        _message,
        (MalformedMessage,),
        _messages,
        (f"{BUS}.connection", f"{BUS}.transport", f"{BUS}.message"),
        _WORDS,
        MAX_INCOMING_BYTES,
    ),
    Entry(
        "dbus-header",
        read_header,
        (MalformedMessage,),
        _messages,
        (f"{BUS}.transport",),
        _WORDS,
        MAX_INCOMING_BYTES,
    ),
    Entry("dbus-body", _read, (BadBody,), _bodies, (f"{BUS}.transport",), _WORDS, MAX_INCOMING_BYTES),
    Entry(
        "dbus-values",
        _read_and_write,
        (BadBody, WireError, SignatureError),
        _bodies,
        (f"{BUS}.wire",),
        _WORDS,
        MAX_INCOMING_BYTES,
    ),
    Entry(
        "dbus-options",
        _options,
        (BadBody, InvalidArgument),
        _option_seeds,
        (f"{BUS}.options", f"{BUS}.lease_verbs", "sriovd.core.attributes"),
        _WORDS,
        MAX_INCOMING_BYTES,
    ),
    Entry(
        "dbus-signature",
        lambda data: parse_signature(to_text(data)),
        (SignatureError,),
        lambda: tuple(text.encode() for text in _SIGNATURES),
        (f"{BUS}.signature",),
        _WORDS,
        1024,
    ),
    Entry(
        "dbus-path",
        _path,
        NO_ERRORS,
        lambda: (b"/org/sriovd1/function/_0000_01_00_0", b"/", b"//"),
        (f"{BUS}.paths",),
        (b"/", b"_", b"\n"),
    ),
    Entry(
        "lease-wish",
        _wish,
        (InvalidArgument, PoolExhausted),
        _wish_seeds,
        (f"{BUS}.lease_verbs", "sriovd.core.lease.choose"),
        (b"*", b"[", b"]", b"?", b"[!", b"0x"),
    ),
    Entry(
        "dbus-targets",
        _targets,
        NO_ERRORS,
        lambda: (b"0000:01:00.0", b"0000:01:00"),
        (f"{BUS}.recovery_verbs", f"{BUS}.policy_verbs"),
    ),
)
