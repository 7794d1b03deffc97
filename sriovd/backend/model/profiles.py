"""The adapters that the model can be, as data.

`igb` and `nvme` have the registers of the devices that QEMU emulates under these ids, because a stock
kernel's drivers know them and the model can be compared with them bit by bit. `dlb` is the project's own
accelerator: its vendor id 1234 belongs to no company and is what QEMU uses for devices without one, and its
class, processing accelerator without interface (0b4000), is that of Intel's DLB, whose resources it will
imitate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sriovd.backend.model.aer import VF_CORRECTABLE_BITS, VF_UNCORRECTABLE_BITS, AerProfile
from sriovd.backend.model.ari import AriProfile
from sriovd.backend.model.express import ExpressProfile
from sriovd.backend.model.header import Bar, Identity
from sriovd.backend.model.msi import MsiProfile, MsixProfile
from sriovd.backend.model.power import PowerProfile
from sriovd.backend.model.sriov import SriovProfile, VfRouting
from sriovd.pci_registers import SriovCapabilities

KIB = 1024
MIB = 1024 * KIB
LegacyCapability = PowerProfile | MsiProfile | MsixProfile | ExpressProfile
ExtendedCapability = AerProfile | AriProfile | SriovProfile
UNCORRECTABLE_MASK_QEMU = 0x0240_0000  # QEMU masks TLP prefix blocked from reset on, besides internal errors


@dataclass(frozen=True, slots=True)
class FunctionProfile:
    """One kind of function: identity, BARs (none for a VF) and both capability lists in their order."""

    identity: Identity
    capabilities: tuple[LegacyCapability, ...]
    extended: tuple[ExtendedCapability, ...]
    bars: tuple[Bar, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterProfile:
    """A whole adapter.

    Its PFs, all alike, and their VFs. reset_methods are in the kernel's vocabulary and order.
    """

    name: str
    pf: FunctionProfile
    vf: FunctionProfile
    reset_methods: tuple[str, ...] = ("flr",)
    physical_functions: int = 1


IGB_IDENTITY = Identity(0x8086, 0x10C9, 0x020000, 1, 0x1AF4, 0x1100)
IGB_EXPRESS = ExpressProfile(
    0xA0, device_capabilities=0x1000_8020, link_capabilities=0x411, link_status=0x11,
    device_capabilities_2=0x0030_0000, device_control_2_writable=0x8000,
)  # fmt: skip
IGB = AdapterProfile(
    name="igb",
    pf=FunctionProfile(
        IGB_IDENTITY,
        capabilities=(
            PowerProfile(0x40, capabilities=0x0022, control_writable=0x1F00),
            MsiProfile(0x50),
            MsixProfile(0x70, 10, table_bar=3, table_offset=0, pending_bar=3, pending_offset=0x2000),
            IGB_EXPRESS,
        ),
        extended=(
            AerProfile(0x100, uncorrectable_mask=UNCORRECTABLE_MASK_QEMU, ecrc=True),
            AriProfile(0x150),
            SriovProfile(
                0x160, vf_device_id=0x10CA, total_vfs=8, routings=(VfRouting(0x80, 2),),
                vf_bars=(Bar(0, 16 * KIB, is_64bit=True, prefetchable=True),
                         Bar(3, 16 * KIB, is_64bit=True, prefetchable=True)),
            ),
        ),
        bars=(Bar(0, 128 * KIB), Bar(1, 128 * KIB), Bar(2, 32, is_io=True), Bar(3, 16 * KIB, is_64bit=True)),
    ),
    vf=FunctionProfile(
        IGB_IDENTITY,
        capabilities=(
            ExpressProfile(
                0xA0, device_capabilities=0x1000_8020, link_capabilities=0x411, link_status=0x11,
                device_capabilities_2=0x0030_0000, is_vf=True,
            ),
            MsixProfile(0x70, 3, table_bar=3, table_offset=0, pending_bar=3, pending_offset=0x2000),
        ),
        extended=(
            AerProfile(0x100, VF_UNCORRECTABLE_BITS, VF_CORRECTABLE_BITS, ecrc=True, is_vf=True),
            AriProfile(0x150),
        ),
    ),
)  # fmt: skip

NVME_IDENTITY = Identity(0x1B36, 0x0010, 0x010802, 2, 0x1AF4, 0x1100)
NVME_MAX_VFS = 127
NVME = AdapterProfile(
    name="nvme",
    pf=FunctionProfile(
        NVME_IDENTITY,
        capabilities=(
            MsixProfile(0x40, 18, table_bar=0, table_offset=0x2000, pending_bar=0, pending_offset=0x3000),
            ExpressProfile(
                0x80, device_capabilities=0x1000_8020, link_capabilities=0x411, link_status=0x11,
                device_capabilities_2=0x0030_0000, device_control_2_writable=0x8000,
            ),
            PowerProfile(0x60, no_soft_reset=True),
        ),
        extended=(
            AriProfile(0x100),
            SriovProfile(
                0x120, vf_device_id=0x0010, total_vfs=NVME_MAX_VFS, routings=(VfRouting(1, 1),),
                vf_bars=(Bar(0, 16 * KIB, is_64bit=True),),
            ),
        ),
        bars=(Bar(0, 16 * KIB, is_64bit=True),),
    ),
    vf=FunctionProfile(
        NVME_IDENTITY,
        capabilities=(
            MsixProfile(0x40, 1, table_bar=0, table_offset=0x2000, pending_bar=0, pending_offset=0x3000),
            ExpressProfile(
                0x80, device_capabilities=0x1000_8020, link_capabilities=0x411, link_status=0x11,
                device_capabilities_2=0x0030_0000, is_vf=True,
            ),
            PowerProfile(0x60, no_soft_reset=True),
        ),
        extended=(AriProfile(0x100),),
    ),
)  # fmt: skip

DLB_VENDOR_ID = 0x1234
DLB_PF_DEVICE_ID = 0x0D1B
DLB_VF_DEVICE_ID = 0x0D1C
# 512-byte payloads, 10-bit tags; relaxed ordering, no snoop, payload and read request sizes are software's
# to set
DLB_DEVICE_CAPABILITIES = 0x1000_8022
DLB_DEVICE_CAPABILITIES_2 = 0x0003_0000
DLB_LINK_CAPABILITIES = 0x0000_0483  # 8 GT/s, x8, ASPM L0s
DLB = AdapterProfile(
    name="dlb",
    pf=FunctionProfile(
        Identity(DLB_VENDOR_ID, DLB_PF_DEVICE_ID, 0x0B4000, 1, DLB_VENDOR_ID, 0x0001),
        capabilities=(
            MsixProfile(
                0x60, 65, table_bar=0, table_offset=16 * MIB, pending_bar=0, pending_offset=24 * MIB,
            ),
            ExpressProfile(
                0x6C, DLB_DEVICE_CAPABILITIES, DLB_LINK_CAPABILITIES, link_status=0x83,
                device_capabilities_2=DLB_DEVICE_CAPABILITIES_2, device_control=0x2810,
                device_control_writable=0x79F0, device_control_2_writable=0x1000,
            ),
            PowerProfile(0xB0),
        ),
        extended=(
            AerProfile(0x100, ecrc=True),
            AriProfile(0x148),
            SriovProfile(
                0x160, vf_device_id=DLB_VF_DEVICE_ID, total_vfs=256,
                # without ARI a card has functions 0 to 7 only: more VFs than that move to the next bus
                # number
                routings=(
                    VfRouting(1, 1),
                    VfRouting(256, 1, num_vfs_from=8),
                    VfRouting(1, 1, ari_hierarchy=True),
                ),
                vf_bars=(Bar(0, 64 * KIB, is_64bit=True, prefetchable=True),),
                capabilities=SriovCapabilities.ARI_HIERARCHY_PRESERVED | SriovCapabilities.VF_TEN_BIT_TAG,
            ),
        ),
        bars=(Bar(0, 32 * MIB, is_64bit=True, prefetchable=True),),
    ),
    vf=FunctionProfile(
        Identity(DLB_VENDOR_ID, DLB_VF_DEVICE_ID, 0x0B4000, 1, DLB_VENDOR_ID, 0x0002),
        capabilities=(
            MsixProfile(0x60, 17, table_bar=0, table_offset=0x8000, pending_bar=0, pending_offset=0x9000),
            ExpressProfile(
                0x6C, DLB_DEVICE_CAPABILITIES, DLB_LINK_CAPABILITIES, link_status=0,
                device_capabilities_2=DLB_DEVICE_CAPABILITIES_2, is_vf=True,
            ),
        ),
        extended=(
            AerProfile(0x100, VF_UNCORRECTABLE_BITS, VF_CORRECTABLE_BITS, is_vf=True),
            AriProfile(0x148),
        ),
    ),
)  # fmt: skip

PROFILES: dict[str, AdapterProfile] = {profile.name: profile for profile in (IGB, NVME, DLB)}


def with_total_vfs(profile: AdapterProfile, total_vfs: int) -> AdapterProfile:
    """The same adapter with another TotalVFs (1-65535), as QEMU's nvme takes one by `sriov_max_vfs`.

    Raises ValueError.
    """
    extended = tuple(
        replace(item, total_vfs=total_vfs) if isinstance(item, SriovProfile) else item
        for item in profile.pf.extended
    )
    return replace(profile, pf=replace(profile.pf, extended=extended))
