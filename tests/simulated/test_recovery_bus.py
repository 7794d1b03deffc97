"""Recovery as clients of the bus meet it: its signals, its limits, busctl, and the descriptor's stream. What
recovery itself says is a test's own here."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from dbus_next.signature import Variant

from sriovd.bus.private import PrivateBus
from sriovd.core.recovery.standing import BundleHead, PeStanding
from sriovd.daemon import Daemon
from sriovd.pci import PciAddress
from tests.simulated.client import (
    IGB0,
    MANAGER,
    RECOVERY,
    ROOT,
    VF0,
    VF1,
    Client,
    adapter_path,
    function_path,
)
from tests.simulated.inside import running_inside
from tests.simulated.leases import OWNER, leases, until_leases
from tests.unit.bus.fakedesk import FakeDesk
from tests.unit.bus.support import Client as Listener
from tests.unit.bus.support import busctl, in_loop, until

SLOT = "0000:01:00"
FROZEN = PeStanding("frozen", "own", "Poisoned TLP.", 1_700_000_000_000_000, 1)
ADDRESS0, ADDRESS1 = PciAddress.parse(VF0), PciAddress.parse(VF1)


@dataclass(frozen=True)
class Place:
    """A daemon whose recovery says what the test tells it; `listener`: somebody who hears its signals."""

    desk: FakeDesk
    client: Client
    listener: Listener

    def heard(self) -> list[tuple[str, str, list[Any]]]:
        """Path, member and body of the signals about recovery so far."""
        return [
            (signal.path, signal.member, signal.body)
            for signal in self.listener.signals
            if signal.member == "StateChanged" or signal.body[0] == RECOVERY
        ]

    async def acquire(self) -> int:
        """The descriptor of a lease on the first VF."""
        reply = await self.listener.call(
            "Acquire", "sa{sv}", OWNER, {"address": Variant("s", VF0)}, path=ROOT, interface=MANAGER
        )
        (fd,) = reply.unix_fds
        return int(fd)


@asynccontextmanager
async def place(address: str, root: str) -> AsyncIterator[Place]:
    desks: list[FakeDesk] = []

    def prepare(daemon: Daemon) -> None:
        desks.append(FakeDesk(daemon._engine.jobs))
        daemon._engine.recovery = desks[0]  # type: ignore[assignment]

    async with (
        running_inside(address, root, prepare) as inside,
        Listener.connected(address) as listener,
    ):
        await inside.client.set_num_vfs(IGB0, 2)
        yield Place(desks[0], inside.client, listener)


@in_loop
async def test_a_vfs_states_are_announced_on_its_object(bus: PrivateBus, root: str) -> None:
    async with place(bus.address, root) as here:
        here.desk.set_vf(ADDRESS0, FROZEN)
        await until(lambda: len(here.heard()) == 2)
        (path, first, changed), (_, second, state) = here.heard()
        assert (path, first, second) == (function_path(VF0), "PropertiesChanged", "StateChanged")
        assert {name: value.value for name, value in changed[1].items()} == {
            "State": "frozen", "Cause": "own", "Reason": "Poisoned TLP.", "Freezes": 1,
            "SinceUSec": 1_700_000_000_000_000,
        }  # fmt: skip
        assert state == ["frozen", "own", "Poisoned TLP."]
        assert await here.client.get(function_path(VF0), RECOVERY, "State") == "frozen"
        assert await here.client.get(function_path(VF1), RECOVERY, "State") == "online"


@in_loop
async def test_a_reply_comes_after_the_states_that_its_call_caused(bus: PrivateBus, root: str) -> None:
    async def recover(vf: PciAddress) -> str:
        here.desk.set_vf(vf, PeStanding("recovering"))
        here.desk.set_vf(vf, PeStanding("online"))
        return "online"

    async with place(bus.address, root) as here:
        here.desk.unfreezing = recover
        here.desk.vfs[ADDRESS0] = PeStanding("permitted")
        here.listener.order.clear()
        reply = await here.listener.call(
            "Unfreeze", "ssa{sv}", VF0, "", {}, path=ROOT, interface=MANAGER
        )  # fmt: skip
        assert reply.body == ["online"]
        assert here.listener.order == ["StateChanged", "StateChanged", "reply"]


@in_loop
async def test_the_descriptor_tells_its_owner(bus: PrivateBus, root: str) -> None:
    async with place(bus.address, root) as here:
        fd = await here.acquire()
        await until_leases(here.client, State="active")
        for state in ("frozen", "locked-out"):
            here.desk.set_vf(ADDRESS0, PeStanding(state, "own", "Poisoned TLP.", 7))
            here.desk.set_vf(ADDRESS1, PeStanding(state))
        ((_, lease),) = (await leases(here.client)).items()
        assert [json.loads(line) for line in os.read(fd, 65536).splitlines()] == [
            {"lease": lease["Number"], "state": state, "cause": "own", "reason": "Poisoned TLP.", "usec": 7}
            for state in ("frozen", "locked-out")
        ]
        os.close(fd)
        await until_leases(here.client)


@in_loop
async def test_who_waits_has_one_of_his_calls_running(bus: PrivateBus, root: str) -> None:
    async with place(bus.address, root) as here, Listener.connected(bus.address) as other:
        waits = [
            asyncio.create_task(
                other.call("WaitPermitted", "sst", VF0, "", 1 << 40, path=ROOT, interface=MANAGER)
            )
            for _ in range(33)
        ]
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result().error_name for task in done] == ["org.freedesktop.DBus.Error.LimitsExceeded"]
        await until(lambda: here.desk.waiting == 32)
        other.bus.disconnect()  # type: ignore[no-untyped-call]
        await until(lambda: here.desk.waiting == 0)
        for task in pending:
            task.cancel()


@in_loop
async def test_busctl_takes_it_all(bus: PrivateBus, root: str) -> None:
    async with place(bus.address, root) as here:
        here.desk.gate.set()
        here.desk.bundles[SLOT] = [BundleHead(3, 17, "freeze", "fatal error")]
        manager = ("call", "org.sriovd1", ROOT, MANAGER)
        adapter = ("call", "org.sriovd1", adapter_path(SLOT), RECOVERY)
        vf = ("call", "org.sriovd1", function_path(VF0), RECOVERY)
        for command, says in (
            ((*manager, "Unfreeze", "ssa{sv}", VF0, "", "0"), 's "online"'),
            ((*vf, "Unfreeze", "sa{sv}", "", "0"), 's "online"'),
            ((*manager, "WaitPermitted", "sst", VF0, "", "1000000"), 's "permitted"'),
            ((*vf, "WaitPermitted", "st", "", "0"), 's "permitted"'),
            ((*manager, "Recover", "sa{sv}", SLOT, "0"), '"done"'),
            ((*adapter, "Recover", "a{sv}", "1", "wait-usec", "u", "1000000"), '"done"'),
            ((*manager, "Lift", "sa{sv}", IGB0, "0"), 's "frozen"'),
            ((*adapter, "Lift", "a{sv}", "0"), 's "frozen"'),
            ((*manager, "ListBundles", "s", SLOT), 'a(ttss) 1 3 17 "freeze" "fatal error"'),
            ((*adapter, "ListBundles"), 'a(ttss) 1 3 17 "freeze" "fatal error"'),
            ((*manager, "ReadBundle", "ts", "3", "text"), 's "bundle 3 as text"'),
            ((*vf, "ReadBundle", "ts", "3", "json"), 's "bundle 3 as json"'),
            ((*adapter, "Unfreeze", "sa{sv}", "", "0"), "Recover starts the recovery of an adapter"),
        ):
            output = await busctl(bus.address, *command)
            assert says in output.text, (command, output.text)
