"""Who may look into a VF, by every way of asking; that a refusal costs what an answer costs, and says
nothing of whose the VF is."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.bus.dispatch import Caller
from sriovd.bus.error_data_verbs import ErrorDataVerbs
from sriovd.bus.errors import LimitsExceeded
from sriovd.bus.objects import MANAGER, TRACE, Objects, function_path
from sriovd.bus.signature import Variant
from sriovd.bus.tree import NoSuchObject, Tree
from sriovd.bus.visibility import Shares
from sriovd.core.engine import Engine, Places
from sriovd.core.errors import InvalidArgument, NoSuchFunction, NotAuthorized, NotOwner, SriovdError
from sriovd.daemon import _contract_for
from sriovd.pci import PciAddress
from tests.unit.bus.leasedhost import leased_host

from .support import in_loop, until
from .test_recovery_verbs import (
    FREE,
    LEASED,
    NOWHERE,
    OPERATOR,
    OWNER,
    PF,
    ROOT_USER,
    STRANGER,
    TENANT,
    Rights,
)

VERBS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Inspect", ("recovery",)),
    ("ReadErrorData", ()),
    ("CollectErrorData", ()),
)


class Site:
    """The verbs on a host with two VFs, of which TENANT leases one."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self.engine = engine = Engine(backend, Places())
        tree = Tree(_contract_for(simulated=True), lambda *_: None, schedule=lambda _: None)
        objects = Objects(tree, engine.inventory, engine.jobs, Shares())
        verbs = ErrorDataVerbs(
            engine.leases, engine.recovery.gate, objects, Rights(),
            lambda: engine.inspector, lambda: engine.error_data,
        )  # fmt: skip
        self.handlers = verbs.handlers()

    async def ask(self, uid: int, member: str, target: PciAddress | str, *arguments: Any) -> Any:
        """By address, of the Manager; descriptors come as what can be read of them."""
        caller = Caller(f":1.{uid}", uid, False, is_operator=uid in (OPERATOR, ROOT_USER))
        (result,) = await self.handlers[MANAGER, member](caller, "/org/sriovd1", str(target), *arguments)
        return read_descriptor(result.number) if member == "CollectErrorData" else result

    async def ask_object(self, uid: int, member: str, path: str, *arguments: Any) -> Any:
        (result,) = await self.handlers[TRACE, member](
            Caller(f":1.{uid}", uid, False, is_operator=uid in (OPERATOR, ROOT_USER)), path, *arguments
        )
        return read_descriptor(result.number) if member == "CollectErrorData" else result

    async def refusal(
        self, uid: int, member: str, target: PciAddress | str, *what: str, owner: str = OWNER
    ) -> str:
        """What a refused one is told, without the address."""
        with pytest.raises(SriovdError) as refused:
            await self.ask(uid, member, target, *what, named(owner))
        return f"{type(refused.value).__name__}: {refused.value}".replace(str(target), "HERE")


def read_descriptor(fd: int) -> bytes:
    try:
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def named(owner: str) -> dict[str, Variant]:
    return {"owner": Variant("s", owner)} if owner else {}


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    async with leased_host(Site, PF, LEASED, TENANT, OWNER) as made:
        yield made


@in_loop
async def test_the_owner_asks_by_both_ways() -> None:
    async with site() as here:
        path = function_path(LEASED)
        shown = await here.ask(TENANT, "Inspect", LEASED, "driver", named(OWNER))
        assert shown["driver"] == Variant("s", "vfio-pci")
        assert await here.ask_object(TENANT, "Inspect", path, "driver", named(OWNER)) == shown
        for member in ("CollectErrorData", "ReadErrorData"):
            for data in (
                await here.ask(TENANT, member, LEASED, named(OWNER)),
                await here.ask_object(TENANT, member, path, named(OWNER)),
            ):
                assert json.loads(data)["vf"] == str(LEASED)
        with pytest.raises(NoSuchObject):
            await here.ask_object(TENANT, "Inspect", function_path(NOWHERE), "driver", named(OWNER))


@pytest.mark.parametrize(("member", "what"), VERBS)
def test_anothers_nobodys_and_none_are_the_same_answer(member: str, what: tuple[str, ...]) -> None:
    """And a PF, and a name that is not the owner's: nobody learns what is where."""

    @in_loop
    async def test() -> None:
        async with site() as here:
            told = {await here.refusal(STRANGER, member, vf, *what) for vf in (LEASED, FREE, NOWHERE, PF)}
            told |= {await here.refusal(ROOT_USER, member, vf, *what) for vf in (FREE, NOWHERE, PF)}
            assert told == {"NotOwner: You have no lease on a VF at HERE as 'vm'. Leases end by Release."}

    test()


@pytest.mark.parametrize(("member", "what"), VERBS)
def test_operators_ask_for_any_vf_and_tenants_for_none(member: str, what: tuple[str, ...]) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            for vf in (LEASED, FREE):
                for uid in (OPERATOR, ROOT_USER):
                    assert await here.ask(uid, member, vf, *what, {})
            with pytest.raises(NoSuchFunction):
                await here.ask(ROOT_USER, member, NOWHERE, *what, {})
            with pytest.raises(InvalidArgument, match="is a PF"):
                await here.ask(ROOT_USER, member, PF, *what, {})
            with pytest.raises(NotAuthorized):
                await here.ask(TENANT, member, LEASED, *what, {})
            with pytest.raises(NotAuthorized):
                await here.ask(OPERATOR, member, LEASED, *what, named(OWNER))
            assert await here.ask(ROOT_USER, member, LEASED, *what, named(OWNER))

    test()


@in_loop
async def test_the_owner_is_known_while_his_vf_is_away() -> None:
    async with site() as here:
        here.engine.inventory.drop(LEASED)
        document = json.loads(await here.ask(TENANT, "ReadErrorData", LEASED, named(OWNER)))
        assert "is away" in document["now"]["missing"]
        with pytest.raises(NoSuchFunction):
            await here.ask(TENANT, "Inspect", LEASED, "resources", named(OWNER))
        with pytest.raises(NoSuchFunction):
            await here.ask(TENANT, "Inspect", LEASED, "attributes", named(OWNER))
        assert "NotOwner" in await here.refusal(STRANGER, "ReadErrorData", LEASED)


@pytest.mark.parametrize(
    ("member", "what"), [("Inspect", ("registers",)), ("Inspect", ("attributes",)), ("ReadErrorData", ())]
)
def test_who_has_waited_until_his_lease_was_over_learns_nothing(member: str, what: tuple[str, ...]) -> None:
    """He was asked for his right before the adapter's jobs, of which the end of his lease is one."""

    @in_loop
    async def test() -> None:
        async with site() as here:
            leases = here.engine.leases
            (lease,) = leases.all()
            async with here.engine.executor.lane(str(PF.slot)):
                over = asyncio.ensure_future(leases.release(lease.number, False))
                await until(lambda: any(job.operation == "CleanLease" for job in here.engine.jobs.running))
                asked = asyncio.ensure_future(here.refusal(TENANT, member, LEASED, *what))
                for _ in range(20):
                    await asyncio.sleep(0)
                assert not asked.done()
            assert (await asked).startswith("NotOwner: You have no lease on a VF at HERE as 'vm'.")
            await over

    test()


@pytest.mark.parametrize(("member", "what"), VERBS)
def test_a_tenant_who_may_recover_learns_of_no_former_owner(member: str, what: tuple[str, ...]) -> None:
    """Who names no owner asks for all that there ever was of the VF."""

    @in_loop
    async def test() -> None:
        async with site() as here:
            sees = Caller(":1.7", OPERATOR, False, False, {function_path(LEASED)})
            call = here.handlers[MANAGER, member]
            with pytest.raises(NotAuthorized, match="inspect"):
                await call(sees, "/org/sriovd1", str(LEASED), *what, {})
            with pytest.raises(NoSuchFunction):
                await call(sees, "/org/sriovd1", str(FREE), *what, {})

    test()


async def spend(here: Site, uid: int, member: str, *arguments: Any) -> int:
    """How often it is answered or refused before it comes too early."""
    for count in range(100):
        try:
            await here.ask(uid, member, LEASED, *arguments)
        except LimitsExceeded as error:
            assert "come again in" in str(error)
            return count
        except (NotOwner, InvalidArgument):
            continue
    return 100


@in_loop
async def test_a_refusal_costs_what_an_answer_costs() -> None:
    """One bucket for error data however they come, another for inspections; each user has his own."""
    async with site() as here:
        assert await spend(here, TENANT, "ReadErrorData", named(OWNER)) == 4
        assert await spend(here, TENANT, "CollectErrorData", named(OWNER)) == 0
        assert 20 <= await spend(here, TENANT, "Inspect", "nonsense", named(OWNER)) < 25
        assert await spend(here, STRANGER, "CollectErrorData", named(OWNER)) == 4
        assert 20 <= await spend(here, STRANGER, "Inspect", "recovery", named(OWNER)) < 25
        assert await spend(here, ROOT_USER, "ReadErrorData", named(OWNER)) == 100
        with pytest.raises(LimitsExceeded):
            await here.ask(TENANT, "ReadErrorData", "not an address", {})


@in_loop
async def test_who_keeps_every_descriptor_gets_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the long run they come slower than what is copied to him: sriovd's memory pays for them."""
    async with site() as here:
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.get_running_loop(), "time", Clock().step)
            assert 64 <= await spend(here, STRANGER, "CollectErrorData", named(OWNER)) < 67
            assert await spend(here, STRANGER, "ReadErrorData", named(OWNER)) == 100


class Clock:
    """Five seconds pass with each look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def step(self) -> float:
        self.now_s += 5.0
        return self.now_s


@in_loop
async def test_options_that_nobody_knows() -> None:
    async with site() as here:
        with pytest.raises(InvalidArgument, match="unknown option 'force'"):
            await here.ask(ROOT_USER, "Inspect", LEASED, "driver", {"force": Variant("b", True)})
        with pytest.raises(InvalidArgument, match="'yaml' is no form"):
            await here.ask(ROOT_USER, "ReadErrorData", LEASED, {"format": Variant("s", "yaml")})
        with pytest.raises(InvalidArgument, match="No bundle 7 that concerns this VF is kept"):
            await here.ask(ROOT_USER, "ReadErrorData", LEASED, {"number": Variant("u", 7)})
