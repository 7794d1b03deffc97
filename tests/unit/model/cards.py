"""Adapters for the tests, and the writes that Linux makes to bring VFs up and down (drivers/pci/iov.c)."""

from __future__ import annotations

from dataclasses import replace

from sriovd.backend.model import PROFILES, Adapter, PhysicalFunctionModel
from sriovd.pci import PciAddress
from sriovd.pci_registers import Sriov, SriovControl

SLOT = PciAddress.parse("0000:01:00.0")


def build_adapter(profile: str, slot: PciAddress = SLOT, physical_functions: int = 1) -> Adapter:
    """A card just out of power-on."""
    return Adapter(replace(PROFILES[profile], physical_functions=physical_functions), slot)


def build_pf(profile: str) -> PhysicalFunctionModel:
    """The only PF of a new card."""
    return build_adapter(profile).physical_functions[0]


def sriov_read(pf: PhysicalFunctionModel, register: int, width: int) -> int:
    """A register of the SR-IOV capability as software reads it."""
    return pf.read(pf.sriov.profile.offset + register, width)


def sriov_write(pf: PhysicalFunctionModel, register: int, width: int, value: int) -> None:
    """Write a register of the SR-IOV capability."""
    pf.write(pf.sriov.profile.offset + register, width, value)


def enable_vfs(pf: PhysicalFunctionModel, count: int) -> None:
    """NumVFs, then VF Enable and VF MSE, as sriov_enable() does."""
    sriov_write(pf, Sriov.NUM_VFS, 2, count)
    control = sriov_read(pf, Sriov.CONTROL, 2)
    sriov_write(pf, Sriov.CONTROL, 2, control | SriovControl.VF_ENABLE | SriovControl.VF_MEMORY_SPACE)


def disable_vfs(pf: PhysicalFunctionModel) -> None:
    """Clear VF Enable and VF MSE, then NumVFs, as sriov_disable() does."""
    control = sriov_read(pf, Sriov.CONTROL, 2)
    sriov_write(pf, Sriov.CONTROL, 2, control & ~int(SriovControl.VF_ENABLE | SriovControl.VF_MEMORY_SPACE))
    sriov_write(pf, Sriov.NUM_VFS, 2, 0)
