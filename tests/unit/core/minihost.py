"""A Backend over the small kernel: enough of a host to run the rules on, and every misfortune on demand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

from sriovd.backend.base import (
    DriverState,
    ErrorPath,
    Evidence,
    FunctionFacts,
    Holder,
    HostReadError,
    KernelEvent,
    Leftover,
    Severity,
    Uevent,
    UeventAction,
)
from sriovd.backend.steps import ChainResult, Script, Verb
from sriovd.core.engine import Engine, Places
from sriovd.core.jobs import Job
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import MiniKernel

DEADLINE_SEC = 10.0  # of a whole test: far more than any needs


def run_async(test: Coroutine[Any, Any, None]) -> None:
    """Run a test that waits; a hang is a failure."""
    asyncio.run(asyncio.wait_for(test, DEADLINE_SEC))


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until `condition` holds; the test's deadline ends it otherwise."""
    while not condition():
        await asyncio.sleep(0)


async def settle() -> None:
    """Let everything run that can run without new input."""
    for _ in range(50):
        await asyncio.sleep(0)


class MiniRun:
    """A script under way: a chain per turn of the event loop, unless a hang holds it."""

    def __init__(self, host: MiniHost, script: Script, on_result: Callable[[ChainResult], None]) -> None:
        self._host = host
        self._script = script
        self._on_result = on_result
        self._stopped = False
        self._began = time.monotonic()
        self.finished: asyncio.Future[Sequence[ChainResult]] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._execute())

    def stop(self) -> None:
        self._stopped = True

    def describe(self) -> Evidence:
        running_usec = int((time.monotonic() - self._began) * 1e6)
        return Evidence(42, self._script.title, "pci_dev_wait", running_usec)

    def abandon(self) -> Evidence:
        return self.describe()

    async def _execute(self) -> None:
        results: list[ChainResult] = []
        for chain in self._script.chains:
            await asyncio.sleep(0)
            if self._stopped:
                break
            for step in chain.steps:
                self._began = time.monotonic()
                gate = self._host.hangs.get((step.verb, step.address))
                if gate is not None:
                    await gate.wait()
                if (step.verb, step.address) in self._host.deaths:
                    self.finished.set_exception(ConnectionError("the helper was killed"))
                    return
            results.append(self._host.kernel.run_chain(chain))
            self._on_result(results[-1])
            if self._script.stop_on_failure and results[-1].failure is not None:
                break
        self.finished.set_result(tuple(results))


LENDS_NOTHING = "a MiniHost has no VFIO groups; leases are tested on the simulated host"


class MiniHost:
    """`hangs`: accesses that wait for the event; `deaths`: accesses that kill the helper before them;
    `unreadable`: functions whose description makes no sense; `scripts`: the titles of what was run;
    `error_counters`, `error_paths`, `log`: what it tells of errors."""

    simulator = None

    def __init__(self, *functions: FunctionFacts) -> None:
        self.kernel = MiniKernel(*functions)
        self.hangs: dict[tuple[Verb, PciAddress | None], asyncio.Event] = {}
        self.deaths: set[tuple[Verb, PciAddress | None]] = set()
        self.holders: dict[PciAddress, tuple[Holder, ...]] = {}
        self.driver_states: dict[str, DriverState] = {}
        self.unreadable: set[PciAddress] = set()
        self.reads: list[PciAddress] = []
        self.deferred: list[bool] = []
        self.listening: list[bool] = []
        self.counters: dict[PciAddress, Mapping[str, int]] = {}
        self.scripts: list[str] = []
        self.listing_fails = False
        self.error_counters: dict[PciAddress, Mapping[Severity, Mapping[str, int]]] = {}
        self.error_paths: dict[PciAddress, ErrorPath] = {}
        self.log: list[str] = []
        self._events: asyncio.Queue[KernelEvent | Exception] = asyncio.Queue()

    def tell(self, event: KernelEvent | Exception | PciAddress) -> None:
        """Let the host report an event; an address stands for a `change` of it, an exception for the end."""
        if isinstance(event, PciAddress):
            event = Uevent(UeventAction.CHANGE, event)
        self._events.put_nowait(event)

    def describe(self) -> str:
        return "a small host"

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def events(self) -> AsyncIterator[KernelEvent]:
        while not isinstance(event := await self._events.get(), Exception):
            yield event
        raise event

    def defer_events(self, deferred: bool) -> None:
        self.deferred.append(deferred)

    def listen_to_drivers(self, wanted: bool) -> None:
        self.listening.append(wanted)

    def list_functions(self) -> Sequence[PciAddress]:
        if self.listing_fails:
            raise HostReadError("/sys/bus/pci/devices: Input/output error")
        return sorted(
            self.kernel.functions, key=lambda each: (not self.kernel.functions[each].physical, each)
        )

    def list_virtual_functions(self, pf: PciAddress) -> Mapping[int, PciAddress]:
        if pf in self.unreadable:
            raise HostReadError(f"/sys/bus/pci/devices/{pf}: Input/output error")
        return self.kernel.vfs_of(pf)

    def read_function(self, address: PciAddress) -> FunctionFacts | None:
        self.reads.append(address)
        if address in self.unreadable:
            raise HostReadError(f"/sys/bus/pci/devices/{address}/vendor: 'x' is not a number")
        return self.kernel.functions.get(address)

    def driver_state(self, driver: str) -> DriverState:
        known = DriverState.LOADED if driver in self.kernel.drivers else DriverState.UNKNOWN
        return self.driver_states.get(driver, known)

    async def find_holders(self, addresses: Sequence[PciAddress]) -> Mapping[PciAddress, Sequence[Holder]]:
        return {address: self.holders[address] for address in addresses if address in self.holders}

    def run(self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]) -> MiniRun:
        self.scripts.append(script.title)
        return MiniRun(self, script, on_result)

    def boot_id(self) -> str:
        return "boot"

    def hand_over(self, address: PciAddress, uid: int) -> None:
        raise AssertionError(LENDS_NOTHING)

    def take_back(self, group: int) -> None:
        raise AssertionError(LENDS_NOTHING)

    async def open_group(self, group: int, timeout_sec: float) -> int:
        raise AssertionError(LENDS_NOTHING)

    def list_group(self, group: int) -> Sequence[str]:
        return ()

    def read_error_counters(self, address: PciAddress) -> Mapping[Severity, Mapping[str, int]]:
        return self.error_counters.get(address, {})

    def read_counters(self, address: PciAddress) -> Mapping[str, int]:
        return self.counters.get(address, {})

    def read_error_path(self, address: PciAddress) -> ErrorPath:
        return self.error_paths.get(address, ErrorPath())

    async def read_kernel_log(self, since_usec: int, words: Sequence[str]) -> Sequence[str]:
        return [line for line in self.log if any(word in line for word in words)]

    async def find_leftovers(self) -> Sequence[Leftover]:
        return ()


class Rules:
    """All of core on one MiniHost, as daemon.py wires it."""

    def __init__(self, *functions: FunctionFacts) -> None:
        self.host = MiniHost(*functions)
        self.kernel = self.host.kernel
        engine = Engine(self.host, Places())
        self.inventory = engine.inventory
        self.picture = engine.picture
        self.executor = engine.executor
        self.executor.on_failed = lambda _: None  # a MiniKernel's VFs show in no register
        self.executor.on_stuck = self.inventory.set_stuck
        self.executor.on_recovered = lambda adapter: self.inventory.set_stuck(adapter, "")
        self.jobs = engine.jobs
        self.lifecycle = engine.lifecycle

    async def look(self) -> None:
        """Take in what the host has."""
        await self.picture.rescan()

    async def finish(self, job: Job) -> Job:
        """Wait for the job's end; then the picture must show what is."""
        assert await job.wait(int(DEADLINE_SEC * 1e6))
        known = {address: each.facts for address, each in self.inventory.functions.items()}
        assert known == self.kernel.functions
        return job
