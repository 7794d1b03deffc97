"""The simulated kernel's system calls: a path is opened, read or written, and a rule runs.

Rule: tables from attributes to rules and nothing that decides by itself. What a fault's hang locks is here
too, because it is the same knowledge: which locks the access would hold.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sriovd.backend.base import Fault, UeventAction
from sriovd.backend.simulated import (
    config_rules,
    driver_rules,
    hotplug_rules,
    link_rules,
    reset_rules,
    sriov_rules,
)
from sriovd.backend.simulated.device import Device, Lock, Rule, Wait
from sriovd.backend.simulated.drivers import DriverObject
from sriovd.backend.simulated.host import BUS, Host
from sriovd.backend.simulated.parse import PAGE_BYTES, cut_text, fail
from sriovd.backend.steps import Access, Verb
from sriovd.pci import AddressError, PciAddress

T = TypeVar("T")
DeviceStore = Callable[[Host, Device, bytes], Rule[None]]
DriverStore = Callable[[Host, DriverObject, bytes], Rule[None]]
BusStore = Callable[[Host, bytes], Rule[None]]
DeviceShow = Callable[[Host, Device], Rule[bytes]]
Spoken = Callable[[Host, Device | None, str, str], Rule[bytes]]  # takes a verb and its argument


def _store_uevent(host: Host, dev: Device, data: bytes) -> Rule[None]:
    """lib/kobject_uevent.c kobject_synth_uevent: EINVAL for a word that is no action."""
    try:
        action = UeventAction(cut_text(data).removesuffix(b"\n").decode("ascii", "replace"))
    except ValueError:
        fail(errno.EINVAL)
    host.emit(action, dev, {"SYNTH_UUID": "0"})
    yield from ()


def _show_override(host: Host, dev: Device) -> Rule[bytes]:
    """drivers/pci/pci-sysfs.c driver_override_show, under the device's lock."""
    yield from dev.lock.take()
    dev.lock.release()
    return host.tree.read(f"{dev.directory}/driver_override")


def _show_total_msix(_host: Host, dev: Device) -> Rule[bytes]:
    """drivers/pci/iov.c sriov_vf_total_msix_show, under the device's lock; no driver here has the
    operation."""
    yield from dev.lock.take()
    dev.lock.release()
    return b"0\n"


_DEVICE_STORES: dict[str, tuple[Verb | None, DeviceStore]] = {
    "sriov_numvfs": (Verb.SET_NUM_VFS, sriov_rules.store_numvfs),
    "sriov_drivers_autoprobe": (Verb.SET_AUTOPROBE, sriov_rules.store_autoprobe),
    "sriov_vf_msix_count": (None, sriov_rules.store_msix_count),
    "driver_override": (Verb.SET_DRIVER_OVERRIDE, driver_rules.store_driver_override),
    "reset": (Verb.RESET, reset_rules.store_reset),
    "reset_method": (Verb.SET_RESET_METHOD, reset_rules.store_reset_method),
    "remove": (Verb.REMOVE, hotplug_rules.store_remove),
    "rescan": (Verb.RESCAN_PORT, hotplug_rules.store_rescan),
    "uevent": (None, _store_uevent),
}
_DRIVER_STORES: dict[str, tuple[Verb | None, DriverStore]] = {
    "bind": (Verb.BIND, driver_rules.store_bind),
    "unbind": (Verb.UNBIND, driver_rules.store_unbind),
    "new_id": (None, driver_rules.store_new_id),
    "remove_id": (None, driver_rules.store_remove_id),
}
_BUS_STORES: dict[str, tuple[Verb | None, BusStore]] = {
    "drivers_probe": (Verb.PROBE, driver_rules.store_drivers_probe),
    "drivers_autoprobe": (None, driver_rules.store_drivers_autoprobe),
    "rescan": (Verb.RESCAN_BUS, lambda host, data: hotplug_rules.store_rescan(host, None, data)),
}
_DEVICE_SHOWS: dict[str, tuple[Verb | None, DeviceShow]] = {
    "sriov_numvfs": (None, sriov_rules.show_numvfs),
    "sriov_vf_total_msix": (None, _show_total_msix),
    "driver_override": (Verb.READ_DRIVER_OVERRIDE, _show_override),
    "config": (None, config_rules.show_config),
}
_SPOKEN: dict[Access, Spoken] = {
    Access.LINK: link_rules.ask_link,
    Access.CONFIG: config_rules.access_config,
}
_LINK_VERBS = {"driver": Verb.READ_DRIVER, "virtfn": Verb.READ_VF}  # by their names without a number
_COUNT_VERBS = {"virtfn": Verb.COUNT_VFS}

_DEVICE_LOCKED = frozenset({
    Verb.SET_NUM_VFS, Verb.READ_DRIVER_OVERRIDE, Verb.SET_DRIVER_OVERRIDE, Verb.BIND, Verb.UNBIND,
    Verb.PROBE, Verb.RESET,
})  # fmt: skip
_RTNL_LOCKED = frozenset({Verb.READ_LINK, Verb.SWITCH_LINK, Verb.SET_VF_ATTRIBUTE})
_RESCAN_LOCKED = frozenset({Verb.REMOVE, Verb.RESCAN_BUS, Verb.RESCAN_PORT})
# where a task that hangs in such an access is typically found
_HANG_WCHAN = {
    Verb.SET_NUM_VFS: "msleep",
    Verb.RESET: "pci_dev_wait",
    Verb.READ_CONFIG: "pci_wait_cfg",
    Verb.UPDATE_CONFIG: "pci_wait_cfg",
    Verb.UNBIND: "vfio_unregister_group_dev",
    Verb.BIND: "really_probe",
    Verb.PROBE: "really_probe",
    Verb.REMOVE: "pci_stop_and_remove_bus_device_locked",
    Verb.RESCAN_BUS: "pci_rescan_bus",
    Verb.RESCAN_PORT: "pci_rescan_bus",
}


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names: a device's attribute, a driver's, the bus's, or some other file."""

    path: str
    name: str
    device: Device | None = None
    driver: DriverObject | None = None
    is_bus: bool = False


class Call:
    """One system call under way. `waiting`: where it sleeps; afterwards `error` or `value`."""

    def __init__(self, host: Host, rule: Rule[bytes]) -> None:
        self._host = host
        self._rule = rule
        self.waiting: Wait | None = None
        self.finished = False
        self.error: OSError | None = None
        self.value = b""

    def advance(self) -> Wait | None:
        """Run until the next place to sleep, and return it; None when the call has come back."""
        if self.waiting is not None and not self.waiting.ready():
            return self.waiting
        try:
            self.waiting = next(self._rule)
        except StopIteration as end:
            self.value = end.value or b""
            self._finish(None)
        except OSError as error:
            self._finish(error)
        self._host.notify()
        return self.waiting

    def _finish(self, error: OSError | None) -> None:
        self.waiting, self.error, self.finished = None, error, True


class SimulatedKernel:
    """Path-level access to a Host. Paths are relative to the root and may go through symlinks of the
    tree."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.blocked: list[Call] = []

    def write(self, path: str, data: bytes | str) -> None:
        """open(2) and one write(2), sleeping for no time. Raises OSError as the kernel does, BlockingIOError
        when the call would sleep until something else happens; it then stays under way, as a task in D
        state."""
        self._run(self.start(Access.WRITE, path, data.encode() if isinstance(data, str) else data))

    def read(self, path: str) -> bytes:
        """open(2) and read(2). Raises as write does."""
        return self._run(self.start(Access.READ, path))

    def resume(self) -> None:
        """Let blocked calls go on as far as they can now."""
        for call in list(self.blocked):
            self._advance(call)
            if call.finished:
                self.blocked.remove(call)

    def execute(self, rule: Rule[None]) -> None:
        """Run a rule that no path leads to. Raises as write does."""
        self._run(Call(self.host, _without_value(rule)))

    def start(self, access: Access, path: str, data: bytes = b"") -> Call:
        """Begin a system call; nothing has happened until it is advanced."""
        return Call(self.host, self._access(access, path, data))

    def _run(self, call: Call) -> bytes:
        self._advance(call)
        if not call.finished:
            self.blocked.append(call)
            wchan = call.waiting.wchan if call.waiting else ""
            raise BlockingIOError(errno.EWOULDBLOCK, f"sleeps in {wchan}")
        if call.error is not None:
            raise call.error
        return call.value

    def _advance(self, call: Call) -> None:
        while (wait := call.advance()) is not None:
            if not wait.ready():
                return

    def _access(self, access: Access, path: str, data: bytes) -> Rule[bytes]:
        if access is Access.WRITE:
            yield from self._write(self._resolve(path, os.W_OK), data)
            return b""
        if access is Access.READ:
            return (yield from self._read(self._resolve(path, os.R_OK)))
        directory, _, name = path.rpartition("/")
        if access in _SPOKEN:
            return (yield from self._ask(_SPOKEN[access], _address_in(directory), data.decode()))
        verbs = _LINK_VERBS if access is Access.READLINK else _COUNT_VERBS
        verb, address = verbs.get(name.rstrip("0123456789")), _address_in(directory)
        look = _read_link if access is Access.READLINK else _count
        return (yield from self._guard(verb, address, lambda: look(self.host, directory, name)))

    def _ask(self, rule: Spoken, address: PciAddress | None, request: str) -> Rule[bytes]:
        verb, _, argument = request.partition(" ")
        dev = self.host.devices.get(address) if address else None
        begin = partial(rule, self.host, dev, verb, argument)
        return (yield from self._guard(Verb(verb), address, begin))

    def _write(self, target: Target, data: bytes) -> Rule[None]:
        if not data:  # fs/sysfs/file.c sysfs_kf_write: nothing is done for nothing
            return
        data = data[:PAGE_BYTES]
        host, dev, driver, name = self.host, target.device, target.driver, target.name
        if dev is not None and name in _DEVICE_STORES:
            verb, store = _DEVICE_STORES[name]
            yield from self._guard(verb, dev.address, lambda: store(host, dev, data))
        elif driver is not None and name in _DRIVER_STORES:
            verb, driver_store = _DRIVER_STORES[name]
            yield from self._guard(verb, _address_in(_text(data)), lambda: driver_store(host, driver, data))
        elif target.is_bus and name in _BUS_STORES:
            verb, bus_store = _BUS_STORES[name]
            yield from self._guard(verb, _address_in(_text(data)), lambda: bus_store(host, data))
        elif target.path.startswith("module/"):
            module, _, parameter = target.path.removeprefix("module/").partition("/parameters/")
            yield from driver_rules.store_parameter(host, f"{module}/{parameter}", data)
        else:
            fail(errno.EIO, target.path)  # an attribute without store function here

    def _read(self, target: Target) -> Rule[bytes]:
        dev = target.device
        if dev is not None and target.name in _DEVICE_SHOWS:
            verb, show = _DEVICE_SHOWS[target.name]
            return (yield from self._guard(verb, dev.address, lambda: show(self.host, dev)))
        return self.host.tree.read(target.path)

    def _guard(self, verb: Verb | None, address: PciAddress | None, begin: Callable[[], Rule[T]]) -> Rule[T]:
        """Run an access, after what a fault does to it."""
        fault = self.host.faults.meet(frozenset({verb}), address) if verb else None
        if fault is not None and verb is not None:
            yield from self._suffer(fault, verb, address)
        return (yield from begin())

    def _suffer(self, fault: Fault, verb: Verb, address: PciAddress | None) -> Rule[None]:
        locks = self._locks(verb, self.host.devices.get(address) if address else None)
        taken: list[Lock] = []
        generation = self.host.faults.generation  # of now: it may be cleared before the hang begins
        try:
            for lock in locks:
                yield from lock.take()
                taken.append(lock)
            yield Wait(_HANG_WCHAN.get(verb, "msleep"), fault.delay_usec, scaled=False)
            if fault.hang:
                yield Wait(
                    _HANG_WCHAN.get(verb, "msleep"), ready=lambda: self.host.faults.generation != generation
                )
        finally:
            for lock in taken:
                lock.release()
        if fault.errno:
            fail(fault.errno)

    def _locks(self, verb: Verb, dev: Device | None) -> list[Lock]:
        if verb in _RTNL_LOCKED:
            return [self.host.rtnl]
        if verb in _RESCAN_LOCKED:
            return [self.host.rescan_lock]
        if dev is None or verb not in _DEVICE_LOCKED:
            return []
        if verb is Verb.SET_NUM_VFS and self.host.serializes_sriov:
            return [dev.lock, self.host.rescan_lock]
        return [dev.port.lock, dev.lock] if verb is Verb.RESET and dev.port else [dev.lock]

    def _resolve(self, path: str, mode: int) -> Target:
        """fs/kernfs/file.c kernfs_fop_open. ENOENT: no such file. EACCES: the attribute has no such
        access."""
        target = self._find(path)
        full = self.host.tree.path(target.path)
        if not os.path.isfile(full):
            fail(errno.ENOENT, path)
        if not os.stat(full).st_mode & (0o222 if mode == os.W_OK else 0o444):
            fail(errno.EACCES, path)
        return target

    def _find(self, path: str) -> Target:
        parts = path.split("/")
        if parts[:3] == [*BUS.split("/"), "drivers"] and len(parts) == 5:
            return Target(path, parts[4], driver=self.host.drivers.get(parts[3]))
        if parts[:2] == BUS.split("/") and len(parts) == 3:
            return Target(path, parts[2], is_bus=True)
        for index in reversed(range(len(parts) - 1)):
            address = _address_in(parts[index])
            if address is not None:
                return self._find_below(address, parts[index + 1 :], path)
        return Target(path, parts[-1])

    def _find_below(self, address: PciAddress, rest: list[str], path: str) -> Target:
        dev = self.host.devices.get(address)
        if dev is None:
            fail(errno.ENOENT, path)
        if rest[0] == "driver" and len(rest) == 2:
            if dev.driver is None:
                fail(errno.ENOENT, path)
            return Target(f"{dev.driver.directory}/{rest[1]}", rest[1], driver=dev.driver)
        return Target(f"{dev.directory}/{'/'.join(rest)}", "/".join(rest), device=dev)


def _read_link(host: Host, directory: str, name: str) -> Rule[bytes]:
    """readlink(2): the last part of the target; nothing when the directory has no such link."""
    yield from ()
    path = host.tree.path(directory)
    try:
        return os.fsencode(os.path.basename(os.readlink(f"{path}/{name}")))
    except FileNotFoundError:
        os.stat(path)
        return b""


def _count(host: Host, directory: str, prefix: str) -> Rule[bytes]:
    """How many entries of a directory begin with `prefix`."""
    yield from ()
    return str(sum(name.startswith(prefix) for name in os.listdir(host.tree.path(directory)))).encode()


def _without_value(rule: Rule[None]) -> Rule[bytes]:
    yield from rule
    return b""


def _address_in(text: str) -> PciAddress | None:
    try:
        return PciAddress.parse(text.rpartition("/")[2])
    except AddressError:
        return None


def _text(data: bytes) -> str:
    return cut_text(data).decode("ascii", "replace").removesuffix("\n")
