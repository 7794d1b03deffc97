"""PCI drivers as data: what they match, what they do when they probe, and what becomes of VFs.

Rule: a driver's peculiarity is a field here and never a condition on its name elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from sriovd.backend.vf_attributes import VLAN_PROTOCOLS, Attribute

ANY = -1
MSEC = 1000


class Probe(StrEnum):
    """What a driver's probe function demands of a function."""

    ANYTHING = "anything"
    VFIO = "vfio"  # no VFs enabled; an IOMMU group
    RESOURCES = "resources"  # a VF needs queues and interrupts assigned (NVMe 1.4, 8.5)


@dataclass(frozen=True, slots=True)
class PciId:
    """A row of a driver's match table; ANY matches everything. `override_only`: drivers/pci/pci-driver.c
    matches the row only for a function whose driver_override names the driver."""

    vendor: int = ANY
    device: int = ANY
    class_code: int = ANY
    override_only: bool = False

    def matches(self, vendor: int, device: int, class_code: int) -> bool:
        """Whether the row fits these ids."""
        return (
            self.vendor in (ANY, vendor)
            and self.device in (ANY, device)
            and self.class_code in (ANY, class_code)
        )


@dataclass(frozen=True, slots=True)
class SriovSupport:
    """A driver's sriov_configure. `limit`: what it allows (pci_sriov_set_totalvfs), 0 the capability's
    TotalVFs; `grants`: how many VFs it enables at most, however many are asked for, 0 for all;
    `disables_on_remove`: whether unbinding the PF's driver destroys its VFs; `parameter`: the module's
    switch that turns it on."""

    limit: int = 0
    grants: int = 0
    disables_on_remove: bool = False
    parameter: str = ""
    enable_usec: int = 0
    disable_usec: int = 0


class Vote(StrEnum):
    """What a driver says to an error, and what is merged from all of them: include/linux/pci.h
    pci_ers_result."""

    CAN_RECOVER = "can-recover"
    NEED_RESET = "need-reset"
    NO_AER_DRIVER = "no-aer-driver"  # somebody has no error handlers
    RECOVERED = "recovered"
    DISCONNECT = "disconnect"


@dataclass(frozen=True, slots=True)
class ErrorSupport:
    """A driver's pci_error_handlers. `normal`, `frozen`: what its error_detected answers to a non-fatal and
    to a fatal error; `remark`: what it logs of a non-fatal one; `restores`: its slot_reset puts back the
    function's registers; `resume_usec`: how long its callbacks after that take."""

    normal: Vote = Vote.CAN_RECOVER
    frozen: Vote = Vote.NEED_RESET
    remark: str = ""
    restores: bool = True
    resume_usec: int = 0


@dataclass(frozen=True, slots=True)
class LinkSupport:
    """What a driver's network interface can. `attributes`: of VFs, which it sets (its ndo_set_vf functions);
    `reports_vfs`: it tells them (ndo_get_vf_config); `vlan_protocols`: of those; `has_min_rate`: a rate may
    have a minimum. `spoof_check`, `trust`, `rss_query`: of a new VF, None for what is never told.
    `refuses_idle_spoof_check`: EOPNOTSUPP for it while there are no VFs. `is_reset_by_sriov`: the carrier is
    lost when VFs come and go."""

    attributes: frozenset[Attribute] = frozenset()
    reports_vfs: bool = False
    vlan_protocols: tuple[str, ...] = VLAN_PROTOCOLS
    has_min_rate: bool = True
    spoof_check: bool | None = None
    trust: bool | None = None
    rss_query: bool | None = None
    refuses_idle_spoof_check: bool = False
    is_reset_by_sriov: bool = False
    speed_mbps: int = 1000
    min_mtu: int = 68
    max_mtu: int = 9216


@dataclass(frozen=True, slots=True)
class Driver:
    """A PCI driver. `module`: the kernel module that has it, empty if built in. `manages_dma`: it may share
    an IOMMU group with a user (driver_managed_dma). `enables`: it enables the function and its DMA.
    `errors`: None for a driver that has no error handlers and so defeats the recovery of its neighbours."""

    name: str
    ids: tuple[PciId, ...] = ()
    module: str = ""
    probe: Probe = Probe.ANYTHING
    sriov: SriovSupport | None = None
    has_netdev: bool = False
    link: LinkSupport = LinkSupport()
    errors: ErrorSupport | None = None
    manages_dma: bool = False
    enables: bool = True
    probe_usec: int = 20 * MSEC
    remove_usec: int = 20 * MSEC


@dataclass(slots=True, eq=False)
class DriverObject:
    """A registered driver: what user space added to its match table, and its module's parameters."""

    driver: Driver
    dynamic_ids: list[PciId] = field(default_factory=list)

    @property
    def directory(self) -> str:
        """Its directory below the root."""
        return f"bus/pci/drivers/{self.driver.name}"


NVME_CLASS = 0x010802
BRIDGE_CLASS = 0x060400

# The order is that of registration, in which drivers_probe tries them. The times are those of a stock 6.12
# kernel under emulation.
DRIVERS = (
    Driver("pcieport", (PciId(class_code=BRIDGE_CLASS),), manages_dma=True, errors=ErrorSupport()),
    Driver(
        "igb",
        (PciId(0x8086, 0x10C9),),
        module="igb",
        sriov=SriovSupport(
            limit=7, disables_on_remove=True, enable_usec=380 * MSEC, disable_usec=1000 * MSEC
        ),
        has_netdev=True,
        link=LinkSupport(
            attributes=frozenset(
                {
                    Attribute.MAC,
                    Attribute.VLAN,
                    Attribute.SPOOF_CHECK,
                    Attribute.TRUST,
                    Attribute.RATE,
                }
            ),
            reports_vfs=True,
            vlan_protocols=VLAN_PROTOCOLS[:1],
            has_min_rate=False,
            spoof_check=True,
            trust=False,
            refuses_idle_spoof_check=True,
            is_reset_by_sriov=True,
        ),
        errors=ErrorSupport(remark="Non-correctable non-fatal error reported."),
        probe_usec=400 * MSEC,
        remove_usec=120 * MSEC,
    ),
    Driver(
        "igbvf",
        (PciId(0x8086, 0x10CA),),
        module="igbvf",
        has_netdev=True,
        errors=ErrorSupport(normal=Vote.NEED_RESET, resume_usec=930 * MSEC),  # waits for the PF
        probe_usec=30 * MSEC,
        remove_usec=30 * MSEC,
    ),
    Driver(
        "nvme",
        (PciId(class_code=NVME_CLASS),),
        module="nvme",
        probe=Probe.RESOURCES,
        sriov=SriovSupport(),
        errors=ErrorSupport(),
        probe_usec=70 * MSEC,
        remove_usec=60 * MSEC,
    ),
    Driver("dlb", (PciId(0x1234, 0x0D1B),), module="dlb", sriov=SriovSupport(), errors=ErrorSupport()),
    Driver("dlbvf", (PciId(0x1234, 0x0D1C),), module="dlbvf", errors=ErrorSupport()),
    Driver(
        "vfio-pci",
        (PciId(override_only=True),),
        module="vfio_pci",
        probe=Probe.VFIO,
        sriov=SriovSupport(disables_on_remove=True, parameter="enable_sriov"),
        errors=ErrorSupport(frozen=Vote.CAN_RECOVER, restores=False),  # tells the user, no more
        manages_dma=True,
        enables=False,
        probe_usec=25 * MSEC,
        remove_usec=40 * MSEC,
    ),
    Driver(
        "pci-stub", module="pci_stub", manages_dma=True, enables=False, probe_usec=3 * MSEC, remove_usec=MSEC
    ),
    Driver("uio_pci_generic", module="uio_pci_generic", probe_usec=3 * MSEC, remove_usec=MSEC),
)
