"""Leases as their owners meet them: on D-Bus, by object and by number, with and without a descriptor."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.simulated.client import (
    FUNCTION,
    IGB0,
    LEASE,
    VF0,
    VF1,
    Client,
    function_path,
    make_options,
)
from tests.simulated.leases import OWNER, leases, until_leases
from tests.simulated.process import DaemonProcess
from tests.unit.bus.support import in_loop, until


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
