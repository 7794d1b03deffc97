"""Many at once: nobody gets what another has, whatever the order, and what all leave behind is nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sriovd.backend.base import Fault
from sriovd.core.errors import PoolExhausted, SriovdError
from sriovd.core.lease.choose import Spread, Wish
from sriovd.core.lease.record import Lease
from sriovd.core.store import MEMORY

from .leasehost import ALICE, BOB, IGB, IGB2, QEMU, World, on_host, world

NVMES = (("nvme", str(IGB)), ("nvme", str(IGB2)))


class Judge:
    """Looks at every state that is told. `owner_of`: whose each place is."""

    def __init__(self, host: World) -> None:
        self._host = host
        self.wrong: list[str] = []
        self.owner_of: dict[object, int] = {}
        host.leases.listen(self.look, self.end)

    def look(self, lease: Lease) -> None:
        if self.owner_of.setdefault((lease.pf, lease.index), lease.number) != lease.number:
            self.wrong.append(f"{lease} is another's")
        owners = self._host.backend.group_owners
        for each in self._host.leases.all():
            vf = self._host.leases._lives.vf_of(each)
            group = vf.facts.iommu_group if vf is not None else None
            if group is not None and owners.get(group, each.uid) != each.uid:
                self.wrong.append(f"the group of {each} is user {owners[group]}'s")

    def end(self, lease: Lease) -> None:
        del self.owner_of[lease.pf, lease.index]


@on_host
async def test_two_owners_and_two_hundred_vfs(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=0, machine=NVMES) as host:
        for pf in (IGB, IGB2):
            await host.set_num_vfs(100, pf)
        judge = Judge(host)
        wishes = [Wish(spread=Spread.PF)] * 201
        asked = [host.lend((ALICE, BOB)[turn % 2], wish=wish) for turn, wish in enumerate(wishes)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        leases = [answer for answer in answers if isinstance(answer, Lease)]
        assert Counter(type(answer) for answer in answers) == {Lease: 200, PoolExhausted: 1}
        assert Counter(lease.pf for lease in leases) == {IGB: 100, IGB2: 100}
        assert len(host.backend.group_owners) == len(host.documents()) == 200
        await asyncio.gather(*(host.leases.release(lease.number, force=False) for lease in leases))
        assert (host.remembered(), judge.owner_of, judge.wrong, host.documents()) == ({}, {}, [], {})


@on_host
async def test_many_for_one_vf(tmp_path: Path) -> None:
    """Each waits for the answer who holds it open: only one has it in the end."""
    async with world(tmp_path, vfs=1) as host:
        asked = [host.lend(ALICE, wish=Wish(pf=IGB)) for _ in range(20)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert Counter(type(answer) for answer in answers) == {Lease: 1, PoolExhausted: 19}


@on_host
async def test_a_reader_never_sees_half_a_document(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=7) as host:
        Path(host.places.cdi).mkdir()
        over = False

        def read() -> int:
            looks = 0
            while not over:
                for name in os.listdir(host.places.cdi):
                    if name.endswith((".json", ".yaml")):  # pkg/cdi/spec-dirs.go scanSpecDirs
                        try:
                            text = Path(host.places.cdi, name).read_text()
                        except FileNotFoundError:
                            continue
                        assert json.loads(text)["devices"]
                        looks += 1
            return looks

        reader = asyncio.create_task(asyncio.to_thread(read))
        try:
            for _ in range(5):
                leases = await asyncio.gather(*(host.lend(wish=Wish(pf=IGB)) for _ in range(7)))
                await asyncio.gather(*(host.leases.release(each.number, force=False) for each in leases))
        finally:
            over = True
        assert await reader > 0


_WORDS = (
    "alice", "bob", "release", "force", "die", "open", "close", "destroy", "create", "break", "mend",
)  # fmt: skip
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(_WORDS),
        st.integers(0, 12),  # turns of the event loop before the next
    ),
    max_size=14,
)  # fmt: skip


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as path:
        yield Path(path)


@given(actions=ACTIONS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_order(memory: Path, actions: list[tuple[str, int]]) -> None:
    @on_host
    async def test() -> None:
        with tempfile.TemporaryDirectory(dir=memory) as directory:
            await live(Path(directory), actions)

    test()


async def live(directory: Path, actions: list[tuple[str, int]]) -> None:
    host = World(directory)
    host.places = type(host.places)(state=MEMORY, cdi=host.places.cdi)
    await host.begin()
    await host.set_num_vfs(2)
    judge = Judge(host)
    tasks: list[asyncio.Task[None]] = []
    try:
        for action, turns in actions:
            tasks += [asyncio.create_task(act(host, action))]
            for _ in range(turns):
                await asyncio.sleep(0)
        host.backend.clear_faults()
        await asyncio.sleep(0)  # who is to open it has done so, and is not overtaken by the end
        await act(host, "close")
        await asyncio.gather(*tasks)
        for lease in host.leases.all():
            await host.leases.release(lease.number, force=True)
        assert (host.remembered(), judge.owner_of, judge.wrong) == ({}, {}, [])
        assert (host.backend.group_owners, host.documents()) == ({}, {})
        assert {vf.quarantine for vf in host.inventory.functions.values()} == {""}
    finally:
        await host.end()


async def act(host: World, action: str) -> None:
    vfs = [function for function in host.inventory.functions.values() if function.virtual]
    numbers = [lease.number for lease in host.leases.all()][:1]
    match action:
        case "alice" | "bob":
            await quietly(host.lend(ALICE if action == "alice" else BOB, held_by_descriptor=True))
        case "release" | "force":
            for number in numbers:
                # who waits for a holder would wait here for ever: it is closed at the end
                await quietly(host.leases.release(number, force=action == "force"))
        case "die":
            for number in numbers:
                host.leases.owner_gone(number)
        case "open":
            for vf in vfs[:1]:
                if vf.facts.driver == "vfio-pci":
                    with contextlib.suppress(ValueError):  # the node has gone, and the news is on its way
                        host.backend.open_device(vf.address, QEMU)
        case "close":
            for vf in vfs:
                host.backend.close_device(vf.address)
        case "destroy" | "create":
            await quietly(host.set_num_vfs(2 if action == "create" else 0))
        case "break":
            host.backend.inject_fault(Fault(verb="bind", errno=19, times=1))
        case "mend":
            host.backend.clear_faults()


async def quietly(work: object) -> None:
    try:
        await work  # type: ignore[misc]
    except (SriovdError, AssertionError, ValueError):
        return
