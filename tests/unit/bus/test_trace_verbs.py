"""Who may trace and read what, by every way of asking, and which records an answer has."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.bus.dispatch import Caller
from sriovd.bus.errors import LimitsExceeded
from sriovd.bus.objects import MANAGER, TRACE, Objects, function_path
from sriovd.bus.signature import Variant
from sriovd.bus.trace_verbs import TraceVerbs
from sriovd.bus.tree import NoSuchObject, Tree
from sriovd.bus.visibility import Shares
from sriovd.core.engine import Engine, Places
from sriovd.core.errors import (
    InvalidArgument,
    NoSuchFunction,
    NotAuthorized,
    NotOwner,
    NotSupported,
    SriovdError,
)
from sriovd.core.trace.desk import Shelf, TraceDesk
from sriovd.core.trace.transaction import transaction
from sriovd.daemon import _contract_for
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, RecordType, Status
from tests.unit.bus.leasedhost import leased_host
from tests.unit.core.trace.buffers import FakeRecorder, make_memfd, make_record
from tests.unit.trace.buffers import replace

from .support import in_loop
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

VERBS = ("Start", "Stop", "ReadTail")
TWINS = {"Start": "StartTrace", "Stop": "StopTrace", "ReadTail": "ReadTrace"}


class Site:
    """The verbs on a host with two VFs, of which TENANT leases one."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self.engine = engine = Engine(backend, Places())
        tree = Tree(_contract_for(simulated=True), lambda *_: None, schedule=lambda _: None)
        objects = Objects(tree, engine.inventory, engine.jobs, Shares())
        self.recorder = FakeRecorder()
        self.desk = TraceDesk(self.recorder, engine.leases.vf_address, Shelf())
        verbs = TraceVerbs(
            engine.inventory, engine.leases, lambda: self.desk, self.recorder, objects, Rights()
        )
        self.handlers = verbs.handlers()
        self.memory = make_memfd()

    async def ask(
        self, uid: int, verb: str, vf: PciAddress, owner: str = OWNER,
        options: Mapping[str, Variant] = MappingProxyType({}),
    ) -> Any:  # fmt: skip
        """By address."""
        arguments = (self.memory,) if verb == "Start" else ()
        given = {**options, "owner": Variant("s", owner)} if owner else options
        caller = Caller(f":1.{uid}", uid, False, is_operator=uid in (OPERATOR, ROOT_USER))
        return await self.handlers[MANAGER, TWINS[verb]](caller, "/", str(vf), *arguments, given)

    async def refusal(self, uid: int, verb: str, vf: PciAddress, owner: str = OWNER) -> str:
        with pytest.raises(SriovdError) as refused:
            await self.ask(uid, verb, vf, owner)
        assert self.recorder.sinks == {}
        assert self.recorder.tails == []
        return f"{type(refused.value).__name__}: {refused.value}".replace(str(vf), "HERE")


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    async with leased_host(Site, PF, LEASED, TENANT, OWNER) as made:
        yield made
        os.close(made.memory)


@pytest.mark.parametrize("verb", VERBS)
def test_anothers_nobodys_and_none_are_the_same_answer(verb: str) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            told = {await here.refusal(STRANGER, verb, vf) for vf in (LEASED, FREE, NOWHERE, PF)}
            told |= {await here.refusal(ROOT_USER, verb, vf) for vf in (FREE, NOWHERE, PF)}
            assert told == {
                "NotOwner: You have no lease on a VF at HERE as 'vm'. Leases end by Release."
            }  # fmt: skip
            assert "as 'other'" in await here.refusal(TENANT, verb, LEASED, "other")
            assert "NotAuthorized" in await here.refusal(OPERATOR, verb, LEASED)

    test()


@pytest.mark.parametrize("verb", ["Start", "Stop"])
def test_who_names_no_owner_traces_nothing(verb: str) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            for uid in (TENANT, ROOT_USER):
                for vf in (LEASED, FREE, NOWHERE):
                    assert (await here.refusal(uid, verb, vf, "")).startswith("NotOwner: You have no lease")

    test()


@in_loop
async def test_an_operator_reads_what_nobody_leases() -> None:
    async with site() as here:
        here.recorder.past = [make_record(1)]
        for uid in (OPERATOR, ROOT_USER):
            told = await here.refusal(uid, "ReadTail", LEASED, "")
            assert told.startswith("NotOwner: VF HERE is leased, and its trace its owner's")
        with pytest.raises(NotAuthorized):
            await here.ask(TENANT, "ReadTail", FREE, "")
        with pytest.raises(NoSuchFunction):
            await here.ask(OPERATOR, "ReadTail", NOWHERE, "")
        with pytest.raises(InvalidArgument, match="no VF"):
            await here.ask(OPERATOR, "ReadTail", PF, "")
        assert len((await here.ask(OPERATOR, "ReadTail", FREE, ""))[0]) == 1
        assert here.recorder.tails == [((PF, 1), 0)]


@in_loop
async def test_an_owner_reads_his_leases_part() -> None:
    async with site() as here:
        here.recorder.past = [make_record(7)]
        for uid in (TENANT, ROOT_USER):
            (rows,) = await here.ask(uid, "ReadTail", LEASED)
            assert rows == [(7, 1, 0, 0, "write", "to-kernel", "ok", "bind", "", "number 7")]
        assert here.recorder.tails == [((PF, 0), 1)] * 2


@in_loop
async def test_the_administrator_starts_and_stops_it_for_its_owner() -> None:
    async with site() as here:
        assert await here.ask(ROOT_USER, "Start", LEASED, options={"mode": Variant("s", "drop")}) == (16, 1)
        assert set(here.recorder.sinks) == {1}
        assert await here.ask(TENANT, "Stop", LEASED) == ()
        assert here.recorder.sinks == {}


@in_loop
async def test_the_object_is_the_twin() -> None:
    async with site() as here:
        caller, path, owner = Caller(":1.7", 0, False), function_path(LEASED), {"owner": Variant("s", OWNER)}
        here.recorder.past = [make_record(1)]
        assert await here.handlers[TRACE, "Start"](caller, path, here.memory, owner) == (16, 1)
        assert len((await here.handlers[TRACE, "ReadTail"](caller, path, owner))[0]) == 1
        assert await here.handlers[TRACE, "Stop"](caller, path, owner) == ()
        with pytest.raises(NoSuchObject):
            await here.handlers[TRACE, "Stop"](caller, function_path(NOWHERE), owner)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": Variant("s", "ring")}, "'ring' is no way to fill a buffer. Give 'overwrite' or 'drop'"),
        ({"size": Variant("u", 1)}, "unknown option 'size'"),
        ({"history": Variant("s", "yes")}, "option 'history' has type 's'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Variant], words: str) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            with pytest.raises(InvalidArgument, match=words):
                await here.ask(TENANT, "Start", LEASED, options=options)

    test()


FILTERS: list[tuple[dict[str, Variant], list[int]]] = [
    ({}, [1, 2, 3, 3, 4]),
    ({"types": Variant("as", ["hand-over", "driver"])}, [2, 4]),
    ({"types": Variant("as", [])}, [1, 2, 3, 3, 4]),
    ({"since-transaction": Variant("t", 3)}, [3, 3, 4]),
    ({"failed": Variant("b", True)}, [2, 3]),
    ({"failed": Variant("b", False)}, [1, 2, 3, 3, 4]),
    ({"at-most": Variant("u", 2)}, [3, 4]),
    ({"at-most": Variant("u", 0)}, []),
    ({"at-most": Variant("u", 99)}, [1, 2, 3, 3, 4]),
    ({"at-most": Variant("u", 1), "failed": Variant("b", True)}, [3]),
]


@pytest.mark.parametrize(("options", "found"), FILTERS)
def test_filters_let_through_what_they_say(options: dict[str, Variant], found: list[int]) -> None:
    @in_loop
    async def test() -> None:
        async with site() as here:
            here.recorder.past = [
                make_record(1),
                replace(make_record(2), type=RecordType.DRIVER, status=Status.REFUSED),
                replace(make_record(3), type=RecordType.BEGIN, status=Status.BEGUN),
                replace(make_record(3), type=RecordType.END, status=Status.FAILED, errno=16),
                replace(make_record(4), type=RecordType.HAND_OVER, direction=Direction.TO_OWNER),
            ]
            (rows,) = await here.ask(TENANT, "ReadTail", LEASED, options=options)
            assert [row[0] for row in rows] == found

    test()


@in_loop
async def test_an_unknown_type_is_named_with_the_known_ones() -> None:
    async with site() as here:
        with pytest.raises(InvalidArgument, match=r"'x' is no type of record.*begin, end.*hand-over"):
            await here.ask(TENANT, "ReadTail", LEASED, options={"types": Variant("as", ["write", "x"])})


@in_loop
async def test_a_row_says_everything_of_a_record() -> None:
    async with site() as here:
        here.recorder.past = [
            replace(
                make_record(9, "to vfio-pci"), time_nsec=5_000_999, latency_nsec=2_500, errno=16,
                status=Status.FAILED,
            )
        ]  # fmt: skip
        (rows,) = await here.ask(TENANT, "ReadTail", LEASED)
        assert rows == [(9, 1, 5000, 2, "write", "to-kernel", "failed", "bind", "EBUSY", "to vfio-pci")]


@in_loop
async def test_reading_the_tail_leaves_nothing_in_it() -> None:
    """Who asks again and again would find nothing but his own asking."""
    async with site() as here:
        recorder, (lease,) = here.engine.recorder, here.engine.leases.all()
        before = recorder.tail((PF, lease.index), lease.number)
        with transaction("ReadTail", "uid 1000 (:1.1000)"):
            await here.ask(TENANT, "ReadTail", LEASED)
        assert recorder.tail((PF, lease.index), lease.number) == before
        with transaction("Stop", "uid 1000 (:1.1000)"), pytest.raises(NotSupported):
            await here.ask(TENANT, "Stop", LEASED)
        assert recorder.tail((PF, lease.index), lease.number)[-1].operation == "Stop"


async def count_starts(here: Site, uid: int) -> int:
    """How often a user may start a trace, whatever comes of it, before he is too quick."""
    for count in range(100):
        try:
            await here.ask(uid, "Start", LEASED)
            await here.ask(uid, "Stop", LEASED)
        except LimitsExceeded as error:
            assert "come again in" in str(error)
            return count
        except (NotOwner, InvalidArgument):  # the memory is root's
            continue
    return 100


@in_loop
async def test_who_starts_all_the_time_is_slowed_down() -> None:
    async with site() as here:
        assert 64 <= await count_starts(here, TENANT) < 70
        assert 64 <= await count_starts(here, STRANGER) < 70
        assert await count_starts(here, ROOT_USER) == 100
