"""A recording becomes a host: hardware in its slots, devices as the kernel had them, drivers bound, VFs
enabled.

Rule: what the simulated kernel has a rule for is built by that rule's code; the rest of the recording is
laid over the tree as it is, and what the recorded kernel did not show is taken away.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sriovd.backend.model import Adapter, AdapterProfile, VirtualFunctionModel
from sriovd.backend.simulated.attributes import ATTRIBUTES, COUNTER_FILES
from sriovd.backend.simulated.device import BusRange, Device, Ids, Kind, Resource
from sriovd.backend.simulated.drivers import DRIVERS, Driver, PciId, Probe, SriovSupport
from sriovd.backend.simulated.fixture import (
    Attribute,
    Directory,
    FixtureError,
    Link,
    Recording,
    resolve_link,
)
from sriovd.backend.simulated.host import BUS, Host
from sriovd.backend.simulated.hotplug_rules import make_fixed, make_pf, make_port
from sriovd.backend.simulated.link_rules import begin_vfs
from sriovd.backend.simulated.machine import Card, Port
from sriovd.backend.simulated.recorded import build_profile, dress_config, dress_layout, recorded_routing
from sriovd.backend.simulated.sriov_rules import make_vf, read_sriov
from sriovd.backend.simulated.tree import File
from sriovd.pci import AddressError, PciAddress, vf_index

# The oldest of the lab's kernels whose sriov_numvfs_store takes the lock of rescans and removals. It came to
# the stable series ("PCI/IOV: Fix race between SR-IOV enable/disable and hotplug"), so no release is exact.
_SERIALIZES_SRIOV = (6, 1)
_NO_OVERRIDE = b"(null)"
_CONFIG_MINIMUM = 64


class RecordedDevice:
    """One function's directory in a recording."""

    def __init__(self, recording: Recording, directory: str, address: PciAddress) -> None:
        self.recording = recording
        self.directory = directory
        self.address = address
        self._entries = recording.directories[directory]

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        return name in self._entries

    def link(self, name: str) -> str:
        """Where a symlink leads, from the root; empty if there is none. Raises FixtureError for something
        else."""
        entry = self._entries.get(name)
        if entry is None:
            return ""
        if not isinstance(entry, Link):
            raise self.complain(name, "a symlink is needed here")
        return resolve_link(self.directory, entry.target) or ""

    def data(self, name: str) -> bytes | None:
        """An attribute's contents; None if absent or not read. Raises FixtureError for something else."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if not isinstance(entry, Attribute):
            raise self.complain(name, "a file is needed here")
        return entry.data

    def number(self, name: str, default: int | None = None, base: int = 0) -> int:
        """An attribute's number. Raises FixtureError when it is none, or absent without default."""
        data = self.data(name)
        if data is None:
            if default is None:
                raise self.complain(name, "is needed and not in the recording")
            return default
        try:
            return int(data, base)
        except ValueError as error:
            raise self.complain(name, f"{data[:32]!r} is not a number") from error

    def config(self) -> bytes:
        """The configuration space, as much of it as was recorded."""
        data = self.data("config")
        if data is None or len(data) < _CONFIG_MINIMUM:
            raise self.complain("config", f"at least the {_CONFIG_MINIMUM} bytes of the header are needed")
        return data

    def ids(self) -> Ids:
        """Who it is."""
        names = ("vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision")
        return Ids(*(self.number(name) for name in names))

    def resources(self) -> tuple[Resource, ...]:
        """The lines of `resource`."""
        rows = (self.data("resource") or b"").decode("ascii", "replace").splitlines()
        try:
            return tuple(_parse_resource(*row.split()) for row in rows)
        except (TypeError, ValueError) as error:
            raise self.complain("resource", "lines of three hexadecimal numbers are needed") from error

    def complain(self, name: str, message: str) -> FixtureError:
        """The error for one of its entries."""
        return self.recording.complain(self.directory, name if self.has(name) else "", f"{name}: {message}")


def restore(host: Host, recording: Recording, known: Sequence[Driver] = DRIVERS) -> None:
    """Build the recorded host on an empty one. Raises FixtureError."""
    found = {dev.address: dev for dev in _list_devices(recording)}
    for source in found.values():
        _check_counters(source)
    host.serializes_sriov = _kernel_version(recording.kernel) >= _SERIALIZES_SRIOV
    for number in recording.directories.get("kernel/iommu_groups", ()):
        if number.isdecimal():
            host.groups.claim(int(number))
    _register_drivers(host, recording, known, found)
    physical = [dev for dev in found.values() if dev.has("sriov_totalvfs")]
    virtual = [dev for dev in found.values() if dev.has("physfn")]
    fixed = [dev for dev in found.values() if dev not in physical and dev not in virtual]
    for source in sorted(fixed, key=lambda dev: dev.directory.count("/")):
        _restore_fixed(host, source)
    for source in physical:
        if source.address.function == 0:
            _plug(host, source, physical, virtual)
    for source in physical:
        _restore_pf(host, source)
    for source in virtual:
        _restore_vf(host, source)
    _lay_over(host, recording, found)


def _kernel_version(release: str) -> tuple[int, ...]:
    """Major and minor number of a release; nothing for what is none."""
    match = re.match(r"(\d+)\.(\d+)", release, re.ASCII)
    return tuple(map(int, match.groups())) if match else ()


def _parse_resource(start: str, end: str, flags: str) -> Resource:
    return Resource(int(start, 16), int(end, 16), int(flags, 16))


def _list_devices(recording: Recording) -> Iterator[RecordedDevice]:
    for directory in sorted(recording.directories):
        head, _, name = directory.rpartition("/")
        if not head.startswith("devices/pci"):
            continue
        try:
            address = PciAddress.parse(name)
        except AddressError:
            continue
        if "vendor" in recording.directories[directory]:
            yield RecordedDevice(recording, directory, address)


def _register_drivers(
    host: Host, recording: Recording, known: Sequence[Driver], found: dict[PciAddress, RecordedDevice]
) -> None:
    prefix = f"{BUS}/drivers/"
    names = [path.removeprefix(prefix) for path in recording.directories if path.startswith(prefix)]
    by_name = {driver.name: driver for driver in known}
    for name in names:
        bound = [dev for dev in found.values() if dev.link("driver") == prefix + name]
        host.register_driver(by_name.get(name) or _guess_driver(name, bound))
    for driver in known:
        if driver.name not in names and driver.module:
            host.known_modules[driver.name] = driver
    for path, entries in recording.directories.items():
        module, slash, rest = path.removeprefix("module/").partition("/")
        if path.startswith("module/") and slash and rest == "parameters":
            for name, entry in entries.items():
                if isinstance(entry, Attribute) and entry.data in (b"Y\n", b"N\n"):
                    host.set_parameter(f"{module}/{name}", entry.data == b"Y\n")


def _guess_driver(name: str, bound: Sequence[RecordedDevice]) -> Driver:
    """A driver of which nothing is known but whom it has."""
    ids = tuple({PciId(dev.number("vendor"), dev.number("device")) for dev in bound})
    physical = any(dev.has("sriov_totalvfs") for dev in bound)
    has_netdev = any(f"{dev.directory}/net" in dev.recording.directories or dev.has("net") for dev in bound)
    return Driver(
        name, ids, sriov=SriovSupport(disables_on_remove=True) if physical else None, has_netdev=has_netdev
    )


def _restore_fixed(host: Host, source: RecordedDevice) -> None:
    """A port, a bridge, or a function without SR-IOV."""
    config = source.config()
    if source.has("secondary_bus_number") or config[0x0E] & 0x7F == 1:
        buses = BusRange(
            source.number("secondary_bus_number", config[0x19]),
            source.number("subordinate_bus_number", config[0x1A]),
        )
        port = Port(source.address, buses, config, _values(source))
        host.machine.ports[source.address] = port
        dev = make_port(port)
    else:
        dev = make_fixed(source.address, Kind.OTHER, config, source.directory)
    dev.ids = source.ids()
    _register(host, source, dev)


def _plug(
    host: Host, source: RecordedDevice, physical: Sequence[RecordedDevice], virtual: Sequence[RecordedDevice]
) -> None:
    """The card whose PF 0 is `source`, with the PFs beside it."""
    beside = [dev for dev in physical if dev.address.slot == source.address.slot]
    port = host.machine.find_port(source.address)
    if port is None:
        raise source.complain("", "no bridge in the recording leads to this PF")
    if [dev.address.function for dev in beside] != list(range(len(beside))):
        raise source.complain("", "the PFs of a slot must be functions 0, 1 and so on")
    vf = next((dev for dev in virtual if dev.link("physfn") == source.directory), None)
    card = Card(Adapter(_profile(source, vf, len(beside)), source.address), port)
    for dev, model in zip(beside, card.adapter.physical_functions, strict=True):
        config = dev.config()
        model.sriov.profile = recorded_routing(model.sriov.profile, config)
        dress_config(model.config, dress_layout(model.config.layout, config))
        model.load_config(config)
        card.resources[dev.address] = dev.resources()
        card.recorded[dev.address] = _values(dev)
        if vf is not None and len(vf.config()) == model.config.size:
            card.vf_dumps[dev.address] = vf.config()
    host.machine.cards[source.address] = card


def _profile(source: RecordedDevice, vf: RecordedDevice | None, functions: int) -> AdapterProfile:
    own = source.ids()
    vf_ids = vf.ids() if vf else replace(own, device=source.number("sriov_vf_device", base=16))
    dump = vf.config() if vf else None
    try:
        return build_profile(
            str(source.address), own, source.config(), source.resources(), dump, vf_ids, functions
        )
    except ValueError as error:
        raise source.complain("config", str(error)) from error


def _restore_pf(host: Host, source: RecordedDevice) -> None:
    card = host.machine.find_card(source.address)
    if card is None:
        raise source.complain("", "a PF beside no function 0")
    port = host.devices[card.port.address]
    dev = make_pf(host, card, source.address.function, port, read_sriov)
    dev.ids = source.ids()
    if dev.sriov is not None:
        dev.sriov.num_vfs = sum(
            1 for name in source.recording.directories[source.directory] if name.startswith("virtfn")
        )
        dev.sriov.driver_max_vfs = source.number("sriov_totalvfs")
        dev.sriov.drivers_autoprobe = bool(source.number("sriov_drivers_autoprobe", 1))
    _register(host, source, dev)
    begin_vfs(host, dev, dev.sriov.num_vfs if dev.sriov else 0)


def _restore_vf(host: Host, source: RecordedDevice) -> None:
    place = _last_address(source.link("physfn"))
    pf = host.devices.get(place) if place else None
    if pf is None or pf.sriov is None:
        raise source.complain("physfn", "leads to no PF of the recording")
    index = vf_index(pf.address, pf.sriov.offset, pf.sriov.stride, source.address)
    if index is None or index >= pf.sriov.num_vfs:
        raise source.complain("physfn", "no VF is here by the PF's offset, stride and number of VFs")
    try:
        dev = make_vf(host, pf, index)
    except ValueError as error:
        raise source.complain("physfn", f"{error} by the PF's configuration space") from error
    dev.ids = source.ids()
    dev.recorded = _values(source)
    if isinstance(dev.model, VirtualFunctionModel):
        _load_vf(dev.model, source.config())
    _register(host, source, dev)
    host.tree.link(f"{pf.directory}/virtfn{dev.vf_index}", dev.directory)
    host.tree.link(f"{dev.directory}/physfn", pf.directory)


def _load_vf(model: VirtualFunctionModel, config: bytes) -> None:
    """Its registers as recorded; where its read-only bits are its own, it gets a layout of its own."""
    if len(config) != model.config.size:
        return
    try:
        model.config.load(config)
    except ValueError:
        dress_config(model.config, dress_layout(model.config.layout, config))
        model.config.load(config)


def _register(host: Host, source: RecordedDevice, dev: Device) -> None:
    """What every kind of device has: place, group, methods, driver."""
    absent = (row for row in ATTRIBUTES.values() if not source.has(row.name) and "/" not in row.name)
    dev.hidden = frozenset(row.name for row in absent if row.owners(dev))
    dev.numa_node = source.number("numa_node", -1)
    dev.enabled = bool(source.number("enable", 0))
    dev.powered = source.data("power_state") not in (b"unknown\n", None)
    dev.supplier_known = not source.has("waiting_for_supplier")
    dev.reset_methods = tuple((source.data("reset_method") or b"").decode("ascii", "replace").split())
    dev.resettable = source.has("reset")
    override = (source.data("driver_override") or _NO_OVERRIDE).removesuffix(b"\n")
    dev.driver_override = None if override == _NO_OVERRIDE else override
    above = source.directory.rpartition("/")[0]
    bridge = _last_address(above)
    dev.port = dev.port or (host.devices.get(bridge) if bridge else None)
    group = source.link("iommu_group").rpartition("/")[2]
    host.tree.make_directory(above)
    host.add_device(dev, int(group) if group.isdecimal() else None)
    host.publish(dev)
    _bind(host, source, dev)


def _check_counters(source: RecordedDevice) -> None:
    """What simulated errors will be added to. Raises FixtureError."""
    for name in COUNTER_FILES.values():
        rows = (source.data(name) or b"").splitlines()
        if not all(row.rpartition(b" ")[2].isdigit() for row in rows):
            raise source.complain(name, "lines of a name and a number are needed")


def _bind(host: Host, source: RecordedDevice, dev: Device) -> None:
    name = source.link("driver").rpartition("/")[2]
    if not name:
        return
    driver = host.drivers.get(name)
    if driver is None:
        raise source.complain("driver", f"no directory {BUS}/drivers/{name} in the recording")
    dev.driver = driver
    if not source.data("driver_override") and all(row.override_only for row in driver.driver.ids):
        dev.driver_override = name.encode()  # it could have come here in no other way
        host.refresh(dev, ("driver_override",))
    host.link_driver(dev, driver)
    if driver.driver.probe is Probe.VFIO:
        host.add_vfio_device(dev)
    host.add_class_devices(dev, driver.driver, _interface(source))


def _interface(source: RecordedDevice) -> str:
    """The name of the function's network interface; the first, if it had more."""
    prefix = f"{source.directory}/net/"
    names = (path.removeprefix(prefix) for path in source.recording.directories if path.startswith(prefix))
    return min((name for name in names if "/" not in name), default="")


def _last_address(directory: str) -> PciAddress | None:
    try:
        return PciAddress.parse(directory.rpartition("/")[2])
    except AddressError:
        return None


def _values(source: RecordedDevice) -> dict[str, bytes]:
    entries = source.recording.directories[source.directory]
    return {
        name: entry.data
        for name, entry in entries.items()
        if isinstance(entry, Attribute) and entry.data is not None
    }


def _lay_over(host: Host, recording: Recording, found: dict[PciAddress, RecordedDevice]) -> None:
    """Everything recorded that is not there or looks otherwise, and nothing more below recorded devices."""
    for directory, entries in recording.directories.items():
        host.tree.make_directory(directory)
        for name, entry in entries.items():
            path = f"{directory}/{name}"
            if isinstance(entry, Directory):
                host.tree.make_directory(path)
            elif isinstance(entry, Link):
                host.tree.unlink(path)
                os.symlink(entry.target, host.tree.path(path))
            elif entry.data is not None or not os.path.lexists(host.tree.path(path)):
                host.tree.replace(directory, File(name, entry.mode, entry.data or b"", entry.size))
    for dev in found.values():
        _take_away(host, recording, dev.directory)


def _take_away(host: Host, recording: Recording, directory: str) -> None:
    entries = recording.directories[directory]
    prefix = f"{directory}/"
    below = {
        path.removeprefix(prefix).partition("/")[0]
        for path in recording.directories
        if path.startswith(prefix)
    }
    for name in os.listdir(host.tree.path(directory)):
        path = f"{directory}/{name}"
        if name in entries or name in below:
            continue
        if os.path.isdir(host.tree.path(path)) and not os.path.islink(host.tree.path(path)):
            host.tree.remove_directory(path)
        else:
            host.tree.unlink(path)
