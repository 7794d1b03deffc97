"""What a tenant may do to his VF he does while he has it: not when its turn comes after his lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.bus.dispatch import Caller
from sriovd.bus.objects import MANAGER, Objects, function_path
from sriovd.bus.policy_verbs import PolicyVerbs
from sriovd.bus.polkit import Authority
from sriovd.bus.signature import Variant
from sriovd.bus.tree import Tree
from sriovd.bus.verbs import Verbs
from sriovd.bus.visibility import Shares
from sriovd.core.engine import Engine, Places
from sriovd.core.errors import NoSuchFunction, SriovdError
from sriovd.daemon import _contract_for
from sriovd.pci import PciAddress
from tests.unit.bus.leasedhost import leased_host

from .support import in_loop, until

PF, LEASED = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:10.0")
TENANT = Caller(":1.7", 1000, False, False, {function_path(LEASED)})
OPERATOR = Caller(":1.8", 1001, False, True)
ASKED: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("SetVFAttributes", ({"vlan": Variant("u", 100)}, {})),
    ("Bind", ("pci-stub", {"force": Variant("b", True)})),
    ("Unbind", ({"force": Variant("b", True)},)),
    ("Reset", ({"force": Variant("b", True)},)),
)


class Anything(Authority):
    """polkit grants it."""

    def __init__(self) -> None:
        pass

    async def check(self, caller: Caller, action: str, details: object = None) -> None:
        await asyncio.sleep(0)


class Site:
    """The verbs on a host with two VFs, of which TENANT leases one."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self.engine = engine = Engine(backend, Places())
        tree = Tree(_contract_for(simulated=True), lambda *_: None, schedule=lambda _: None)
        objects = Objects(tree, engine.inventory, engine.jobs, Shares())
        self.handlers = {
            **Verbs(engine.inventory, engine.lifecycle, engine.leases, objects, Anything()).handlers(),
            **PolicyVerbs(
                engine.lifecycle, engine.campaign, engine.policy, engine.rulebook, engine.leases, objects,
                Anything(),
            ).handlers(),
        }  # fmt: skip

    async def ask(self, caller: Caller, member: str, *arguments: Any) -> Any:
        return await self.handlers[MANAGER, member](caller, "/org/sriovd1", str(LEASED), *arguments)

    async def begin(self, caller: Caller, member: str, *arguments: Any) -> asyncio.Future[Any]:
        """It is asked for, and waits for its turn."""
        before = len(self.engine.jobs.running)
        asked = asyncio.ensure_future(self.ask(caller, member, *arguments))
        await until(lambda: len(self.engine.jobs.running) > before or asked.done())
        return asked

    async def release(self) -> asyncio.Future[Any]:
        """The tenant's lease: its cleaning waits for its turn."""
        (lease,) = self.engine.leases.all()
        over = asyncio.ensure_future(self.engine.leases.release(lease.number, False))
        await until(lambda: any(job.operation == "CleanLease" for job in self.engine.jobs.running))
        return over

    def turn(self) -> Any:
        """Nobody else's, meanwhile."""
        return self.engine.executor.lane(str(PF.slot))


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    async with leased_host(Site, PF, LEASED, TENANT.uid, "vm") as made:
        yield made


def each_verb(test: Callable[..., Any]) -> Any:
    return pytest.mark.parametrize(("member", "arguments"), ASKED)(test)


@each_verb
def test_a_tenant_does_it_while_he_has_his_vf(member: str, arguments: tuple[Any, ...]) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            assert (await here.ask(TENANT, member, *arguments))[1] == "done"

    test()


@each_verb
def test_what_was_asked_before_the_release_is_not_done_after_it(
    member: str, arguments: tuple[Any, ...]
) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            async with here.turn():
                asked = await here.begin(TENANT, member, *arguments)
                over = await here.release()
            with pytest.raises(NoSuchFunction, match="for you"):
                await asked
            await over

    test()


@each_verb
def test_what_is_asked_after_the_release_is_refused(member: str, arguments: tuple[Any, ...]) -> None:
    """Its turn would come right after the cleaning, and the next owner would have it."""

    @in_loop
    async def test() -> None:
        async with site() as here:
            async with here.turn():
                over = await here.release()
                with pytest.raises(NoSuchFunction, match="for you"):
                    await here.ask(TENANT, member, *arguments)
            await over

    test()


@each_verb
def test_who_sees_a_vf_and_has_no_lease_of_it_is_refused(member: str, arguments: tuple[Any, ...]) -> None:
    """As nobody should: then a sight has outlived its lease."""

    @in_loop
    async def test() -> None:
        async with site() as here:
            async with here.turn():
                over = await here.release()
            await over
            with pytest.raises(NoSuchFunction, match="for you"):
                await here.ask(TENANT, member, *arguments)

    test()


@each_verb
def test_operators_ask_for_any_vf(member: str, arguments: tuple[Any, ...]) -> None:
    """Whoever has it: what stands against it is said."""

    @in_loop
    async def test() -> None:
        async with site() as here:
            async with here.turn():
                asked = await here.begin(OPERATOR, member, *arguments)
                over = await here.release()
            try:
                assert (await asked)[1] == "done"
            except SriovdError as error:
                assert not isinstance(error, NoSuchFunction)
            await over

    test()


@in_loop
async def test_attributes_are_told_to_nobody_whose_lease_has_ended() -> None:
    async with site() as here:
        assert (await here.ask(TENANT, "GetVFAttributes"))[0]["vlan"] == Variant("u", 0)
        async with here.turn():
            over = await here.release()
            asked = asyncio.ensure_future(here.ask(TENANT, "GetVFAttributes"))
            for _ in range(20):
                await asyncio.sleep(0)
            assert not asked.done()
        await over
        with pytest.raises(NoSuchFunction, match="for you"):
            await asked
