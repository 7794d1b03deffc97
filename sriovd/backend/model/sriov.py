"""The SR-IOV extended capability, register by register, and the routing ids that follow from it.

Rule: PCIe 9.3.3. Everything is derived from register values at the moment of asking; there is no count of
VFs and no write mask kept beside them (see configspace.py for why). Which VF objects exist is the PF's
business: `changed` tells it that VF Enable or a reset may have made them come or go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sriovd.backend.model.configspace import Behaviour, ConfigLayout, ConfigSpace
from sriovd.backend.model.header import Bar, BarWindow
from sriovd.pci_registers import (
    SRIOV_MIGRATION_STATUS,
    ExtendedCapabilityId,
    Sriov,
    SriovCapabilities,
    SriovControl,
)

MINIMUM_PAGE_SIZES = 0x553  # 4K, 8K, 64K, 256K, 1M, 4M: every device must support these (9.3.3.12)
PAGE_SHIFT = 12
BAR_FLAGS = 0xF


@dataclass(frozen=True, slots=True)
class VfRouting:
    """First VF Offset and VF Stride for a setting of ARI Capable Hierarchy and NumVFs from `num_vfs_from`
    up.
    """

    offset: int
    stride: int
    ari_hierarchy: bool = False
    num_vfs_from: int = 0


@dataclass(frozen=True, slots=True)
class SriovProfile:
    """The capability as data.

    Routings: the last row that fits counts; rows with ARI matter only where ari_hierarchy is set.
    """

    offset: int
    vf_device_id: int
    total_vfs: int
    routings: tuple[VfRouting, ...]
    vf_bars: tuple[Bar, ...]
    supported_page_sizes: int = MINIMUM_PAGE_SIZES
    capabilities: int = 0  # SriovCapabilities bits
    function_dependency_link: int = 0
    is_lowest_pf: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for what no device could have."""
        if not 0 < self.total_vfs <= 0xFFFF:
            raise ValueError(f"TotalVFs {self.total_vfs}: 1 to 65535 are possible")
        if self.supported_page_sizes & MINIMUM_PAGE_SIZES != MINIMUM_PAGE_SIZES:
            raise ValueError(
                f"supported page sizes {self.supported_page_sizes:#x}: must include {MINIMUM_PAGE_SIZES:#x}"
            )
        if not any(not row.ari_hierarchy and row.num_vfs_from == 0 for row in self.routings):
            raise ValueError("routings: a row for any NumVFs without ARI is missing")

    @property
    def id(self) -> int:
        """The extended capability id."""
        return ExtendedCapabilityId.SRIOV

    @property
    def control_writable(self) -> int:
        """The bits of Control that exist here.

        ARI Capable Hierarchy is read-only zero except in the lowest PF.
        """
        bits = SriovControl.VF_ENABLE | SriovControl.VF_MEMORY_SPACE
        if self.is_lowest_pf:
            bits |= SriovControl.ARI_HIERARCHY
        if self.capabilities & SriovCapabilities.VF_MIGRATION:
            bits |= SriovControl.VF_MIGRATION_ENABLE | SriovControl.VF_MIGRATION_INTERRUPT
        if self.capabilities & SriovCapabilities.VF_TEN_BIT_TAG:
            bits |= SriovControl.VF_TEN_BIT_TAG
        return bits

    def routing(self, ari_hierarchy: bool, num_vfs: int) -> VfRouting:
        """The row that fits."""
        usable = (
            row
            for row in self.routings
            if row.ari_hierarchy <= ari_hierarchy and row.num_vfs_from <= num_vfs
        )
        return list(usable)[-1]

    def define(self, layout: ConfigLayout) -> None:
        """Define the registers at their reset values: Control 0, NumVFs 0, System Page Size 4 KiB."""
        migration = SRIOV_MIGRATION_STATUS if self.capabilities & SriovCapabilities.VF_MIGRATION else 0
        for register, width, value, writable, clearable in (
            (Sriov.CAPABILITIES, 4, self.capabilities, 0, 0),
            (Sriov.CONTROL, 2, 0, self.control_writable, 0),
            (Sriov.STATUS, 2, 0, 0, migration),
            (Sriov.INITIAL_VFS, 2, self.total_vfs, 0, 0),
            (Sriov.TOTAL_VFS, 2, self.total_vfs, 0, 0),
            (Sriov.NUM_VFS, 2, 0, 0xFFFF, 0),
            (Sriov.FUNCTION_DEPENDENCY_LINK, 1, self.function_dependency_link, 0, 0),
            (Sriov.FIRST_VF_OFFSET, 2, 0, 0, 0),
            (Sriov.VF_STRIDE, 2, 0, 0, 0),
            (Sriov.VF_DEVICE_ID, 2, self.vf_device_id, 0, 0),
            (Sriov.SUPPORTED_PAGE_SIZES, 4, self.supported_page_sizes, 0, 0),
            (Sriov.SYSTEM_PAGE_SIZE, 4, 1, self.supported_page_sizes, 0),
        ):
            layout.define(self.offset + register, width, value, writable=writable, clearable=clearable)
        for bar in self.vf_bars:
            bar.define(layout, self.offset + Sriov.VF_BAR0)


class SriovCapability:
    """The live capability of one PF.

    `siblings` are those of all PFs of the device, the lowest first, itself included.
    """

    def __init__(
        self,
        config: ConfigSpace,
        profile: SriovProfile,
        siblings: Sequence[SriovCapability],
        changed: Callable[[], None],
    ) -> None:
        """Attach to the registers."""
        self.profile = profile
        self._config = config
        self._siblings = siblings
        self._changed = changed
        at = profile.offset
        for behaviour in (
            Behaviour(at + Sriov.CONTROL, 2, decide=self._decide_control, commit=self._commit_control),
            Behaviour(at + Sriov.NUM_VFS, 2, decide=self._decide_while_disabled),
            Behaviour(at + Sriov.SYSTEM_PAGE_SIZE, 4, decide=self._decide_page_size),
            Behaviour(at + Sriov.FIRST_VF_OFFSET, 2, view=lambda _stored: self.first_vf_offset),
            Behaviour(at + Sriov.VF_STRIDE, 2, view=lambda _stored: self.vf_stride),
        ):
            config.attach(behaviour)
        for bar in profile.vf_bars:
            config.attach(Behaviour(at + Sriov.VF_BAR0 + 4 * bar.index, bar.width, view=self._align_bar))

    @property
    def vf_enable(self) -> bool:
        """VF Enable: the VFs exist."""
        return bool(self._control & SriovControl.VF_ENABLE)

    @property
    def vf_memory_space(self) -> bool:
        """VF Memory Space Enable: the VFs decode their memory."""
        return bool(self._control & SriovControl.VF_MEMORY_SPACE)

    @property
    def ari_hierarchy(self) -> bool:
        """ARI Capable Hierarchy, which the lowest PF holds for the whole device."""
        return bool(self._siblings[0]._control & SriovControl.ARI_HIERARCHY)

    @property
    def num_vfs(self) -> int:
        """The NumVFs register, whether VFs are enabled or not."""
        return self._register(Sriov.NUM_VFS, 2)

    @property
    def enabled_vfs(self) -> int:
        """How many VFs exist: NumVFs if VF Enable is set, else 0."""
        return self.num_vfs if self.vf_enable else 0

    @property
    def page_size(self) -> int:
        """The system page size in bytes."""
        return self._register(Sriov.SYSTEM_PAGE_SIZE, 4) << PAGE_SHIFT

    @property
    def first_vf_offset(self) -> int:
        """First VF Offset, under the present ARI setting and NumVFs."""
        return self.profile.routing(self.ari_hierarchy, self.num_vfs).offset

    @property
    def vf_stride(self) -> int:
        """VF Stride, likewise."""
        return self.profile.routing(self.ari_hierarchy, self.num_vfs).stride

    def vf_bar_windows(self) -> list[BarWindow]:
        """Where each VF BAR starts and the size of ONE VF's part; VF i has address + i * size."""
        windows = []
        for bar in self.profile.vf_bars:
            raw = self._config.peek(self.profile.offset + Sriov.VF_BAR0 + 4 * bar.index, bar.width)
            windows.append(BarWindow(bar, self._align_bar(raw) & ~BAR_FLAGS, max(bar.size, self.page_size)))
        return windows

    def _decide_control(self, old: int, proposed: int) -> int:
        """VF Enable stays clear while NumVFs is too large; ARI stays as it is under VFs that stay."""
        kept = 0
        if not old & SriovControl.VF_ENABLE and self.num_vfs > self.profile.total_vfs:
            kept |= SriovControl.VF_ENABLE
        own_vfs_stay = old & proposed & SriovControl.VF_ENABLE
        if own_vfs_stay or any(other.vf_enable for other in self._siblings if other is not self):
            kept |= SriovControl.ARI_HIERARCHY
        return proposed & ~kept | old & kept

    def _commit_control(self, _old: int, _proposed: int) -> None:
        self._changed()

    def _decide_while_disabled(self, old: int, proposed: int) -> int:
        return old if self.vf_enable else proposed

    def _decide_page_size(self, old: int, proposed: int) -> int:
        """Exactly one supported size, and only while no VF exists (9.3.3.13)."""
        return proposed if proposed.bit_count() == 1 and not self.vf_enable else old

    def _align_bar(self, stored: int) -> int:
        """VF BARs are aligned to the system page size: a larger page hides low address bits (9.3.3.14)."""
        return stored & ~(self.page_size - 1) | stored & BAR_FLAGS

    @property
    def _control(self) -> int:
        return self._register(Sriov.CONTROL, 2)

    def _register(self, register: int, width: int) -> int:
        return self._config.peek(self.profile.offset + register, width)
