"""Whatever happens to events, and whoever else writes to the devices: at last the objects equal the tree."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sriovd.backend.base import Fault, Severity
from sriovd.backend.steps import Chain, Script, Step, Verb
from sriovd.bus.calls import RemoteError
from sriovd.bus.private import PrivateBus
from sriovd.pci import PciAddress
from tests.simulated.client import DLB, IGB0, IGB1, NVME, PFS, VF0, VF1, Client
from tests.simulated.conftest import made_root
from tests.simulated.inside import Inside, running_inside
from tests.unit.bus.support import in_loop

NEW = "0000:41:00.0"
MISFORTUNES = ("lose-event", "delay-event", "reorder-event", "repeat-event", "lose-many")
STEPS = (
    "verb-count", "verb-bind", "verb-batch", "verb-unbind", "verb-reset", "verb-remove", "verb-rescan",
    "other-count", "other-bind", "other-unbind", "other-remove", "plug", "unplug", "error",
)  # fmt: skip
StoryStep = tuple[str, int]
steps = st.lists(
    st.tuples(st.sampled_from((*STEPS, *MISFORTUNES)), st.integers(0, 2**32 - 1)), min_size=3, max_size=14
)


class Chaos:
    """Does what a step says, with choices drawn from its number; a refusal is as good as any answer."""

    def __init__(self, inside: Inside) -> None:
        self.inside = inside
        self.client: Client = inside.client
        self._going_on: list[asyncio.Task[None]] = []

    async def do(self, step: StoryStep) -> None:
        """One step; sometimes the next does not wait for its end."""
        name, seed = step
        choice = random.Random(seed)
        if name in MISFORTUNES:
            self.misfortune(name, choice)
            return
        task = asyncio.create_task(self._act(name, choice))
        self._going_on.append(task)
        if choice.random() < 0.6:
            await task

    async def end(self) -> None:
        """Until all that was begun has ended."""
        await asyncio.gather(*self._going_on)

    async def _act(self, name: str, choice: random.Random) -> None:
        client = self.client
        actions: dict[str, Callable[[random.Random], Awaitable[Any]]] = {
            "verb-count": lambda c: client.set_num_vfs(self.pf(c), c.choice((0, 1, 7)), **self.driver(c)),
            "verb-bind": lambda c: client.bind(self.anyone(c), self.driver_name(c)),
            "verb-batch": lambda c: client.bind_vfs(self.pf(c), self.driver_name(c)),
            "verb-unbind": lambda c: client.unbind(self.anyone(c)),
            "verb-reset": lambda c: client.reset(self.anyone(c)),
            "verb-remove": lambda c: client.remove(c.choice((IGB0, IGB1))),
            "verb-rescan": lambda c: client.rescan(),
            "other-count": lambda c: self.other(Verb.SET_NUM_VFS, self.pf(c), str(c.choice((0, 2, 5)))),
            "other-bind": lambda c: self.other(Verb.PROBE, self.anyone(c)),
            "other-unbind": lambda c: self.other(Verb.UNBIND, self.anyone(c), self.driver_name(c)),
            "other-remove": lambda c: self.other(Verb.REMOVE, c.choice((IGB0, IGB1))),
            "plug": lambda c: client.simulate("Plug", "ss", c.choice(("igb", "nvme", "dlb")), NEW),
            "unplug": lambda c: client.simulate("Unplug", "s", NEW),
            "error": self.error,
        }
        try:
            await actions[name](choice)
        except RemoteError as error:
            assert error.name.startswith("org.sriovd1.Error."), error
            assert "defect" not in error.text, error
            assert "internal error" not in error.text, error

    def misfortune(self, name: str, choice: random.Random) -> None:
        backend = self.inside.backend
        if name == "lose-many":
            backend.lose_events(choice.randint(1, 20))
            return
        address = None if choice.random() < 0.5 else PciAddress.parse(self.anyone(choice))
        backend.inject_fault(
            Fault(name, address, delay_usec=choice.randint(0, 30_000), times=choice.randint(1, 5))
        )

    async def error(self, choice: random.Random) -> None:
        severity = choice.choice(tuple(Severity))
        await self.client.simulate("InjectError", "ssuau", self.anyone(choice), severity, 0, [])

    async def other(self, verb: Verb, address: str, argument: str = "") -> None:
        """Somebody else's write, which the kernel may refuse."""
        target = PciAddress.parse(address)
        script = Script("somebody else", (Chain(target, (Step(verb, target, argument),)),))
        await self.inside.backend.run("somebody else", script, lambda _: None).finished

    def pf(self, choice: random.Random) -> str:
        return choice.choice((IGB0, IGB1, NVME, DLB))

    def anyone(self, choice: random.Random) -> str:
        present = [str(address) for address in self.inside.backend.list_functions()]
        return choice.choice(present or list(PFS))

    def driver_name(self, choice: random.Random) -> str:
        return choice.choice(("vfio-pci", "pci-stub", "default", "none", "igb", "igbvf"))

    def driver(self, choice: random.Random) -> dict[str, str]:
        return {"driver": self.driver_name(choice)} if choice.random() < 0.5 else {}


@pytest.fixture
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated drivers keep what they took: nobody need wait to see it."""
    monkeypatch.setattr("sriovd.core.binder.SETTLE_SEC", 0.0)


@pytest.mark.usefixtures("no_settling")
@settings(
    max_examples=80, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
@given(story=steps)
def test_objects_equal_the_tree_after_any_story(bus: PrivateBus, story: list[StoryStep]) -> None:
    @in_loop
    async def test() -> None:
        with made_root() as root:
            await live_through(root)

    async def live_through(root: str) -> None:
        async with running_inside(bus.address, root) as inside:
            chaos = Chaos(inside)
            for step in story:
                await chaos.do(step)
            await chaos.end()
            release_held_event(inside)
            await inside.settle()

    test()


def release_held_event(inside: Inside) -> None:
    """An event that its successor has overtaken needs a successor: the port's, of which sriovd knows
    nothing."""
    inside.backend.host.faults.clear()
    inside.write("0000:00:01.0/driver_override", "\n")
    inside.backend.kernel.write("bus/pci/drivers/pcieport/unbind", "0000:00:01.0")
    inside.backend.kernel.write("bus/pci/drivers/pcieport/bind", "0000:00:01.0")


@pytest.mark.parametrize("misfortune", MISFORTUNES)
def test_120_vfs_five_times_in_bad_weather(bus: PrivateBus, root: str, misfortune: str) -> None:
    """Made and destroyed by somebody else, so that events are all that sriovd has."""

    @in_loop
    async def test() -> None:
        async with running_inside(bus.address, root) as inside:
            for _ in range(5):
                for count in (120, 0):
                    hurt(inside, misfortune)
                    inside.write(f"{NVME}/sriov_numvfs", str(count))
            inside.write(f"{NVME}/sriov_numvfs", "60")
            release_held_event(inside)
            await inside.settle()
            assert len(await inside.client.vfs(NVME)) == 60

    test()


def hurt(inside: Inside, misfortune: str) -> None:
    """Let the next events meet `misfortune`."""
    if misfortune == "lose-many":
        inside.backend.lose_events(50)
    else:
        inside.backend.inject_fault(Fault(misfortune, delay_usec=20_000, times=50))


def test_somebody_else_changes_what_a_job_does_not_look_at(bus: PrivateBus, root: str) -> None:
    """Events of an adapter wait while a job runs on it, and are not forgotten."""

    @in_loop
    async def test() -> None:
        async with running_inside(bus.address, root) as inside:
            client = inside.client
            await client.set_num_vfs(IGB0, 2, driver="vfio-pci")
            await client.inject("unbind", VF0, delay_usec=200_000, times=1)
            job, _ = await client.bind(VF0, "pci-stub", wait_usec=0)
            await Chaos(inside).other(Verb.UNBIND, VF1, "vfio-pci")
            assert await client.wait_job(job, 0) == "running"
            assert await client.driver(VF1) == "vfio-pci"
            assert await client.wait_job(job) == "done"
            await inside.settle()
            assert await client.vfs(IGB0) == {VF0: "pci-stub", VF1: ""}

    test()
