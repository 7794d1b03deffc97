"""The table of inspections: everything that the owner of a VF may have looked up about it.

Rule: default deny. What is not a row here cannot be asked for, and each row is written for one VF: what it
reads of more than that (the attributes of all VFs come in one answer) it cuts down before it gives it away.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from sriovd.backend.base import Severity
from sriovd.backend.steps import Step, Verb
from sriovd.core.discretion import is_discreet
from sriovd.core.errors import BackendFailed, NotSupported
from sriovd.core.inspect.resources import read_bars, read_msix
from sriovd.core.inspect.site import Site, Subject
from sriovd.core.inspect.vocabulary import Inspection, Shown, Value
from sriovd.core.recovery.automaton import VfState
from sriovd.core.recovery.decode import describe_config
from sriovd.core.recovery.probe import read_config_step
from sriovd.pci_registers import LEGACY_CONFIG_BYTES
from sriovd.trace.record import RecordType


@dataclass(frozen=True, slots=True)
class Row:
    """An inspection. `shows`: what, in words. `reaches_device`: it is read from the device or through its
    drivers, or takes a lock that one of these may hold. `make`: who looks it up; raises SriovdError."""

    shows: str
    reaches_device: bool
    make: Callable[[Subject, Site], Awaitable[Shown]]


async def show_resources(subject: Subject, site: Site) -> Shown:
    """Those of pools (queues, credits) are the kernel's and sriovd's to give; none are shown yet."""
    facts = site.vf(subject).facts
    step = Step(Verb.READ_RESOURCES, subject.address)
    config = read_config_step(subject.address, LEGACY_CONFIG_BYTES)
    result = await site.read(subject, "resources", step, config)
    try:
        bars = read_bars(result.value(Verb.READ_RESOURCES) or "")
    except ValueError as error:
        raise BackendFailed(
            "The kernel's list of its BARs makes no sense."
        ) from error  # which has addresses
    shown: dict[str, Value] = {
        **bars,
        **read_msix(bytes.fromhex(result.value(Verb.READ_CONFIG) or "")),
        "numa-node": facts.numa_node,
    }
    if facts.iommu_group is not None:
        shown["iommu-group"] = facts.iommu_group
        shown["iommu-group-alone"] = len(site.backend.list_group(facts.iommu_group)) == 1
    return shown


async def show_attributes(subject: Subject, site: Site) -> Shown:
    """As the PF's driver tells them now."""
    pf, index = subject.place
    if not site.inventory.get(pf).facts.net_interfaces:
        raise NotSupported("The PF has no network interface, so its VFs have no attributes.")
    async with site.turn(subject):
        report = await site.configurer.read(site.inventory.get(pf))
    if index not in report.vfs:
        raise NotSupported("The PF's driver does not tell of attributes.")
    return dict(report.vfs[index].items())


async def show_registers(subject: Subject, site: Site) -> Shown:
    """All of its configuration space."""
    result = await site.read(subject, "registers", read_config_step(subject.address))
    config = bytes.fromhex(result.value(Verb.READ_CONFIG) or "")
    if not config:
        raise BackendFailed("Its configuration space could not be read.")
    return {"config": config, "decoded": describe_config(config)}


async def show_driver(subject: Subject, site: Site) -> Shown:
    """What it is bound to, and how it may be reset."""
    vf = site.vf(subject)
    result = await site.read(subject, "the driver", Step(Verb.READ_DRIVER_OVERRIDE, subject.address))
    override = result.value(Verb.READ_DRIVER_OVERRIDE) or ""
    told = is_discreet(vf.quarantine, subject.address)
    return {
        "driver": vf.facts.driver,
        "bound": bool(vf.facts.driver),
        "driver-override": "" if override == "(null)" else override,
        "reset-methods": vf.facts.reset_methods,
        "quarantined": bool(vf.quarantine),
        "quarantine-reason": vf.quarantine if told else "an operator can tell",
    }


async def show_counters(subject: Subject, site: Site) -> Shown:
    """What kernel and drivers have counted of it; nobody asks the device."""
    vf = site.vf(subject).address
    errors = site.backend.read_error_counters(vf)
    shown: dict[str, Value] = {f"aer-{severity}": dict(errors.get(severity, {})) for severity in Severity}
    return shown | {"driver": dict(site.read_counters(vf))}


async def show_recovery(subject: Subject, site: Site) -> Shown:
    """How its PE stands and has stood: its own states, and whose the error was, not what that one did."""
    adapter, vf = site.desk.pes_at(subject.place)
    history = (
        record for record in site.tail(subject.place, subject.lease) if record.type is RecordType.RECOVERY
    )
    return {
        "state": vf.state.word,
        "cause": "" if vf.state is VfState.ONLINE else ("own" if vf.own else "propagated"),
        "since-usec": max(vf.since_usec, subject.since_usec),
        "freezes": vf.budget.counted(time.time_ns() // 1000),
        "adapter-state": str(adapter.state),
        "history": [f"{each.time_nsec // 1000} {each.operation} {each.arguments}" for each in history],
        "bundles": [
            f"{head.number} {head.taken_usec} {head.kind} {why}" for head, why in site.heads_of(subject)
        ],
    }


INSPECTIONS: Mapping[Inspection, Row] = {
    Inspection.RESOURCES: Row("BARs, MSI-X vectors, NUMA node and IOMMU group", True, show_resources),
    Inspection.ATTRIBUTES: Row("its attributes as the kernel has them now", True, show_attributes),
    Inspection.REGISTERS: Row("its configuration space, raw and decoded", True, show_registers),
    Inspection.DRIVER: Row("its driver, driver override, reset methods, quarantine", True, show_driver),
    Inspection.COUNTERS: Row("errors, and what drivers count of it", False, show_counters),
    Inspection.RECOVERY: Row("how its PE stands and has stood, and its bundles", False, show_recovery),
}
