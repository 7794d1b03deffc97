"""A tenant learns nothing of what is not his, by any member of the contract: the answers about another's VF,
lease and job, a VF that nobody leases, PFs and adapters are those about what does not exist, in the same
time. The tables are made from the contract, so a member that is added later has its row, or this turns red.

Excepted is what leasing itself must tell: a VF that nobody has can be leased.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from sriovd.bus.actions import INSPECT, LEASE
from sriovd.bus.calls import RemoteError
from sriovd.bus.contract import load_contract
from sriovd.bus.introspect import INTROSPECTABLE, PEER
from sriovd.bus.private import PrivateBus
from sriovd.bus.signature import Variant
from sriovd.bus.wire import Fd
from sriovd.daemon import _CONTRACT_FILE
from tests.simulated.client import (
    FUNCTION,
    IGB0,
    IGB1,
    JOB,
    MANAGER,
    OBJECT_MANAGER,
    PROPERTIES,
    RECOVERY,
    ROOT,
    SIMULATOR_PATH,
    VF0,
    VF1,
    Client,
    adapter_path,
    encode,
    function_path,
)
from tests.simulated.client import LEASE as LEASE_INTERFACE
from tests.simulated.inside import Inside, running_inside
from tests.simulated.isolation import ROWS, Names, Row
from tests.simulated.strangers import ALL_ACTIONS, Users
from tests.unit.bus.support import in_loop

pytestmark = pytest.mark.usefixtures("no_pauses")

ALICE, BOB = 1001, 1002  # Bob asks, and Alice's is what he must not learn of
FREE = "0000:01:10.4"  # nobody leases it
NOWHERE = ("0000:01:1f.6", "0000:4f:00.0")
NO_NUMBER = 987654
CONTRACT = load_contract(_CONTRACT_FILE)

Answer = tuple[str, Any]


@dataclass(frozen=True)
class Site:
    """A host with a VF of Alice's and one of Bob's, each with a job, and a bundle of the second adapter."""

    host: Inside
    users: Users
    alice: Client
    bob: Client
    leases: dict[int, str]
    jobs: dict[int, str]

    @property
    def root(self) -> Client:
        return self.host.client

    def targets(self, names: Names) -> tuple[list[Any], list[Any]]:
        """What there is that is not Bob's, and what there is not."""
        number = int(self.leases[ALICE].rpartition("/")[2])
        found: dict[Names, tuple[list[Any], list[Any]]] = {
            Names.NOTHING: ([], [None]),
            Names.FUNCTION: ([VF0, FREE, IGB0, IGB1], list(NOWHERE)),
            Names.TAKEN: ([VF0, IGB1], list(NOWHERE)),
            Names.SLOT: (["0000:01:00", "0000:02:00"], ["0000:4f:00"]),
            Names.LEASE: ([number], [NO_NUMBER]),
            Names.BUNDLE: ([1], [NO_NUMBER]),
            Names.OBJECT: (
                [
                    *map(function_path, (VF0, FREE, IGB0, IGB1)), adapter_path("0000:01:00"),
                    self.leases[ALICE], self.jobs[ALICE], SIMULATOR_PATH, f"{ROOT}/adapter",
                ],
                [
                    *map(function_path, NOWHERE), adapter_path("0000:4f:00"), f"{ROOT}/lease/{NO_NUMBER}",
                    f"{ROOT}/job/{NO_NUMBER}", f"{ROOT}/simulated", f"{ROOT}/adapters",
                ],
            ),
        }  # fmt: skip
        return found[names]


@asynccontextmanager
async def site(address: str, root: str, rights: Collection[str], monkeypatch: Any) -> AsyncIterator[Site]:
    users = Users({ALICE: {LEASE}, BOB: rights})
    users.install(monkeypatch)
    monkeypatch.setattr("sriovd.bus.pace.Pacer.spend", lambda _self, _uid, _now: None)  # many are asked
    async with (
        running_inside(address, root, time_scale=0) as host,
        users.connected(address, ALICE) as alice,
        users.connected(address, BOB) as bob,
    ):
        for pf in (IGB0, IGB1):
            await host.client.set_num_vfs(pf, 7)
        await host.client.call(adapter_path("0000:02:00"), RECOVERY, "Recover", "a{sv}", {})  # the bundle
        leases, jobs = {}, {}
        for uid, client, vf in ((ALICE, alice, VF0), (BOB, bob, VF1)):
            first, _ = await client.lease("vm", address=vf)
            jobs[uid], _ = await client.release(first)
            leases[uid], _ = await client.lease("vm", address=vf)
        await host.client.set_num_vfs(IGB1, 0)
        yield Site(host, users, alice, bob, leases, jobs)


async def answer(call: Awaitable[Any], here: object = None) -> Answer:
    """What it ends with, without what was named."""
    try:
        result = await call
    except RemoteError as error:
        return error.name, re.sub(rf"(?<!\w){re.escape(str(here))}(?!\w)", "HERE", error.text)
    for each in result:
        if isinstance(each, Fd):
            os.close(each.number)
    return "done", result


def rows() -> Iterator[tuple[str, str, Row]]:
    for (interface, member), each in ROWS.items():
        for row in each:
            yield interface, member, row


def ask(client: Client, interface: str, member: str, row: Row, here: Any) -> Awaitable[Any]:
    path = here if row.names is Names.OBJECT else ROOT
    return client.call(path, interface, member, row.signature, *row.fill(here))


def questions(path: str) -> Iterator[tuple[str, str, str, tuple[Any, ...]]]:
    """Every call of the standard interfaces, for every property of the contract."""
    yield PEER, "Ping", "", ()
    yield PEER, "GetMachineId", "", ()
    yield INTROSPECTABLE, "Introspect", "", ()
    yield OBJECT_MANAGER, "GetManagedObjects", "", ()
    yield PROPERTIES, "GetAll", "s", ("",)
    for name, interface in CONTRACT.interfaces.items():
        yield PROPERTIES, "GetAll", "s", (name,)
        for prop in interface.properties:
            yield PROPERTIES, "Get", "ss", (name, prop)
            yield PROPERTIES, "Get", "ss", ("", prop)
            yield PROPERTIES, "Set", "ssv", (name, prop, Variant("s", "x"))


async def everything(client: Client) -> dict[str, dict[str, dict[str, Any]]]:
    """All objects; the audit comes when it is ready."""
    objects = await client.managed()
    for interfaces in objects.values():
        interfaces.get(RECOVERY, {}).pop("Audit", None)
    return objects


RIGHTS = {"leasing": {LEASE}, "all but sight": ALL_ACTIONS - {INSPECT}}


def test_every_method_of_the_contract_has_its_row() -> None:
    methods = {(name, method) for name, each in CONTRACT.interfaces.items() for method in each.methods}
    assert methods == set(ROWS)


@pytest.mark.parametrize("rights", RIGHTS.values(), ids=RIGHTS)
def test_every_method_says_of_others_what_it_says_of_nothing(
    bus: PrivateBus, root: str, rights: Collection[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_loop
    async def test() -> None:
        async with site(bus.address, root, rights, monkeypatch) as here:
            before = await everything(here.root)
            for interface, member, row in rows():
                there, nothing = here.targets(row.names)
                told = {each: await answer(ask(here.bob, interface, member, row, each), each)
                        for each in (*there, *nothing)}  # fmt: skip
                assert len(set(map(repr, told.values()))) == 1, (member, told)
                name, text = told[nothing[0]]
                assert (name == "done") is (member == "ListFunctions"), (member, told)
                if row.names is Names.OBJECT:
                    assert (name, text) == ("org.freedesktop.DBus.Error.UnknownObject",
                                            "there is no object 'HERE'")  # fmt: skip
            assert await everything(here.root) == before, "what is refused has not been done"

    test()


def test_every_property_of_others_is_that_of_nothing(
    bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_loop
    async def test() -> None:
        async with site(bus.address, root, {LEASE}, monkeypatch) as here:
            there, nothing = here.targets(Names.OBJECT)
            for interface, member, signature, body in questions(""):
                told = {
                    path: await answer(here.bob.call(path, interface, member, signature, *body), path)
                    for path in (*there, *nothing)
                }
                assert set(told.values()) == {
                    ("org.freedesktop.DBus.Error.UnknownObject", "there is no object 'HERE'")
                }, (interface, member, body, told)

    test()


async def walk(client: Client, path: str = "/") -> list[str]:
    """As busctl tree."""
    (text,) = await client.call(path, INTROSPECTABLE, "Introspect")
    names = [line.split('"')[1] for line in text.splitlines() if line.startswith(" <node name=")]
    below = [each for name in names for each in await walk(client, f"{path.rstrip('/')}/{name}")]
    return [path, *below]


def test_a_tenant_sees_what_is_his(bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @in_loop
    async def test() -> None:
        async with site(bus.address, root, {LEASE}, monkeypatch) as here:
            own = {function_path(VF1), here.leases[BOB], here.jobs[BOB]}
            seen = await here.bob.managed()
            all_there = await here.root.managed()
            assert seen == {path: all_there[path] for path in own}
            branches = {f"{ROOT}/{kind}" for kind in ("function", "job", "lease")}
            assert set(await walk(here.bob)) == {"/", "/org", ROOT, *branches, *own}
            assert set(await here.bob.functions()) == {VF1}
            assert (await here.bob.ask("GetFunction", "s", VF1)) == (function_path(VF1),)
            assert await here.bob.wait_job(here.jobs[BOB]) == "done"
            (attributes,) = await here.bob.ask("GetVFAttributes", "s", VF1)
            assert "mac" in attributes
            for path in own:
                (interface,) = {FUNCTION, LEASE_INTERFACE, JOB} & set(seen[path])
                assert await here.bob.get_all(path, interface) == seen[path][interface]
            await here.bob.release(here.leases[BOB])
            assert {function_path(VF1), here.leases[BOB]}.isdisjoint(await here.bob.managed())
            assert await here.bob.functions() == {}

    test()


def test_who_has_nothing_sees_the_root(bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @in_loop
    async def test() -> None:
        async with (
            site(bus.address, root, {LEASE}, monkeypatch) as here,
            here.users.connected(bus.address, 1003) as nobody,
        ):
            assert await nobody.managed() == {}
            assert await walk(nobody) == ["/", "/org", ROOT]
            assert await nobody.get(ROOT, MANAGER, "PolicyProblems") == []
            assert await nobody.get(ROOT, MANAGER, "Simulated") is True

    test()


def test_a_vf_that_is_made_again_is_still_his(
    bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_loop
    async def test() -> None:
        async with site(bus.address, root, {LEASE}, monkeypatch) as here:
            await here.root.set_num_vfs(IGB0, 0, force=True)
            assert set(await here.bob.managed()) == {here.leases[BOB], here.jobs[BOB]}
            await here.root.set_num_vfs(IGB0, 7)
            assert set(await here.bob.functions()) == {VF1}
            assert set(await here.alice.functions()) == {VF0}

    test()


def test_whoever_gets_the_right_sees_and_whoever_loses_it_does_not(
    bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_loop
    async def test() -> None:
        async with site(bus.address, root, {LEASE}, monkeypatch) as here:
            monkeypatch.setattr("sriovd.bus.sight.SIGHT_SEC", 0.0)
            here.users.rights[BOB] = {LEASE, INSPECT}
            async with here.users.connected(bus.address, BOB) as bob:
                assert set(await bob.functions()) == set(await here.root.functions())
                here.users.rights[BOB] = {LEASE}
                assert set(await bob.functions()) == {VF1}

    test()


def test_an_owner_hears_of_his_adapters_error_and_not_whose_it_is(
    bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel cannot recover from an error of Alice's VF, which freezes Bob's. What he reads and is told
    names neither her nor her VF; operators see it on the adapter."""

    @in_loop
    async def test() -> None:
        async with site(bus.address, root, {*ALL_ACTIONS} - {INSPECT}, monkeypatch) as here:
            slot = adapter_path("0000:01:00")
            reasons: set[str] = set()
            told: list[Answer] = []
            own = int(here.leases[BOB].rpartition("/")[2])
            await here.root.simulate("InjectError", "ssuau", VF0, "nonfatal", 1 << 12, [])
            async with asyncio.timeout(30):
                while here.host.daemon._engine.recovery.adapter_standing("0000:01:00").state == "online":
                    await asyncio.sleep(0.001)
                while ("done", ("online",)) not in told:
                    told.append(await answer(here.bob.ask("Unfreeze", "ssa{sv}", VF1, "vm", {})))
                    told.append(await answer(here.bob.ask("Bind", "ssa{sv}", VF1, "none", {})))
                    told.append(await answer(here.bob.ask("OpenGroup", "ts", own, "vm")))
                    told.append(("seen", await here.bob.managed()))
                    reasons.add(await here.root.get(slot, RECOVERY, "Reason"))
            assert any(VF0 in each for each in reasons), reasons
            assert any(name.endswith("LockedOut") for name, _ in told)
            for each in map(repr, told):
                for secret in (VF0, encode(VF0), str(ALICE), f"{IGB0} met"):
                    assert secret not in each, (secret, each)

    test()


# Time.

ROUNDS = 60
LIKE = 1.25  # medians that differ by less are of one class
NOISE_SEC = 60e-6


async def time_both(
    ask_one: Callable[[], Awaitable[Any]], ask_other: Callable[[], Awaitable[Any]], rounds: int
) -> tuple[float, float]:
    """The medians of both, asked in turns."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in (number % 2, 1 - number % 2):
            began = time.perf_counter()
            await answer((ask_one, ask_other)[which]())
            spent[which].append(time.perf_counter() - began)
    return statistics.median(spent[0]), statistics.median(spent[1])


def is_alike(one: float, other: float) -> bool:
    return max(one, other) <= LIKE * min(one, other) or abs(one - other) <= NOISE_SEC


@pytest.mark.alone
def test_others_take_the_time_of_nothing(
    bus: PrivateBus, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @in_loop
    async def test() -> None:
        async with site(bus.address, root, ALL_ACTIONS - {INSPECT}, monkeypatch) as here:
            slow: dict[str, list[tuple[float, float]]] = {}
            for interface, member, row in rows():
                there, nothing = here.targets(row.names)
                calling = partial(ask, here.bob, interface, member, row)
                for target in there:
                    for rounds in (ROUNDS, 3 * ROUNDS, 9 * ROUNDS):  # who was slow by chance is not again
                        both = await time_both(
                            partial(calling, target), partial(calling, nothing[0]), rounds
                        )
                        if is_alike(*both):
                            break
                        slow.setdefault(f"{member} {target}", []).append(both)
            for name, tries in slow.items():
                assert len(tries) < 3, (name, tries)

    test()
