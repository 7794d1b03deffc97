"""The simulated kernel's objects: devices, their locks, and how a rule waits.

Rule: data and nothing else. A rule is a generator that yields a Wait wherever the kernel's own code would
sleep, so that the same rule runs at once in a test and for minutes on a host with its faults armed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from sriovd.backend.base import Holder, Severity
from sriovd.backend.model import PhysicalFunctionModel, VirtualFunctionModel
from sriovd.backend.simulated.drivers import DriverObject
from sriovd.backend.simulated.tree import File
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.pci import PciAddress

T = TypeVar("T")


def _now() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Wait:
    """A place where the kernel sleeps: for `usec`, then until `ready`. `wchan` is the kernel function.

    `scaled`: whether the host's time scale applies; it does not to the delays of faults.
    """

    wchan: str
    usec: int = 0
    ready: Callable[[], bool] = _now
    scaled: bool = True


Rule = Generator[Wait, None, T]


class Lock:
    """A kernel mutex. Not fair, as device_lock is not."""

    __slots__ = ("held", "wchan")

    def __init__(self, wchan: str) -> None:
        self.held = False
        self.wchan = wchan

    def take(self, wchan: str = "") -> Rule[None]:
        """Wait until the lock is free and take it. `wchan`: where such a wait shows, if not at the lock's
        own function."""
        while self.held:
            yield Wait(wchan or self.wchan, ready=self.is_free)
        self.held = True

    def release(self) -> None:
        """Give it back."""
        self.held = False

    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return not self.held


class Kind(StrEnum):
    """What sort of function a device is."""

    PHYSICAL = "physical"
    VIRTUAL = "virtual"
    PORT = "port"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Ids:
    """Who a function is to the kernel; `class_code` has 24 bits."""

    vendor: int
    device: int
    subsystem_vendor: int
    subsystem_device: int
    class_code: int
    revision: int

    @property
    def modalias(self) -> str:
        """drivers/pci/pci-sysfs.c modalias_show."""
        base, sub, interface = self.class_code >> 16, self.class_code >> 8 & 0xFF, self.class_code & 0xFF
        return (
            f"pci:v{self.vendor:08X}d{self.device:08X}sv{self.subsystem_vendor:08X}"
            f"sd{self.subsystem_device:08X}bc{base:02X}sc{sub:02X}i{interface:02X}"
        )


@dataclass(frozen=True, slots=True)
class Resource:
    """One line of the `resource` attribute."""

    start: int = 0
    end: int = 0
    flags: int = 0

    @property
    def size(self) -> int:
        """Bytes, 0 for an unused one."""
        return self.end - self.start + 1 if self.flags else 0

    def __str__(self) -> str:
        return f"0x{self.start:016x} 0x{self.end:016x} 0x{self.flags:016x}"


@dataclass(frozen=True, slots=True)
class BusRange:
    """The bus numbers below a root port."""

    secondary: int
    subordinate: int

    def __contains__(self, bus: int) -> bool:
        return self.secondary <= bus <= self.subordinate


class FixedFunction:
    """A function whose configuration space never changes: a port, a host bridge."""

    def __init__(self, config: bytes) -> None:
        self._config = config

    def config_bytes(self) -> bytes:
        """All of it."""
        return self._config


Model = PhysicalFunctionModel | VirtualFunctionModel | FixedFunction


@dataclass(slots=True)
class SriovState:
    """drivers/pci/pci.h struct pci_sriov: what the kernel remembers of a PF's capability."""

    total_vfs: int  # TotalVFs of the capability
    driver_max_vfs: int
    offset: int
    stride: int
    vf_device: int
    num_vfs: int = 0
    drivers_autoprobe: bool = True


@dataclass(slots=True, eq=False)
class Device:
    """struct pci_dev, and struct device in it."""

    address: PciAddress
    kind: Kind
    ids: Ids
    model: Model
    directory: str  # below the root
    port: Device | None = None  # the bridge above
    physfn: Device | None = None
    vf_index: int = 0
    buses: BusRange | None = None  # ports only
    sriov: SriovState | None = None
    vf_files: tuple[File, ...] | None = None  # the attributes that all VFs of this PF begin with
    resources: tuple[Resource, ...] = ()
    has_aer: bool = False
    numa_node: int = -1
    recorded: dict[str, bytes] = field(default_factory=dict)  # attribute values that a fixture gave
    hidden: frozenset[str] = frozenset()  # attributes that this machine's kernel does not have
    driver: DriverObject | None = None
    driver_override: bytes | None = None
    reset_methods: tuple[str, ...] = ()
    resettable: bool = False  # at creation, which decides whether there is a `reset` file
    group: int | None = None
    enabled: bool = False
    powered: bool = False  # has had a driver, so that power_state is known
    supplier_known: bool = False
    has_resources: bool = False  # a VF's assigned queues, for Probe.RESOURCES
    net_interface: str = ""
    is_up: bool = False  # the interface is switched on
    has_carrier: bool = False
    is_detached: bool = False  # after a fatal error its driver has put the interface away
    vf_attributes: list[VfAttributes] = field(default_factory=list)  # a PF's, by VF index
    vfs_with_given_mac: set[int] = field(default_factory=set)  # a PF's: igb's IGB_VF_FLAG_PF_SET_MAC
    ready_vfs: set[int] = field(default_factory=set)  # a PF's: IGB_VF_FLAG_CTS, they have reset themselves
    vfio_index: int | None = None
    registered: bool = False
    matchable: bool = False  # pci_dev.match_driver: drivers may have it
    holders: list[Holder] = field(default_factory=list)
    lock: Lock = field(default_factory=lambda: Lock("device_lock"))
    config_lock: Lock = field(default_factory=lambda: Lock("pci_wait_cfg"))  # held by whoever resets it
    error_counts: Counter[tuple[Severity, str]] = field(default_factory=Counter)  # by the kernel's names

    @property
    def driver_name(self) -> str:
        """Its driver's name, or nothing."""
        return self.driver.driver.name if self.driver else ""

    @property
    def name(self) -> str:
        """Its name in sysfs."""
        return str(self.address)

    @property
    def log_name(self) -> str:
        """Its name in the kernel's log: drivers/base/core.c dev_driver_string, dev_name."""
        return f"{self.driver_name or 'pci'} {self.name}"

    def __str__(self) -> str:
        return self.name
