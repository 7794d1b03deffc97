"""Wires a host, the rules and a bus into one daemon, and lives its life: readiness, watchdog, shutdown.

Rule: the only module that knows all layers. It decides nothing about PFs and VFs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from systemd import daemon as systemd_daemon

from sriovd import __version__, keepsakes
from sriovd.backend.base import Backend
from sriovd.bus.calls import BusError
from sriovd.bus.connection import Connection
from sriovd.bus.contract import Contract, load_contract
from sriovd.bus.descriptors import Descriptors
from sriovd.bus.dispatch import Dispatcher, Handler
from sriovd.bus.error_data_verbs import ErrorDataVerbs
from sriovd.bus.lease_verbs import LeaseVerbs
from sriovd.bus.objects import MANAGER, ROOT, SIMULATOR, SIMULATOR_INTERFACE, Objects
from sriovd.bus.owner_stream import OwnerStream
from sriovd.bus.policy_verbs import PolicyVerbs
from sriovd.bus.polkit import Authority
from sriovd.bus.recovery_objects import RecoveryObjects
from sriovd.bus.recovery_verbs import RecoveryVerbs
from sriovd.bus.sight import Sights
from sriovd.bus.trace_verbs import TraceVerbs
from sriovd.bus.tree import Tree
from sriovd.bus.verbs import SimulatorVerbs, Verbs
from sriovd.bus.visibility import Shares
from sriovd.core.engine import Engine, Places
from sriovd.core.inventory import Change, FunctionChange
from sriovd.core.jobs import Job, JobState
from sriovd.core.lease.record import Lease
from sriovd.core.messages import Message, announce

if TYPE_CHECKING:  # loaded when an owner gives a buffer
    from sriovd.core.trace.desk import TraceDesk

_log = logging.getLogger(__name__)

BUS_NAME = "org.sriovd1"
_CONTRACT_FILE = Path(__file__).parent / "bus" / "org.sriovd1.xml"


@dataclass(frozen=True, slots=True)
class Settings:
    """`bus`: "system", "session" or a D-Bus address. `private`: nobody but us and our own clients is on
    it. `places`: where the state, the policies and the CDI documents are."""

    bus: str
    private: bool
    places: Places = field(default_factory=Places)


class Daemon:
    """One daemon on one host and one bus."""

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self._backend = backend
        self._settings = settings
        self._engine = Engine(backend, settings.places)
        self._descriptors = Descriptors(
            self._engine.leases.owner_gone, keepsakes.keep_lease, keepsakes.drop_lease
        )
        self._traces: TraceDesk | None = None
        self._stream = OwnerStream(self._engine.leases, self._descriptors)
        self._stop = asyncio.Event()

    def _trace_desk(self) -> TraceDesk:
        """Who takes owners' buffers, from the first one on."""
        if self._traces is None:
            from sriovd.core.trace.desk import Shelf, TraceDesk

            shelf = Shelf(
                keepsakes.keep_trace, keepsakes.drop_trace, keepsakes.keep_ledger, keepsakes.drop_ledger
            )
            self._traces = TraceDesk(self._engine.recorder, self._engine.leases.vf_address, shelf)
        return self._traces

    def stop(self) -> None:
        """Ask run() to end."""
        self._stop.set()

    async def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Serve until stop(), or until the bus or a part of the daemon fails. Raises RuntimeError then.

        `on_ready` is called when every object is there and the bus name is ours.
        """
        began = time.monotonic()
        connection = await Connection.open(self._settings.bus)
        dispatcher: Dispatcher | None = None
        try:
            await self._backend.start()
            dispatcher = self._serve(connection)
            await self._engine.look_around()
            await self._engine.take_up_recovery()
            self._take_up_leases()
            await connection.request_name(BUS_NAME)
            self._tell_started(began)
            on_ready()
            await self._engine.start_policy()
            await self._live(connection)
        finally:
            systemd_daemon.notify("STOPPING=1")
            await self._engine.recovery.close()
            await self._engine.leases.close()  # before the host is let go: that would fail them
            if dispatcher is not None:
                await dispatcher.close()
            await connection.close()
            await self._backend.stop()
            await self._engine.close()

    def _serve(self, connection: Connection) -> Dispatcher:
        simulator = self._backend.simulator
        contract = _contract_for(simulated=simulator is not None)
        tree = Tree(contract, connection.send_signal)
        engine = self._engine
        recovery = RecoveryObjects(tree, engine.inventory, engine.recovery, self._stream.tell)
        shares = Shares()
        objects = Objects(
            tree, engine.inventory, engine.jobs, shares, engine.standings.of, recovery.interfaces_of
        )
        authority = Authority(connection, private=self._settings.private)
        handlers = self._make_handlers(connection, objects, authority)
        manager = {
            "Version": __version__,
            "Host": self._backend.describe(),
            "Simulated": simulator is not None,
            "PolicyProblems": list(engine.rulebook.problems),
        }
        tree.add(ROOT, {MANAGER: manager})
        if simulator is not None:
            tree.add(SIMULATOR, {SIMULATOR_INTERFACE: {}})
            handlers |= SimulatorVerbs(simulator, authority).handlers()
        self._show_changes(tree, objects)
        self._keep_journal()
        return Dispatcher(connection, contract, tree, handlers, Sights(connection, authority, tree, shares))

    def _make_handlers(
        self, connection: Connection, objects: Objects, authority: Authority
    ) -> dict[tuple[str, str], Handler]:
        engine = self._engine
        return {
            **Verbs(engine.inventory, engine.lifecycle, engine.leases, objects, authority).handlers(),
            **PolicyVerbs(
                engine.lifecycle, engine.campaign, engine.policy, engine.rulebook, engine.leases, objects,
                authority,
            ).handlers(),
            **LeaseVerbs(
                engine.inventory, engine.leases, engine.jobs, objects, authority,
                self._descriptors,
            ).handlers(),
            **RecoveryVerbs(
                engine.inventory, engine.leases, engine.recovery, objects, authority, connection
            ).handlers(),
            **TraceVerbs(
                engine.inventory, engine.leases, self._trace_desk, engine.recorder, objects, authority
            ).handlers(),
            **ErrorDataVerbs(
                engine.leases, engine.recovery.gate, objects, authority,
                lambda: engine.inspector, lambda: engine.error_data,
            ).handlers(),
        }  # fmt: skip

    def _show_changes(self, tree: Tree, objects: Objects) -> None:
        """What clients see of policies and leases."""
        engine = self._engine
        engine.standings.on_change = objects.show_standing
        engine.policy.on_loaded = lambda: tree.update(
            ROOT, MANAGER, {"PolicyProblems": list(engine.rulebook.problems)}
        )

        def show(lease: Lease) -> None:
            objects.show_lease(lease, engine.leases.vf_address(lease))

        def end(lease: Lease) -> None:
            self._stream.close(lease)
            if self._traces is not None:
                self._traces.end(lease)
            objects.drop_lease(lease)
            engine.policy.note_pf(lease.pf)  # what it was in the way of may be done now

        engine.leases.listen(show, end)

    def _take_up_leases(self) -> None:
        """A kept descriptor of a lease that never came to be is closed: its number will be another's."""
        kept = keepsakes.take_descriptors()
        self._engine.take_up_leases(frozenset(kept.leases))
        if kept.traces or kept.ledger is not None:
            self._trace_desk().restore(kept.traces, kept.ledger, self._engine.leases.get)
        for number, own in kept.leases.items():
            lease = self._engine.leases.get(number)
            if lease is not None and lease.held_by_descriptor:
                self._descriptors.take_up(number, own, lease.uid)
            else:
                own.close()
                keepsakes.drop_lease(number)

    def _keep_journal(self) -> None:
        self._engine.executor.on_stuck = self._note_stuck
        self._engine.executor.on_recovered = self._note_recovered
        self._engine.inventory.listen(_report_change)
        objects_on_ended = self._engine.jobs.on_ended

        def end(job: Job) -> None:
            objects_on_ended(job)
            _report_job(job)

        self._engine.jobs.on_ended = end

    async def _live(self, connection: Connection) -> None:
        parts = {
            "the event reader": asyncio.create_task(self._engine.picture.follow()),
            "the watchdog": asyncio.create_task(_feed_watchdog(connection)),
            "the wait for the end": asyncio.create_task(self._stop.wait()),
        }
        closed = asyncio.ensure_future(connection.closed)
        ends: set[asyncio.Future[Any]] = {closed, *parts.values()}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not self._stop.is_set():
            raise RuntimeError(_describe_end(parts, closed))
        for task in parts.values():
            task.cancel()

    def _note_stuck(self, adapter: str, evidence: str) -> None:
        self._engine.inventory.set_stuck(adapter, evidence)
        announce(_log, Message.ADAPTER_STUCK, f"Adapter {adapter} is stuck: {evidence}.", adapter=adapter)

    def _note_recovered(self, adapter: str) -> None:
        self._engine.inventory.set_stuck(adapter, "")
        announce(_log, Message.ADAPTER_UNSTUCK, f"Adapter {adapter} takes requests again.", adapter=adapter)
        self._engine.picture.look_again(adapter)
        self._engine.policy.note_adapter(adapter)
        self._engine.recovery.check(adapter)

    def _tell_started(self, began: float) -> None:
        inventory, elapsed_ms = self._engine.inventory, (time.monotonic() - began) * 1000
        count = len(inventory.functions)
        announce(
            _log,
            Message.STARTED,
            f"sriovd {__version__} looks after {count} functions of {len(inventory.adapters)} adapters"
            f" on {self._backend.describe()}, ready after {elapsed_ms:.0f} ms.",
        )
        systemd_daemon.notify(f"READY=1\nSTATUS={count} functions, {len(inventory.adapters)} adapters")


def _contract_for(simulated: bool) -> Contract:
    """The contract as this host offers it: a real one cannot be asked to misbehave."""
    contract = load_contract(_CONTRACT_FILE)
    if simulated:
        return contract
    interfaces = {name: each for name, each in contract.interfaces.items() if name != SIMULATOR_INTERFACE}
    return dataclasses.replace(contract, interfaces=interfaces)


def _report_change(change: Change) -> None:
    """PFs only: hundreds of VFs come with one job, whose message counts them."""
    match change:
        case FunctionChange(before=None, after=function) if function is not None and function.physical:
            text = f"{function} appeared, generation {function.generation}."
            announce(_log, Message.FUNCTION_ADDED, text, address=str(function.address))
        case FunctionChange(before=function, after=None) if function is not None and function.physical:
            announce(_log, Message.FUNCTION_REMOVED, f"{function} is gone.", address=str(function.address))


def _report_job(job: Job) -> None:
    message = Message.JOB_DONE if job.state is JobState.DONE else Message.JOB_FAILED
    addresses = " ".join(str(each.address) for each in job.objects[:1])
    announce(
        _log,
        message,
        f"{job.operation} for {job.requester}: {job.outcome}",
        job=job.number,
        operation=job.operation,
        address=addresses,
        requester=job.requester,
        state=str(job.state),
    )


def _describe_end(parts: Mapping[str, asyncio.Task[Any]], closed: asyncio.Future[str]) -> str:
    if closed.done():
        return f"the connection to the bus is lost: {closed.result()}"
    name, task = next((name, task) for name, task in parts.items() if task.done())
    error = task.exception()
    _log.error("%s ended", name, exc_info=error)
    return f"{name} ended: {error}"


async def _feed_watchdog(connection: Connection) -> None:
    """Tell systemd that we live, for as long as a round trip through the bus succeeds: that takes the event
    loop, the dispatcher's connection and the bus itself. A daemon that only spins starves its watchdog."""
    interval_usec = int(os.environ.get("WATCHDOG_USEC", "0"))
    if not interval_usec:
        await asyncio.get_running_loop().create_future()
    while True:
        try:
            await connection.call(
                "org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "GetId"
            )
            systemd_daemon.notify("WATCHDOG=1")
        except BusError as error:
            _log.warning("The bus does not answer, the watchdog goes unfed: %s", error)
        await asyncio.sleep(interval_usec / 3e6)


async def serve(backend: Backend, settings: Settings, on_ready: Callable[[], None] = lambda: None) -> None:
    """Run a daemon until SIGTERM or SIGINT."""
    daemon = Daemon(backend, settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, daemon.stop)
    await daemon.run(on_ready)
