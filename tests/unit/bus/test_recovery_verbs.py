"""Who may do what about errors, by every way of asking; and what it costs to ask in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.bus.actions import INSPECT, LEASE, RECOVER
from sriovd.bus.dispatch import Caller
from sriovd.bus.objects import MANAGER, RECOVERY, Objects, adapter_path, function_path
from sriovd.bus.polkit import Authority
from sriovd.bus.recovery_objects import RecoveryObjects
from sriovd.bus.recovery_verbs import RecoveryVerbs
from sriovd.bus.signature import Variant
from sriovd.bus.tree import NoSuchObject, Tree
from sriovd.bus.visibility import Shares
from sriovd.core.engine import Engine, Places
from sriovd.core.errors import (
    InvalidArgument,
    LockedOut,
    NoSuchFunction,
    NotAuthorized,
    NotOwner,
    SriovdError,
    TimedOut,
)
from sriovd.core.recovery.standing import BundleHead, PeStanding
from sriovd.daemon import _contract_for
from sriovd.pci import PciAddress
from tests.unit.bus.leasedhost import leased_host

from .fakedesk import Everybody, FakeDesk
from .support import in_loop, until

SLOT = "0000:01:00"
PF, LEASED, FREE, NOWHERE = (
    PciAddress.parse(text) for text in ("0000:01:00.0", "0000:01:10.0", "0000:01:10.2", "0000:09:10.0")
)
TENANT, STRANGER, OPERATOR, ROOT_USER = 1000, 1001, 1002, 0
ALLOWED = {TENANT: {LEASE}, STRANGER: {LEASE}, OPERATOR: {RECOVER, INSPECT}}
OWNER = "vm"
ASKING = ("Unfreeze", "WaitPermitted")


class Rights(Authority):
    """What each user may; root is trusted."""

    def __init__(self) -> None:
        pass

    def trusts(self, caller: Caller) -> bool:
        return caller.uid == ROOT_USER

    async def check(self, caller: Caller, action: str, details: Mapping[str, str] | None = None) -> None:
        await asyncio.sleep(0)
        if not self.trusts(caller) and action not in ALLOWED[caller.uid]:
            raise NotAuthorized(f"polkit does not allow {action} to the caller")


def caller_of(uid: int) -> Caller:
    """Somebody on the bus; tenants see their VF."""
    seen = {function_path(LEASED)} if uid == TENANT else set()
    return Caller(f":1.{uid}", uid, False, uid in (OPERATOR, ROOT_USER), seen)


class Site:
    """The verbs on a host with two VFs, of which TENANT leases one."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self.engine = Engine(backend, Places())
        self.engine.recovery = self.desk = FakeDesk(self.engine.jobs)  # type: ignore[assignment]
        inventory = self.engine.inventory
        tree = Tree(_contract_for(simulated=True), lambda *_: None, schedule=lambda _: None)
        recovery = RecoveryObjects(tree, inventory, self.desk)
        objects = Objects(tree, inventory, self.engine.jobs, Shares(), recovery_of=recovery.interfaces_of)
        self.bus = Everybody()
        verbs = RecoveryVerbs(inventory, self.engine.leases, self.desk, objects, Rights(), self.bus)
        self.handlers = verbs.handlers()

    async def ask(self, uid: int, member: str, target: PciAddress | str, *arguments: Any) -> Any:
        """By address, or slot."""
        return await self.handlers[MANAGER, member](caller_of(uid), "/org/sriovd1", str(target), *arguments)

    async def ask_object(self, uid: int, member: str, path: str, *arguments: Any) -> Any:
        return await self.handlers[RECOVERY, member](caller_of(uid), path, *arguments)

    async def speak(self, uid: int, member: str, target: PciAddress | str, owner: str = OWNER) -> Any:
        """Unfreeze or WaitPermitted."""
        self.desk.gate.set()
        return await self.ask(uid, member, target, owner, {} if member == "Unfreeze" else 0)

    async def refusal(self, uid: int, member: str, target: PciAddress | str, owner: str = OWNER) -> str:
        """What a refused one is told, without the address; nobody has asked recovery for anything."""
        self.desk.asked.clear()
        with pytest.raises(SriovdError) as refused:
            await self.speak(uid, member, target, owner)
        assert self.desk.asked == []
        return f"{type(refused.value).__name__}: {refused.value}".replace(str(target), "HERE")


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    async with leased_host(Site, PF, LEASED, TENANT, OWNER) as made:
        yield made


@pytest.mark.parametrize(("member", "state"), [("Unfreeze", "online"), ("WaitPermitted", "permitted")])
def test_the_owner_speaks_for_his_vf(member: str, state: str) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            assert await here.speak(TENANT, member, LEASED) == (state,)
            argument: Any = {} if member == "Unfreeze" else 0
            path = function_path(LEASED)
            assert await here.ask_object(TENANT, member, path, OWNER, argument) == (state,)
            assert [asked[1] for asked in here.desk.asked] == [LEASED, LEASED]

    test()


@pytest.mark.parametrize("member", ASKING)
def test_anothers_nobodys_and_none_are_the_same_answer(member: str) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            told = {await here.refusal(STRANGER, member, vf) for vf in (LEASED, FREE, PF, NOWHERE)}
            told |= {await here.refusal(ROOT_USER, member, vf) for vf in (FREE, NOWHERE)}
            assert told == {
                "NotOwner: You have no lease on a VF at HERE as 'vm'. Leases end by Release."
            }  # fmt: skip
            assert "as 'other'" in await here.refusal(TENANT, member, LEASED, "other")

    test()


@pytest.mark.parametrize("member", ASKING)
def test_the_administrator_names_the_owner_and_an_operator_nobody(member: str) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            await here.speak(ROOT_USER, member, LEASED)
            for uid in (ROOT_USER, OPERATOR):
                await here.speak(uid, member, FREE, "")
                told = await here.refusal(uid, member, LEASED, "")
                assert told.startswith("NotOwner: VF HERE is leased"), told
            assert "NotAuthorized" in await here.refusal(TENANT, member, FREE, "")
            assert "NotAuthorized" in await here.refusal(TENANT, member, LEASED, "")
            assert "NotAuthorized" in await here.refusal(OPERATOR, member, LEASED)

    test()


@pytest.mark.parametrize("member", ASKING)
def test_adapters_and_pfs_are_not_unfrozen(member: str) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            for uid, owner in ((TENANT, OWNER), (ROOT_USER, "")):
                for target in (SLOT,) if uid == TENANT else (PF, SLOT):
                    told = await here.refusal(uid, member, target, owner)
                    assert told.startswith("InvalidArgument: HERE is no VF"), told
                    assert "Recover" in told
            for path in (adapter_path(SLOT), function_path(PF)):
                with pytest.raises(InvalidArgument):
                    await here.ask_object(ROOT_USER, member, path, OWNER, {} if member == "Unfreeze" else 0)

    test()


@in_loop
async def test_the_owner_is_known_while_his_vf_is_away() -> None:
    async with site() as here:
        here.engine.inventory.drop(LEASED)
        assert await here.speak(TENANT, "Unfreeze", LEASED) == ("online",)
        assert "NotOwner" in await here.refusal(STRANGER, "Unfreeze", LEASED)


@in_loop
async def test_who_loops_is_refused_at_once_and_leaves_nothing() -> None:
    async def locked_out(vf: PciAddress) -> str:
        raise LockedOut(f"{vf} waits for its adapter.")

    async with site() as here:
        here.desk.unfreezing = locked_out
        tasks = len(asyncio.all_tasks())
        for _ in range(100):
            with pytest.raises(LockedOut):
                await here.ask(TENANT, "Unfreeze", LEASED, OWNER, {})
        assert len(asyncio.all_tasks()) == tasks


@in_loop
async def test_one_recovery_for_all_who_ask_and_it_goes_on_without_them() -> None:
    recovered = asyncio.Event()

    async def recover(_vf: PciAddress) -> str:
        await recovered.wait()
        return "online"

    async with site() as here:
        here.desk.unfreezing = recover
        here.desk.vfs[LEASED] = PeStanding("recovering")
        at_once = {"wait-usec": Variant("t", 0)}
        for _ in range(100):
            assert await here.ask(TENANT, "Unfreeze", LEASED, OWNER, at_once) == ("recovering",)
        waiting = asyncio.create_task(here.ask(TENANT, "Unfreeze", LEASED, OWNER, {}))
        await asyncio.sleep(0.01)
        assert here.desk.asked == [("unfreeze", LEASED)]
        recovered.set()
        assert await waiting == ("online",)
        assert await here.ask(TENANT, "Unfreeze", LEASED, OWNER, {}) == ("online",)
        assert len(here.desk.asked) == 2


@in_loop
async def test_a_recovery_that_fails_after_its_caller_has_left_is_no_noise() -> None:
    complaints: list[Mapping[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: complaints.append(context))

    async def fail(vf: PciAddress) -> str:
        await asyncio.sleep(0.01)
        raise LockedOut(f"{vf} waits for its adapter.")

    async with site() as here:
        here.desk.unfreezing = fail
        here.desk.vfs[LEASED] = PeStanding("recovering")
        await here.ask(TENANT, "Unfreeze", LEASED, OWNER, {"wait-usec": Variant("t", 0)})
        await asyncio.sleep(0.05)
    assert complaints == []


@in_loop
async def test_options_that_nobody_knows() -> None:
    async with site() as here:
        for member, arguments in (("Unfreeze", (OWNER,)), ("Recover", ()), ("Lift", ())):
            with pytest.raises(InvalidArgument, match="unknown option 'force'"):
                await here.ask(ROOT_USER, member, LEASED, *arguments, {"force": Variant("b", True)})
        assert here.desk.asked == []


@in_loop
async def test_waiting_ends_with_permission_with_time_and_with_the_caller() -> None:
    async with site() as here:
        with pytest.raises(TimedOut):
            await here.ask(TENANT, "WaitPermitted", LEASED, OWNER, 1000)
        waiting = asyncio.create_task(here.ask(TENANT, "WaitPermitted", LEASED, OWNER, 60_000_000))
        await until(lambda: here.desk.waiting and here.bus.watched)
        here.desk.gate.set()
        assert await waiting == ("permitted",)
        here.desk.gate.clear()
        waiting = asyncio.create_task(here.ask(TENANT, "WaitPermitted", LEASED, OWNER, 60_000_000))
        await until(lambda: here.desk.waiting and here.bus.watched)
        here.bus.watched[f":1.{TENANT}"]()
        await asyncio.wait({waiting})
        assert waiting.cancelled()
        assert (here.desk.waiting, here.bus.watched) == (0, {})


@in_loop
async def test_who_waits_until_his_lease_is_over_learns_nothing() -> None:
    async with site() as here:
        (lease,) = here.engine.leases.all()
        asked = asyncio.ensure_future(here.ask(TENANT, "WaitPermitted", LEASED, OWNER, 60_000_000))
        await until(lambda: here.desk.waiting == 1)
        await here.engine.leases.release(lease.number, False)
        here.desk.gate.set()
        with pytest.raises(NotOwner, match="You have no lease"):
            await asked


@in_loop
async def test_operators_recover_and_lift_by_every_name() -> None:
    async with site() as here:
        requester = f"uid {OPERATOR} (:1.{OPERATOR})"
        for target, name in ((SLOT, SLOT), (PF, str(PF)), (LEASED, str(LEASED))):
            path, state = await here.ask(OPERATOR, "Recover", name, {})
            assert (path.rpartition("/")[0], state) == ("/org/sriovd1/job", "done")
            assert await here.ask(OPERATOR, "Lift", name, {}) == ("frozen",)
            where = adapter_path(SLOT) if isinstance(target, str) else function_path(target)
            await here.ask_object(OPERATOR, "Recover", where, {"wait-usec": Variant("u", 0)})
            await here.ask_object(OPERATOR, "Lift", where, {})
            assert here.desk.asked == [("recover", target, requester), ("lift", target)] * 2
            here.desk.asked.clear()
        for member in ("Recover", "Lift"):
            with pytest.raises(NotAuthorized):
                await here.ask(TENANT, member, LEASED, {})
            with pytest.raises(InvalidArgument, match="neither an address nor a slot"):
                await here.ask(OPERATOR, member, "eth0", {})
            with pytest.raises(NoSuchObject):
                await here.ask_object(OPERATOR, member, function_path(NOWHERE), {})
        assert here.desk.asked == []


@in_loop
async def test_bundles_are_listed_and_read_by_operators() -> None:
    async with site() as here:
        here.desk.bundles = {
            SLOT: [BundleHead(1, 1_700_000_000_000_000, "freeze", "fatal")],
            "0000:02:00": [BundleHead(2, 1_700_000_000_000_001, "give-up", "dead")],
        }
        row = [(1, 1_700_000_000_000_000, "freeze", "fatal")]
        for name in (SLOT, PF, LEASED):
            assert await here.ask(OPERATOR, "ListBundles", name) == (row,)
            with pytest.raises(NotAuthorized):
                await here.ask(TENANT, "ListBundles", name)
        for path in (adapter_path(SLOT), function_path(PF), function_path(LEASED)):
            assert await here.ask_object(OPERATOR, "ListBundles", path) == (row,)
            assert await here.ask_object(OPERATOR, "ReadBundle", path, 1, "json") == ("bundle 1 as json",)
            with pytest.raises(InvalidArgument, match="No bundle 2 is kept of adapter"):
                await here.ask_object(OPERATOR, "ReadBundle", path, 2, "text")
            with pytest.raises(NotAuthorized):
                await here.ask_object(TENANT, "ReadBundle", path, 1, "text")
        assert await here.ask(OPERATOR, "ListBundles", "0000:07:00") == ([],)
        with pytest.raises(NoSuchFunction):
            await here.ask(OPERATOR, "ListBundles", NOWHERE)


@in_loop
async def test_a_bundle_by_its_number() -> None:
    async with site() as here:
        here.desk.bundles = {SLOT: [BundleHead(1, 0, "freeze", "fatal")]}
        read, operator = here.handlers[MANAGER, "ReadBundle"], caller_of(OPERATOR)
        assert await read(operator, "/org/sriovd1", 1, "text") == ("bundle 1 as text",)
        with pytest.raises(InvalidArgument):
            await read(operator, "/org/sriovd1", 1, "pdf")
        with pytest.raises(NoSuchFunction):
            await read(operator, "/org/sriovd1", 9, "text")
        with pytest.raises(NotAuthorized):
            await read(caller_of(TENANT), "/org/sriovd1", 1, "text")
