"""Devices appear and disappear: drivers/pci/{probe,remove,pci-sysfs}.c, hotplug/pciehp_pci.c of Linux 6.12.

Rule: every function names the kernel function that it stands for. What is plugged in is machine.py's; here
the kernel finds or forgets it, under the one lock that all of this takes.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence

from sriovd.backend.model import PhysicalFunctionModel
from sriovd.backend.simulated.device import Device, FixedFunction, Ids, Kind, Rule, SriovState, Wait
from sriovd.backend.simulated.driver_rules import attach_device, release_driver
from sriovd.backend.simulated.drivers import MSEC
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.machine import Card, Port, build_bridge_config
from sriovd.backend.simulated.parse import fail, parse_unsigned
from sriovd.backend.simulated.reset_rules import is_alone, list_reset_methods
from sriovd.backend.simulated.resources import write_bars
from sriovd.backend.simulated.sriov_rules import init_sriov
from sriovd.pci import PciAddress

SCAN_USEC = 50 * MSEC
_SERR = 0x100  # firmware's _HPP switches SERR# on


def store_remove(host: Host, dev: Device, data: bytes) -> Rule[None]:
    """remove_store: 0 does nothing, any other number removes. EINVAL: no number."""
    if not _parse_switch(data):
        return
    yield from host.rescan_lock.take("pci_stop_and_remove_bus_device_locked")
    try:
        if dev.registered:
            yield from _stop_and_remove(host, dev)
    finally:
        host.rescan_lock.release()


def store_rescan(host: Host, dev: Device | None, data: bytes) -> Rule[None]:
    """rescan_store of the bus, or of a device (dev_rescan_store), which rescans the bus that the device is
    on."""
    if not _parse_switch(data):
        return
    yield from host.rescan_lock.take("dev_rescan_store" if dev else "rescan_store")
    try:
        yield from scan(host, dev.port if dev else None)
    finally:
        host.rescan_lock.release()


def scan(host: Host, below: Device | None = None) -> Rule[None]:
    """pci_rescan_bus: everything that is plugged in and not known is added; drivers are offered it
    afterwards.

    `below`: only what hangs below this port; None for the whole host.
    """
    yield Wait("pci_rescan_bus", SCAN_USEC)
    found: list[Device] = []
    if below is None:
        found += [
            _add_port(host, port) for port in host.machine.ports.values() if port.address not in host.devices
        ]
    for card in list(host.machine.cards.values()):
        found += _add_card(host, card, below)
    for dev in found:
        host.publish(dev)
        if host.drivers_autoprobe:
            yield from attach_device(host, dev)


def surprise_remove(host: Host, gone: Card) -> Rule[None]:
    """pciehp_unconfigure_device: everything below the port, last come, first gone."""
    yield from host.rescan_lock.take()
    try:
        port = host.devices.get(gone.port.address)
        children = host.list_children(port) if port else []
        for dev in reversed(children):
            if dev.registered:
                yield from _stop_and_remove(host, dev)
        _refresh_orphans(host, port)
    finally:
        host.rescan_lock.release()


def add_host_bridge(host: Host, domain: int) -> Device:
    """pci_create_root_bus and the host bridge's own function."""
    address = PciAddress(domain, 0, 0, 0)
    root = f"devices/pci{domain:04x}:00"
    host.tree.make_directory(root)
    dev = make_fixed(address, Kind.OTHER, build_bridge_config(), f"{root}/{address}")
    host.add_device(dev)
    host.publish(dev)
    return dev


def make_port(port: Port) -> Device:
    """The kernel's device for a root port."""
    root = f"devices/pci{port.address.domain:04x}:00"
    dev = make_fixed(port.address, Kind.PORT, port.config, f"{root}/{port.address}")
    dev.buses = port.buses
    dev.recorded = port.recorded
    return dev


def make_pf(
    host: Host,
    card: Card,
    number: int,
    port: Device,
    find_sriov: Callable[[PhysicalFunctionModel], SriovState] = init_sriov,
) -> Device:
    """pci_setup_device, pci_iov_init, pci_init_reset_methods: a PF as it is found."""
    model = card.adapter.physical_functions[number]
    identity = model.profile.identity
    if not any(window.address for window in model.bar_windows()):
        write_bars(model, card.resources[model.address])
    dev = Device(
        address=model.address,
        kind=Kind.PHYSICAL,
        ids=Ids(
            identity.vendor_id, identity.device_id, identity.subsystem_vendor_id, identity.subsystem_id,
            identity.class_code, identity.revision,
        ),
        model=model,
        directory=f"{port.directory}/{model.address}",
        port=port,
        sriov=find_sriov(model),
        resources=card.resources[model.address],
        has_aer=model.aer is not None,
        recorded=card.recorded.get(model.address, {}),
    )  # fmt: skip
    model.write(0x04, 2, model.read(0x04, 2) | _SERR)
    dev.reset_methods = list_reset_methods(model, is_alone(host, dev))
    dev.resettable = bool(dev.reset_methods)
    return dev


def _add_port(host: Host, port: Port) -> Device:
    dev = make_port(port)
    host.add_device(dev)
    return dev


def _add_card(host: Host, card: Card, below: Device | None) -> list[Device]:
    port = host.devices.get(card.port.address)
    if port is None or below not in (None, port) or not card.adapter.present:
        return []
    added = []
    for number, model in enumerate(card.adapter.physical_functions):
        if model.address not in host.devices:
            dev = make_pf(host, card, number, port)
            host.add_device(dev)
            added.append(dev)
    if added:
        _refresh_orphans(host, port)
    return added


def _refresh_orphans(host: Host, port: Device | None) -> None:
    """VFs that their PF's driver has left behind answer no longer when the PF is gone, or is found again and
    its registers begin anew."""
    for dev in host.list_children(port) if port else ():
        host.refresh(dev, ("config",))


def _stop_and_remove(host: Host, dev: Device) -> Rule[None]:
    """pci_stop_and_remove_bus_device: all below and the device are stopped, then all are removed. A PF's VFs
    are its siblings; whether they go is its driver's decision."""
    family: Sequence[Device] = [*reversed(host.list_children(dev)), dev] if dev.kind is Kind.PORT else [dev]
    for member in family:
        if member.registered:
            yield from release_driver(host, member)
    for member in family:
        if member.registered:
            host.delete_device(member)


def make_fixed(address: PciAddress, kind: Kind, config: bytes, directory: str) -> Device:
    """A function that nobody configures: a bridge, a port."""

    def word(offset: int) -> int:
        return int.from_bytes(config[offset : offset + 2], "little")

    class_code = int.from_bytes(config[9:12], "little")
    subsystem = (word(0), 0) if kind is Kind.PORT else (word(0x2C), word(0x2E))  # a bridge has a capability
    ids = Ids(word(0), word(2), *subsystem, class_code, config[8])
    return Device(address, kind, ids, FixedFunction(config), directory)


def _parse_switch(data: bytes) -> bool:
    try:
        return parse_unsigned(data, 64) != 0
    except OSError:
        fail(errno.EINVAL)
