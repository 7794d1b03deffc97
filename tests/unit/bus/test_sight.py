"""Who is told what there is, what it costs to find that out, and what it does to the order of answers."""

from __future__ import annotations

import asyncio
from typing import Any

from sriovd.bus.calls import RemoteError
from sriovd.bus.contract import load_contract
from sriovd.bus.dispatch import _WAITING_AT_MOST
from sriovd.bus.private import PrivateBus
from sriovd.bus.sight import SIGHT_SEC, Sights
from sriovd.bus.tree import ROOT, Tree
from sriovd.bus.visibility import Shares, Sight, TenantView
from sriovd.daemon import _CONTRACT_FILE

from .support import NAME, Client, in_loop, object_path, running_service

MANAGER = "org.sriovd1.Manager"
ALICE, BOB = 1000, 1001


class World:
    """A bus and a polkit that count what they are asked."""

    def __init__(self) -> None:
        self.now_sec = 0.0
        self.uids = {":1.1": 0, ":1.2": ALICE, ":1.3": BOB}
        self.operators = {ALICE}
        self.asked: list[str] = []
        tree = Tree(load_contract(_CONTRACT_FILE), lambda *_: None, schedule=lambda _: None)
        self.sights = Sights(self, self, tree, Shares(), lambda: self.now_sec)  # type: ignore[arg-type]

    async def call(self, *arguments: Any) -> tuple[int]:
        (sender,) = arguments[-1]
        self.asked.append("bus")
        await asyncio.sleep(0)
        if sender not in self.uids:
            raise RemoteError("org.freedesktop.DBus.Error.NameHasNoOwner", "it has left")
        return (self.uids[sender],)

    def trusts_user(self, uid: int) -> bool:
        return uid == 0

    async def may_inspect(self, _sender: str, uid: int) -> bool:
        self.asked.append("polkit")
        await asyncio.sleep(0)
        return uid in self.operators


@in_loop
async def test_root_is_known_for_ever_and_polkit_is_not_asked() -> None:
    world = World()
    assert world.sights.known(":1.1") is None
    assert (await world.sights.learn(":1.1")).is_operator
    world.now_sec = 1e9
    assert world.sights.known(":1.1") is not None
    assert world.asked == ["bus"]


@in_loop
async def test_the_answer_of_polkit_counts_for_a_while() -> None:
    world = World()
    for sender, expected in ((":1.2", True), (":1.3", False)):
        sight = await world.sights.learn(sender)
        assert sight.is_operator is expected
        assert isinstance(sight.view, Tree if expected else TenantView)
        assert world.sights.known(sender) is sight
    world.now_sec = SIGHT_SEC
    world.operators = {BOB}
    for sender in (":1.2", ":1.3"):
        assert world.sights.known(sender) is None
        assert (await world.sights.learn(sender)).is_operator is (sender == ":1.3")
    assert world.asked == ["bus", "polkit"] * 2 + ["polkit"] * 2


def test_the_root_tells_tenants_nothing_of_the_host() -> None:
    tree = Tree(load_contract(_CONTRACT_FILE), lambda *_: None, schedule=lambda _: None)
    values = {"Version": "1", "Host": "x", "Simulated": False, "PolicyProblems": ["a.toml:3: vf 0 of whom"]}
    tree.add(ROOT, {MANAGER: values})
    view = TenantView(tree, Shares(), ALICE)
    told = [view.get(ROOT, MANAGER, "PolicyProblems"), view.values_at(ROOT, MANAGER)["PolicyProblems"]]
    assert told == [[], []]
    assert b"a.toml" not in bytes(view.encode_properties(ROOT, MANAGER))
    assert view.get(ROOT, MANAGER, "Version") == "1"
    assert tree.get(ROOT, MANAGER, "PolicyProblems") == values["PolicyProblems"]


def test_shares_are_given_and_taken() -> None:
    shares = Shares()
    shares.give("/job", ALICE)
    shares.give("/job", BOB)
    shares.give("/lease", ALICE)
    assert [(*shares.of(uid),) for uid in (ALICE, BOB, 7)] == [("/job", "/lease"), ("/job",), ()]
    shares.take("/job")
    shares.take("/job")
    assert [shares.has(uid, "/job") for uid in (ALICE, BOB)] == [False, False]
    shares.take("/lease")
    assert (shares._paths, shares._users) == ({}, {})


class Slow:
    """Sights that take a question each; `gate`: answered."""

    def __init__(self, sight: Sight) -> None:
        self.sight = sight
        self.gate = asyncio.Event()
        self.questions = 0
        self.fails = False

    def known(self, _sender: str) -> Sight | None:
        return None

    async def learn(self, _sender: str) -> Sight:
        self.questions += 1
        await self.gate.wait()
        if self.fails:
            raise RemoteError("org.freedesktop.DBus.Error.NameHasNoOwner", "it has left")
        return self.sight


@in_loop
async def test_calls_wait_for_one_question_and_keep_their_order(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        slow = service.dispatcher._sights = Slow(Sight(0, service.tree, is_operator=True))
        peer = "org.freedesktop.DBus.Peer"
        calls = [
            asyncio.create_task(client.call("Ping", interface=peer, path=object_path(number)))
            for number in (0, 7, 0)
        ]
        while len(service.dispatcher._waiting.get(client.name, ())) < 3:
            await asyncio.sleep(0.001)
        slow.gate.set()
        kinds = [(await call).message_type.name for call in calls]
        assert kinds == ["METHOD_RETURN", "ERROR", "METHOD_RETURN"]
        assert (slow.questions, service.dispatcher._waiting) == (1, {})


@in_loop
async def test_of_whom_nothing_can_be_known_is_refused(bus: PrivateBus) -> None:
    async with running_service(bus.address) as service, Client.connected(bus.address) as client:
        slow = service.dispatcher._sights = Slow(Sight(0, service.tree, is_operator=True))
        slow.fails = True
        slow.gate.set()
        reply = await client.call("Echo", "sa{sv}", "x", {})
        assert reply.error_name == f"{NAME}.Error.BackendFailed"
        service.dispatcher._waiting[client.name] = [None] * _WAITING_AT_MOST  # type: ignore[list-item]
        reply = await client.call("Echo", "sa{sv}", "x", {})
        assert reply.error_name == "org.freedesktop.DBus.Error.LimitsExceeded"
        service.dispatcher._waiting.clear()
