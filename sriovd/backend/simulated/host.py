"""The simulated kernel's driver core: devices come and go, get links, groups and drivers' links, and say so.

Rule: mechanics without decisions. Whether something may happen is in the *_rules modules; here is what the
tree and the listeners see when it does, in the kernel's order (drivers/base/core.c, dd.c,
drivers/iommu/iommu.c).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from sriovd.backend.base import LinkChanged, Uevent, UeventAction
from sriovd.backend.simulated.attributes import (
    BINDING,
    list_files,
    list_own_files,
    list_resource_files,
    make_file,
    uevent_properties,
)
from sriovd.backend.simulated.device import BusRange, Device, Kind, Lock, Rule
from sriovd.backend.simulated.drivers import Driver, DriverObject, SriovSupport
from sriovd.backend.simulated.error_news import ErrorNews
from sriovd.backend.simulated.faults import FaultBoard
from sriovd.backend.simulated.iommu import IommuGroups, NumberPool
from sriovd.backend.simulated.machine import Machine
from sriovd.backend.simulated.netdev import add_netdev, remove_netdev
from sriovd.backend.simulated.tree import File, Tree
from sriovd.backend.simulated.uevents import UEVENT_VERBS, UeventQueue
from sriovd.pci import PciAddress, vf_address

BUS = "bus/pci"
AER_DRIVER = "bus/pci_express/drivers/aer"
_DIRECTORIES = (
    f"{BUS}/devices", f"{BUS}/drivers", f"{BUS}/slots", "kernel/iommu_groups", "class/net", "class/vfio",
    "class/iommu", "devices/virtual/iommu/dmar0", "devices/virtual/vfio", "module", AER_DRIVER,
)  # fmt: skip
_BUS_FILES = (
    File("drivers_autoprobe", 0o644, b"1\n"), File("drivers_probe", 0o200), File("rescan", 0o200),
    File("resource_alignment", 0o644, b"\n"), File("uevent", 0o200),
)  # fmt: skip
_DRIVER_FILES = tuple(File(name, 0o200) for name in ("bind", "new_id", "remove_id", "uevent", "unbind"))
_GROUP_FILES = (
    File("reserved_regions", 0o444, b"0x00000000fee00000 0x00000000feefffff msi\n"),
    File("type", 0o644, b"identity\n"),
)
_DEVICE_DIRECTORIES = ("power", "link")
_REMEMBERED = 8  # predecessors of a function that it is not mistaken for; sysfs never gives a number again
_UNBIND_HIDES = ("DRIVER", "MODALIAS")  # lib/kobject_uevent.c zap_modalias_env
DisableSriov = Callable[["Host", Device, SriovSupport], Rule[None]]


class Host:
    """Everything that the simulated kernel knows."""

    def __init__(self, tree: Tree, disable_sriov: DisableSriov, machine: Machine) -> None:
        """A host without devices and drivers, on an empty tree. `disable_sriov` is what a PF driver's remove
        function calls: handed in, because VFs need drivers and drivers VFs."""
        self.tree = tree
        self.disable_sriov = disable_sriov
        self.devices: dict[PciAddress, Device] = {}
        self.bus_population: Counter[tuple[int, int]] = Counter()  # devices by domain and bus
        self.drivers: dict[str, DriverObject] = {}
        self.known_modules: dict[str, Driver] = {}
        self.parameters: dict[str, bool] = {}  # "module/name" -> value
        self.machine = machine
        self.groups = IommuGroups()
        self.faults = FaultBoard()
        self.uevents = UeventQueue()
        self.errors = ErrorNews()
        self.rescan_lock = Lock("pci_lock_rescan_remove")
        self.rtnl = Lock("rtnl_lock")
        self.serializes_sriov = False  # whether VFs come and go under that lock, too
        self.net_numbers = NumberPool()
        self.vfio_numbers = NumberPool()
        self.drivers_autoprobe = True
        self.on_change: list[Callable[[], None]] = []
        self.spawn: Callable[[Rule[None]], None] = _run_at_once  # what a driver leaves to a kernel worker
        self.switches_on = False  # whether a network manager switches the interfaces of PFs on
        self._former_inodes: dict[str, deque[int]] = {}
        for directory in _DIRECTORIES:
            tree.make_directory(directory)
        tree.populate(BUS, _BUS_FILES)
        tree.link("class/iommu/dmar0", "devices/virtual/iommu/dmar0")

    def notify(self) -> None:
        """Something has changed that a sleeping access may wait for."""
        waiting, self.on_change = self.on_change, []
        for wake in waiting:
            wake()

    def emit(self, action: UeventAction, dev: Device, extra: dict[str, str] | None = None) -> None:
        """lib/kobject_uevent.c kobject_uevent: tell that something happened to `dev`."""
        properties = {
            "ACTION": str(action),
            "DEVPATH": f"/{dev.directory}",
            "SUBSYSTEM": "pci",
            **(extra or {}),
            **uevent_properties(dev),
        }
        if action is UeventAction.UNBIND:
            properties = {key: text for key, text in properties.items() if key not in _UNBIND_HIDES}
        fault = self.faults.meet(UEVENT_VERBS, dev.address)
        self.uevents.emit(Uevent(action, dev.address, properties), fault)

    def emit_link(self, dev: Device) -> None:
        """net/core/rtnetlink.c rtmsg_ifinfo: RTM_NEWLINK of the interface of `dev`."""
        self.uevents.emit_link(LinkChanged(dev.address))

    def add_device(self, dev: Device, group: int | None = None) -> None:
        """device_add: directory, attributes, bus link, IOMMU group, and only then the uevent.

        `group`: the IOMMU group to join; None for the lowest free number.
        """
        tree = self.tree
        former = self._former_inodes.setdefault(dev.directory, deque(maxlen=_REMEMBERED))
        former.append(tree.make_new_directory(dev.directory, unlike=former))
        for name in _DEVICE_DIRECTORIES:
            tree.make_directory(f"{dev.directory}/{name}")
        tree.populate(dev.directory, self._list_files(dev))
        tree.link(f"{dev.directory}/subsystem", BUS)
        tree.link(f"{BUS}/devices/{dev}", dev.directory)
        self._join_group(dev, group)
        self.devices[dev.address] = dev
        self.bus_population[dev.address.domain, dev.address.bus] += 1
        dev.registered = True
        self.emit(UeventAction.ADD, dev)

    def publish(self, dev: Device) -> None:
        """pci_bus_add_device: BAR files; from here on drivers may have the device."""
        self.tree.populate(dev.directory, list_resource_files(dev))
        dev.matchable = True

    def delete_device(self, dev: Device) -> None:
        """device_del: out of the bus and its group, then the uevent, then the directory."""
        dev.registered = False
        self.tree.unlink(f"{BUS}/devices/{dev}")
        self._leave_group(dev)
        if self.devices.get(dev.address) is dev:
            del self.devices[dev.address]
            self.bus_population[dev.address.domain, dev.address.bus] -= 1
        self.emit(UeventAction.REMOVE, dev)
        self.tree.remove_directory(dev.directory)

    def refresh(self, dev: Device, names: Iterable[str]) -> None:
        """Rewrite attributes of `dev` whose contents a rule may have changed."""
        if not dev.registered:
            return
        for name in names:
            file = make_file(dev, name)
            if file is not None:
                self.tree.replace(dev.directory, file)

    def register_driver(self, driver: Driver) -> DriverObject:
        """bus_add_driver: the driver's directory and its module's. Who it could bind is not tried here."""
        registered = DriverObject(driver)
        self.drivers[driver.name] = registered
        self.tree.make_directory(registered.directory)
        self.tree.populate(registered.directory, _DRIVER_FILES)
        if driver.module:
            self._add_module(registered)
        return registered

    def link_driver(self, dev: Device, driver: DriverObject) -> None:
        """driver_sysfs_add, before the driver's probe runs."""
        self.tree.link(f"{driver.directory}/{dev}", dev.directory)
        self.tree.link(f"{dev.directory}/driver", driver.directory)

    def unlink_driver(self, dev: Device, driver: DriverObject) -> None:
        """driver_sysfs_remove: after a failed probe, and before a driver's remove function runs."""
        self.tree.unlink(f"{driver.directory}/{dev}")
        self.tree.unlink(f"{dev.directory}/driver")

    def finish_binding(self, dev: Device, driver: DriverObject) -> None:
        """driver_bound: the driver has taken the device."""
        dev.driver = driver
        dev.powered = True
        if not dev.supplier_known:
            dev.supplier_known = True
            self.tree.unlink(f"{dev.directory}/waiting_for_supplier")
        self.refresh(dev, BINDING)
        self.emit(UeventAction.BIND, dev)

    def finish_unbinding(self, dev: Device) -> None:
        """The end of __device_release_driver."""
        dev.driver = None
        dev.enabled = False
        self.refresh(dev, BINDING)
        self.emit(UeventAction.UNBIND, dev)

    def add_class_devices(self, dev: Device, driver: Driver, name: str = "") -> None:
        """What a driver registers of its own: a network interface; for a port the service that hears of
        errors (drivers/pci/pcie/portdrv.c). `name`: of a recorded interface."""
        if dev.kind is Kind.PORT:
            self.tree.link(f"{AER_DRIVER}/{dev}:pcie002", f"{dev.directory}/{dev}:pcie002")
        if driver.has_netdev:
            add_netdev(self.tree, self.net_numbers, dev, name)

    def remove_class_devices(self, dev: Device) -> None:
        """Undo add_class_devices."""
        self.tree.unlink(f"{AER_DRIVER}/{dev}:pcie002")
        remove_netdev(self.tree, self.net_numbers, dev)

    def add_vfio_device(self, dev: Device) -> None:
        """drivers/vfio/vfio_main.c vfio_register_group_dev: the device's node and its group's."""
        dev.vfio_index = self.vfio_numbers.take()
        self.tree.make_directory(f"{dev.directory}/vfio-dev/vfio{dev.vfio_index}")
        group = f"devices/virtual/vfio/{dev.group}"
        if not self._vfio_members(dev):
            self.tree.make_directory(group)
            self.tree.link(f"class/vfio/{dev.group}", group)

    def remove_vfio_device(self, dev: Device) -> None:
        """vfio_unregister_group_dev."""
        if dev.vfio_index is None:
            return
        self.vfio_numbers.give_back(dev.vfio_index)
        dev.vfio_index = None
        self.tree.remove_directory(f"{dev.directory}/vfio-dev")
        if not self._vfio_members(dev):
            self.tree.unlink(f"class/vfio/{dev.group}")
            self.tree.remove_directory(f"devices/virtual/vfio/{dev.group}")

    def group_devices(self, dev: Device) -> list[Device]:
        """All devices of the IOMMU group of `dev`, itself included."""
        names = self.groups.members(dev.group) if dev.group is not None else ()
        return [self.devices[PciAddress.parse(name)] for name in names if name != dev.name] + [dev]

    def list_vfs(self, pf: Device) -> list[Device]:
        """The VFs of `pf` that the kernel knows, by index."""
        state = pf.sriov
        if state is None:
            return []
        places = (
            vf_address(pf.address, state.offset, state.stride, index) for index in range(state.num_vfs)
        )
        found = (self.devices.get(place) for place in places)
        return [dev for dev in found if dev is not None and dev.physfn is pf]

    def list_children(self, port: Device) -> list[Device]:
        """The devices below a port, in the order in which they came."""
        return [dev for dev in self.devices.values() if dev.port is port]

    def bus_range(self, dev: Device) -> BusRange | None:
        """The bus numbers that the functions of `dev` may lie on."""
        return dev.port.buses if dev.port else None

    def _list_files(self, dev: Device) -> Iterable[File]:
        """Its attributes; VFs of one PF begin alike, so that what they share is worked out once."""
        if dev.physfn is None or dev.recorded:
            return list_files(dev)
        if dev.physfn.vf_files is None:
            dev.physfn.vf_files = tuple(file for file in list_files(dev) if file.shared)
        return (*dev.physfn.vf_files, *list_own_files(dev))

    def _vfio_members(self, dev: Device) -> list[Device]:
        return [
            member
            for member in self.group_devices(dev)
            if member is not dev and member.vfio_index is not None
        ]

    def _join_group(self, dev: Device, group: int | None) -> None:
        dev.group, is_new = self.groups.add(dev.name, group)
        directory = f"kernel/iommu_groups/{dev.group}"
        if is_new:
            self.tree.make_directory(f"{directory}/devices")
            self.tree.populate(directory, _GROUP_FILES)
        self.tree.link(f"{directory}/devices/{dev}", dev.directory)
        self.tree.link(f"{dev.directory}/iommu_group", directory)
        self.tree.link(f"{dev.directory}/iommu", "devices/virtual/iommu/dmar0")

    def _leave_group(self, dev: Device) -> None:
        if dev.group is None:
            return
        directory = f"kernel/iommu_groups/{dev.group}"
        self.tree.unlink(f"{directory}/devices/{dev}")
        if self.groups.remove(dev.name, dev.group):
            self.tree.remove_directory(directory)
        dev.group = None

    def _add_module(self, registered: DriverObject) -> None:
        driver = registered.driver
        directory = f"module/{driver.module}"
        self.tree.make_directory(f"{directory}/drivers")
        self.tree.make_directory(f"{directory}/parameters")
        self.tree.link(f"{registered.directory}/module", directory)
        self.tree.link(f"{directory}/drivers/pci:{driver.name}", registered.directory)
        if driver.sriov and driver.sriov.parameter:
            self.set_parameter(f"{driver.module}/{driver.sriov.parameter}", False)

    def set_parameter(self, name: str, value: bool) -> None:
        """Set a module's boolean parameter, `module/name`."""
        self.parameters[name] = value
        module, parameter = name.split("/")
        self.tree.replace(f"module/{module}/parameters", File(parameter, 0o644, b"Y\n" if value else b"N\n"))


def _run_at_once(rule: Rule[None]) -> None:
    """For a host on which nothing takes time."""
    for _wait in rule:
        pass
