"""SR-IOV attributes, and how VFs come and go: drivers/pci/iov.c of Linux 6.12.

Rule: every function names the kernel function that it stands for. Registers are written through the model;
there is no count of VFs but the kernel's own num_VFs, which is what sriov_numvfs shows even when the
hardware has forgotten.
"""

from __future__ import annotations

import errno

from sriovd.backend.base import UeventAction
from sriovd.backend.model import PhysicalFunctionModel
from sriovd.backend.simulated import link_rules
from sriovd.backend.simulated.device import Device, Ids, Kind, Rule, SriovState, Wait
from sriovd.backend.simulated.driver_rules import attach_device, release_driver
from sriovd.backend.simulated.drivers import MSEC, Probe, SriovSupport
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.parse import fail, parse_bool, parse_signed, parse_unsigned
from sriovd.backend.simulated.reset_rules import VFS_ON, list_reset_methods
from sriovd.backend.simulated.resources import vf_resources
from sriovd.pci import AddressError, PciAddress, vf_address
from sriovd.pci_registers import Sriov, SriovControl

ENABLE_USEC = 100 * MSEC  # sriov_enable: msleep(100) after setting VF Enable
DISABLE_USEC = 1000 * MSEC  # sriov_disable: ssleep(1) after clearing it
ADD_VF_USEC = 16 * MSEC  # measured on an emulated 6.12
REMOVE_VF_USEC = 4 * MSEC
_CHANGED = ("config", "sriov_numvfs", "sriov_offset", "sriov_stride")


def init_sriov(model: PhysicalFunctionModel) -> SriovState:
    """sriov_init: a capability found enabled is switched off; ARI is set because the ports forward it."""
    base = model.sriov.profile.offset
    for register, width, value in (
        (Sriov.CONTROL, 2, 0),
        (Sriov.CONTROL, 2, SriovControl.ARI_HIERARCHY),
        (Sriov.NUM_VFS, 2, 0),
        (Sriov.SYSTEM_PAGE_SIZE, 4, 1),
    ):
        model.write(base + register, width, value)
    return read_sriov(model)


def read_sriov(model: PhysicalFunctionModel) -> SriovState:
    """What the capability says, without touching it."""
    base = model.sriov.profile.offset
    total = model.read(base + Sriov.TOTAL_VFS, 2)
    return SriovState(
        total_vfs=total,
        driver_max_vfs=total,
        offset=model.read(base + Sriov.FIRST_VF_OFFSET, 2),
        stride=model.read(base + Sriov.VF_STRIDE, 2),
        vf_device=model.read(base + Sriov.VF_DEVICE_ID, 2),
    )


def store_numvfs(host: Host, dev: Device, data: bytes) -> Rule[None]:
    """sriov_numvfs_store. EINVAL: no 16-bit number. ERANGE: more than sriov_totalvfs. ENOENT: no driver, or
    none that configures SR-IOV. EBUSY: other VFs are enabled. Else what the driver says."""
    state = _require_sriov(dev)
    try:
        count = parse_unsigned(data, 16)
    except OSError:
        fail(errno.EINVAL)
    if count > state.driver_max_vfs:
        fail(errno.ERANGE)
    yield from dev.lock.take()
    try:
        if count != state.num_vfs:
            yield from _configure(host, dev, state, count)
    finally:
        dev.lock.release()


def show_numvfs(_host: Host, dev: Device) -> Rule[bytes]:
    """sriov_numvfs_show: takes the lock that the store function holds all along."""
    yield from dev.lock.take()
    dev.lock.release()
    return f"{_require_sriov(dev).num_vfs}\n".encode()


def store_autoprobe(host: Host, dev: Device, data: bytes) -> Rule[None]:
    """sriov_drivers_autoprobe_store, without a lock."""
    _require_sriov(dev).drivers_autoprobe = parse_bool(data)
    host.refresh(dev, ("sriov_drivers_autoprobe",))
    yield from ()


def store_msix_count(_host: Host, dev: Device, data: bytes) -> Rule[None]:
    """sriov_vf_msix_count_store. EINVAL: no number or negative; EOPNOTSUPP: no PF driver here has the
    operation."""
    if parse_signed(data, 32) < 0 or dev.physfn is None:
        fail(errno.EINVAL)
    yield from dev.physfn.lock.take()
    dev.physfn.lock.release()
    fail(errno.EOPNOTSUPP)


def disable_sriov(host: Host, dev: Device, support: SriovSupport) -> Rule[None]:
    """sriov_disable: VFs go one by one, first to last; then the registers."""
    state = dev.sriov
    if state is None or not state.num_vfs:
        return
    for index in range(state.num_vfs):
        yield from _remove_vf(host, dev, index)
    _write(dev, Sriov.CONTROL, 2, _read(dev, Sriov.CONTROL, 2) & ~VFS_ON & 0xFFFF)
    yield Wait("ssleep", DISABLE_USEC)
    state.num_vfs = 0
    link_rules.begin_vfs(host, dev, 0)
    _write(dev, Sriov.NUM_VFS, 2, 0)
    _reread_routing(dev, state)
    host.refresh(dev, _CHANGED)
    yield Wait("msleep", support.disable_usec)


def add_vf(host: Host, pf: Device, index: int, group: int | None = None) -> Rule[Device]:
    """pci_iov_add_virtfn and pci_iov_sysfs_link: `add`, both links, `change`, and only then drivers."""
    dev = make_vf(host, pf, index)
    if dev.address in host.devices:  # left behind by a PF that was removed with its VFs enabled
        fail(errno.EEXIST)
    host.add_device(dev, group if group is not None else _shared_group(host, pf))
    yield Wait("pci_iov_add_virtfn", ADD_VF_USEC)
    host.tree.link(f"{pf.directory}/virtfn{index}", dev.directory)
    host.tree.link(f"{dev.directory}/physfn", pf.directory)
    host.emit(UeventAction.CHANGE, dev)
    _capture_for_vfio(host, pf, dev)
    host.publish(dev)
    if host.drivers_autoprobe:
        yield from attach_device(host, dev)
    return dev


def _configure(host: Host, dev: Device, state: SriovState, count: int) -> Rule[None]:
    """The part of sriov_numvfs_store under the device's lock."""
    support = dev.driver.driver.sriov if dev.driver else None
    if dev.driver is None or support is None or not _is_switched_on(host, dev, support):
        fail(errno.ENOENT)
    if count and state.num_vfs:
        fail(errno.EBUSY)
    if not host.serializes_sriov:
        yield from _call_driver(host, dev, state, support, count)
        return
    yield from host.rescan_lock.take("sriov_numvfs_store")
    try:
        yield from _call_driver(host, dev, state, support, count)
    finally:
        host.rescan_lock.release()


def _call_driver(
    host: Host, dev: Device, state: SriovState, support: SriovSupport, count: int
) -> Rule[None]:
    """The driver's sriov_configure. Newer kernels call it under the lock of rescans and removals, which is
    one for the host: while the VFs of one adapter cannot go because somebody has one open, no other adapter
    gets or loses any."""
    if count == 0:
        yield from disable_sriov(host, dev, support)
        return
    granted = min(count, support.grants) if support.grants else count
    yield Wait("sriov_numvfs_store", support.enable_usec)
    yield from _enable(host, dev, state, granted)


def _is_switched_on(host: Host, dev: Device, support: SriovSupport) -> bool:
    """vfio_pci_sriov_configure: ENOENT unless the module's enable_sriov is on."""
    module = dev.driver.driver.module if dev.driver else ""
    return not support.parameter or host.parameters.get(f"{module}/{support.parameter}", False)


def _enable(host: Host, dev: Device, state: SriovState, count: int) -> Rule[None]:
    """sriov_enable. EIO: a capability that makes no sense. ENOMEM: VFs past the bus numbers of the port."""
    if _read(dev, Sriov.INITIAL_VFS, 2) != state.total_vfs:
        fail(errno.EIO)
    if count > state.total_vfs:
        fail(errno.EINVAL)
    _write(dev, Sriov.NUM_VFS, 2, count)
    _reread_routing(dev, state)
    try:
        _check_routing(host, dev, state, count)
    except OSError:
        _write(dev, Sriov.NUM_VFS, 2, 0)
        raise
    _write(dev, Sriov.CONTROL, 2, _read(dev, Sriov.CONTROL, 2) | VFS_ON)
    host.refresh(dev, ("config", "sriov_offset", "sriov_stride"))
    yield Wait("msleep", ENABLE_USEC)
    yield from _add_vfs(host, dev, count)
    host.emit(UeventAction.CHANGE, dev)
    state.num_vfs = count  # after the uevent: who reads too early sees the old count
    link_rules.begin_vfs(host, dev, count)
    host.refresh(dev, _CHANGED)


def _add_vfs(host: Host, dev: Device, count: int) -> Rule[None]:
    """sriov_add_vfs, and sriov_enable's way out when one cannot be added."""
    for index in range(count):
        try:
            yield from add_vf(host, dev, index)
        except OSError:
            for made in range(index):
                yield from _remove_vf(host, dev, made)
            _write(dev, Sriov.CONTROL, 2, _read(dev, Sriov.CONTROL, 2) & ~VFS_ON & 0xFFFF)
            _write(dev, Sriov.NUM_VFS, 2, 0)
            host.refresh(dev, _CHANGED)
            raise


def _check_routing(host: Host, dev: Device, state: SriovState, count: int) -> None:
    if not state.offset or (count > 1 and not state.stride):
        fail(errno.EIO)
    buses = host.bus_range(dev)
    try:
        last = vf_address(dev.address, state.offset, state.stride, count - 1)
    except AddressError:
        fail(errno.ENOMEM)
    if buses is not None and last.bus not in buses:
        fail(errno.ENOMEM)


def _reread_routing(dev: Device, state: SriovState) -> None:
    """First VF Offset and VF Stride may change with NumVFs (PCIe 9.3.3.9)."""
    state.offset = _read(dev, Sriov.FIRST_VF_OFFSET, 2)
    state.stride = _read(dev, Sriov.VF_STRIDE, 2)


def make_vf(host: Host, pf: Device, index: int) -> Device:
    """pci_iov_add_virtfn: vendor from the PF, device from its capability, the rest from VF 0
    (pci_read_vf_config_common)."""
    model = host.machine.make_vf(_model(pf), index)
    state = _require_sriov(pf)
    identity = model.profile.identity
    address: PciAddress = vf_address(pf.address, state.offset, state.stride, index)
    methods = list_reset_methods(model, alone_on_bus=False)
    return Device(
        address=address,
        kind=Kind.VIRTUAL,
        ids=Ids(
            pf.ids.vendor, state.vf_device, identity.subsystem_vendor_id, identity.subsystem_id,
            identity.class_code, identity.revision,
        ),
        model=model,
        directory=f"{pf.directory.rpartition('/')[0]}/{address}",
        port=pf.port,
        physfn=pf,
        vf_index=index,
        resources=vf_resources(pf.resources, state.total_vfs, index),
        has_aer=model.aer is not None,
        numa_node=pf.numa_node,
        hidden=pf.hidden,
        reset_methods=methods,
        resettable=bool(methods),
    )  # fmt: skip


def _remove_vf(host: Host, pf: Device, index: int) -> Rule[None]:
    """pci_iov_remove_virtfn: links first, then the driver, then the device. A VF that is gone is passed
    over."""
    state = _require_sriov(pf)
    dev = host.devices.get(vf_address(pf.address, state.offset, state.stride, index))
    if dev is None or dev.physfn is not pf:
        return
    host.tree.unlink(f"{pf.directory}/virtfn{index}")
    host.tree.unlink(f"{dev.directory}/physfn")
    yield from release_driver(host, dev)
    yield Wait("pci_iov_remove_virtfn", REMOVE_VF_USEC)
    host.delete_device(dev)


def _shared_group(host: Host, pf: Device) -> int | None:
    """drivers/iommu/iommu.c pci_device_group: without ACS above it, a VF joins the group of its PF."""
    alone = pf.group is None or host.groups.members(pf.group) == (pf.name,)
    return None if alone else pf.group


def _capture_for_vfio(host: Host, pf: Device, dev: Device) -> None:
    """vfio_pci_bus_notifier: the VFs of a PF that vfio-pci has are for vfio-pci."""
    if pf.driver and pf.driver.driver.probe is Probe.VFIO:
        dev.driver_override = pf.driver_name.encode()
        host.refresh(dev, ("driver_override",))


def _require_sriov(dev: Device) -> SriovState:
    return dev.sriov or fail(errno.ENOENT)


def _model(dev: Device) -> PhysicalFunctionModel:
    if not isinstance(dev.model, PhysicalFunctionModel):
        raise TypeError(f"{dev} is no PF")
    return dev.model


def _read(dev: Device, register: int, width: int) -> int:
    model = _model(dev)
    return model.read(model.sriov.profile.offset + register, width)


def _write(dev: Device, register: int, width: int, value: int) -> None:
    model = _model(dev)
    model.write(model.sriov.profile.offset + register, width, value)
