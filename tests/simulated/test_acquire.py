"""Leases that a descriptor holds, groups that come as one, and what is told of them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sriovd.bus.private import PrivateBus
from tests.simulated.client import (
    IGB0,
    LEASE,
    MANAGER,
    ROOT,
    VF0,
    Client,
)
from tests.simulated.inside import Inside, running_inside
from tests.simulated.leases import OWNER, leases, until_leases
from tests.simulated.process import DaemonProcess
from tests.unit.bus.support import Client as DescriptorClient
from tests.unit.bus.support import in_loop, until


@asynccontextmanager
async def acquired(address: str, owner: str = OWNER) -> AsyncIterator[tuple[DescriptorClient, int]]:
    """A client with a lease's descriptor."""
    async with DescriptorClient.connected(address) as client:
        reply = await client.call("Acquire", "sa{sv}", owner, {}, path=ROOT, interface=MANAGER)
        assert reply.signature == "hoos", reply.body
        (fd,) = reply.unix_fds
        yield client, fd


@in_loop
async def test_a_closed_descriptor_ends_the_lease(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        async with acquired(host.address) as (_, fd):
            await until_leases(client, State="active", HeldByDescriptor=True)
            os.close(fd)
            await until_leases(client)
            assert await client.driver(VF0) == ""


@in_loop
async def test_leaving_the_bus_does_not_end_it_and_a_copy_holds_it(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        async with acquired(host.address) as (_, fd):
            copy = os.dup(fd)
            os.close(fd)
        assert len(await leases(client)) == 1
        holder = subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[copy],
        )  # fmt: skip
        assert holder.stdout
        holder.stdout.readline()
        os.close(copy)
        await client.ask("ListFunctions")
        assert [each["State"] for each in (await leases(client)).values()] == ["active"]
        holder.send_signal(signal.SIGKILL)
        await until_leases(client)
        holder.communicate()


@in_loop
async def test_nothing_that_an_owner_does_to_its_descriptor_matters(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        async with acquired(host.address) as (_, fd):
            for data in (b"", b"x" * 65536):
                with pytest.raises(BrokenPipeError):
                    os.write(fd, data or b"x")
            before = _cpu_ticks(host)
            await client.ask("ListFunctions")
            await asyncio.sleep(0.3)
            assert _cpu_ticks(host) - before < 15, "the daemon spins"
            assert [each["State"] for each in (await leases(client)).values()] == ["active"]
            os.close(fd)
            await until_leases(client)


def _cpu_ticks(host: DaemonProcess) -> int:
    fields = Path(f"/proc/{host.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@in_loop
async def test_a_released_lease_hangs_up(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        async with acquired(host.address) as (_, fd):
            ((path, _),) = (await leases(client)).items()
            await client.release(path)
            assert os.read(fd, 1) == b""
            os.close(fd)
            assert await leases(client) == {}


@in_loop
async def test_the_group_comes_as_a_descriptor(host: DaemonProcess) -> None:
    async with (
        Client.connected(host.address) as client,
        DescriptorClient.connected(host.address) as holder,
    ):
        await client.set_num_vfs(IGB0, 1)
        path, _ = await client.lease()
        number = int(path.rpartition("/")[2])
        for reply in (
            await holder.call("OpenGroup", "ts", number, OWNER, path=ROOT, interface=MANAGER),
            await holder.call("OpenGroup", "s", OWNER, path=path, interface=LEASE),
        ):
            assert reply.signature == "h"
            (fd,) = reply.unix_fds
            os.close(fd)
        await client.set_num_vfs(IGB0, 0, force=True)
        await until_leases(client, State="absent")
        (await client.refused("OpenGroup", "ts", number, OWNER)).check("LockedOut", "absent")


@in_loop
async def test_signals_tell_of_every_state(bus: PrivateBus, root: str) -> None:
    async with (
        running_inside(bus.address, root) as inside,
        DescriptorClient.connected(bus.address) as listener,
    ):
        await inside.client.set_num_vfs(IGB0, 1)
        path, _ = await inside.client.lease()
        await inside.client.release(path)
        await until(lambda: any(each.body[0] == path for each in listener.named("InterfacesRemoved")))
        added = [each.body for each in listener.named("InterfacesAdded") if each.body[0] == path]
        assert [list(interfaces) for _, interfaces in added] == [[LEASE]]
        states = [
            each.body[1]["State"].value
            for each in listener.named("PropertiesChanged")
            if each.path == path and "State" in each.body[1]
        ]
        assert states[0] == "active"
        assert states[-1] == "released"
        assert path not in await inside.client.managed()
        assert_nothing_is_left(inside)


def assert_nothing_is_left(inside: Inside) -> None:
    lives = inside.daemon._engine.leases._lives
    assert not (lives.leases or lives.places or lives._rows or lives._runners or lives._stored)
    assert len(inside.daemon._descriptors) == 0


@in_loop
async def test_an_acquire_that_nobody_waits_for_leaves_nothing(bus: PrivateBus, root: str) -> None:
    """The caller has left the bus when the reply comes: the bus closes what nobody takes."""
    async with running_inside(bus.address, root) as inside:
        await inside.client.set_num_vfs(IGB0, 1)
        await inside.client.inject("bind", VF0, delay_usec=100_000)
        async with DescriptorClient.connected(bus.address) as client:
            call = asyncio.create_task(
                client.call("Acquire", "sa{sv}", OWNER, {}, path=ROOT, interface=MANAGER)
            )
            await until_leases(inside.client, State="preparing")
        call.cancel()
        await until_leases(inside.client)
        assert_nothing_is_left(inside)
