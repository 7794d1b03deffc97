"""Every method of the contract, but those that only look, asks polkit for exactly one action, before it does
or tells anything. A method that is added later has no row here, and this turns red until it has one."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.bus.actions import (
    ACTION_OF_OPERATION,
    BIND_DRIVER,
    CONFIGURE,
    HOTPLUG,
    INSPECT,
    LEASE,
    MANAGE_POLICY,
    RECOVER,
    RESET,
    SET_NUM_VFS,
    SIMULATE,
)
from sriovd.bus.contract import load_contract
from sriovd.bus.descriptors import Descriptors
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.error_data_verbs import ErrorDataVerbs
from sriovd.bus.lease_verbs import LeaseVerbs
from sriovd.bus.objects import (
    ADAPTER,
    FUNCTION,
    JOB,
    LEASE_INTERFACE,
    MANAGER,
    PHYSICAL_FUNCTION,
    RECOVERY,
    SIMULATOR_INTERFACE,
    TRACE,
    VIRTUAL_FUNCTION,
    Objects,
    function_path,
    job_path,
    lease_path,
)
from sriovd.bus.policy_verbs import PolicyVerbs
from sriovd.bus.polkit import Authority
from sriovd.bus.recovery_objects import RecoveryObjects
from sriovd.bus.recovery_verbs import RecoveryVerbs
from sriovd.bus.signature import Variant
from sriovd.bus.trace_verbs import TraceVerbs
from sriovd.bus.tree import Tree
from sriovd.bus.verbs import SimulatorVerbs, Verbs
from sriovd.bus.visibility import Shares
from sriovd.core.engine import Engine, Places
from sriovd.core.errors import NotAuthorized, NotOwner
from sriovd.core.lease.choose import Wish
from sriovd.core.lifecycle import CountOptions
from sriovd.core.trace.desk import Shelf, TraceDesk
from sriovd.daemon import _CONTRACT_FILE, _contract_for
from sriovd.pci import PciAddress

from .fakedesk import Everybody
from .support import in_loop

PF, VF, OWNER, TENANT, STRANGER = "0000:01:00.0", "0000:01:10.0", "vm", 1000, 1001
OPTIONS: dict[str, Variant] = {}
OWNED = {"owner": Variant("s", OWNER)}
NO_BUFFER = 0  # a descriptor that is none

SIGHT = ""  # no action: what the caller sees, he may look at (tests/simulated/test_isolation.py)

# Interface and method -> the action, and arguments with which it would work.
TABLE: dict[tuple[str, str], tuple[str, tuple[Any, ...]]] = {
    (MANAGER, "GetFunction"): (SIGHT, (PF,)),
    (MANAGER, "GetAdapter"): (SIGHT, ("0000:01:00",)),
    (MANAGER, "ListFunctions"): (SIGHT, ()),
    (MANAGER, "SetNumVFs"): (SET_NUM_VFS, (PF, 0, OPTIONS)),
    (MANAGER, "Bind"): (BIND_DRIVER, (VF, "pci-stub", OPTIONS)),
    (MANAGER, "BindVFs"): (BIND_DRIVER, (PF, "pci-stub", OPTIONS)),
    (MANAGER, "Unbind"): (BIND_DRIVER, (VF, OPTIONS)),
    (MANAGER, "Reset"): (RESET, (VF, OPTIONS)),
    (MANAGER, "Remove"): (HOTPLUG, (PF, OPTIONS)),
    (MANAGER, "Rescan"): (HOTPLUG, (OPTIONS,)),
    (MANAGER, "Plan"): (INSPECT, (OPTIONS,)),
    (MANAGER, "Apply"): (MANAGE_POLICY, ("", OPTIONS)),
    (MANAGER, "Reload"): (MANAGE_POLICY, (OPTIONS,)),
    (MANAGER, "GetVFAttributes"): (SIGHT, (VF,)),
    (MANAGER, "SetVFAttributes"): (CONFIGURE, (VF, {"trust": Variant("b", True)}, OPTIONS)),
    (MANAGER, "Lease"): (LEASE, (OWNER, OPTIONS)),
    (MANAGER, "Acquire"): (LEASE, (OWNER, OPTIONS)),
    (MANAGER, "Release"): (LEASE, (1, OWNER, OPTIONS)),
    (MANAGER, "OpenGroup"): (LEASE, (1, OWNER)),
    (MANAGER, "Unfreeze"): (LEASE, (VF, OWNER, OPTIONS)),
    (MANAGER, "WaitPermitted"): (LEASE, (VF, OWNER, 0)),
    (MANAGER, "Recover"): (RECOVER, (PF, OPTIONS)),
    (MANAGER, "Lift"): (RECOVER, (PF, OPTIONS)),
    (MANAGER, "ListBundles"): (INSPECT, ("0000:01:00",)),
    (MANAGER, "ReadBundle"): (RECOVER, (1, "text")),
    (MANAGER, "StartTrace"): (LEASE, (VF, NO_BUFFER, OWNED)),
    (MANAGER, "StopTrace"): (LEASE, (VF, OWNED)),
    (MANAGER, "ReadTrace"): (LEASE, (VF, OWNED)),
    (MANAGER, "Inspect"): (LEASE, (VF, "driver", OWNED)),
    (MANAGER, "CollectErrorData"): (LEASE, (VF, OWNED)),
    (MANAGER, "ReadErrorData"): (LEASE, (VF, OWNED)),
    (FUNCTION, "Bind"): (BIND_DRIVER, ("pci-stub", OPTIONS)),
    (FUNCTION, "Unbind"): (BIND_DRIVER, (OPTIONS,)),
    (FUNCTION, "Reset"): (RESET, (OPTIONS,)),
    (PHYSICAL_FUNCTION, "SetNumVFs"): (SET_NUM_VFS, (0, OPTIONS)),
    (PHYSICAL_FUNCTION, "BindVFs"): (BIND_DRIVER, ("pci-stub", OPTIONS)),
    (PHYSICAL_FUNCTION, "ListVFs"): (SIGHT, ()),
    (PHYSICAL_FUNCTION, "Remove"): (HOTPLUG, (OPTIONS,)),
    (VIRTUAL_FUNCTION, "GetAttributes"): (SIGHT, ()),
    (VIRTUAL_FUNCTION, "SetAttributes"): (CONFIGURE, ({"trust": Variant("b", True)}, OPTIONS)),
    (LEASE_INTERFACE, "Release"): (LEASE, (OWNER, OPTIONS)),
    (LEASE_INTERFACE, "OpenGroup"): (LEASE, (OWNER,)),
    (RECOVERY, "Unfreeze"): (LEASE, (OWNER, OPTIONS)),
    (RECOVERY, "WaitPermitted"): (LEASE, (OWNER, 0)),
    (RECOVERY, "Recover"): (RECOVER, (OPTIONS,)),
    (RECOVERY, "Lift"): (RECOVER, (OPTIONS,)),
    (RECOVERY, "ListBundles"): (INSPECT, ()),
    (RECOVERY, "ReadBundle"): (RECOVER, (1, "text")),
    (TRACE, "Start"): (LEASE, (NO_BUFFER, OWNED)),
    (TRACE, "Stop"): (LEASE, (OWNED,)),
    (TRACE, "ReadTail"): (LEASE, (OWNED,)),
    (TRACE, "Inspect"): (RECOVER, ("driver", OPTIONS)),
    (TRACE, "CollectErrorData"): (RECOVER, (OPTIONS,)),
    (TRACE, "ReadErrorData"): (RECOVER, (OPTIONS,)),
    (JOB, "Wait"): (SIGHT, (0,)),
    (JOB, "Cancel"): (SET_NUM_VFS, ()),
    (SIMULATOR_INTERFACE, "ListProfiles"): (SIMULATE, ()),
    (SIMULATOR_INTERFACE, "Plug"): (SIMULATE, ("igb", "0000:41:00.0")),
    (SIMULATOR_INTERFACE, "Unplug"): (SIMULATE, (PF,)),
    (SIMULATOR_INTERFACE, "InjectFault"): (SIMULATE, ("bind", "", OPTIONS)),
    (SIMULATOR_INTERFACE, "ClearFaults"): (SIMULATE, ()),
    (SIMULATOR_INTERFACE, "OpenDevice"): (SIMULATE, (VF, 1, "qemu")),
    (SIMULATOR_INTERFACE, "CloseDevice"): (SIMULATE, (VF,)),
    (SIMULATOR_INTERFACE, "SetVFAttribute"): (SIMULATE, (PF, "0 trust on")),
    (SIMULATOR_INTERFACE, "SendMailbox"): (SIMULATE, (VF, "reset", "")),
    (SIMULATOR_INTERFACE, "InjectError"): (SIMULATE, (PF, "nonfatal", 0, [])),
    (SIMULATOR_INTERFACE, "HideErrors"): (SIMULATE, (["records"],)),
    (SIMULATOR_INTERFACE, "LoseEvents"): (SIMULATE, (1,)),
}
PATHS = {
    FUNCTION: function_path(PciAddress.parse(VF)),
    VIRTUAL_FUNCTION: function_path(PciAddress.parse(VF)),
    PHYSICAL_FUNCTION: function_path(PciAddress.parse(PF)),
    RECOVERY: function_path(PciAddress.parse(VF)),
    TRACE: function_path(PciAddress.parse(VF)),
    LEASE_INTERFACE: lease_path(1),
    JOB: job_path(1),
}


class RecordingAuthority(Authority):
    """Keeps what it was asked; `allows`: what it says. Trusts nobody."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.allows = False

    def trusts(self, caller: Caller) -> bool:
        return caller.uid == 0

    async def check(self, caller: Caller, action: str, details: Mapping[str, str] | None = None) -> None:
        self.asked.append(action)
        await asyncio.sleep(0)
        if not self.allows:
            raise NotAuthorized(f"polkit does not allow {action} to the caller")


class Service:
    """Every handler, as daemon.py puts them together, on a host with a VF that TENANT leases."""

    def __init__(self, backend: SimulatedBackend) -> None:
        self.engine = engine = Engine(backend, Places())
        self.authority = RecordingAuthority()
        self.tree = Tree(_contract_for(simulated=True), lambda *_: None, schedule=lambda _: None)
        recovery = RecoveryObjects(self.tree, engine.inventory, engine.recovery)
        objects = Objects(
            self.tree, engine.inventory, engine.jobs, Shares(), engine.standings.of,
            recovery.interfaces_of,
        )  # fmt: skip
        self.descriptors = Descriptors(engine.leases.owner_gone)
        engine.leases.listen(
            lambda lease: objects.show_lease(lease, engine.leases.vf_address(lease)), objects.drop_lease
        )
        verbs = Verbs(engine.inventory, engine.lifecycle, engine.leases, objects, self.authority)
        policy = PolicyVerbs(
            engine.lifecycle, engine.campaign, engine.policy, engine.rulebook, engine.leases, objects,
            self.authority,
        )  # fmt: skip
        leases = LeaseVerbs(
            engine.inventory, engine.leases, engine.jobs, objects, self.authority,
            self.descriptors,
        )  # fmt: skip
        self.handlers: dict[tuple[str, str], Handler] = {
            **verbs.handlers(),
            **policy.handlers(),
            **leases.handlers(),
            **RecoveryVerbs(
                engine.inventory, engine.leases, engine.recovery, objects, self.authority, Everybody()
            ).handlers(),
            **TraceVerbs(
                engine.inventory,
                engine.leases,
                lambda: TraceDesk(engine.recorder, engine.leases.vf_address, Shelf()),
                engine.recorder,
                objects,
                self.authority,
            ).handlers(),
            **ErrorDataVerbs(
                engine.leases,
                engine.recovery.gate,
                objects,
                self.authority,
                lambda: engine.inspector,
                lambda: engine.error_data,
            ).handlers(),
            **SimulatorVerbs(backend, self.authority).handlers(),
        }

    async def call(self, place: tuple[str, str], uid: int = STRANGER, *arguments: Any) -> Any:
        path = PATHS.get(place[0], "/org/sriovd1")
        caller = Caller(":1.7", uid, False, is_operator=True)
        return await self.handlers[place](caller, path, *(arguments or TABLE[place][1]))


@asynccontextmanager
async def serving() -> AsyncIterator[Service]:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        backend = SimulatedBackend(str(Path(directory) / "sys"), machine=(("igb", PF),))
        await backend.start()
        service = Service(backend)
        await service.engine.look_around()
        made = service.engine.lifecycle.set_num_vfs(PciAddress.parse(PF), 1, CountOptions(), "test")
        assert await made.wait(10_000_000)
        lease = await service.engine.leases.lease(TENANT, OWNER, Wish(), "vfio-pci")
        await service.engine.leases.wait_begun(lease.number)
        yield service
        await service.engine.close()
        await backend.stop()


def test_every_method_of_the_contract_has_its_row() -> None:
    contract = load_contract(_CONTRACT_FILE)
    methods = {(name, method) for name, each in contract.interfaces.items() for method in each.methods}
    assert methods == set(TABLE)
    assert ADAPTER not in {interface for interface, _ in TABLE}


@pytest.mark.parametrize("place", [place for place in TABLE if TABLE[place][0]], ids=".".join)
def test_it_asks_for_one_action_and_does_nothing_without(place: tuple[str, str]) -> None:
    @in_loop
    async def test() -> None:
        async with serving() as service:
            before = dict(service.engine.inventory.functions), service.engine.leases.all()
            jobs = len(service.engine.jobs._jobs)
            with pytest.raises(NotAuthorized):
                await service.call(place)
            assert service.authority.asked == [TABLE[place][0]]
            assert (dict(service.engine.inventory.functions), service.engine.leases.all()) == before
            assert len(service.engine.jobs._jobs) == jobs
            assert len(service.descriptors) == 0

    test()


@pytest.mark.parametrize(
    "place", [place for place in TABLE if place[1] in ("Release", "OpenGroup")], ids=".".join
)
def test_who_may_lease_may_do_nothing_to_anothers(place: tuple[str, str]) -> None:
    @in_loop
    async def test() -> None:
        async with serving() as service:
            service.authority.allows = True
            with pytest.raises(NotOwner) as anothers:
                await service.call(place, STRANGER)
            with pytest.raises(NotOwner):
                await service.call(place, STRANGER, *_with_owner(place, "other"))
            await service.call(place, TENANT if place[1] == "Release" else 0)
            assert str(anothers.value).startswith("You have no lease 1 as 'vm'.")

    test()


def _with_owner(place: tuple[str, str], name: str) -> tuple[Any, ...]:
    return tuple(name if each == OWNER else each for each in TABLE[place][1])


@in_loop
async def test_the_jobs_of_a_lease_are_not_cancelled_by_others_who_may_lease() -> None:
    assert {ACTION_OF_OPERATION[name] for name in ("PrepareLease", "CleanLease")} == {BIND_DRIVER}


@in_loop
async def test_every_job_can_be_cancelled_by_somebody() -> None:
    """An operation without an action would be a defect where it is cancelled."""
    async with serving() as service:
        service.authority.allows = True
        for place in TABLE:
            if place[0] in (MANAGER, VIRTUAL_FUNCTION) and place[1] not in ("Acquire", "Remove"):
                await asyncio.gather(service.call(place, TENANT), return_exceptions=True)
        operations = {job.operation for job in service.engine.jobs._jobs.values()}
        assert {"SetNumVFs", "Release", "CleanLease", "PrepareLease", "Bind"} <= operations
        assert operations <= set(ACTION_OF_OPERATION)
