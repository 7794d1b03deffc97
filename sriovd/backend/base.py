"""The seam between sriovd and a host: what a host can tell and do. core knows nothing else of it.

Rule: reading methods never block and never take a kernel lock that a driver may hold; whatever can block
is a Step and runs away from the daemon's thread. Both hosts give the same answers, which the conformance
suite compares.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from sriovd.backend.driver_events import DriverEvent
from sriovd.backend.steps import ChainResult, Script
from sriovd.pci import PciAddress


class HostReadError(Exception):
    """The host's description of a function makes no sense; the message names the file and its contents."""


@dataclass(frozen=True, slots=True)
class PhysicalFacts:
    """What only a PF has: its SR-IOV capability as the kernel shows it."""

    total_vfs: int  # what the PF driver allows, at most TotalVFs of the capability
    vf_offset: int  # First VF Offset
    vf_stride: int
    vf_device_id: int
    drivers_autoprobe: bool  # whether new VFs are offered to drivers


@dataclass(frozen=True, slots=True)
class VirtualFacts:
    """What only a VF has."""

    parent: PciAddress  # its PF
    index: int  # 0-based


@dataclass(frozen=True, slots=True)
class FunctionFacts:
    """One PF or VF as the kernel shows it without taking a lock; either `physical` or `virtual` is set."""

    address: PciAddress
    identity: int  # differs between a function and its successor at the same address
    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_device_id: int
    class_code: int  # 24 bits: base class, subclass, programming interface
    revision: int
    driver: str  # empty: none
    iommu_group: int | None
    numa_node: int  # -1: unknown
    net_interfaces: tuple[str, ...]  # as seen from this network namespace
    reset_methods: tuple[str, ...]  # empty: resets are impossible or disabled
    path: str  # the device's directory, absolute
    physical: PhysicalFacts | None = None
    virtual: VirtualFacts | None = None


class DriverState(StrEnum):
    """What the host knows of a PCI driver by its name."""

    LOADED = "loaded"
    NOT_LOADED = "not-loaded"  # a kernel module of that name exists and is not loaded
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a device open."""

    pid: int
    name: str  # comm

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


class UeventAction(StrEnum):
    """What a uevent says has happened. The kernel's words (lib/kobject_uevent.c)."""

    ADD = "add"
    REMOVE = "remove"
    CHANGE = "change"
    MOVE = "move"
    ONLINE = "online"
    OFFLINE = "offline"
    BIND = "bind"
    UNBIND = "unbind"


@dataclass(frozen=True, slots=True)
class Uevent:
    """A PCI function's uevent: a reason to look, never a state."""

    action: UeventAction
    address: PciAddress
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventsLost:
    """The host dropped events; `reason` says why. Everything must be looked at again."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinkChanged:
    """Something about the network interface of the function at `address` may have changed, its VFs'
    attributes included (RTM_NEWLINK): a reason to look. Never for an interface whose function is unknown."""

    address: PciAddress


class Severity(StrEnum):
    """Which message an error was signalled by: ERR_COR, ERR_NONFATAL or ERR_FATAL (PCIe 6.2.2)."""

    CORRECTED = "corrected"
    NONFATAL = "nonfatal"
    FATAL = "fatal"


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An AER error that the kernel has decoded (tracepoint ras:aer_event): of a PF, a VF, or a port above.

    `status`: the bits of the AER status register that are not masked; 0 when the device could not be read
    (fatal errors). `tlp_header`: its dwords, empty when none was logged. `at_usec`: CLOCK_MONOTONIC when it
    was recorded. Comes before the uevents that the kernel sends after it, as far as the host can tell.
    """

    address: PciAddress
    severity: Severity
    status: int
    tlp_header: tuple[int, ...]
    at_usec: int


# Who takes them passes over what he does not know.
KernelEvent = Uevent | EventsLost | LinkChanged | ErrorRecord | DriverEvent


@dataclass(frozen=True, slots=True)
class ErrorPath:
    """How errors of a function come to light; for the audit, and for rescans.

    `ports`: the bridges above it, the nearest first; empty: it is on a root bus. `has_aer`: it has the AER
    capability, so its errors have names. `is_native`: the kernel handles AER of its root port; False where
    firmware does (firmware first), or nobody. `is_recorded`: the kernel's records of errors reach sriovd.
    """

    ports: tuple[PciAddress, ...] = ()
    has_aer: bool = False
    is_native: bool = False
    is_recorded: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a write is believed to hang: shown to people as it is."""

    pid: int  # of the helper; 0 on the simulated host
    step: str  # the step it is in
    wchan: str  # the kernel function it sleeps in; empty if unknown
    running_usec: int

    def __str__(self) -> str:
        where = f" in {self.wchan}" if self.wchan else ""
        who = f" (helper pid {self.pid})" if self.pid else ""
        seconds = self.running_usec / 1e6
        return f"{self.step} has not returned from the kernel{where} for {seconds:.0f} s{who}"


class Run(Protocol):
    """A script under way."""

    @property
    def finished(self) -> asyncio.Future[Sequence[ChainResult]]:
        """Resolves when the last access has returned, however late. Raises ConnectionError when its helper
        died."""

    def stop(self) -> None:
        """Begin no further chain: `finished` resolves with what was done by then. A chain is never cut."""

    def describe(self) -> Evidence:
        """The step that it is in, and since when; before the first, what it waits for."""

    def abandon(self) -> Evidence:
        """Stop waiting and free the helper's place. `finished` still resolves if the kernel comes back."""


@dataclass(frozen=True, slots=True)
class Leftover:
    """A write that a former daemon process left hanging on `adapter` (a PCI slot's text)."""

    adapter: str
    title: str
    evidence: Evidence
    finished: asyncio.Future[None]


class Backend(Protocol):
    """A host. A method that finds no such function says so as documented and never guesses."""

    @property
    def simulator(self) -> SimulatorControl | None:
        """The knobs of a simulated host; None on a real one."""

    def describe(self) -> str:
        """The host in a few words, for logs and the Manager object: kernel release, or "simulated"."""

    def boot_id(self) -> str:
        """Names the kernel that runs, from its start to its end (proc_sys_kernel(5), random/boot_id)."""

    async def start(self) -> None:
        """Begin to listen for events; must come before the first listing, so that nothing falls between."""

    async def stop(self) -> None:
        """Let go of everything; hanging helpers are left behind."""

    def events(self) -> AsyncIterator[KernelEvent]:
        """Every event since start(), in the host's order. One consumer."""

    def defer_events(self, deferred: bool) -> None:
        """While `deferred`, the events of a storm may come up to two seconds late: jobs run, and look by
        themselves at what they touch."""

    def listen_to_drivers(self, wanted: bool) -> None:
        """Whether DriverEvents are wanted from now on; at first they are not. Meanwhile nothing is followed
        and nobody is woken up. What a host cannot have of them its log says, once. Who asks again changes
        nothing but that what has failed since is tried again; if it fails again, MessagesLost comes."""

    def list_functions(self) -> Sequence[PciAddress]:
        """Every PF (a function with an SR-IOV capability) and VF, PFs first, by address."""

    def list_virtual_functions(self, pf: PciAddress) -> Mapping[int, PciAddress]:
        """The VFs of `pf` by index, from its virtfn links; empty when there is no such PF."""

    def read_function(self, address: PciAddress) -> FunctionFacts | None:
        """The function at `address`, or None when nothing is there or it is neither PF nor VF (yet: a VF's
        links appear after its first uevent). Raises HostReadError for contents that make no sense."""

    def driver_state(self, driver: str) -> DriverState:
        """Whether the PCI driver of that name is loaded, could be, or is not known."""

    async def find_holders(self, addresses: Sequence[PciAddress]) -> Mapping[PciAddress, Sequence[Holder]]:
        """The processes that hold the VFIO group (or device) of each address open; absent: nobody."""

    def hand_over(self, address: PciAddress, uid: int) -> None:
        """Let the user `uid`, besides root, open the VFIO group of the function at `address`. Raises
        OSError: ENOENT when there is none (not on vfio-pci)."""

    def take_back(self, group: int) -> None:
        """Let nobody but root open that VFIO group; one that does not exist is fine. Raises OSError."""

    async def open_group(self, group: int, timeout_sec: float) -> int:
        """A descriptor of that VFIO group, which the caller closes. Nobody but root may open the group
        afterwards: see hand_over. Raises OSError, of which EBUSY when it is open already and TimeoutError
        when the kernel has not answered in time; ConnectionError."""

    def list_group(self, group: int) -> Sequence[str]:
        """The names of the devices in that IOMMU group, SR-IOV or not."""

    def read_error_counters(self, address: PciAddress) -> Mapping[Severity, Mapping[str, int]]:
        """What the kernel has counted of that function since it appeared, by severity, by the kernel's name
        of each error and by "total" for all; errors that never came are left out. Empty when the kernel
        counts none (no AER capability), or the function is gone."""

    def read_counters(self, address: PciAddress) -> Mapping[str, int]:
        """What the function counts that can be read without asking its driver, by name: its mailbox's
        commands on a simulated host. Empty for a function that is gone, and where a driver would have to be
        asked (a VF's packets: READ_LINK with "statistics")."""

    def read_error_path(self, address: PciAddress) -> ErrorPath:
        """How errors of that function come to light; an empty ErrorPath when it is gone."""

    async def read_kernel_log(self, since_usec: int, words: Sequence[str]) -> Sequence[str]:
        """Lines of the kernel's log, in order, from the time `since_usec` (CLOCK_MONOTONIC) on, that contain
        any of `words`, at most 200: `[seconds] text`. Empty when it cannot be read."""

    def run(self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]) -> Run:
        """Execute `script` on `adapter` (a PCI slot's text); `on_result` is called after every chain."""

    async def find_leftovers(self) -> Sequence[Leftover]:
        """Writes that a former daemon process left hanging."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A misbehaviour of the simulated host: what happens when `verb` reaches `address` (None: any).

    `errno`: the access fails with it instead of being done. `delay_usec`: it takes that long first.
    `hang`: it never returns until the fault is cleared. `times`: how often before it wears off, 0 for ever.
    """

    verb: str
    address: PciAddress | None = None
    errno: int = 0
    delay_usec: int = 0
    hang: bool = False
    times: int = 0


class SimulatorControl(Protocol):
    """What a simulated host offers beyond a real one: hardware and misfortune on demand."""

    def profiles(self) -> Sequence[str]:
        """The adapters that can be plugged in."""

    def plug(self, profile: str, address: PciAddress) -> None:
        """Hot-add an adapter with one PF at `address`. Raises ValueError naming what is wrong."""

    def unplug(self, address: PciAddress) -> None:
        """Surprise-remove the PF at `address` with its VFs. Raises ValueError."""

    def inject_fault(self, fault: Fault) -> None:
        """Arm a fault. Raises ValueError for an unknown verb."""

    def clear_faults(self) -> None:
        """Disarm all faults; what hangs returns."""

    def open_device(self, address: PciAddress, holder: Holder) -> None:
        """Let a process hold the VFIO group of `address` open. Raises ValueError unless on vfio-pci."""

    def close_device(self, address: PciAddress) -> None:
        """Let it close again."""

    def set_vf_attribute(self, pf: PciAddress, request: str) -> None:
        """Let somebody else set a VF attribute, as `ip link set ... vf` does. `request`: as
        vf_attributes.format_request makes it. Raises ValueError."""

    def inject_error(
        self, address: PciAddress, severity: Severity, status: int, tlp_header: Sequence[int]
    ) -> None:
        """Let the PF or VF at `address` meet an error, which the simulated kernel handles as Linux does:
        `status`: bits of the AER status register of that severity, 0 for a usual one; `tlp_header`: four
        dwords or none. Raises ValueError."""

    def send_mailbox(self, address: PciAddress, command: str, argument: str) -> bool:
        """Let the user of the VF at `address` send its PF a command of the mailbox (model/mailbox.py), e.g.
        'set-mac' with an address; whether it is acknowledged. Raises ValueError for no VF, a VF whose PF has
        no mailbox, and for what is no command."""

    def hide_errors(self, sources: Sequence[str]) -> None:
        """Lose what tells of errors, until told otherwise: any of 'records' (the tracepoint), 'uevents'
        (those of recovery), 'counters'; none of them: everything is told. Raises ValueError."""

    def lose_events(self, count: int) -> None:
        """Drop the next `count` events, as an overrun socket does; EventsLost follows."""
