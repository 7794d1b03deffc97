"""The simulated host: backend.base.Backend and its SimulatorControl, put together from their parts.

Rule: wiring only. What it reads comes from the tree through backend/sysfs.py, as on the real host.
"""

from __future__ import annotations

import asyncio
import errno
import os
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence

from sriovd.backend.base import (
    DriverState,
    ErrorPath,
    Fault,
    FunctionFacts,
    Holder,
    KernelEvent,
    Leftover,
    Severity,
)
from sriovd.backend.model import PROFILES
from sriovd.backend.simulated.device import Device, FixedFunction, Rule
from sriovd.backend.simulated.driver_rules import load_driver
from sriovd.backend.simulated.drivers import DRIVERS, Driver, Probe
from sriovd.backend.simulated.error_news import Source
from sriovd.backend.simulated.error_rules import handle_error, meet_error
from sriovd.backend.simulated.fixture import Recording, read_fixture
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.hotplug_rules import add_host_bridge, scan, surprise_remove
from sriovd.backend.simulated.kernel import Call, SimulatedKernel
from sriovd.backend.simulated.link_rules import set_attribute, switch_off, switch_on
from sriovd.backend.simulated.machine import Machine
from sriovd.backend.simulated.mailbox_rules import read_counters, send_message
from sriovd.backend.simulated.restore import restore
from sriovd.backend.simulated.runner import SimulatedRun, drive
from sriovd.backend.simulated.sriov_rules import disable_sriov
from sriovd.backend.simulated.tree import Tree
from sriovd.backend.steps import ChainResult, Script
from sriovd.backend.sysfs import SysfsReader
from sriovd.pci import PciAddress

# what `make run` and `make demo` show: adapter profile and the address of its PF
DEFAULT_MACHINE = (
    ("igb", "0000:01:00.0"),
    ("igb", "0000:02:00.0"),
    ("nvme", "0000:03:00.0"),
    ("dlb", "0000:05:00.0"),
)
NOT_LOADED = frozenset({"uio_pci_generic"})  # modules that exist and that nobody has loaded


class SimulatedBackend:
    """A host that is a directory tree.

    `root`: an empty or absent directory, which becomes its /sys. `fixture`: a recorded tree to start from,
    as fixture.py reads it; else `machine`: adapters as (profile, address). `time_scale`: seconds that a
    second of the kernel takes; 0 for no time. `drivers`: in the order of their registration; `not_loaded`:
    which of them are modules not loaded; `links_return`: whether links come back after the kernel has reset
    them, without which no fatal error is recovered from. Raises FileExistsError, ValueError.
    """

    def __init__(
        self,
        root: str,
        *,
        fixture: str | Recording | None = None,
        machine: Iterable[tuple[str, str]] = DEFAULT_MACHINE,
        time_scale: float = 0.0,
        drivers: Sequence[Driver] = DRIVERS,
        not_loaded: Collection[str] = NOT_LOADED,
        links_return: bool = False,
    ) -> None:
        self.host = Host(Tree(root), disable_sriov, Machine(links_return))
        self.host.spawn = self._spawn
        self.kernel = SimulatedKernel(self.host)
        self.time_scale = time_scale
        self._boot_id = str(uuid.uuid4())
        self.group_owners: dict[int, int] = {}  # VFIO group -> the user that may open it besides root
        self._reader = SysfsReader(root)
        self._runs: set[SimulatedRun] = set()
        self._leftovers: list[SimulatedRun] = []
        self._tasks: set[asyncio.Task[None]] = set()
        if fixture is not None:
            restore(self.host, read_fixture(fixture) if isinstance(fixture, str) else fixture, drivers)
        else:
            self._boot(machine, drivers, not_loaded)

    @property
    def simulator(self) -> SimulatedBackend:
        """The knobs: this object has them."""
        return self

    def describe(self) -> str:
        """What it is."""
        return "simulated"

    def boot_id(self) -> str:
        """This host's, from its making to its end."""
        return self._boot_id

    async def start(self) -> None:
        """Begin to listen for events."""
        self.host.uevents.open()

    async def stop(self) -> None:
        """Let go; runs that the kernel has not given back are leftovers for the next start()."""
        self.host.uevents.close()
        for run in self._runs:
            run.detach()
            self._leftovers.append(run)

    def events(self) -> AsyncIterator[KernelEvent]:
        """Every event since start(), in the kernel's order unless a fault says otherwise."""
        return self.host.uevents.listen()

    def defer_events(self, deferred: bool) -> None:
        """Nothing is gained by it here."""

    def listen_to_drivers(self, wanted: bool) -> None:
        """Whether what drivers print, and VFs send, is told."""
        self.host.uevents.takes_drivers = wanted

    def list_functions(self) -> Sequence[PciAddress]:
        """Every PF and VF, PFs first. Raises HostReadError."""
        return self._reader.list_functions()

    def list_virtual_functions(self, pf: PciAddress) -> Mapping[int, PciAddress]:
        """The VFs of `pf` by index. Raises HostReadError."""
        return self._reader.list_virtual_functions(pf)

    def read_function(self, address: PciAddress) -> FunctionFacts | None:
        """The PF or VF at `address`. Raises HostReadError."""
        return self._reader.read_function(address)

    def driver_state(self, driver: str) -> DriverState:
        """Whether the driver is registered, has a module, or is not known."""
        if driver in self.host.drivers:
            return DriverState.LOADED
        return DriverState.NOT_LOADED if driver in self.host.known_modules else DriverState.UNKNOWN

    async def find_holders(self, addresses: Sequence[PciAddress]) -> Mapping[PciAddress, Sequence[Holder]]:
        """The processes that hold the VFIO group of each address open, by process id."""
        found = {address: self._holders(address) for address in addresses}
        return {address: holders for address, holders in found.items() if holders}

    def hand_over(self, address: PciAddress, uid: int) -> None:
        """Let `uid` open the VFIO group of the function at `address`. Raises FileNotFoundError."""
        dev = self.host.devices.get(address)
        if dev is None or dev.group is None or dev.vfio_index is None:
            raise FileNotFoundError(errno.ENOENT, f"{address} has no VFIO group")
        self.group_owners[dev.group] = uid

    def take_back(self, group: int) -> None:
        """Let nobody but root open that VFIO group."""
        self.group_owners.pop(group, None)

    async def open_group(self, group: int, timeout_sec: float) -> int:  # noqa: ARG002
        """There is no device behind it: a descriptor of nothing. Raises OSError."""
        self.take_back(group)
        if not os.path.isdir(self.host.tree.path(f"devices/virtual/vfio/{group}")):
            raise FileNotFoundError(errno.ENOENT, f"there is no VFIO group {group}")
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)

    def list_group(self, group: int) -> Sequence[str]:
        """The names of the devices in that IOMMU group."""
        return self._reader.list_group(group)

    def read_error_counters(self, address: PciAddress) -> Mapping[Severity, Mapping[str, int]]:
        """What the kernel has counted, unless that is hidden. Raises HostReadError."""
        return self._reader.read_error_counters(address)

    def read_counters(self, address: PciAddress) -> Mapping[str, int]:
        """The mailbox counters of a VF."""
        dev = self.host.devices.get(address)
        return read_counters(dev) if dev else {}

    def read_error_path(self, address: PciAddress) -> ErrorPath:
        """How errors of that function come to light."""
        is_recorded = Source.RECORDS not in self.host.errors.hidden
        return self._reader.read_error_path(address, is_recorded=is_recorded)

    async def read_kernel_log(self, since_usec: int, words: Sequence[str]) -> Sequence[str]:
        """What the simulated kernel has logged."""
        return self.host.errors.read_log(since_usec, words)

    def run(self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]) -> SimulatedRun:
        """Execute `script`. `finished` has the chains that were tried."""
        run = SimulatedRun(self.kernel, adapter, script, on_result, self.time_scale)
        self._runs.add(run)
        run.task.add_done_callback(lambda _task: self._runs.discard(run))
        return run

    async def find_leftovers(self) -> Sequence[Leftover]:
        """The runs that stop() left hanging and that still do."""
        self._leftovers = [run for run in self._leftovers if not run.task.done()]
        return [Leftover(run.adapter, run.title, run.describe(), _outcome(run)) for run in self._leftovers]

    def profiles(self) -> Sequence[str]:
        """The adapters that can be plugged in."""
        return tuple(PROFILES)

    def plug(self, profile: str, address: PciAddress) -> None:
        """Hot-add an adapter with its PF at `address`. Raises ValueError naming what is wrong."""
        if profile not in PROFILES:
            raise ValueError(f"no adapter profile {profile!r}; there are {', '.join(PROFILES)}")
        self.host.machine.plug(PROFILES[profile], address)
        self._spawn(scan(self.host))

    def unplug(self, address: PciAddress) -> None:
        """Surprise-remove the adapter with the PF at `address`. Raises ValueError."""
        self._spawn(surprise_remove(self.host, self.host.machine.unplug(address)))

    def inject_fault(self, fault: Fault) -> None:
        """Arm a fault. Its delay is in real time. Raises ValueError."""
        self.host.faults.inject(fault)

    def clear_faults(self) -> None:
        """Disarm all faults; what hangs returns."""
        self.host.faults.clear()
        self.host.notify()

    def open_device(self, address: PciAddress, holder: Holder) -> None:
        """Let a process hold the VFIO group of `address` open. Raises ValueError unless on vfio-pci."""
        self._vfio_device(address).holders.append(holder)

    def close_device(self, address: PciAddress) -> None:
        """Let all its holders close it; it may be bound no more by now."""
        dev = self.host.devices.get(address)
        if dev is not None:
            dev.holders.clear()
        self.host.notify()

    def set_vf_attribute(self, pf: PciAddress, request: str) -> None:
        """Let somebody else set a VF attribute, whom no fault meets. Raises ValueError when that fails."""
        dev = self.host.devices.get(pf)
        try:
            self.kernel.execute(set_attribute(self.host, dev, request))
        except OSError as error:
            raise ValueError(f"{request!r} on {pf}: {error.strerror}") from error

    def switch_interface(self, address: PciAddress, *, on: bool) -> None:
        """What `ip link set ... up` does, or down. Raises ValueError for a function without interface."""
        dev = self.host.devices.get(address)
        if dev is None or not dev.net_interface:
            raise ValueError(f"{address} has no network interface")
        (switch_on if on else switch_off)(self.host, dev)

    def inject_error(
        self, address: PciAddress, severity: Severity, status: int, tlp_header: Sequence[int]
    ) -> None:
        """Let the PF or VF at `address` meet an error. Raises ValueError."""
        dev = meet_error(self.host, address, severity, status, tlp_header)
        self._spawn(handle_error(self.host, dev, severity))

    def send_mailbox(self, address: PciAddress, command: str, argument: str) -> bool:
        """Let the VF's user send its PF a command. Raises ValueError."""
        dev = self.host.devices.get(address)
        if dev is None:
            raise ValueError(f"no VF is at {address}")
        return send_message(self.host, dev, command, argument)

    def hide_errors(self, sources: Sequence[str]) -> None:
        """Lose what tells of errors, until told otherwise. Raises ValueError."""
        self.host.errors.hide(sources)

    def freeze_function(self, address: PciAddress, *, frozen: bool) -> None:
        """Cut the function off from the bus as the hardware of a frozen partitionable endpoint does, or let
        it back; the kernel knows nothing of it. Raises ValueError."""
        dev = self.host.devices.get(address)
        if dev is None or isinstance(dev.model, FixedFunction):
            raise ValueError(f"no PF or VF is at {address}")
        dev.model.frozen = frozen
        self.host.refresh(dev, ("config",))

    def lose_events(self, count: int) -> None:
        """Drop the next `count` events; EventsLost follows."""
        self.host.uevents.lose(count)

    def load_driver(self, name: str) -> None:
        """What modprobe does. Raises ValueError for a module that does not exist."""
        if name not in self.host.known_modules:
            raise ValueError(f"no module has a driver {name!r} that is not loaded")
        self._spawn(load_driver(self.host, name))

    def assign_resources(self, address: PciAddress) -> None:
        """Give an NVMe VF queues and interrupts, so that the nvme driver can have it. Raises ValueError."""
        dev = self.host.devices.get(address)
        if dev is None or dev.physfn is None:
            raise ValueError(f"{address} is no VF")
        dev.has_resources = True

    def _boot(
        self, machine: Iterable[tuple[str, str]], drivers: Sequence[Driver], not_loaded: Collection[str]
    ) -> None:
        for driver in drivers:
            if driver.name in not_loaded:
                self.host.known_modules[driver.name] = driver
            else:
                self.host.register_driver(driver)
        self.host.switches_on = True
        add_host_bridge(self.host, 0)
        for profile, address in machine:
            self.host.machine.plug(PROFILES[profile], PciAddress.parse(address))
        self.kernel.execute(scan(self.host))

    def _spawn(self, rule: Rule[None]) -> None:
        """Run what no user asked for: a hotplug interrupt, a module being loaded."""

        def begin() -> Rule[bytes]:
            yield from rule
            return b""

        call = Call(self.host, begin())
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.kernel.execute(rule)
            return
        task = loop.create_task(drive(call, self.kernel, self.time_scale))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _holders(self, address: PciAddress) -> Sequence[Holder]:
        dev = self.host.devices.get(address)
        members = self.host.group_devices(dev) if dev else []
        return tuple(
            sorted(
                {holder for member in members for holder in member.holders}, key=lambda holder: holder.pid
            )
        )

    def _vfio_device(self, address: PciAddress) -> Device:
        dev = self.host.devices.get(address)
        if dev is None or dev.driver is None or dev.driver.driver.probe is not Probe.VFIO:
            raise ValueError(f"{address} is not bound to vfio-pci")
        return dev


def _outcome(run: SimulatedRun) -> asyncio.Future[None]:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def resolve(_task: asyncio.Task[None]) -> None:
        if not future.done():
            future.set_result(None)

    run.task.add_done_callback(resolve)
    return future
