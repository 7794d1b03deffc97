"""Runs scenarios on a host and writes down what happens, action by action.

Rule: the same code for every host, through backend.base.Backend and a Bench; what may differ is rewritten by
normal.py. No action is over before the host has sent what it had to say: a `change` event of a port, which
no scenario touches, comes after all of it (Bench.mark).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sriovd.backend.base import Backend, ErrorRecord, EventsLost, KernelEvent, LinkChanged, Run, Uevent
from sriovd.backend.steps import Chain, ChainResult, Script, Step, Verb
from sriovd.pci import PciAddress
from tests.conformance.actions import (
    Action,
    AskDriver,
    AwaitLinkChanged,
    Begin,
    Close,
    Do,
    FindHolders,
    Finish,
    Hangs,
    ListFunctions,
    ListVfs,
    Look,
    Scenario,
)
from tests.conformance.bench import Bench, BenchError
from tests.conformance.normal import Names, show_event, show_facts, show_holders, show_result

_log = logging.getLogger(__name__)
ACTION_DEADLINE_S = 60.0  # an emulated machine takes two seconds for what takes longest
POLL_S = 0.02
MARK = PciAddress.parse("0000:00:05.0")  # above the NVMe drive
RESTORED = ("driver", "iommu_group", "net_interfaces", "reset_methods", "total_vfs", "drivers_autoprobe")


class HostFailed(Exception):
    """The host did something that no transcript can tell; the message says what and during which action."""


@dataclass(frozen=True, slots=True)
class Line:
    """One action of a scenario: its place in it, what was asked, what came, which uevents were sent."""

    scenario: str
    number: int
    action: str
    result: Any
    events: tuple[str, ...]


async def record(bench: Bench, scenarios: Sequence[Scenario]) -> list[Line]:
    """The transcript of `scenarios` on a host. Raises HostFailed, BenchError."""
    bench.prepare()
    await bench.backend.start()
    stage = Stage(bench)
    try:
        await stage.tidy()
        home = stage.look_at_pfs()
        lines = []
        for scenario in scenarios:
            began_s = time.monotonic()
            lines += [line async for line in stage.play(scenario)]
            await stage.restore(home, scenario.name)
            _log.info("%s: %.1f s", scenario.name, time.monotonic() - began_s)
        return lines
    finally:
        bench.close()
        stage.close()
        await bench.backend.stop()


class Stage:
    """A started host, and the events it sends."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._backend: Backend = bench.backend
        self._events: asyncio.Queue[KernelEvent] = asyncio.Queue()
        self._listener = asyncio.get_running_loop().create_task(self._listen())
        self._changed_links: set[PciAddress] = set()  # since the last action began
        self._names = Names()
        self._begun: dict[str, Run] = {}
        self._adrift = False
        self._root = ""

    def close(self) -> None:
        """Stop listening."""
        self._listener.cancel()

    async def play(self, scenario: Scenario) -> AsyncIterator[Line]:
        """Its lines."""
        self._names = Names()
        for number, action in enumerate(scenario.actions, 1):
            try:
                result = await asyncio.wait_for(self._perform(action), ACTION_DEADLINE_S)
                events = await asyncio.wait_for(self._collect(action), ACTION_DEADLINE_S)
            except (HostFailed, BenchError, TimeoutError, ValueError) as error:
                what = str(error) or f"not over in {ACTION_DEADLINE_S:.0f} s"
                raise HostFailed(f"{scenario.name} {number}: {describe(action)}: {what}") from error
            yield Line(scenario.name, number, describe(action), result, tuple(events))

    async def settle(self) -> list[str]:
        """Everything that the host has sent by now. Raises HostFailed when it has lost events."""
        self._bench.mark(MARK)
        shown: list[str] = []
        while True:
            event = await self._events.get()
            if isinstance(event, EventsLost):
                raise HostFailed(f"events were lost: {event.reason}")
            if isinstance(event, LinkChanged):
                self._changed_links.add(event.address)
                continue
            if isinstance(event, ErrorRecord):
                raise HostFailed(f"{event.address} has met an error that nobody has asked for")
            if not isinstance(event, Uevent):
                continue  # what drivers say, which nobody has asked for
            if event.address == MARK:
                return shown
            if (text := show_event(event)) is not None:
                shown.append(text)

    async def _collect(self, action: Action) -> list[str]:
        return [] if self._is_adrift(action) else await self.settle()

    def _is_adrift(self, action: Action) -> bool:
        """Whether a script is on its way beside the scenario, to its hang or from there to its end: what it
        sends is then told when it is there."""
        if isinstance(action, Begin | Close):
            self._adrift = bool(self._begun)
        elif isinstance(action, Hangs) or not self._begun:
            self._adrift = False
        return self._adrift

    def look_at_pfs(self) -> dict[PciAddress, dict[str, Any]]:
        """What restore() brings back."""
        seen = {}
        for address in self._backend.list_functions():
            facts = show_facts(self._backend.read_function(address), "", Names())
            if facts is None or "total_vfs" not in facts:
                raise HostFailed(f"{address} is there, and no PF")
            seen[address] = {name: facts[name] for name in RESTORED}
        return seen

    async def tidy(self) -> None:
        """Take away the VFs that somebody has left on the host."""
        for pf in self._backend.list_functions():
            await self._do(
                (Chain(pf, (Step(Verb.SET_NUM_VFS, pf, "0"), Step(Verb.SET_AUTOPROBE, pf, "1"))),)
            )
        await self.settle()

    async def restore(self, home: dict[PciAddress, dict[str, Any]], name: str) -> None:
        """Give every PF its driver, no VFs, and the attributes of a boot. Raises HostFailed when it is not
        as before."""
        await self._do((Chain(None, (Step(Verb.RESCAN_BUS),)),))
        for pf, facts in home.items():
            await self._do(tuple(self._homecoming(pf, facts["driver"])))
        await self.settle()
        found = self.look_at_pfs()
        if found != home:
            differing = [
                f"{pf}: {found.get(pf)} instead of {facts}"
                for pf, facts in home.items()
                if found.get(pf) != facts
            ]
            raise HostFailed(f"after {name} the host is not as before it: {'; '.join(differing)}")

    def _homecoming(self, pf: PciAddress, driver: str) -> Iterator[Chain]:
        now = self._backend.read_function(pf)
        if now is not None and now.driver not in ("", driver):
            yield Chain(pf, (Step(Verb.UNBIND, pf, now.driver),))
        yield Chain(pf, (Step(Verb.SET_DRIVER_OVERRIDE, pf, ""), Step(Verb.PROBE, pf)))
        yield Chain(pf, (Step(Verb.SET_NUM_VFS, pf, "0"),))
        yield Chain(pf, (Step(Verb.SET_AUTOPROBE, pf, "1"),))
        yield Chain(pf, (Step(Verb.SET_RESET_METHOD, pf, "default"),))

    async def _listen(self) -> None:
        async for event in self._backend.events():
            self._events.put_nowait(event)

    async def _perform(self, action: Action) -> Any:
        if not isinstance(action, AwaitLinkChanged):
            self._changed_links.clear()
        match action:
            case Do(chains, stop_on_failure):
                return await self._do(chains, stop_on_failure)
            case Begin(name, chains):
                self._begun[name] = self._run(chains, False)
            case Hangs(name, where):
                return await self._await_hang(self._begun[name], where)
            case Finish(name):
                return [show_result(result) for result in await self._begun.pop(name).finished]
            case Look(address):
                return show_facts(self._backend.read_function(address), self._find_root(), self._names)
            case ListFunctions():
                return [str(address) for address in self._backend.list_functions()]
            case ListVfs(pf):
                found = self._backend.list_virtual_functions(pf)
                return {str(index): str(vf) for index, vf in found.items()}
            case AwaitLinkChanged(address):
                return await self._await_link_changed(address)
            case AskDriver(driver):
                return self._backend.driver_state(driver)
            case FindHolders(addresses):
                holders = await self._backend.find_holders(addresses)
                return {str(address): show_holders(found) for address, found in sorted(holders.items())}
            case _:
                self._bench.perform(action)
        return None

    async def _do(self, chains: tuple[Chain, ...], stop_on_failure: bool = False) -> Any:
        finished = await self._run(chains, stop_on_failure).finished
        return [show_result(result) for result in finished]

    def _run(self, chains: tuple[Chain, ...], stop_on_failure: bool) -> Run:
        """On the adapter of the first chain, as sriovd does."""
        adapter = str(chains[0].subject)[:-2]
        return self._backend.run(adapter, Script("conformance", chains, stop_on_failure), _ignore)

    @staticmethod
    async def _await_hang(run: Run, where: str) -> str:
        """Where it sleeps, once that is `where`. Raises HostFailed when it comes back."""
        while (evidence := run.abandon()).wchan != where:
            if run.finished.done():
                raise HostFailed(f"{evidence.step} has come back instead of waiting in {where}")
            await asyncio.sleep(POLL_S)
        return evidence.wchan

    async def _await_link_changed(self, address: PciAddress) -> str:
        """They come from another socket than uevents, so that a mark says nothing of them."""
        while address not in self._changed_links:
            await self.settle()
            await asyncio.sleep(POLL_S)
        return "it came"

    def _find_root(self) -> str:
        """The longest common beginning of the functions' paths above `devices/`."""
        if not self._root:
            facts = self._backend.read_function(self._backend.list_functions()[0])
            assert facts is not None
            self._root = facts.path[: facts.path.index("/devices/")]
        return self._root


def describe(action: Action) -> str:
    """An action in words, for people who compare transcripts."""
    match action:
        case Do(chains) | Begin(_, chains):
            texts = [str(chain.subject) for chain in chains]
            return f"{type(action).__name__} {len(chains)} x {' '.join(dict.fromkeys(texts))}"
        case FindHolders(addresses):
            return f"FindHolders {' '.join(map(str, addresses))}"
        case _:
            names = getattr(action, "__slots__", ())
            return " ".join([type(action).__name__, *(str(getattr(action, name)) for name in names)])


def _ignore(_result: ChainResult) -> None:
    return
