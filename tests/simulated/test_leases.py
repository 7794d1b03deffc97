"""Leases as their owners meet them: on D-Bus, by object and by number, with and without a descriptor."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sriovd.bus.private import PrivateBus
from tests.simulated.client import (
    BUS_NAME,
    FUNCTION,
    IGB0,
    LEASE,
    MANAGER,
    PHYSICAL_FUNCTION,
    ROOT,
    VF0,
    VF1,
    VIRTUAL_FUNCTION,
    Client,
    Refusal,
    function_path,
    make_options,
)
from tests.simulated.inside import Inside, running_inside
from tests.simulated.process import DaemonProcess
from tests.unit.bus.support import Client as DescriptorClient
from tests.unit.bus.support import in_loop, until

OWNER = "vm"
NOBODYS = ("nobody", 4711)


async def leases(client: Client) -> dict[str, dict[str, Any]]:
    """The properties of every lease's object."""
    return {path: each[LEASE] for path, each in (await client.managed()).items() if LEASE in each}


async def until_leases(client: Client, **wanted: Any) -> None:
    """Until exactly one lease has these properties; without any: until there is none."""
    async with asyncio.timeout(20):
        while True:
            found = list((await leases(client)).values())
            if not wanted and not found:
                return
            if wanted and len(found) == 1 and wanted.items() <= found[0].items():
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def acquired(address: str, owner: str = OWNER) -> AsyncIterator[tuple[DescriptorClient, int]]:
    """A client with a lease's descriptor."""
    async with DescriptorClient.connected(address) as client:
        reply = await client.call("Acquire", "sa{sv}", owner, {}, path=ROOT, interface=MANAGER)
        assert reply.signature == "hoos", reply.body
        (fd,) = reply.unix_fds
        yield client, fd


@in_loop
async def test_a_lease_shows_what_it_is(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 2)
        path, function = await client.lease(address=VF0)
        number = int(path.rpartition("/")[2])
        shown = await client.get_all(path, LEASE)
        generation = await client.get(function_path(VF0), FUNCTION, "Generation")
        assert shown == {
            "Number": number, "Owner": OWNER, "UID": os.getuid(), "Function": function_path(VF0),
            "PhysicalFunction": function_path(IGB0), "Index": 0, "Generation": generation,
            "Driver": "vfio-pci", "HeldByDescriptor": False, "CDIDevice": f"sriovd.org/vf=lease-{number}",
            "State": "active", "Reason": "",
        }  # fmt: skip
        assert (function, await client.driver(VF0)) == (function_path(VF0), "vfio-pci")
        assert (await client.release(path))[1] == "done"
        assert (await leases(client), await client.driver(VF0)) == ({}, "")


@in_loop
async def test_release_by_number(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        path, _ = await client.lease()
        number = int(path.rpartition("/")[2])
        assert (await client.ask("Release", "tsa{sv}", number, OWNER, {}))[1] == "done"
        again, _ = await client.lease()
        assert int(again.rpartition("/")[2]) == number + 1


@in_loop
async def test_not_yours_and_not_there(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        path, _ = await client.lease()
        number = int(path.rpartition("/")[2])
        for verb, signature, rest in (("Release", "tsa{sv}", ({},)), ("OpenGroup", "ts", ())):
            answers = [
                await client.refused(verb, signature, each, "other", *rest) for each in (number, number + 1)
            ]
            for each in answers:
                each.check("NotOwner", "You have no lease")
            texts = {each.text.replace(str(number + 1), "N").replace(str(number), "N") for each in answers}
            assert len(texts) == 1
        refusal = await client.refused("Release", "sa{sv}", "other", {}, path=path, interface=LEASE)
        refusal.check("NotOwner")
        assert await client.get(path, LEASE, "State") == "active"


@in_loop
async def test_a_vf_that_is_held_open_is_not_released(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        path, _ = await client.lease()
        await client.simulate("OpenDevice", "sus", VF0, 4711, "qemu")
        refusal = await client.refused("Release", "sa{sv}", OWNER, {}, path=path, interface=LEASE)
        refusal.check("InUse", "qemu (pid 4711)", "force")
        jobs = [
            await client.release(path, force=True, wait_usec=0),
            *[await client.release(path, wait_usec=0) for _ in range(20)],
        ]
        assert {state for _, state in jobs} == {"running"}
        assert len({job for job, _ in jobs}) == 1
        await until_leases(client, State="releasing", Reason=f"VF {VF0} is held open by qemu (pid 4711).")
        await client.simulate("CloseDevice", "s", VF0)
        assert await client.wait_job(jobs[0][0]) == "done"
        assert await leases(client) == {}


@in_loop
async def test_a_failed_cleaning_fails_the_release(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        path, _ = await client.lease()
        await client.inject("reset", VF0, errno="EIO")
        refusal = await client.refused("Release", "sa{sv}", OWNER, {}, path=path, interface=LEASE)
        refusal.check("ResetFailed", "EIO")
        assert await client.get(path, LEASE, "State") == "failed"
        assert "EIO" in await client.get(path, LEASE, "Reason")
        assert "EIO" in await client.get(function_path(VF0), FUNCTION, "Quarantined")
        await client.simulate("ClearFaults")
        await client.release(path)
        assert await client.get(function_path(VF0), FUNCTION, "Quarantined") == ""


@pytest.mark.parametrize("member", ["Lease", "Acquire"])
@pytest.mark.parametrize("wait_usec", [20_000_000, 0])
def test_what_cannot_be_prepared(host: DaemonProcess, member: str, wait_usec: int) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            await client.set_num_vfs(IGB0, 1)
            await client.inject("bind", VF0, errno="ENODEV")
            before = _fds(host)
            options = make_options(wait_usec=wait_usec)
            if wait_usec:
                (await client.refused(member, "sa{sv}", OWNER, options)).check("BindFailed", VF0)
            else:
                assert (await client.ask(member, "sa{sv}", OWNER, options))[-1] == "preparing"
            await until_leases(client)
            assert await client.get(function_path(VF0), FUNCTION, "Quarantined") == ""
            await until(lambda: _fds(host) <= before + 1)  # the descriptors' epoll, of the first Acquire

    test()


def _fds(host: DaemonProcess) -> int:
    return len(os.listdir(f"/proc/{host.pid}/fd"))


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"address": "nonsense"}, "InvalidArgument", "nonsense"),
    ({"address": "0000:77:00.0"}, "NoSuchFunction", "0000:77:00.0"),
    ({"address": IGB0}, "PoolExhausted", IGB0),
    ({"pf": "nonsense"}, "InvalidArgument", "nonsense"),
    ({"pf": "0000:77:00.0"}, "PoolExhausted", "0000:77:00.0"),
    ({"slot": "0000:01:00.0"}, "InvalidArgument", "0000:01:00.0"),
    ({"slot": "0000:77:00"}, "PoolExhausted", "0000:77:00"),
    ({"vendor": 0x1AF4}, "PoolExhausted", "0x1af4"),
    ({"device": 0x1041}, "PoolExhausted", "0x1041"),
    ({"class_": "toaster"}, "InvalidArgument", "toaster"),
    ({"class_": "0c"}, "PoolExhausted", "0c"),
    ({"bound_to": "nvme"}, "PoolExhausted", "nvme"),
    ({"pf_driver": "nvme"}, "PoolExhausted", "nvme"),
    ({"netdev": "nosuch*"}, "PoolExhausted", "nosuch*"),
    ({"numa_node": 7}, "PoolExhausted", "7"),
    ({"spread": "thin"}, "InvalidArgument", "thin"),
    ({"driver": "no such"}, "InvalidArgument", "no such"),
    ({"driver": "nosuchdriver"}, "InvalidArgument", "nosuchdriver"),
    ({"generation": 1}, "InvalidArgument", "address"),
    ({"address": VF0, "generation": 4711}, "NoSuchFunction", "another VF now"),
]


@in_loop
async def test_impossible_wishes_are_refused_in_a_sentence(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        for options, error, part in REFUSALS:
            refusal = await client.refused("Lease", "sa{sv}", OWNER, make_options(**options))
            refusal.check(error, part)
        for name in ("", "x" * 65, "two\nlines"):
            (await client.refused("Lease", "sa{sv}", name, {})).check("InvalidArgument", "owner of a lease")
        assert await leases(client) == {}


@pytest.mark.parametrize("key", ["addres", "numa-node", "force"])
@in_loop
async def test_unknown_keys_and_wrong_types(host: DaemonProcess, key: str) -> None:
    wrong = {"numa-node": make_options(driver="0")["driver"]}.get(key, make_options(force=True)["force"])
    async with Client.connected(host.address) as client:
        (await client.refused("Lease", "sa{sv}", OWNER, {key: wrong})).check("InvalidArgument", f"'{key}'")


@pytest.mark.parametrize(
    "wish",
    [
        {"address": VF1}, {"pf": IGB0}, {"slot": "0000:01:00"}, {"vendor": 0x8086}, {"class_": "network"},
        {"bound_to": "none"}, {"pf_driver": "igb"}, {"netdev": "*"}, {"numa_node": -1}, {"spread": "numa"},
        {"spread": "pack"}, {"driver": "pci-stub"}, {"driver": "default"},
    ],
    ids=str,
)  # fmt: skip
def test_wishes_are_heeded(host: DaemonProcess, wish: dict[str, Any]) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            await client.set_num_vfs(IGB0, 2)
            path, function = await client.lease(**wish)
            assert function == function_path(wish.get("address", VF0))
            driver = {"default": "igbvf"}.get(wish.get("driver", ""), wish.get("driver", "vfio-pci"))
            assert await client.get(function, FUNCTION, "Driver") == driver
            if driver != "vfio-pci":
                number = int(path.rpartition("/")[2])
                refusal = await client.refused("OpenGroup", "ts", number, OWNER)
                refusal.check("NotSupported", driver, "vfio-pci")
            await client.release(path)

    test()


LEASED = [
    ("SetNumVFs", "sua{sv}", (IGB0, 0)),
    ("Bind", "ssa{sv}", (VF0, "pci-stub")),
    ("BindVFs", "ssa{sv}", (IGB0, "pci-stub")),
    ("Unbind", "sa{sv}", (VF0,)),
    ("Reset", "sa{sv}", (VF0,)),
    ("Remove", "sa{sv}", (IGB0,)),
]


@pytest.mark.parametrize(("member", "signature", "arguments"), LEASED, ids=[row[0] for row in LEASED])
def test_nobody_takes_a_leased_vf_away_but_by_force(
    host: DaemonProcess, member: str, signature: str, arguments: tuple[Any, ...]
) -> None:
    @in_loop
    async def test() -> None:
        async with Client.connected(host.address) as client:
            await client.set_num_vfs(IGB0, 2, driver="vfio-pci")
            path, _ = await client.lease(address=VF0)
            refusal = await client.refused(member, signature, *arguments, {})
            number = path.rpartition("/")[2]
            refusal.check("InUse", VF0, f"leased to '{OWNER}'", f"lease {number}", "force")
            assert await client.get(path, LEASE, "State") == "active"
            done = await client.ask(member, signature, *arguments, make_options(force=True))
            assert done[1] == "done"
            gone = member in ("SetNumVFs", "Remove")
            await until_leases(
                client, State="absent" if gone else "active", Function="/" if gone else function_path(VF0)
            )
            await client.release(path)

    test()


@in_loop
async def test_a_vf_made_again_is_the_owners_again(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        await client.lease()
        generation = await client.get(function_path(VF0), FUNCTION, "Generation")
        await client.set_num_vfs(IGB0, 0, force=True)
        await until_leases(client, State="absent", Function="/")
        await client.set_num_vfs(IGB0, 1)
        await until_leases(client, State="active", Function=function_path(VF0), Generation=generation + 1)
        assert await client.driver(VF0) == "vfio-pci"


GENERATION_VERBS: list[tuple[str, str, tuple[Any, ...], str, str, str]] = [
    ("Bind", "ssa{sv}", ("pci-stub",), function_path(VF0), FUNCTION, "sa{sv}"),
    ("Unbind", "sa{sv}", (), function_path(VF0), FUNCTION, "a{sv}"),
    ("Reset", "sa{sv}", (), function_path(VF0), FUNCTION, "a{sv}"),
]


@in_loop
async def test_a_handle_to_a_former_vf_is_refused(host: DaemonProcess) -> None:
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1, driver="vfio-pci")
        old = await client.get(function_path(VF0), FUNCTION, "Generation")
        await client.set_num_vfs(IGB0, 0)
        await client.set_num_vfs(IGB0, 1, driver="vfio-pci")
        stale, fresh = make_options(generation=old), make_options(generation=old + 1)
        told = f"{VF0} is another VF now: generation {old + 1}"
        for member, signature, arguments, path, interface, short in GENERATION_VERBS:
            for refusal in (
                await client.refused(member, signature, VF0, *arguments, stale),
                await client.refused(member, short, *arguments, stale, path=path, interface=interface),
            ):
                refusal.check("NoSuchFunction", told)
        vlan = {"vlan": make_options(vendor=5)["vendor"]}
        for refusal in (
            await client.refused("SetVFAttributes", "sa{sv}a{sv}", VF0, vlan, stale),
            await client.refused(
                "SetAttributes", "a{sv}a{sv}", vlan, stale, path=function_path(VF0),
                interface=VIRTUAL_FUNCTION,
            ),
        ):  # fmt: skip
            refusal.check("NoSuchFunction", told)
        assert await client.driver(VF0) == "vfio-pci"
        assert (await client.ask("SetVFAttributes", "sa{sv}a{sv}", VF0, vlan, fresh))[1] == "done"
        for member, signature, arguments, *_ in GENERATION_VERBS:
            assert (await client.ask(member, signature, VF0, *arguments, fresh))[1] == "done"
        await client.lease(address=VF0, generation=old + 1)


@in_loop
async def test_a_generation_is_looked_at_again_when_its_turn_comes(host: DaemonProcess) -> None:
    """The VF was the right one when the call came, and is another when the adapter is free."""
    async with Client.connected(host.address) as client:
        await client.set_num_vfs(IGB0, 1)
        generation = await client.get(function_path(VF0), FUNCTION, "Generation")
        await client.inject("set-num-vfs", IGB0, delay_usec=100_000, times=1)
        destroying = asyncio.create_task(client.set_num_vfs(IGB0, 0))
        creating = asyncio.create_task(_set_when_none(client))
        await until_jobs(client, "SetNumVFs")
        late = asyncio.create_task(
            client.refused("Bind", "ssa{sv}", VF0, "pci-stub", make_options(generation=generation))
        )
        await asyncio.gather(destroying, creating)
        refusal: Refusal = await late
        refusal.check("NoSuchFunction")
        assert await client.driver(VF0) == ""


async def until_jobs(client: Client, operation: str) -> None:
    async with asyncio.timeout(10):
        while True:
            jobs = [each.get(f"{BUS_NAME}.Job", {}) for each in (await client.managed()).values()]
            if any(job.get("Operation") == operation and job["State"] == "running" for job in jobs):
                return
            await asyncio.sleep(0.005)


async def _set_when_none(client: Client) -> None:
    while await client.get(function_path(IGB0), PHYSICAL_FUNCTION, "NumVFs"):
        await asyncio.sleep(0.005)
    await client.set_num_vfs(IGB0, 1)


# Acquire.


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
