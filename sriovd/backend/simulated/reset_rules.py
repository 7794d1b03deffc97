"""Resets: drivers/pci/pci.c pci_reset_function and the attributes `reset` and `reset_method` (Linux 6.12).

Rule: every function names the kernel function that it stands for. A reset saves the registers, resets the
model and writes them back, so what it loses is what the kernel does not save.
"""

from __future__ import annotations

import errno

from sriovd.backend.model import PhysicalFunctionModel, Reset, VirtualFunctionModel
from sriovd.backend.model.function import find_profile
from sriovd.backend.model.power import PowerProfile
from sriovd.backend.simulated import link_rules
from sriovd.backend.simulated.attributes import read_link_register
from sriovd.backend.simulated.device import Device, FixedFunction, Kind, Rule, Wait
from sriovd.backend.simulated.drivers import MSEC
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.parse import PAGE_BYTES, cut_text, fail, parse_unsigned, same_text
from sriovd.backend.simulated.resources import write_vf_bars
from sriovd.pci_registers import Express, Sriov, SriovControl

RESET_USEC = 100 * MSEC  # pcie_flr: msleep(100)
LINK_USEC = 1000 * MSEC  # until "Data Link Layer Link Active not set in 100 msec"
_SPEED_5_GT = 2  # Supported Link Speeds (PCIe 7.5.3.6)
_ACTIVE_REPORTING = 0x10  # Link Capabilities, upper half: Data Link Layer Link Active Reporting Capable
_LINK_ACTIVE = 0x2000  # Link Status (PCIe 7.5.3.8): Data Link Layer Link Active
GIVE_UP_USEC = 65_535 * MSEC  # pci_dev_wait: "not ready 65535ms after FLR; giving up"
_KINDS = {"flr": Reset.FUNCTION, "pm": Reset.FUNCTION, "bus": Reset.HOT}
_LIVE = ("config",)
VFS_ON = SriovControl.VF_ENABLE | SriovControl.VF_MEMORY_SPACE


def list_reset_methods(
    model: PhysicalFunctionModel | VirtualFunctionModel, alone_on_bus: bool
) -> tuple[str, ...]:
    """pci_init_reset_methods: pcie_reset_flr, pci_pm_reset, pci_reset_bus_function, in this order."""
    methods = ["flr"] if model.express.profile.has_flr else []
    power = find_profile(model.profile.capabilities, PowerProfile)
    if power is not None and not power.no_soft_reset:
        methods.append("pm")
    if alone_on_bus:
        methods.append("bus")
    return tuple(methods)


def store_reset(host: Host, dev: Device, data: bytes) -> Rule[None]:
    """reset_store, pci_reset_function: the lock of the bridge above (since 6.11) and the device's. EINVAL:
    not 1. ENOTTY: no method is enabled, or the device does not come back."""
    try:
        wanted = parse_unsigned(data, 64)
    except OSError:
        fail(errno.EINVAL)
    if wanted != 1:
        fail(errno.EINVAL)
    if not dev.reset_methods:
        fail(errno.ENOTTY)
    if dev.port is None:
        yield from _reset_locked(host, dev)
        return
    yield from dev.port.lock.take()
    try:
        yield from _reset_locked(host, dev)
    finally:
        dev.port.lock.release()


def store_reset_method(host: Host, dev: Device, data: bytes) -> Rule[None]:
    """reset_method_store: an empty line disables, `default` restores, names select in their order. EINVAL: a
    method that the device has not; then nothing changes."""
    if len(data) >= PAGE_BYTES - 1:
        fail(errno.EINVAL)
    supported = supported_methods(host, dev)
    if same_text(data, ""):
        dev.reset_methods = ()
    elif same_text(data, "default"):
        dev.reset_methods = supported
    else:
        names = tuple(
            name.strip() for name in cut_text(data).decode("ascii", "replace").split(" ") if name.strip("\n")
        )
        if any(name not in supported for name in names):
            fail(errno.EINVAL)
        dev.reset_methods = names
    host.refresh(dev, ("reset_method",))
    yield from ()


def supported_methods(host: Host, dev: Device) -> tuple[str, ...]:
    """What the device could do now; a bus reset only while it has the bus for itself."""
    if isinstance(dev.model, FixedFunction):
        return ()
    return list_reset_methods(dev.model, is_alone(host, dev))


def is_alone(host: Host, dev: Device) -> bool:
    """pci_parent_bus_reset: nothing else on the bus, and a bridge above."""
    others = host.bus_population[dev.address.domain, dev.address.bus] - dev.registered
    return dev.kind is not Kind.VIRTUAL and dev.port is not None and others == 0


def _reset_locked(host: Host, dev: Device) -> Rule[None]:
    """pci_dev_lock: the device's lock, then its configuration space."""
    yield from dev.lock.take()
    try:
        yield from dev.config_lock.take()
        try:
            yield from _reset(host, dev)
        finally:
            dev.config_lock.release()
    finally:
        dev.lock.release()


def _reset(host: Host, dev: Device) -> Rule[None]:
    """pci_dev_save_and_disable, __pci_reset_function_locked, pci_dev_restore."""
    model = dev.model
    if isinstance(model, FixedFunction):
        fail(errno.ENOTTY)
    if not model.reachable:
        yield Wait("pci_dev_wait", GIVE_UP_USEC)
        host.errors.note(f"{dev.log_name}: not ready {GIVE_UP_USEC // MSEC}ms after FLR; giving up")
        fail(errno.ENOTTY)
    saved = model.config_bytes()
    method = dev.reset_methods[0]
    if isinstance(model, PhysicalFunctionModel):
        _reset_pf(model, method)
    else:
        model.function_level_reset()
        link_rules.forget_mac(dev)
    yield Wait("pci_dev_wait", RESET_USEC)
    comes_back = method != "bus" or dev.port is None or is_link_known_up(dev.port)
    if not comes_back:
        yield Wait("pcie_wait_for_link_delay", LINK_USEC)
    restore_registers(host, dev, saved)
    if not comes_back:
        fail(errno.ENOTTY)


def is_link_known_up(port: Device) -> bool:
    """pci_bridge_wait_for_secondary_bus: a port that is faster than 5 GT/s and can report whether its link
    is active must report it so. QEMU's ports can and do not, once the guest has booted."""
    speed = read_link_register(port, Express.LINK_CAPABILITIES) & 0xF
    can_report = read_link_register(port, Express.LINK_CAPABILITIES + 2) & _ACTIVE_REPORTING
    active = read_link_register(port, Express.LINK_STATUS) & _LINK_ACTIVE
    return speed <= _SPEED_5_GT or not can_report or bool(active)


def _reset_pf(model: PhysicalFunctionModel, method: str) -> None:
    if method == "bus":
        model.adapter.hot_reset()
    elif method == "pm":
        model.reset(_KINDS[method])
    else:
        model.function_level_reset()


def restore_registers(host: Host, dev: Device, saved: bytes) -> None:
    """pci_restore_state, of registers that still can be reached. VFs come back with their PF as after
    power-on: their own registers nobody has saved."""
    model = dev.model
    if not isinstance(model, FixedFunction) and model.reachable:
        model.put_back(saved)
    if isinstance(model, PhysicalFunctionModel) and model.reachable:
        _restore_sriov(dev, model)
        for vf in host.list_vfs(dev):
            vf.model = host.machine.make_vf(model, vf.vf_index)
    for each in host.list_children(dev.port) if dev.sriov and dev.port else (dev,):
        host.refresh(each, _LIVE)


def _restore_sriov(dev: Device, model: PhysicalFunctionModel) -> None:
    """sriov_restore_state: the kernel's own idea of the capability, whatever the registers were before."""
    base, count = model.sriov.profile.offset, dev.sriov.num_vfs if dev.sriov else 0
    model.write(base + Sriov.CONTROL, 2, 0)
    write_vf_bars(model, dev.resources)
    model.write(base + Sriov.SYSTEM_PAGE_SIZE, 4, 1)
    model.write(base + Sriov.NUM_VFS, 2, count)
    model.write(base + Sriov.CONTROL, 2, SriovControl.ARI_HIERARCHY | (VFS_ON if count else 0))
