"""How the kernel recovers from an uncorrectable error: drivers/pci/pcie/err.c, aer.c aer_root_reset,
pci-driver.c pci_uevent_ers (Linux 6.12).

Rule: every function names the kernel function that it stands for. Everything below the port is asked and
told, phase by phase, each function under its lock; whoever has no driver that knows of errors defeats the
recovery of all. What sysfs says of VFs does not change, whatever becomes of them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from sriovd.backend.base import UeventAction
from sriovd.backend.model import PhysicalFunctionModel
from sriovd.backend.simulated import link_rules
from sriovd.backend.simulated.device import Device, FixedFunction, Lock, Rule, Wait
from sriovd.backend.simulated.driver_rules import enable_function
from sriovd.backend.simulated.drivers import MSEC, ErrorSupport, Vote
from sriovd.backend.simulated.error_news import Source
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.reset_rules import (
    LINK_USEC,
    RESET_USEC,
    is_link_known_up,
    restore_registers,
)

CALLBACKS_USEC = 3 * MSEC  # from the first BEGIN_RECOVERY to SUCCESSFUL_RECOVERY, on an emulated 6.12
_SETTLE_USEC = 50 * MSEC  # of a failed secondary bus reset, besides the wait for the link
# pci_uevent_ers: what is said of a vote; of others nothing
_EVENTS = {
    Vote.CAN_RECOVER: ("BEGIN_RECOVERY", "0"),
    Vote.NEED_RESET: ("BEGIN_RECOVERY", "0"),
    Vote.RECOVERED: ("SUCCESSFUL_RECOVERY", "1"),
    Vote.DISCONNECT: ("FAILED_RECOVERY", "0"),
}


@dataclass(slots=True)
class _Recovery:
    """One pcie_do_recovery: what all have said so far, and the registers that drivers have saved."""

    host: Host
    port: Device
    is_fatal: bool
    status: Vote = Vote.CAN_RECOVER
    saved: dict[Device, bytes] = field(default_factory=dict)


def merge_votes(total: Vote, new: Vote) -> Vote:
    """merge_result."""
    if new is Vote.NO_AER_DRIVER:
        return new
    if total in (Vote.CAN_RECOVER, Vote.RECOVERED):
        return new
    if total is Vote.DISCONNECT and new is Vote.NEED_RESET:
        return new
    return total


def recover(host: Host, port: Device, *, is_fatal: bool) -> Rule[bool]:
    """pcie_do_recovery of everything below `port`. Returns whether it succeeded."""
    recovery = _Recovery(host, port, is_fatal)
    succeeded = yield from _try(recovery)
    if succeeded:
        yield from _walk(recovery, _resume)
    else:
        yield from _walk(recovery, _give_up)
    host.errors.note(f"{port.log_name}: AER: device recovery {'successful' if succeeded else 'failed'}")
    return succeeded


def _try(recovery: _Recovery) -> Rule[bool]:
    """The phases error_detected, reset, mmio_enabled (which no driver here has) and slot_reset."""
    yield from _walk(recovery, _detect)
    if recovery.is_fatal and not (yield from _reset_bus(recovery)):
        recovery.host.errors.note(f"{recovery.port.log_name}: AER: subordinate device reset failed")
        return False
    yield Wait("pcie_do_recovery", CALLBACKS_USEC)
    if recovery.status is Vote.CAN_RECOVER:
        recovery.status = Vote.RECOVERED
    elif recovery.status is Vote.NEED_RESET:
        recovery.status = Vote.RECOVERED
        yield from _walk(recovery, _reset_slot)
    return recovery.status is Vote.RECOVERED


def _walk(recovery: _Recovery, callback: Callable[[_Recovery, Device], Rule[None]]) -> Rule[None]:
    """pci_walk_bus: the functions on the port's own bus, in the order in which they came; VFs on further
    bus numbers are behind no bridge and are passed over."""
    for dev in list_affected(recovery.host, recovery.port):
        yield from dev.lock.take()
        try:
            if dev.registered:
                yield from callback(recovery, dev)
        finally:
            dev.lock.release()


def list_affected(host: Host, port: Device) -> list[Device]:
    """Whom an error below `port` is told."""
    bus = port.buses.secondary if port.buses else -1
    return [dev for dev in host.list_children(port) if dev.address.bus == bus]


def _detect(recovery: _Recovery, dev: Device) -> Rule[None]:
    """report_error_detected, and igb_io_error_detected."""
    support = _support(dev)
    if support is None:
        vote = Vote.NO_AER_DRIVER
        recovery.host.errors.note(f"{dev.log_name}: AER: can't recover (no error_detected callback)")
    else:
        vote = support.frozen if recovery.is_fatal else support.normal
        if support.remark and not recovery.is_fatal:
            recovery.host.errors.note(f"{dev.log_name}: {support.remark}")
    if vote is Vote.NEED_RESET:
        link_rules.stop(recovery.host, dev)
        if not isinstance(dev.model, FixedFunction) and dev.model.reachable:
            recovery.saved[dev] = dev.model.config_bytes()
    _tell(recovery.host, dev, vote)
    recovery.status = merge_votes(recovery.status, vote)
    yield from ()


def _reset_slot(recovery: _Recovery, dev: Device) -> Rule[None]:
    """report_slot_reset: drivers put back what they have saved (igb_io_slot_reset, pci_restore_state); a
    VF's comes with its PF out of a reset, with nothing but what its own driver sets."""
    saved, support = recovery.saved.get(dev), _support(dev)
    if saved is None or support is None or not support.restores:
        return
    if recovery.is_fatal and isinstance(dev.model, PhysicalFunctionModel):
        restore_registers(recovery.host, dev, saved)
    elif recovery.is_fatal:
        enable_function(dev)
        recovery.host.refresh(dev, ("config",))
    yield Wait("report_slot_reset", support.resume_usec)


def _resume(recovery: _Recovery, dev: Device) -> Rule[None]:
    """report_resume."""
    link_rules.resume(recovery.host, dev)
    _tell(recovery.host, dev, Vote.RECOVERED)
    yield from ()


def _give_up(recovery: _Recovery, dev: Device) -> Rule[None]:
    """report_perm_failure_detected: said of all, whether they have a driver or not."""
    _tell(recovery.host, dev, Vote.DISCONNECT)
    yield from ()


def _reset_bus(recovery: _Recovery) -> Rule[bool]:
    """aer_root_reset, pci_bus_error_reset: under the locks of all, whose configuration space nobody gets at
    meanwhile. Nothing is saved. Fails when the link is not known to come back, as below QEMU's ports."""
    host, port = recovery.host, recovery.port
    affected = [dev for dev in host.list_children(port) if dev.registered]
    locks = [port.lock, *(lock for dev in affected for lock in (dev.lock, dev.config_lock))]
    taken: list[Lock] = []
    try:
        for lock in locks:
            yield from lock.take()
            taken.append(lock)
        host.machine.reset_bus(port.address)
        for dev in host.list_children(port):
            host.refresh(dev, ("config",))
        comes_back = is_link_known_up(port)
        yield Wait("pci_bridge_wait_for_secondary_bus", RESET_USEC if comes_back else _SETTLE_USEC)
        if not comes_back:
            host.errors.note(f"{port.log_name}: Data Link Layer Link Active not set in 100 msec")
            yield Wait("pcie_wait_for_link_delay", LINK_USEC)
    finally:
        for lock in taken:
            lock.release()
    code = 0 if comes_back else -errno.ENOTTY
    host.errors.note(f"{port.log_name}: AER: Root Port link has been reset ({code})")
    return comes_back


def _tell(host: Host, dev: Device, vote: Vote) -> None:
    """pci_uevent_ers."""
    if vote in _EVENTS and Source.UEVENTS not in host.errors.hidden:
        event, online = _EVENTS[vote]
        host.emit(UeventAction.CHANGE, dev, {"ERROR_EVENT": event, "DEVICE_ONLINE": online})


def _support(dev: Device) -> ErrorSupport | None:
    return dev.driver.driver.errors if dev.driver else None
