"""Register offsets and bits of PCI configuration space, as the PCI Express base specification names them.

Rule: constants only. Offsets inside a capability are relative to its first byte; widths are in the comment
where a register is not 32 bits wide.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

CONFIG_SPACE_BYTES = 4096
LEGACY_CONFIG_BYTES = 256
HEADER_BYTES = 64
FIRST_EXTENDED_CAPABILITY = 0x100


class Header(IntEnum):
    """Type 0 configuration space header (PCI local bus 6.1, PCIe 7.5.1)."""

    VENDOR_ID = 0x00  # 16
    DEVICE_ID = 0x02  # 16
    COMMAND = 0x04  # 16
    STATUS = 0x06  # 16
    REVISION = 0x08  # 8
    CLASS_CODE = 0x09  # 24
    CACHE_LINE_SIZE = 0x0C  # 8
    HEADER_TYPE = 0x0E  # 8
    BAR0 = 0x10
    SUBSYSTEM_VENDOR_ID = 0x2C  # 16
    SUBSYSTEM_ID = 0x2E  # 16
    CAPABILITIES_POINTER = 0x34  # 8
    INTERRUPT_LINE = 0x3C  # 8
    INTERRUPT_PIN = 0x3D  # 8


class Bridge(IntEnum):
    """What a type 1 header has instead (PCIe 7.5.1.3)."""

    SECONDARY_BUS = 0x19  # 8
    SUBORDINATE_BUS = 0x1A  # 8
    SECONDARY_STATUS = 0x1E  # 16


class Command(IntFlag):
    """Command register at 04."""

    IO_SPACE = 0x0001
    MEMORY_SPACE = 0x0002
    BUS_MASTER = 0x0004
    PARITY_ERROR_RESPONSE = 0x0040
    SERR_ENABLE = 0x0100
    INTX_DISABLE = 0x0400


class Status(IntFlag):
    """Status register at 06; ERRORS are write-one-to-clear."""

    CAPABILITIES_LIST = 0x0010
    SIGNALED_SYSTEM_ERROR = 0x4000
    ERRORS = 0xF900


class CapabilityId(IntEnum):
    """Ids in the capability list that starts at 34."""

    POWER_MANAGEMENT = 0x01
    MSI = 0x05
    EXPRESS = 0x10
    MSIX = 0x11


class ExtendedCapabilityId(IntEnum):
    """Ids in the extended capability list that starts at 100."""

    AER = 0x0001
    ARI = 0x000E
    SRIOV = 0x0010


class Power(IntEnum):
    """Power management capability (PCI PM 1.2, 3.2)."""

    CAPABILITIES = 0x02  # 16
    CONTROL = 0x04  # 16


class PowerControl(IntFlag):
    """Power management control and status."""

    STATE = 0x0003
    NO_SOFT_RESET = 0x0008
    PME_ENABLE = 0x0100
    PME_STATUS = 0x8000


class Msi(IntEnum):
    """MSI capability, the 64-bit form with per-vector masking (PCI 6.8.1)."""

    CONTROL = 0x02  # 16
    ADDRESS = 0x04
    UPPER_ADDRESS = 0x08
    DATA = 0x0C  # 16
    MASK = 0x10
    PENDING = 0x14


class Msix(IntEnum):
    """MSI-X capability (PCI 6.8.2)."""

    CONTROL = 0x02  # 16
    TABLE = 0x04
    PENDING_BITS = 0x08


class MsixControl(IntFlag):
    """MSI-X message control; the table size is encoded as vectors - 1."""

    TABLE_SIZE = 0x07FF
    FUNCTION_MASK = 0x4000
    ENABLE = 0x8000


class Express(IntEnum):
    """PCI Express capability, version 2 (PCIe 7.5.3)."""

    FLAGS = 0x02  # 16
    DEVICE_CAPABILITIES = 0x04
    DEVICE_CONTROL = 0x08  # 16
    DEVICE_STATUS = 0x0A  # 16
    LINK_CAPABILITIES = 0x0C
    LINK_CONTROL = 0x10  # 16
    LINK_STATUS = 0x12  # 16
    DEVICE_CAPABILITIES_2 = 0x24
    DEVICE_CONTROL_2 = 0x28  # 16


class DeviceCapabilities(IntFlag):
    """PCI Express device capabilities."""

    FUNCTION_LEVEL_RESET = 0x1000_0000


class DeviceControl(IntFlag):
    """PCI Express device control."""

    CORRECTABLE_REPORTING = 0x0001
    NONFATAL_REPORTING = 0x0002
    FATAL_REPORTING = 0x0004
    UNSUPPORTED_REQUEST_REPORTING = 0x0008
    MAX_PAYLOAD_SIZE = 0x00E0
    INITIATE_FLR = 0x8000


class DeviceStatus(IntFlag):
    """PCI Express device status; the first four bits are write-one-to-clear."""

    CORRECTABLE_DETECTED = 0x0001
    NONFATAL_DETECTED = 0x0002
    FATAL_DETECTED = 0x0004
    UNSUPPORTED_REQUEST_DETECTED = 0x0008
    TRANSACTIONS_PENDING = 0x0020


class Aer(IntEnum):
    """Advanced error reporting extended capability (PCIe 7.8.4)."""

    UNCORRECTABLE_STATUS = 0x04
    UNCORRECTABLE_MASK = 0x08
    UNCORRECTABLE_SEVERITY = 0x0C
    CORRECTABLE_STATUS = 0x10
    CORRECTABLE_MASK = 0x14
    CONTROL = 0x18
    HEADER_LOG = 0x1C  # 4 x 32
    ROOT_ERROR_STATUS = 0x30  # root ports and event collectors only, as the next
    ERROR_SOURCE = 0x34  # routing ids: 15:0 of ERR_COR, 31:16 of ERR_NONFATAL and ERR_FATAL


AER_FIRST_ERROR_POINTER = 0x1F


class Ari(IntEnum):
    """Alternative routing-id interpretation extended capability (PCIe 7.8.8)."""

    CAPABILITY = 0x04  # 16; bits 15:8 are the next function number


class Sriov(IntEnum):
    """Single root I/O virtualization extended capability (PCIe 9.3.3)."""

    CAPABILITIES = 0x04
    CONTROL = 0x08  # 16
    STATUS = 0x0A  # 16
    INITIAL_VFS = 0x0C  # 16
    TOTAL_VFS = 0x0E  # 16
    NUM_VFS = 0x10  # 16
    FUNCTION_DEPENDENCY_LINK = 0x12  # 8
    FIRST_VF_OFFSET = 0x14  # 16
    VF_STRIDE = 0x16  # 16
    VF_DEVICE_ID = 0x1A  # 16
    SUPPORTED_PAGE_SIZES = 0x1C
    SYSTEM_PAGE_SIZE = 0x20
    VF_BAR0 = 0x24
    VF_MIGRATION_STATE_ARRAY = 0x3C


class SriovCapabilities(IntFlag):
    """SR-IOV capabilities."""

    VF_MIGRATION = 0x0001
    ARI_HIERARCHY_PRESERVED = 0x0002
    VF_TEN_BIT_TAG = 0x0004


class SriovControl(IntFlag):
    """SR-IOV control."""

    VF_ENABLE = 0x0001
    VF_MIGRATION_ENABLE = 0x0002
    VF_MIGRATION_INTERRUPT = 0x0004
    VF_MEMORY_SPACE = 0x0008
    ARI_HIERARCHY = 0x0010
    VF_TEN_BIT_TAG = 0x0020


SRIOV_MIGRATION_STATUS = 0x0001
CAPABILITY_BYTES: dict[int, int] = {
    CapabilityId.POWER_MANAGEMENT: 0x08,
    CapabilityId.MSI: 0x0A,
    CapabilityId.EXPRESS: 0x14,
    CapabilityId.MSIX: 0x0C,
}
EXTENDED_CAPABILITY_BYTES: dict[int, int] = {
    ExtendedCapabilityId.AER: 0x2C,
    ExtendedCapabilityId.ARI: 0x08,
    ExtendedCapabilityId.SRIOV: 0x40,
}
