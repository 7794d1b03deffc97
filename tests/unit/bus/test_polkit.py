"""Who may do what: root, the user of a private bus, and everybody else as polkit (a mock of it) decides."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sriovd.bus.connection import BUS, BUS_PATH, Connection
from sriovd.bus.dispatch import Caller
from sriovd.bus.polkit import POLKIT, POLKIT_INTERFACE, POLKIT_PATH, Authority
from sriovd.bus.private import PrivateBus
from sriovd.core.errors import NotAuthorized

from .support import Client, in_loop, until

ACTION = "org.sriovd1.set-num-vfs"
MOCK = "org.freedesktop.DBus.Mock"
SOMEBODY = os.getuid() + 4711


def _caller(sender: str = ":1.1", uid: int = SOMEBODY, interactive: bool = False) -> Caller:
    return Caller(sender, uid, interactive)


@asynccontextmanager
async def _mock(address: str, *arguments: str) -> AsyncIterator[Connection]:
    """A mock of polkitd on the bus, and a connection to steer it and to ask through."""
    environment = os.environ | {"DBUS_SYSTEM_BUS_ADDRESS": address, "DBUS_SESSION_BUS_ADDRESS": address}
    process = subprocess.Popen([sys.executable, "-m", "dbusmock", *arguments], env=environment)
    connection = await Connection.open(address)
    try:
        while not (await connection.call(BUS, BUS_PATH, BUS, "NameHasOwner", "s", (POLKIT,)))[0]:
            assert process.poll() is None
            await asyncio.sleep(0.02)
        yield connection
    finally:
        process.terminate()
        process.wait()
        await connection.close()


def _polkitd(address: str) -> Any:
    """The mock that python-dbusmock has of polkitd."""
    return _mock(address, "--template", "polkitd")


@asynccontextmanager
async def _recording_polkitd(address: str, answer: str) -> AsyncIterator[Connection]:
    """A mock that gives one answer and keeps what it was asked."""
    async with _mock(address, "--system", POLKIT, POLKIT_PATH, POLKIT_INTERFACE) as connection:
        check = (POLKIT_INTERFACE, "CheckAuthorization", "(sa{sv})sa{ss}us", "(bba{ss})", f"ret = {answer}")
        cancel = (POLKIT_INTERFACE, "CancelCheckAuthorization", "s", "", "")
        for method in (check, cancel):
            await _steer(connection, "AddMethod", "sssss", *method)
        yield connection


async def _steer(connection: Connection, member: str, signature: str = "", *body: Any) -> tuple[Any, ...]:
    return await connection.call(POLKIT, POLKIT_PATH, MOCK, member, signature, body)


async def _asked(connection: Connection, member: str) -> list[Any]:
    """The arguments of each call of `member` that the mock has seen."""
    (calls,) = await _steer(connection, "GetMethodCalls", "s", member)
    return [[argument.value for argument in arguments] for _, arguments in calls]


@in_loop
async def test_root_may_and_on_a_private_bus_the_daemons_own_user(bus: PrivateBus) -> None:
    connection = await Connection.open(bus.address)
    await Authority(connection, private=False).check(_caller(uid=0), ACTION)
    await Authority(connection, private=True).check(_caller(uid=os.getuid()), ACTION)
    with pytest.raises(NotAuthorized):
        await Authority(connection, private=True).check(_caller(), ACTION)
    await connection.close()


@in_loop
async def test_without_polkit_it_takes_root(bus: PrivateBus) -> None:
    connection = await Connection.open(bus.address)
    for interactive in (False, True):
        async with Client.connected(bus.address) as client:
            caller = _caller(client.name, interactive=interactive)
            with pytest.raises(NotAuthorized, match=f"{ACTION} needs root: this bus has no polkit to ask"):
                await Authority(connection, private=False).check(caller, ACTION)
    await connection.close()


@in_loop
async def test_polkit_decides_per_action(bus: PrivateBus) -> None:
    async with _polkitd(bus.address) as connection:
        authority = Authority(connection, private=False)
        with pytest.raises(NotAuthorized, match=f"polkit does not allow {ACTION}"):
            await authority.check(_caller(), ACTION)
        await _steer(connection, "SetAllowed", "as", [ACTION])
        await authority.check(_caller(), ACTION)
        with pytest.raises(NotAuthorized):
            await authority.check(_caller(), "org.sriovd1.reset")


@pytest.mark.parametrize("interactive", [False, True])
@in_loop
async def test_polkit_is_asked_about_the_sender_with_the_messages_own_flag(
    bus: PrivateBus, interactive: bool
) -> None:
    async with _recording_polkitd(bus.address, "(True, False, {})") as connection:
        caller = _caller(connection.unique_name, interactive=interactive)
        await Authority(connection, private=False).check(caller, ACTION, {"address": "0000:01:00.0"})
        ((subject, action, details, flags, cancellation_id),) = await _asked(
            connection, "CheckAuthorization"
        )
        assert (subject[0], subject[1]["name"].value) == ("system-bus-name", connection.unique_name)
        assert (action, details, flags) == (ACTION, {"address": "0000:01:00.0"}, int(interactive))
        assert bool(cancellation_id) == interactive
        assert not connection._watches


@in_loop
async def test_a_password_that_may_not_be_asked_for_is_hinted_at(bus: PrivateBus) -> None:
    async with _recording_polkitd(bus.address, "(False, True, {})") as connection:
        authority = Authority(connection, private=False)
        with pytest.raises(NotAuthorized) as refused:
            await authority.check(_caller(), ACTION)
        assert "busctl --allow-interactive-authorization=yes" in refused.value.hint
        with pytest.raises(NotAuthorized) as refused:
            await authority.check(_caller(connection.unique_name, interactive=True), ACTION)
        assert refused.value.hint == ""


@in_loop
async def test_the_question_ends_when_the_caller_leaves(bus: PrivateBus) -> None:
    async with _polkitd(bus.address) as connection:
        await _steer(connection, "SimulateHang", "b", True)
        cancel = (POLKIT_INTERFACE, "CancelCheckAuthorization", "s", "", "")
        await _steer(connection, "AddMethod", "sssss", *cancel)
        async with Client.connected(bus.address) as client:
            caller = _caller(client.name, interactive=True)
            check = asyncio.ensure_future(Authority(connection, private=False).check(caller, ACTION))
            await _hanging(connection)
        with pytest.raises((asyncio.CancelledError, NotAuthorized)):
            await check
        assert await _asked(connection, "CancelCheckAuthorization") == [["sriovd-1"]]


@in_loop
async def test_the_question_ends_when_the_call_is_cancelled(bus: PrivateBus) -> None:
    async with _polkitd(bus.address) as connection, Client.connected(bus.address) as client:
        await _steer(connection, "SimulateHang", "b", True)
        cancel = (POLKIT_INTERFACE, "CancelCheckAuthorization", "s", "", "")
        await _steer(connection, "AddMethod", "sssss", *cancel)
        caller = _caller(client.name, interactive=True)
        check = asyncio.ensure_future(Authority(connection, private=False).check(caller, ACTION))
        await _hanging(connection)
        check.cancel()
        with pytest.raises(asyncio.CancelledError):
            await check
        assert await _asked(connection, "CancelCheckAuthorization") == [["sriovd-1"]]
        await until(lambda: not connection._watches)


async def _hanging(connection: Connection) -> None:
    while not (await _steer(connection, "HaveHangingCalls"))[0]:
        await asyncio.sleep(0.01)
