"""What clients see: core's records as D-Bus objects. The one mapping between the two vocabularies.

Rule: reads core, writes the tree, decides nothing. A change in core becomes a change of that object only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from sriovd.bus.errors import reply_for
from sriovd.bus.paths import encode_path_element
from sriovd.bus.tree import NoSuchObject, Tree
from sriovd.bus.visibility import Shares
from sriovd.core.converge.standing import Standing
from sriovd.core.inspect.vocabulary import Inspection
from sriovd.core.inventory import Adapter, AdapterChange, Change, Function, FunctionChange, Inventory
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.lease.cdi import qualified_name
from sriovd.core.lease.record import Lease
from sriovd.pci import PciAddress

ROOT = "/org/sriovd1"
SIMULATOR = f"{ROOT}/simulator"

MANAGER = "org.sriovd1.Manager"
ADAPTER = "org.sriovd1.Adapter"
FUNCTION = "org.sriovd1.Function"
PHYSICAL_FUNCTION = "org.sriovd1.PhysicalFunction"
VIRTUAL_FUNCTION = "org.sriovd1.VirtualFunction"
JOB = "org.sriovd1.Job"
LEASE_INTERFACE = "org.sriovd1.Lease"
RECOVERY = "org.sriovd1.Recovery"
TRACE = "org.sriovd1.Trace"
SIMULATOR_INTERFACE = "org.sriovd1.Simulator"

_PATHS_KEPT = 1024

Interfaces = dict[str, Mapping[str, Any]]


@lru_cache(maxsize=_PATHS_KEPT)
def function_path(address: PciAddress) -> str:
    """The object of the function at `address`. Remembered: every VF names its PF's."""
    return f"{ROOT}/function/{encode_path_element(str(address))}"


@lru_cache(maxsize=_PATHS_KEPT)
def adapter_path(slot: str) -> str:
    """The object of the card in `slot`."""
    return f"{ROOT}/adapter/{encode_path_element(slot)}"


def job_path(number: int) -> str:
    """The object of the job of that number."""
    return f"{ROOT}/job/{number}"


def lease_path(number: int) -> str:
    """The object of the lease of that number."""
    return f"{ROOT}/lease/{number}"


def function_interfaces(function: Function, num_vfs: int, standing: Standing) -> Interfaces:
    """Every interface of a function with all properties; which interfaces there are says what it can."""
    interfaces: Interfaces = {FUNCTION: _function_properties(function)}
    physical, virtual = function.physical, function.virtual
    if physical is not None:
        interfaces[PHYSICAL_FUNCTION] = {
            "TotalVFs": physical.total_vfs,
            "NumVFs": num_vfs,
            "VFDeviceID": physical.vf_device_id,
            "DriversAutoprobe": physical.drivers_autoprobe,
            **_policy_properties(standing),
        }
    if virtual is not None:
        interfaces[VIRTUAL_FUNCTION] = {
            "PhysicalFunction": function_path(virtual.parent),
            "Index": virtual.index,
        }
        interfaces[TRACE] = {"Inspections": [*Inspection]}
    return interfaces


def _function_properties(function: Function) -> Mapping[str, Any]:
    facts = function.facts
    return {
        "Address": str(facts.address),
        "Kind": "vf" if facts.virtual else "pf",
        "Adapter": adapter_path(function.adapter),
        "Path": facts.path,
        "VendorID": facts.vendor_id,
        "DeviceID": facts.device_id,
        "SubsystemVendorID": facts.subsystem_vendor_id,
        "SubsystemDeviceID": facts.subsystem_device_id,
        "Class": facts.class_code,
        "Revision": facts.revision,
        "NUMANode": facts.numa_node,
        "Generation": function.generation,
        "Driver": facts.driver,
        "IOMMUGroup": -1 if facts.iommu_group is None else facts.iommu_group,
        "NetworkInterfaces": list(facts.net_interfaces),
        "ResetMethods": list(facts.reset_methods),
        "Quarantined": function.quarantine,
    }


def _policy_properties(standing: Standing) -> Mapping[str, Any]:
    return {
        "Policy": standing.source,
        "PolicyState": str(standing.condition),
        "PolicyReason": standing.reason,
    }


def lease_interfaces(lease: Lease, vf: PciAddress | None) -> Interfaces:
    """A lease's interface with all properties; `vf`: where its VF is now."""
    return {
        LEASE_INTERFACE: {
            "Number": lease.number,
            "Owner": lease.name,
            "UID": lease.uid,
            "Function": function_path(vf) if vf else "/",
            "PhysicalFunction": function_path(lease.pf),
            "Index": lease.index,
            "Generation": lease.generation,
            "Driver": lease.driver,
            "HeldByDescriptor": lease.held_by_descriptor,
            "CDIDevice": qualified_name(lease.number),
            "State": str(lease.state),
            "Reason": lease.reason,
        }
    }


def adapter_interfaces(adapter: Adapter) -> Interfaces:
    """A card's interface with all properties."""
    return {
        ADAPTER: {
            "Address": adapter.slot,
            "PhysicalFunctions": [function_path(pf) for pf in adapter.physical_functions],
            "Stuck": bool(adapter.stuck),
            "StuckReason": adapter.stuck,
        }
    }


def job_interfaces(job: Job) -> Interfaces:
    """A job's interface with all properties."""
    return {
        JOB: {
            "Operation": job.operation,
            "Objects": [function_path(each.address) for each in job.objects],
            "Requester": job.requester,
            "State": str(job.state),
            "Stage": job.stage,
            "Progress": job.progress,
            "Outcome": job.outcome,
            "Error": reply_for(job.error).name if job.error else "",
        }
    }


class Objects:
    """Keeps the tree equal to core from now on, and `shares` to who has what: a lease and the VF at its
    place are its user's, however long that VF is away meanwhile."""

    def __init__(
        self,
        tree: Tree,
        inventory: Inventory,
        jobs: JobRegistry,
        shares: Shares,
        standing_of: Callable[[PciAddress], Standing] = lambda _: Standing(),
        recovery_of: Callable[[Adapter | Function], Interfaces] = lambda _: {},
    ) -> None:
        """`recovery_of`: the interfaces that recovery adds to a new object, and keeps up to date."""
        self._tree = tree
        self._inventory = inventory
        self._standing_of = standing_of
        self._recovery_of = recovery_of
        self._shares = shares
        self._leases: dict[str, Lease] = {}
        self._users: dict[tuple[PciAddress, int], int] = {}  # of the leased places
        self._addresses: dict[str, PciAddress] = {}
        self._slots: dict[str, str] = {}
        self._jobs: dict[str, Job] = {}
        inventory.listen(self._take_change)
        jobs.on_added = self._add_job
        jobs.on_changed = self._update_job
        jobs.on_ended = self._end_job
        jobs.on_removed = self._remove_job

    def address_at(self, path: str) -> PciAddress:
        """The address of the function whose object is at `path`. Raises NoSuchObject: it may have gone
        since the call came in."""
        if path not in self._addresses:
            raise NoSuchObject(f"there is no object '{path}'")
        return self._addresses[path]

    def functions_of(self, uid: int) -> list[PciAddress]:
        """The addresses of the functions that are that user's, sorted."""
        return sorted(self._addresses[path] for path in self._shares.of(uid) if path in self._addresses)

    def target_at(self, path: str) -> str | PciAddress:
        """The slot of the adapter, or the address of the function, whose object is at `path`. Raises
        NoSuchObject, as above."""
        return self._slots.get(path) or self.address_at(path)

    def lease_at(self, path: str) -> int:
        """The number of the lease whose object is at `path`. Raises NoSuchObject, as above."""
        if path not in self._leases:
            raise NoSuchObject(f"there is no object '{path}'")
        return self._leases[path].number

    def show_standing(self, pf: PciAddress, standing: Standing) -> None:
        """How a PF stands to its policy has changed."""
        if function_path(pf) in self._addresses:
            self._tree.update(function_path(pf), PHYSICAL_FUNCTION, _policy_properties(standing))

    def show_lease(self, lease: Lease, vf: PciAddress | None) -> None:
        """A lease is new or has changed."""
        path, interfaces = lease_path(lease.number), lease_interfaces(lease, vf)
        if path in self._leases:
            self._update(path, interfaces)
            return
        self._leases[path] = lease
        self._users[lease.pf, lease.index] = lease.uid
        self._shares.give(path, lease.uid)
        if vf is not None:
            self._shares.give(function_path(vf), lease.uid)
        self._tree.add(path, interfaces)

    def drop_lease(self, lease: Lease) -> None:
        """A lease is over."""
        path = lease_path(lease.number)
        if self._leases.pop(path, None) is None:
            return
        del self._users[lease.pf, lease.index]
        self._shares.take(path)
        vf = self._inventory.vfs_of(lease.pf).get(lease.index)
        if vf is not None:
            self._shares.take(function_path(vf))
        self._tree.remove(path)

    def share_job(self, job: Job, uid: int) -> None:
        """That user has asked for the job, and may look at it while it is kept."""
        self._shares.give(job_path(job.number), uid)

    def job_at(self, path: str) -> Job:
        """The job whose object is at `path`. Raises NoSuchObject, as above."""
        if path not in self._jobs:
            raise NoSuchObject(f"there is no object '{path}'")
        return self._jobs[path]

    def _take_change(self, change: Change) -> None:
        match change:
            case FunctionChange(before=None, after=Function() as function):
                self._add_function(function)
            case FunctionChange(before=Function() as function, after=None):
                self._remove_function(function)
            case FunctionChange(after=Function() as function):
                self._update(function_path(function.address), self._interfaces_of(function))
            case AdapterChange(before=None, after=Adapter() as adapter):
                self._add_adapter(adapter)
            case AdapterChange(before=Adapter() as adapter, after=None):
                del self._slots[adapter_path(adapter.slot)]
                self._tree.remove(adapter_path(adapter.slot))
            case AdapterChange(after=Adapter() as adapter):
                self._update(adapter_path(adapter.slot), adapter_interfaces(adapter))

    def _add_adapter(self, adapter: Adapter) -> None:
        path = adapter_path(adapter.slot)
        self._slots[path] = adapter.slot
        self._tree.add(path, {**adapter_interfaces(adapter), **self._recovery_of(adapter)})

    def _add_function(self, function: Function) -> None:
        path = function_path(function.address)
        self._addresses[path] = function.address
        place = function.virtual
        user = self._users.get((place.parent, place.index)) if place else None
        if user is not None:
            self._shares.give(path, user)
        self._tree.add(path, {**self._interfaces_of(function), **self._recovery_of(function)})
        self._recount_vfs(function)

    def _remove_function(self, function: Function) -> None:
        path = function_path(function.address)
        del self._addresses[path]
        self._shares.take(path)
        self._tree.remove(path)
        self._recount_vfs(function)

    def _recount_vfs(self, vf: Function) -> None:
        """The PF's NumVFs counts its VFs' objects, so that it never says another number than one can see."""
        if vf.virtual is None:
            return
        parent = vf.virtual.parent
        if parent in self._inventory.functions:
            count = len(self._inventory.vfs_of(parent))
            self._tree.update(function_path(parent), PHYSICAL_FUNCTION, {"NumVFs": count})

    def _interfaces_of(self, function: Function) -> Interfaces:
        count = len(self._inventory.vfs_of(function.address))
        return function_interfaces(function, count, self._standing_of(function.address))

    def _update(self, path: str, interfaces: Interfaces) -> None:
        for interface, properties in interfaces.items():
            self._tree.update(path, interface, properties)

    def _add_job(self, job: Job) -> None:
        self._jobs[job_path(job.number)] = job
        self._tree.add(job_path(job.number), job_interfaces(job))

    def _update_job(self, job: Job) -> None:
        changing = {"State": str(job.state), "Stage": job.stage, "Progress": job.progress}
        self._tree.update(job_path(job.number), JOB, changing)

    def _end_job(self, job: Job) -> None:
        path = job_path(job.number)
        self._update(path, job_interfaces(job))
        self._tree.emit_signal(
            ROOT, MANAGER, "JobEnded", path, job.operation, str(job.state), job.outcome
        )  # fmt: skip

    def _remove_job(self, job: Job) -> None:
        path = job_path(job.number)
        del self._jobs[path]
        self._shares.take(path)
        self._tree.remove(path)
