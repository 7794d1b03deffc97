"""Which driver a device gets, how it is bound and unbound, and what is written to ask for it.

Rule: every function names the kernel function that it stands for. Linux 6.12: drivers/base/{bus,dd}.c,
drivers/pci/pci-driver.c, drivers/vfio/pci/vfio_pci_core.c.
"""

from __future__ import annotations

import errno

from sriovd.backend.model import PhysicalFunctionModel, VirtualFunctionModel
from sriovd.backend.simulated import link_rules
from sriovd.backend.simulated.device import Device, Kind, Rule, Wait
from sriovd.backend.simulated.drivers import MSEC, DriverObject, PciId, Probe
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.parse import PAGE_BYTES, cut_text, fail, parse_bool, same_text
from sriovd.pci import AddressError, PciAddress
from sriovd.pci_registers import Command, Header, Msix, MsixControl

_NOT_READY_USEC = 15 * MSEC  # how long nvme waits for a VF without resources: CSTS.CFS is set at once


def find_device(host: Host, written: bytes) -> Device | None:
    """bus_find_device_by_name: the name exactly, but for one newline."""
    try:
        dev = host.devices.get(PciAddress.parse(cut_text(written).removesuffix(b"\n").decode("ascii")))
    except (AddressError, UnicodeDecodeError):
        return None
    return dev if dev and same_text(written, dev.name) else None


def matches(driver: DriverObject, dev: Device) -> bool:
    """pci_bus_match and pci_match_device: an override admits its driver and nobody else."""
    if not dev.matchable:
        return False
    name = driver.driver.name.encode()
    if dev.driver_override is not None and dev.driver_override != name:
        return False
    ids = dev.ids
    rows = (*driver.dynamic_ids, *driver.driver.ids)
    found = [row for row in rows if row.matches(ids.vendor, ids.device, ids.class_code)]
    return dev.driver_override is not None or any(not row.override_only for row in found)


def bind_driver(host: Host, driver: DriverObject, dev: Device) -> Rule[None]:
    """really_probe, with the device's lock held. Raises the probe function's error."""
    _check_dma(host, driver, dev)
    host.link_driver(dev, driver)
    try:
        _check_can_probe(dev)
        yield from _probe(host, driver, dev)
    except OSError:
        host.unlink_driver(dev, driver)
        raise
    host.finish_binding(dev, driver)


def attach_device(host: Host, dev: Device) -> Rule[None]:
    """device_attach: offer the device to every driver that matches; probe errors are not reported."""
    yield from dev.lock.take()
    try:
        for driver in list(host.drivers.values()):
            if dev.driver is not None or not dev.registered:
                break
            if matches(driver, dev):
                yield from _try_driver(host, driver, dev)
    finally:
        dev.lock.release()


def release_driver(host: Host, dev: Device, driver: DriverObject | None = None) -> Rule[None]:
    """device_release_driver and __device_release_driver: the driver's link goes first, its remove function
    may then block, and the uevent is last. With `driver`, only if the device is still bound to that one."""
    yield from dev.lock.take()
    try:
        bound = dev.driver
        if bound is None or driver not in (None, bound):
            return
        host.unlink_driver(dev, bound)
        yield from _remove(host, bound, dev)
        host.finish_unbinding(dev)
    finally:
        dev.lock.release()


def store_bind(host: Host, driver: DriverObject, data: bytes) -> Rule[None]:
    """drivers/base/bus.c bind_store, dd.c device_driver_attach. ENODEV: no such device, or the driver does
    not match. EBUSY: already bound. Else the probe function's error."""
    dev = find_device(host, data)
    if dev is None or not matches(driver, dev):
        fail(errno.ENODEV)
    yield from dev.lock.take()
    try:
        if not dev.registered:
            fail(errno.ENODEV)
        if dev.driver is not None:
            fail(errno.EBUSY)
        yield from bind_driver(host, driver, dev)
    finally:
        dev.lock.release()


def store_unbind(host: Host, driver: DriverObject, data: bytes) -> Rule[None]:
    """drivers/base/bus.c unbind_store. ENODEV: no such device, or bound to another driver or none."""
    dev = find_device(host, data)
    if dev is None or dev.driver is not driver:
        fail(errno.ENODEV)
    yield from release_driver(host, dev, driver)


def store_drivers_probe(host: Host, data: bytes) -> Rule[None]:
    """drivers/base/bus.c drivers_probe_store, bus_rescan_devices_helper: success whether or not a driver has
    taken the device. ENODEV: no such device."""
    dev = find_device(host, data)
    if dev is None:
        fail(errno.ENODEV)
    if dev.driver is None:
        yield from attach_device(host, dev)


def store_driver_override(host: Host, dev: Device, data: bytes) -> Rule[None]:
    """drivers/base/driver.c driver_set_override: a line, cleared by an empty one. EINVAL from 4095 bytes
    on."""
    if len(data) >= PAGE_BYTES - 1:
        fail(errno.EINVAL)
    text = cut_text(data)
    yield from dev.lock.take()
    dev.driver_override = text.split(b"\n", 1)[0] or None
    dev.lock.release()
    host.refresh(dev, ("driver_override",))


def store_new_id(host: Host, driver: DriverObject, data: bytes) -> Rule[None]:
    """drivers/pci/pci-driver.c new_id_store: vendor and device in hexadecimal, then drivers are tried.
    EINVAL for less, EEXIST for what the driver has already."""
    row = _parse_id(data)
    if row in (*driver.dynamic_ids, *driver.driver.ids):
        fail(errno.EEXIST)
    driver.dynamic_ids.append(row)
    yield from attach_driver(host, driver)


def store_remove_id(_host: Host, driver: DriverObject, data: bytes) -> Rule[None]:
    """remove_id_store: ENODEV for an id that new_id has not added."""
    row = _parse_id(data)
    if row not in driver.dynamic_ids:
        fail(errno.ENODEV)
    driver.dynamic_ids.remove(row)
    yield from ()


def store_drivers_autoprobe(host: Host, data: bytes) -> Rule[None]:
    """drivers/base/bus.c drivers_autoprobe_store: everything but 0 switches it on."""
    host.drivers_autoprobe = not data.startswith(b"0")
    yield from ()


def store_parameter(host: Host, name: str, data: bytes) -> Rule[None]:
    """kernel/params.c param_set_bool."""
    host.set_parameter(name, parse_bool(data))
    yield from ()


def attach_driver(host: Host, driver: DriverObject) -> Rule[None]:
    """driver_attach: offer every device without driver to a new driver."""
    for dev in list(host.devices.values()):
        if dev.driver is None and matches(driver, dev):
            yield from dev.lock.take()
            try:
                if dev.driver is None and dev.registered:
                    yield from _try_driver(host, driver, dev)
            finally:
                dev.lock.release()


def load_driver(host: Host, name: str) -> Rule[None]:
    """What modprobe does: register the driver of a known module, then attach it. Raises ENOENT for an
    unknown one."""
    known = host.known_modules.pop(name, None)
    if known is None:
        fail(errno.ENOENT, name)
    registered = host.register_driver(known)
    if host.drivers_autoprobe:
        yield from attach_driver(host, registered)


def _parse_id(data: bytes) -> PciId:
    try:
        vendor, device = (int(part, 16) for part in cut_text(data).split()[:2])
    except ValueError:
        fail(errno.EINVAL)
    return PciId(vendor, device)


def _try_driver(host: Host, driver: DriverObject, dev: Device) -> Rule[None]:
    try:
        yield from bind_driver(host, driver, dev)
    except OSError:
        return  # __driver_attach_driver: the next driver may try its luck


def _check_can_probe(dev: Device) -> None:
    """pci_device_can_probe: sriov_drivers_autoprobe 0 keeps drivers off VFs unless overridden."""
    if (
        dev.physfn
        and dev.physfn.sriov
        and not dev.physfn.sriov.drivers_autoprobe
        and dev.driver_override is None
    ):
        fail(errno.ENODEV)


def _check_dma(host: Host, driver: DriverObject, dev: Device) -> None:
    """pci_dma_configure, iommu_device_use_default_domain: a group that user space has is not for kernel
    drivers."""
    if not driver.driver.manages_dma and any(member.holders for member in host.group_devices(dev)):
        fail(errno.EBUSY)


def _probe(host: Host, driver: DriverObject, dev: Device) -> Rule[None]:
    kind = driver.driver
    if kind.probe is Probe.VFIO:
        _check_vfio(dev)
    if kind.probe is Probe.RESOURCES and dev.kind is Kind.VIRTUAL and not dev.has_resources:
        yield Wait("nvme_wait_ready", _NOT_READY_USEC)
        fail(errno.ENODEV)
    yield Wait(f"{kind.module or kind.name}_probe", kind.probe_usec)
    if kind.enables:
        enable_function(dev)
    if dev.sriov and kind.sriov and kind.sriov.limit:
        dev.sriov.driver_max_vfs = min(kind.sriov.limit, dev.sriov.total_vfs)
    if kind.probe is Probe.VFIO:
        host.add_vfio_device(dev)
    host.add_class_devices(dev, kind)
    if host.switches_on and dev.sriov:
        link_rules.switch_on(host, dev)
    if kind.has_netdev and dev.physfn:
        link_rules.choose_mac(dev)


def _check_vfio(dev: Device) -> None:
    """vfio_pci_core_register_device: EBUSY for a PF with VFs; vfio_device_set_group: EINVAL without a
    group."""
    if dev.sriov and dev.sriov.num_vfs:
        fail(errno.EBUSY)
    if dev.group is None:
        fail(errno.EINVAL)


def _remove(host: Host, driver: DriverObject, dev: Device) -> Rule[None]:
    """The driver's remove function, then pci_iov_remove: a PF driver may leave its VFs behind."""
    kind = driver.driver
    if kind.sriov and kind.sriov.disables_on_remove:
        yield from host.disable_sriov(host, dev, kind.sriov)
    if dev.vfio_index is not None:
        yield Wait("vfio_unregister_group_dev", ready=lambda: not dev.holders)
        host.remove_vfio_device(dev)
    yield Wait(f"{kind.module or kind.name}_remove", kind.remove_usec)
    host.remove_class_devices(dev)
    _disable(dev)
    if dev.sriov:
        dev.sriov.driver_max_vfs = dev.sriov.total_vfs


def enable_function(dev: Device) -> None:
    """pci_enable_device, pci_set_master, pci_alloc_irq_vectors, as far as registers show it."""
    dev.enabled = True
    if isinstance(dev.model, PhysicalFunctionModel | VirtualFunctionModel):
        command = dev.model.read(Header.COMMAND, 2)
        enabled = Command.IO_SPACE | Command.MEMORY_SPACE | Command.BUS_MASTER | Command.INTX_DISABLE
        dev.model.write(Header.COMMAND, 2, command | enabled)
        _set_msix(dev.model, True)


def _disable(dev: Device) -> None:
    """pci_disable_device, pci_free_irq_vectors."""
    if isinstance(dev.model, PhysicalFunctionModel | VirtualFunctionModel):
        command = dev.model.read(Header.COMMAND, 2)
        dev.model.write(Header.COMMAND, 2, command & ~(Command.BUS_MASTER | Command.INTX_DISABLE) & 0xFFFF)
        _set_msix(dev.model, False)


def _set_msix(model: PhysicalFunctionModel | VirtualFunctionModel, enabled: bool) -> None:
    offset = next((row.offset for row in model.profile.capabilities if row.id == 0x11), 0)
    if not offset:
        return
    control = model.read(offset + Msix.CONTROL, 2) & ~MsixControl.ENABLE & 0xFFFF
    model.write(offset + Msix.CONTROL, 2, control | (MsixControl.ENABLE if enabled else 0))
