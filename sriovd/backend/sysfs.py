"""Reads PFs and VFs from a tree that looks like /sys: the real one, or a simulated one. Every path derives
from one root.

Rule: only files whose show functions take no lock that a driver may hold are read here. That rules out
`sriov_numvfs` and `driver_override` (device lock), `config` (waits for a reset to end) and `uevent` (takes
the device lock on some 6.x kernels). What never changes while a device exists is read once per identity.

A function is read through a descriptor of its directory: all of it is then of one device, never half of its
successor's at the same address, and the kernel walks the long way to the directory once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sriovd.backend.base import (
    ErrorPath,
    FunctionFacts,
    HostReadError,
    PhysicalFacts,
    Severity,
    VirtualFacts,
)
from sriovd.backend.sysfs_directory import GONE, Directory, is_there, to_number, unreadable
from sriovd.pci import AddressError, PciAddress, vf_index

_VIRTFN = re.compile(r"virtfn[0-9]+", re.ASCII)
# drivers/pci/pcie/aer.c: lines of a name and a number each; the last is the total
_COUNTERS = {
    Severity.CORRECTED: "aer_dev_correctable",
    Severity.NONFATAL: "aer_dev_nonfatal",
    Severity.FATAL: "aer_dev_fatal",
}
_TOTAL = "TOTAL_ERR_"


@dataclass(frozen=True, slots=True)
class _Ids:
    """What a function is."""

    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_device_id: int
    class_code: int
    revision: int
    numa_node: int


@dataclass(frozen=True, slots=True)
class _Static:
    """What is fixed for the life of a device object."""

    identity: int
    path: str
    ids: _Ids


class SysfsReader:
    """The PCI functions below `root` (normally /sys)."""

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)
        self._devices = os.path.join(self.root, "bus/pci/devices")
        self._static: dict[PciAddress, _Static] = {}
        self._ids_of_vfs: dict[int, _Ids] = {}  # by their PF's identity
        self._placements: dict[PciAddress, tuple[int, int]] = {}

    def list_functions(self) -> list[PciAddress]:
        """Every PF and VF, PFs first. Raises HostReadError when the bus cannot be listed."""
        physical, virtual = [], []
        for address in self._list_devices():
            directory = self._directory(address)
            if is_there(f"{directory}/sriov_totalvfs"):
                physical.append(address)
            elif is_there(f"{directory}/physfn"):
                virtual.append(address)
        return sorted(physical) + sorted(virtual)

    def list_virtual_functions(self, pf: PciAddress) -> dict[int, PciAddress]:
        """The VFs of `pf` by index, from its virtfn links. Raises HostReadError."""
        path = self._directory(pf)
        try:
            names = [name for name in os.listdir(path) if _VIRTFN.fullmatch(name)]
            with Directory(path) as directory:
                found = {int(name[6:]): directory.link_address(name) for name in names}
        except OSError as error:
            if error.errno in GONE:
                return {}
            raise unreadable(error, path) from error
        return {index: address for index, address in sorted(found.items()) if address is not None}

    def list_group(self, group: int) -> Sequence[str]:
        """The names of the devices in an IOMMU group; none when there is no such group."""
        try:
            return sorted(os.listdir(f"{self.root}/kernel/iommu_groups/{group}/devices"))
        except FileNotFoundError:
            return ()

    def read_function(self, address: PciAddress) -> FunctionFacts | None:
        """The PF or VF at `address`, or None. Raises HostReadError naming the file that makes no sense."""
        try:
            with Directory(self._directory(address)) as directory:
                return self._read_function(address, directory)
        except OSError as error:
            if error.errno in GONE:  # removed while it was read
                self._forget(address)
                return None
            raise unreadable(error, self._directory(address)) from error

    def read_error_counters(self, address: PciAddress) -> dict[Severity, dict[str, int]]:
        """What errors of that function have been counted, by severity and name; without those that never
        came, but always with "total". Empty without AER, or when it is gone. Raises HostReadError."""
        path = self._directory(address)
        try:
            with Directory(path) as directory:
                texts = {severity: directory.text(name) for severity, name in _COUNTERS.items()}
        except OSError as error:
            if error.errno in GONE:
                return {}
            raise unreadable(error, path) from error
        return {
            severity: _parse_counters(f"{path}/{_COUNTERS[severity]}", text)
            for severity, text in texts.items()
            if text is not None
        }

    def read_error_path(self, address: PciAddress, *, is_recorded: bool) -> ErrorPath:
        """The ports above a function and who handles its errors; an empty ErrorPath when it is gone.
        `is_recorded` is the host's own knowledge."""
        directory = self._directory(address)
        try:
            parts = os.readlink(directory).split("/")[:-1]
        except OSError:
            return ErrorPath()
        ports = tuple(port for port in map(_parse_port, reversed(parts)) if port is not None)
        has_aer = is_there(f"{directory}/{_COUNTERS[Severity.NONFATAL]}")
        return ErrorPath(ports, has_aer, bool(ports) and self._is_served(ports[-1]), is_recorded)

    def _is_served(self, root_port: PciAddress) -> bool:
        """Whether the kernel's AER driver has the port's AER service (drivers/pci/pcie/portdrv.c), which it
        does not get where firmware has kept AER to itself."""
        try:
            services = os.listdir(f"{self.root}/bus/pci_express/drivers/aer")
        except OSError:
            return False
        return any(name.startswith(f"{root_port}:") for name in services)

    def is_function(self, address: PciAddress) -> bool:
        """Whether a PF or VF is at `address`, told by two looks at names."""
        directory = self._directory(address)
        return is_there(f"{directory}/sriov_totalvfs") or is_there(f"{directory}/physfn")

    def driver_loaded(self, driver: str) -> bool:
        """Whether a PCI driver of that name is registered."""
        return os.path.isdir(f"{self.root}/bus/pci/drivers/{driver}")

    def _list_devices(self) -> Iterator[PciAddress]:
        try:
            names = os.listdir(self._devices)
        except OSError as error:
            raise HostReadError(f"{self._devices}: {error.strerror}") from error
        for name in names:
            try:
                yield PciAddress.parse(name)
            except AddressError as error:
                raise HostReadError(f"{self._devices}: {error}") from error

    def _read_function(self, address: PciAddress, directory: Directory) -> FunctionFacts | None:
        parent = directory.link_address("physfn")
        virtual = self._read_virtual(address, parent, directory) if parent else None
        physical = None if parent else _read_physical(directory)
        if physical is None and virtual is None:
            return None
        static = self._read_static(address, directory, parent)
        group = directory.basename_of_link("iommu_group")
        return FunctionFacts(
            address=address,
            identity=static.identity,
            vendor_id=static.ids.vendor_id,
            device_id=static.ids.device_id,
            subsystem_vendor_id=static.ids.subsystem_vendor_id,
            subsystem_device_id=static.ids.subsystem_device_id,
            class_code=static.ids.class_code,
            revision=static.ids.revision,
            driver=directory.basename_of_link("driver") or "",
            iommu_group=int(group) if group and group.isdecimal() else None,
            numa_node=static.ids.numa_node,
            net_interfaces=directory.names_in("net"),
            reset_methods=tuple(directory.text_or_check("reset_method").split()),
            path=static.path,
            physical=physical,
            virtual=virtual,
        )

    def _read_static(self, address: PciAddress, directory: Directory, parent: PciAddress | None) -> _Static:
        identity = directory.identity()
        known = self._static.get(address)
        if known is not None and known.identity == identity:
            return known
        pf = self._static.get(parent) if parent else None
        static = _Static(identity, self._read_path(address, pf), self._read_ids(directory, pf))
        self._static[address] = static
        return static

    def _read_path(self, address: PciAddress, pf: _Static | None) -> str:
        """Where the device is. A VF is beside its PF (drivers/pci/iov.c pci_iov_add_virtfn)."""
        if pf is not None:
            return f"{pf.path.rpartition('/')[0]}/{address}"
        return os.path.normpath(os.path.join(self._devices, os.readlink(self._directory(address))))

    def _read_ids(self, directory: Directory, pf: _Static | None) -> _Ids:
        """The ids in `directory`. All VFs of a PF have the same, which the kernel too reads from the first
        (drivers/pci/iov.c pci_read_vf_config_common): reading them from each of 120 VFs that are being
        made keeps the kernel from sysfs's lock, which it needs to make the next."""
        shared = self._ids_of_vfs.get(pf.identity) if pf else None
        if shared is not None:
            return shared
        ids = _Ids(
            vendor_id=directory.number("vendor", 0xFFFF),
            device_id=directory.number("device", 0xFFFF),
            subsystem_vendor_id=directory.number("subsystem_vendor", 0xFFFF),
            subsystem_device_id=directory.number("subsystem_device", 0xFFFF),
            class_code=directory.number("class", 0xFFFFFF),
            revision=directory.number("revision", 0xFF),
            numa_node=directory.number("numa_node", 0xFFFF, minimum=-1, missing=-1),
        )
        if pf is not None:
            self._ids_of_vfs[pf.identity] = ids
        return ids

    def _read_virtual(
        self, address: PciAddress, parent: PciAddress, directory: Directory
    ) -> VirtualFacts | None:
        """The VF's place under its PF, once both links of the pair exist (drivers/pci/iov.c makes virtfnN
        and physfn after the `add` uevent). The index is computed, so that its cost does not grow with the
        number of VFs, and the link confirms it; where it does not, offset and stride may have changed."""
        for refresh in (False, True):
            index = vf_index(parent, *self._read_placement(parent, refresh), address)
            if index is not None and directory.link_address(f"physfn/virtfn{index}") == address:
                return VirtualFacts(parent, index)
        return None

    def _read_placement(self, pf: PciAddress, refresh: bool) -> tuple[int, int]:
        """First VF Offset and VF Stride of `pf`."""
        known = None if refresh else self._placements.get(pf)
        if known is None:
            with Directory(self._directory(pf)) as directory:
                offset = directory.number("sriov_offset", 0xFFFF)
                known = self._placements[pf] = (offset, directory.number("sriov_stride", 0xFFFF))
        return known

    def _forget(self, address: PciAddress) -> None:
        static = self._static.pop(address, None)
        self._placements.pop(address, None)
        if static is not None:
            self._ids_of_vfs.pop(static.identity, None)

    def _directory(self, address: PciAddress) -> str:
        return f"{self._devices}/{address}"


def _read_physical(directory: Directory) -> PhysicalFacts | None:
    total_vfs = directory.number("sriov_totalvfs", 0xFFFF, missing=-1)
    if total_vfs < 0:
        return None
    return PhysicalFacts(
        total_vfs=total_vfs,
        vf_offset=directory.number("sriov_offset", 0xFFFF),
        vf_stride=directory.number("sriov_stride", 0xFFFF),
        vf_device_id=directory.number("sriov_vf_device", 0xFFFF, base=16),
        drivers_autoprobe=directory.number("sriov_drivers_autoprobe", 1) == 1,
    )


def _parse_counters(path: str, text: str) -> dict[str, int]:
    counted = {}
    for line in text.splitlines():
        name, _, number = line.rpartition(" ")
        is_total = name.startswith(_TOTAL)
        count = to_number(path, number, 0, 2**64 - 1)
        if count or is_total:
            counted["total" if is_total else name] = count
    return counted


def _parse_port(name: str) -> PciAddress | None:
    try:
        return PciAddress.parse(name)
    except AddressError:
        return None
