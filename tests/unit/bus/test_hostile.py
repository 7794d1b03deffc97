"""Clients that mean harm: the daemon stays up, answers the others, and keeps nothing."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

import pytest
from dbus_next._private.unmarshaller import MAX_UNIX_FDS
from dbus_next.signature import SignatureTree
from dbus_next.signature import Variant as LibraryVariant

from sriovd.bus.message import Field, Flag, Kind, body_fields, encode_field, encode_message
from sriovd.bus.private import PrivateBus
from sriovd.bus.receiver import CHUNK_BYTES, MAX_INCOMING_BYTES, Frame, Receiver
from sriovd.bus.wire import Buffer, encode_body

from .support import NAME, THING, Client, busctl, in_loop, object_path, open_fds, running_service, until


async def _still_answers(client: Client) -> None:
    reply = await client.call("WhoAmI")
    assert reply.body[0] == client.name


@in_loop
async def test_a_huge_argument_is_refused_unread(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        text = "x" * (2 * MAX_INCOMING_BYTES)
        reply = await client.call("Echo", "sa{sv}", text, {})
        assert reply.error_name == "org.freedesktop.DBus.Error.InvalidArgs"
        assert f"at most {MAX_INCOMING_BYTES} bytes" in reply.body[0]
        reply = await client.call("Echo", "sa{sv}", "hi", {"count": LibraryVariant("ay", bytes(1 << 20))})
        assert "too large" in reply.body[0]
        await _still_answers(client)
        assert len(service.connection._receiver._buffer) == 0


@in_loop
async def test_an_oversized_message_does_not_keep_its_descriptors(bus: PrivateBus) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        reading, writing = os.pipe()
        await client.call("WhoAmI")
        before = open_fds()
        await client.call("Echo", "sa{sv}h", "x" * (2 * MAX_INCOMING_BYTES), {}, 0, fds=[reading, writing])
        assert open_fds() <= before
        taken = await client.call("TakeFd", "hb", 0, False, fds=[writing])
        assert taken.body == [os.fstat(writing).st_ino], "descriptors of one message went to another"
        os.close(reading)
        os.close(writing)


@in_loop
async def test_many_descriptors_are_closed(bus: PrivateBus) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        reading, writing = os.pipe()
        await client.call("WhoAmI")
        before = open_fds()
        for _ in range(20):
            await client.call("Echo", "sa{sv}", "x", {}, fds=[reading] * MAX_UNIX_FDS)
        assert open_fds() <= before
        os.close(reading)
        os.close(writing)


@in_loop
async def test_an_index_without_a_descriptor_is_refused(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        for index in (0, 7, 0xFFFFFFFF):
            reply = await client.call("TakeFd", "hb", index, False)
            assert (reply.error_name, reply.body) == (
                "org.freedesktop.DBus.Error.InvalidArgs", ["the arguments cannot be read"],
            )  # fmt: skip
        assert not service.connection.closed.done()


@in_loop
async def test_deeply_nested_variants_are_no_crash(bus: PrivateBus) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        value = LibraryVariant("u", 1)
        for _ in range(50):
            value = LibraryVariant("v", value)
        reply = await client.call("Echo", "sa{sv}", "x", {"count": value})
        assert "option 'count' has type 'v'" in reply.body[0]
        await _still_answers(client)


@in_loop
async def test_ever_new_signatures_do_not_fill_the_memory(bus: PrivateBus) -> None:
    async with running_service(bus.address), Client.connected(bus.address) as client:
        for number in range(700):
            signature = "(" + f"{number:010b}".replace("0", "u").replace("1", "s") + ")"
            value = LibraryVariant(signature, ["" if code == "s" else 0 for code in signature[1:-1]])
            await client.call("Echo", "sa{sv}", "x", {"count": value})
        assert len(SignatureTree._cache) < 700
        await _still_answers(client)


@pytest.mark.parametrize("path", ["", "relative", "/a//b", "/a/", "/a-b", "/ä"])
@in_loop
async def test_invalid_paths_end_nobody_but_their_sender(bus: PrivateBus, path: str) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        said = await busctl(service.address, "call", NAME, path, THING, "WhoAmI")
        assert said.status != 0
        await _still_answers(client)


@in_loop
async def test_odd_messages_are_dropped_and_the_next_one_answered(bus: PrivateBus) -> None:
    """Unknown kinds and header fields are to be ignored (D-Bus specification, "Message Format")."""
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        fields = [
            encode_field(Field.PATH, object_path(0)), encode_field(Field.INTERFACE, THING),
            encode_field(Field.MEMBER, "WhoAmI"), encode_field(Field.DESTINATION, NAME),
        ]  # fmt: skip
        unknown_field = bytes(encode_body("(yv)", ((77, _variant("a(ii)", [(1, 2)])),)))
        sock = client.bus._sock
        sock.send(encode_message(Kind.CALL, 900, [unknown_field, *fields], Buffer()))
        sock.send(encode_message(Kind.CALL, 901, fields, Buffer(), 0xF8))
        await _still_answers(client)
        assert client.order[:2] == ["reply", "reply"]
        assert not service.connection.closed.done()


def _variant(signature: str, value: object) -> object:
    from sriovd.bus.signature import Variant

    return Variant(signature, value)


@in_loop
async def test_a_forged_name_owner_signal_is_not_believed(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        gone: list[str] = []
        name = client.name
        watch = await service.connection.watch_name(name, lambda: gone.append(name))
        body = encode_body("sss", (name, name, ""))
        fields = [
            encode_field(Field.PATH, "/org/freedesktop/DBus"),
            encode_field(Field.INTERFACE, "org.freedesktop.DBus"),
            encode_field(Field.MEMBER, "NameOwnerChanged"), encode_field(Field.DESTINATION, NAME),
        ]  # fmt: skip
        client.bus._sock.send(
            encode_message(Kind.SIGNAL, 900, fields + body_fields("sss", body), body, Flag(1))
        )
        await _still_answers(client)
        assert gone == []
        await watch.cancel()


@in_loop
async def test_the_receiver_skips_a_header_over_the_bound_with_its_descriptors() -> None:
    """No client library sends that, so it is fed to the receiver directly."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    frames: list[Frame] = []
    lost: list[str] = []
    receiver = Receiver(ours, frames.append, lost.append)
    reading, writing = os.pipe()
    before = open_fds()
    huge = struct.pack("<BBBBIII", ord("l"), 1, 0, 1, 100, 1, 2 * MAX_INCOMING_BYTES)
    small = encode_message(Kind.CALL, 5, [encode_field(Field.UNIX_FDS, 1)], Buffer())
    loop = asyncio.get_running_loop()
    socket.send_fds(theirs, [huge], [reading, writing])
    theirs.setblocking(False)
    await loop.sock_sendall(theirs, bytes(2 * MAX_INCOMING_BYTES + 100))
    socket.send_fds(theirs, [small], [reading])
    await until(lambda: frames)
    assert [frame.header for frame in frames] == [small]
    (number,) = receiver.fds.take(1) or []
    assert os.fstat(number).st_ino == os.fstat(reading).st_ino
    os.close(number)
    assert open_fds() <= before
    assert lost == []
    receiver.close()
    for item in (ours, theirs):
        item.close()
    os.close(reading)
    os.close(writing)


@in_loop
async def test_a_message_may_come_byte_by_byte_and_many_may_come_at_once() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    frames: list[Frame] = []
    receiver = Receiver(ours, frames.append, lambda _: None)
    message = encode_message(Kind.CALL, 5, [encode_field(Field.PATH, "/a")], encode_body("s", ("x" * 50,)))
    for byte in message:
        theirs.send(bytes((byte,)))
        await asyncio.sleep(0)
    await until(lambda: len(frames) == 1)
    many = CHUNK_BYTES // len(message)
    theirs.send(message * many)
    await until(lambda: len(frames) == 1 + many)
    assert {frame.header + frame.body for frame in frames} == {message}
    receiver.close()
    ours.close()
    theirs.close()
