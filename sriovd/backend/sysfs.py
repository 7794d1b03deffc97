"""Reads PFs and VFs from a tree that looks like /sys: the real one, or a simulated one. Every path derives
from one root.

Rule: only files whose show functions take no lock that a driver may hold are read here. That rules out
`sriov_numvfs` and `driver_override` (device lock), `config` (waits for a reset to end) and `uevent` (takes
the device lock on some 6.x kernels). What never changes while a device exists is read once per identity.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sriovd.backend.base import FunctionFacts, HostReadError, PhysicalFacts, VirtualFacts
from sriovd.pci import AddressError, PciAddress, vf_index

_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
_VIRTFN = re.compile(r"virtfn[0-9]+", re.ASCII)
_MAX_ATTRIBUTE_BYTES = 4096  # sysfs gives one page at most


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
            if _is_there(f"{directory}/sriov_totalvfs"):
                physical.append(address)
            elif _is_there(f"{directory}/physfn"):
                virtual.append(address)
        return sorted(physical) + sorted(virtual)

    def list_virtual_functions(self, pf: PciAddress) -> dict[int, PciAddress]:
        """The VFs of `pf` by index, from its virtfn links. Raises HostReadError."""
        directory = self._directory(pf)
        try:
            names = [name for name in os.listdir(directory) if _VIRTFN.fullmatch(name)]
            found = {int(name[6:]): self._link_address(f"{directory}/{name}") for name in names}
        except OSError as error:
            if error.errno in _GONE:
                return {}
            raise _unreadable(error, directory) from error
        return {index: address for index, address in sorted(found.items()) if address is not None}

    def read_function(self, address: PciAddress) -> FunctionFacts | None:
        """The PF or VF at `address`, or None. Raises HostReadError naming the file that makes no sense."""
        directory = self._directory(address)
        try:
            parent = self._link_address(f"{directory}/physfn")
            virtual = self._read_virtual(address, parent) if parent else None
            physical = None if parent else self._read_physical(directory)
            if physical is None and virtual is None:
                return None
            return self._read_facts(address, directory, physical, virtual)
        except OSError as error:
            if error.errno in _GONE:  # removed while it was read
                self._forget(address)
                return None
            raise _unreadable(error, directory) from error

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

    def _read_facts(
        self,
        address: PciAddress,
        directory: str,
        physical: PhysicalFacts | None,
        virtual: VirtualFacts | None,
    ) -> FunctionFacts:
        static = self._read_static(address, directory, virtual.parent if virtual else None)
        facts = self._read_changing(address, directory, static, physical, virtual)
        if os.stat(directory).st_ino != static.identity:  # half of it is its successor's
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), directory)
        return facts

    def _read_changing(
        self,
        address: PciAddress,
        directory: str,
        static: _Static,
        physical: PhysicalFacts | None,
        virtual: VirtualFacts | None,
    ) -> FunctionFacts:
        group = _basename_of_link(f"{directory}/iommu_group")
        return FunctionFacts(
            address=address,
            identity=static.identity,
            vendor_id=static.ids.vendor_id,
            device_id=static.ids.device_id,
            subsystem_vendor_id=static.ids.subsystem_vendor_id,
            subsystem_device_id=static.ids.subsystem_device_id,
            class_code=static.ids.class_code,
            revision=static.ids.revision,
            driver=_basename_of_link(f"{directory}/driver") or "",
            iommu_group=int(group) if group and group.isdecimal() else None,
            numa_node=static.ids.numa_node,
            net_interfaces=_list_names(f"{directory}/net"),
            reset_methods=tuple((_read_text(f"{directory}/reset_method", missing="") or "").split()),
            path=static.path,
            physical=physical,
            virtual=virtual,
        )

    def _read_static(self, address: PciAddress, directory: str, parent: PciAddress | None) -> _Static:
        identity = os.stat(directory).st_ino
        known = self._static.get(address)
        if known is not None and known.identity == identity:
            return known
        path = os.path.normpath(os.path.join(self._devices, os.readlink(directory)))
        static = _Static(identity, path, self._read_ids(directory, parent))
        self._static[address] = static
        return static

    def _read_ids(self, directory: str, parent: PciAddress | None) -> _Ids:
        """The ids in `directory`. All VFs of a PF have the same, which the kernel too reads from the first
        (drivers/pci/iov.c pci_read_vf_config_common): reading them from each of 120 VFs that are being
        made keeps the kernel from sysfs's lock, which it needs to make the next."""
        pf = self._static.get(parent) if parent else None
        shared = self._ids_of_vfs.get(pf.identity) if pf else None
        if shared is not None:
            return shared
        ids = _Ids(
            vendor_id=_read_number(f"{directory}/vendor", 0xFFFF),
            device_id=_read_number(f"{directory}/device", 0xFFFF),
            subsystem_vendor_id=_read_number(f"{directory}/subsystem_vendor", 0xFFFF),
            subsystem_device_id=_read_number(f"{directory}/subsystem_device", 0xFFFF),
            class_code=_read_number(f"{directory}/class", 0xFFFFFF),
            revision=_read_number(f"{directory}/revision", 0xFF),
            numa_node=_read_number(f"{directory}/numa_node", 0xFFFF, minimum=-1, missing=-1),
        )
        if pf is not None:
            self._ids_of_vfs[pf.identity] = ids
        return ids

    def _read_physical(self, directory: str) -> PhysicalFacts | None:
        total_text = _read_text(f"{directory}/sriov_totalvfs", missing=None)
        if total_text is None:
            return None
        return PhysicalFacts(
            total_vfs=_to_number(f"{directory}/sriov_totalvfs", total_text, 0, 0xFFFF),
            vf_offset=_read_number(f"{directory}/sriov_offset", 0xFFFF),
            vf_stride=_read_number(f"{directory}/sriov_stride", 0xFFFF),
            vf_device_id=_read_number(f"{directory}/sriov_vf_device", 0xFFFF, base=16),
            drivers_autoprobe=_read_number(f"{directory}/sriov_drivers_autoprobe", 1) == 1,
        )

    def _read_virtual(self, address: PciAddress, parent: PciAddress) -> VirtualFacts | None:
        """The VF's place under its PF, once both links of the pair exist (drivers/pci/iov.c makes virtfnN
        and physfn after the `add` uevent). The index is computed, so that its cost does not grow with the
        number of VFs, and the link confirms it; where it does not, offset and stride may have changed."""
        for refresh in (False, True):
            index = vf_index(parent, *self._read_placement(parent, refresh), address)
            if (
                index is not None
                and self._link_address(f"{self._directory(parent)}/virtfn{index}") == address
            ):
                return VirtualFacts(parent, index)
        return None

    def _read_placement(self, pf: PciAddress, refresh: bool) -> tuple[int, int]:
        """First VF Offset and VF Stride of `pf`."""
        known = None if refresh else self._placements.get(pf)
        if known is None:
            directory = self._directory(pf)
            offset = _read_number(f"{directory}/sriov_offset", 0xFFFF)
            known = self._placements[pf] = (offset, _read_number(f"{directory}/sriov_stride", 0xFFFF))
        return known

    def _forget(self, address: PciAddress) -> None:
        static = self._static.pop(address, None)
        self._placements.pop(address, None)
        if static is not None:
            self._ids_of_vfs.pop(static.identity, None)

    def _directory(self, address: PciAddress) -> str:
        return f"{self._devices}/{address}"

    def _link_address(self, link: str) -> PciAddress | None:
        """The PCI function that `link` points to, or None when there is no link."""
        name = _basename_of_link(link)
        if name is None:
            return None
        try:
            return PciAddress.parse(name)
        except AddressError as error:
            raise HostReadError(f"{link} points to {name!r}: {error}") from error


def _unreadable(error: OSError, directory: str) -> HostReadError:
    return HostReadError(f"{os.fsdecode(error.filename or directory)}: {error.strerror}")


def _is_there(path: str) -> bool:
    """Whether there is such an entry. One that cannot be looked at counts: whoever reads it will say why,
    and a function does not vanish because of it."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in _GONE
    return True


def _basename_of_link(link: str) -> str | None:
    try:
        return os.path.basename(os.readlink(link))
    except FileNotFoundError:
        return None


def _list_names(directory: str) -> tuple[str, ...]:
    try:
        names = os.listdir(os.fsencode(directory))
    except FileNotFoundError:
        return ()
    return tuple(sorted(name.decode("utf-8", "backslashreplace") for name in names))


def _read_text(path: str, *, missing: str | None) -> str | None:
    """The text of a sysfs attribute without its newline. Raises HostReadError for what is not ASCII."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return missing
    try:
        raw = os.read(fd, _MAX_ATTRIBUTE_BYTES)
    finally:
        os.close(fd)
    try:
        return raw.decode("ascii").rstrip("\n")
    except UnicodeDecodeError as error:
        raise HostReadError(f"{path} holds {raw[:32]!r}, which is not ASCII text") from error


def _read_number(
    path: str, maximum: int, *, minimum: int = 0, base: int = 0, missing: int | None = None
) -> int:
    text = _read_text(path, missing=None)
    if text is None:
        if missing is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return missing
    return _to_number(path, text, minimum, maximum, base)


def _to_number(path: str, text: str, minimum: int, maximum: int, base: int = 0) -> int:
    try:
        number = int(text, base)
    except ValueError as error:
        raise HostReadError(f"{path} holds {text[:32]!r}, which is not a number") from error
    if not minimum <= number <= maximum:
        raise HostReadError(f"{path} holds {text[:32]!r}, which is outside {minimum} to {maximum}")
    return number
