"""An adapter: its PFs, the VFs that exist because of their registers, and access by routing id.

Rule: this is the model's outside. Pure and synchronous; knows no kernel, no sysfs, no time. VF objects live
from the write that sets VF Enable to the one that clears it (or a reset): a handle kept longer reads
all-ones and stays dead, also when VFs come back.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from sriovd.backend.model.aer import AerCapability
from sriovd.backend.model.capabilities import link_capabilities, link_extended_capabilities
from sriovd.backend.model.configspace import ConfigLayout, Reset
from sriovd.backend.model.function import FunctionModel, find_profile
from sriovd.backend.model.header import BarWindow, define_pf_header, define_vf_header
from sriovd.backend.model.mailbox import Mailbox
from sriovd.backend.model.profiles import AdapterProfile, FunctionProfile
from sriovd.backend.model.sriov import SriovCapability, SriovProfile
from sriovd.pci import PciAddress, vf_address, vf_index
from sriovd.pci_registers import Command, Header, Sriov, SriovCapabilities, SriovControl

LAST_RID = 0xFFFF


class PhysicalFunctionModel(FunctionModel):
    """A PF: its own registers and, while VF Enable is set, its VFs."""

    def __init__(
        self, adapter: Adapter, address: PciAddress, profile: FunctionProfile, layout: ConfigLayout
    ) -> None:
        """A PF just out of power-on. Raises ValueError for a profile without SR-IOV capability."""
        super().__init__(address, profile, layout)
        self.adapter = adapter
        self._vfs: dict[int, VirtualFunctionModel] = {}
        self.sriov = SriovCapability(
            self.config, sriov_profile(profile), adapter.sriov_capabilities, self._drop_gone_vfs
        )
        adapter.sriov_capabilities.append(self.sriov)

    @property
    def present(self) -> bool:
        """Whether the adapter is on the bus."""
        return self.adapter.present

    @property
    def memory_space(self) -> bool:
        """Memory Space Enable of the command register."""
        return bool(self.config.peek(Header.COMMAND, 2) & Command.MEMORY_SPACE)

    @property
    def virtual_functions(self) -> list[VirtualFunctionModel]:
        """The VFs that exist now, by index: NumVFs of them while VF Enable is set, else none."""
        return [self.virtual_function(index) for index in range(self.sriov.enabled_vfs)]

    def virtual_function(self, index: int) -> VirtualFunctionModel:
        """VF `index`, counted from 0. Raises ValueError if it does not exist at the moment."""
        if not 0 <= index < self.sriov.enabled_vfs:
            raise ValueError(f"{self.address} has no VF {index}: {self.sriov.enabled_vfs} exist")
        if index not in self._vfs:
            self._vfs[index] = VirtualFunctionModel(self, index)
        return self._vfs[index]

    def vf_address(self, index: int) -> PciAddress:
        """Where VF `index` is or would be under the present registers.

        Raises AddressError past the last bus.
        """
        return vf_address(self.address, self.sriov.first_vf_offset, self.sriov.vf_stride, index)

    def vf_index_at(self, address: PciAddress) -> int | None:
        """Which existing VF sits at `address`, or None."""
        index = vf_index(self.address, self.sriov.first_vf_offset, self.sriov.vf_stride, address)
        return index if index is not None and index < self.sriov.enabled_vfs else None

    def has_vf(self, vf: VirtualFunctionModel) -> bool:
        """Whether this very object is the VF that exists under its index."""
        return vf.index < self.sriov.enabled_vfs and self._vfs.get(vf.index) is vf

    def bar_windows(self) -> list[BarWindow]:
        """Where the PF's own BARs decode."""
        return [
            BarWindow(
                bar, self.config.peek(Header.BAR0 + 4 * bar.index, bar.width) & bar.address_bits, bar.size
            )
            for bar in self.profile.bars
        ]

    def reset(self, kind: Reset) -> None:
        """Reset the registers, SR-IOV among them, so that the VFs are gone (9.2.2.2)."""
        super().reset(kind)
        self._drop_gone_vfs()

    def load_config(self, recorded: bytes) -> None:
        """Take over a recorded 4096-byte configuration space, VFs included if VF Enable was set.

        Raises ValueError, naming the first offset, when the dump is of another device than the profile.
        """
        self._drop_all_vfs()
        self.config.load(recorded)

    def put_back(self, saved: bytes) -> None:
        """Software writes back what it has saved before a reset, and all VFs are new."""
        self._drop_all_vfs()
        super().put_back(saved)

    def _soft_reset(self) -> None:
        """Leaving D3hot keeps ARI Capable Hierarchy where the capability says so (9.3.3.2.2)."""
        profile = self.sriov.profile
        control = profile.offset + Sriov.CONTROL
        kept = (
            SriovControl.ARI_HIERARCHY
            if profile.capabilities & SriovCapabilities.ARI_HIERARCHY_PRESERVED
            else 0
        )
        ari = self.config.peek(control, 2) & kept
        super()._soft_reset()
        self.config.poke(control, 2, ari)

    def _drop_gone_vfs(self) -> None:
        if not self.sriov.vf_enable:
            self._drop_all_vfs()

    def _drop_all_vfs(self) -> None:
        self._vfs.clear()


class VirtualFunctionModel(FunctionModel):
    """A VF. `index` counts from 0 within its PF; get one from PhysicalFunctionModel.virtual_function."""

    def __init__(self, pf: PhysicalFunctionModel, index: int) -> None:
        """A VF as VF Enable brings it up."""
        self.physical_function = pf
        self.index = index
        self._mailbox: Mailbox | None = None
        profile = pf.adapter.profile.vf
        super().__init__(pf.vf_address(index), profile, vf_layout(profile))

    @property
    def present(self) -> bool:
        """Whether the adapter is there and this VF has not been destroyed."""
        return self.physical_function.present and self.physical_function.has_vf(self)

    @property
    def mailbox(self) -> Mailbox:
        """Between it and its PF; made when first used."""
        if self._mailbox is None:
            self._mailbox = Mailbox()
        return self._mailbox

    @property
    def memory_space(self) -> bool:
        """VF Memory Space Enable, which the PF holds for all its VFs."""
        return self.physical_function.sriov.vf_memory_space

    def bar_windows(self) -> list[BarWindow]:
        """Where this VF's part of each VF BAR decodes."""
        windows = self.physical_function.sriov.vf_bar_windows()
        return [BarWindow(item.bar, item.address + self.index * item.size, item.size) for item in windows]

    def _aer_masks(self) -> AerCapability | None:
        return self.physical_function.aer

    def _reporting_registers(self) -> tuple[int, int]:
        return self.physical_function._reporting_registers()


class Adapter:
    """A card in a slot: PFs at function 0 and up of `address`, and their VFs."""

    def __init__(self, profile: AdapterProfile, address: PciAddress) -> None:
        """A card just out of power-on. `address` is that of PF 0.

        Raises ValueError when the address is not function 0 or the last possible VF would lie past bus ff.
        """
        if address.function:
            raise ValueError(f"adapter at {address}: the address of its function 0 is wanted")
        self.profile = profile
        self.address = address
        self.present = True
        self.sriov_capabilities: list[SriovCapability] = []
        self.physical_functions = tuple(
            self._build_pf(number) for number in range(profile.physical_functions)
        )

    def _build_pf(self, number: int) -> PhysicalFunctionModel:
        address = self.address._replace(function=number)
        layout, profile = pf_layout(self.profile, number)
        sriov = sriov_profile(profile)
        last = max(row.offset + row.stride * (sriov.total_vfs - 1) for row in sriov.routings)
        if address.rid + last > LAST_RID:
            raise ValueError(f"adapter {self.profile.name} at {address}: its last VF would lie past bus ff")
        return PhysicalFunctionModel(self, address, profile, layout)

    @property
    def functions(self) -> list[FunctionModel]:
        """Every function that exists now: the PFs, then the VFs of each."""
        vfs: list[FunctionModel] = [vf for pf in self.physical_functions for vf in pf.virtual_functions]
        return [*self.physical_functions, *vfs]

    def function_at(self, rid: int) -> FunctionModel | None:
        """The function with that routing id, or None. Cost does not depend on how many VFs exist."""
        address = PciAddress.from_rid(self.address.domain, rid)
        for pf in self.physical_functions:
            if pf.rid == rid:
                return pf
            index = pf.vf_index_at(address)
            if index is not None:
                return pf.virtual_function(index)
        return None

    def read_config(self, rid: int, offset: int, width: int) -> int:
        """A configuration read by routing id.

        All-ones where nothing answers. Raises ValueError for a bad access.
        """
        self.physical_functions[0].config.check_access(offset, width)
        function = self.function_at(rid)
        return function.read(offset, width) if function else (1 << 8 * width) - 1

    def write_config(self, rid: int, offset: int, width: int, value: int) -> None:
        """A configuration write by routing id, lost where nothing answers.

        Raises ValueError for a bad access.
        """
        self.physical_functions[0].config.check_write(offset, width, value)
        function = self.function_at(rid)
        if function:
            function.write(offset, width, value)

    def surprise_down(self) -> None:
        """The card falls off the bus.

        Everything reads all-ones, writes are lost, registers lose their power.
        """
        self.present = False

    def restore(self) -> None:
        """The card comes back out of power-on: no VFs, every register at its reset value, nothing frozen."""
        self.present = True
        for pf in self.physical_functions:
            pf.frozen = False
            pf.reset(Reset.POWER)

    def hot_reset(self) -> None:
        """A secondary bus reset: all PFs reset and VFs gone, sticky registers kept."""
        for pf in self.physical_functions:
            pf.reset(Reset.HOT)


def sriov_profile(profile: FunctionProfile) -> SriovProfile:
    """The SR-IOV capability of a PF's profile. Raises ValueError if there is none."""
    found = find_profile(profile.extended, SriovProfile)
    if found is None:
        raise ValueError("a PF profile without SR-IOV capability")
    return found


@lru_cache(maxsize=64)
def pf_layout(profile: AdapterProfile, number: int) -> tuple[ConfigLayout, FunctionProfile]:
    """Registers and profile of PF `number`.

    Only the lowest has ARI Capable Hierarchy, each depends on itself.
    """
    extended = tuple(
        replace(item, is_lowest_pf=number == 0, function_dependency_link=number)
        if isinstance(item, SriovProfile)
        else item
        for item in profile.pf.extended
    )
    own = replace(profile.pf, extended=extended)
    layout = ConfigLayout()
    define_pf_header(layout, own.identity, own.bars, profile.physical_functions > 1)
    link_capabilities(layout, own.capabilities)
    link_extended_capabilities(layout, own.extended)
    return layout, own


@lru_cache(maxsize=64)
def vf_layout(profile: FunctionProfile) -> ConfigLayout:
    """Registers of a VF, shared by all of its kind."""
    layout = ConfigLayout()
    define_vf_header(layout, profile.identity)
    link_capabilities(layout, profile.capabilities)
    link_extended_capabilities(layout, profile.extended)
    return layout
