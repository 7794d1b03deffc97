"""An adapter as a recording shows it: profiles from configuration space, registers bit by bit as recorded.

Rule: what the model knows of a capability behaves as the model does; every other byte reads as recorded and
ignores writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

from sriovd.backend.model import AdapterProfile, ConfigSpace
from sriovd.backend.model.aer import VF_CORRECTABLE_BITS, VF_UNCORRECTABLE_BITS, AerProfile
from sriovd.backend.model.ari import AriProfile
from sriovd.backend.model.capabilities import Capability, walk_capabilities, walk_extended_capabilities
from sriovd.backend.model.configspace import ConfigLayout
from sriovd.backend.model.express import ExpressProfile
from sriovd.backend.model.header import Bar, Identity
from sriovd.backend.model.msi import MsixProfile
from sriovd.backend.model.power import PowerProfile
from sriovd.backend.model.profiles import ExtendedCapability, FunctionProfile, LegacyCapability
from sriovd.backend.model.sriov import SriovProfile, VfRouting
from sriovd.backend.simulated.device import Ids, Resource
from sriovd.pci_registers import (
    Aer,
    CapabilityId,
    Express,
    ExtendedCapabilityId,
    Header,
    Msix,
    MsixControl,
    Power,
    PowerControl,
    Sriov,
    SriovCapabilities,
)

CONFIG_BYTES = 4096
_IOV_FIRST = 7
_ALL_COMMANDS = 0x79F0  # device control bits that software may set besides error reporting and FLR


def build_profile(
    name: str,
    ids: Ids,
    config: bytes,
    resources: Sequence[Resource],
    vf: bytes | None,
    vf_ids: Ids,
    functions: int,
) -> AdapterProfile:
    """The profile of an adapter whose PF 0 has this configuration space. `vf`: that of a VF, if one was
    recorded.

    Raises ValueError naming what the bytes lack.
    """
    if len(config) != CONFIG_BYTES:
        raise ValueError(
            f"{len(config)} bytes of configuration space; all {CONFIG_BYTES} are needed, which root can read"
        )
    pf = _build_function(ids, ConfigSpace.from_bytes(config), resources, is_vf=False)
    if not any(isinstance(item, SriovProfile) for item in pf.extended):
        raise ValueError("no SR-IOV capability in the configuration space")
    if vf is not None and len(vf) == CONFIG_BYTES:
        vf_profile = _build_function(vf_ids, ConfigSpace.from_bytes(vf), (), is_vf=True)
    else:
        # nobody has seen one: the least that a VF of an ARI hierarchy has
        vf_profile = FunctionProfile(_identity(vf_ids), (_vf_express(pf),), (AriProfile(0x100),))
    return AdapterProfile(name, pf, vf_profile, physical_functions=functions)


def dress_layout(layout: ConfigLayout, recorded: bytes) -> ConfigLayout:
    """A copy of `layout` in which every bit that software cannot change is as recorded."""
    dressed = copy.copy(layout)
    dressed.reset_values = bytearray(layout.reset_values)
    for offset, byte in enumerate(recorded):
        changeable = layout.writable[offset] | layout.clearable[offset]
        dressed.reset_values[offset] = dressed.reset_values[offset] & changeable | byte & ~changeable & 0xFF
    return dressed


def dress_config(config: ConfigSpace, layout: ConfigLayout) -> None:
    """Give a function just out of power-on a dressed layout."""
    config.layout = layout
    config.poke(0, layout.size, int.from_bytes(layout.reset_values, "little"))


def recorded_routing(profile: SriovProfile, config: bytes) -> SriovProfile:
    """`profile` with the First VF Offset and VF Stride of another PF's recorded registers."""
    return replace(profile, routings=(_routing(ConfigSpace.from_bytes(config), profile.offset),))


def _build_function(
    ids: Ids, config: ConfigSpace, resources: Sequence[Resource], *, is_vf: bool
) -> FunctionProfile:
    legacy = [
        _LEGACY[item.id](config, item, is_vf) for item in walk_capabilities(config) if item.id in _LEGACY
    ]
    extended: list[ExtendedCapability] = []
    for item in walk_extended_capabilities(config):
        if item.id == ExtendedCapabilityId.SRIOV and not is_vf:
            extended.append(_build_sriov(config, item.offset, resources))
        elif item.id in _EXTENDED:
            extended.append(_EXTENDED[item.id](config, item, is_vf))
    bars = () if is_vf else _build_bars(config, Header.BAR0, resources[:6], 1)
    return FunctionProfile(_identity(ids), tuple(legacy), tuple(_first_at_100(extended)), bars)


def _first_at_100(extended: list[ExtendedCapability]) -> list[ExtendedCapability]:
    """The model wants its list to begin at 100; what the device has there may be unknown to it. The chain
    that software sees is the recorded one in any case."""
    if extended and extended[0].offset != 0x100:
        return [AriProfile(0x100), *extended]
    return extended


def _identity(ids: Ids) -> Identity:
    return Identity(
        ids.vendor, ids.device, ids.class_code, ids.revision, ids.subsystem_vendor, ids.subsystem_device
    )


def _build_bars(
    config: ConfigSpace, base: int, resources: Sequence[Resource], parts: int
) -> tuple[Bar, ...]:
    """BARs from the assigned resources; `parts`: how many VFs share one."""
    bars = []
    for index, resource in enumerate(resources):
        size = resource.size // parts
        if size:
            low = config.peek(base + 4 * index, 4)
            bars.append(
                Bar(index, size, is_64bit=low & 7 == 4, prefetchable=low & 9 == 8, is_io=bool(low & 1))
            )
    return tuple(bars)


def _build_sriov(config: ConfigSpace, offset: int, resources: Sequence[Resource]) -> SriovProfile:
    total = config.peek(offset + Sriov.TOTAL_VFS, 2)
    return SriovProfile(
        offset,
        vf_device_id=config.peek(offset + Sriov.VF_DEVICE_ID, 2),
        total_vfs=total,
        routings=(_routing(config, offset),),
        vf_bars=_build_bars(
            config, offset + Sriov.VF_BAR0, resources[_IOV_FIRST : _IOV_FIRST + 6], max(total, 1)
        ),
        supported_page_sizes=config.peek(offset + Sriov.SUPPORTED_PAGE_SIZES, 4) | 0x553,
        capabilities=SriovCapabilities(config.peek(offset + Sriov.CAPABILITIES, 4) & 7),
    )


def _routing(config: ConfigSpace, offset: int) -> VfRouting:
    return VfRouting(
        config.peek(offset + Sriov.FIRST_VF_OFFSET, 2), config.peek(offset + Sriov.VF_STRIDE, 2)
    )


def _vf_express(pf: FunctionProfile) -> ExpressProfile:
    own = next(item for item in pf.capabilities if isinstance(item, ExpressProfile))
    return replace(own, is_vf=True, link_status=0)


def _build_express(config: ConfigSpace, item: Capability, is_vf: bool) -> ExpressProfile:
    at = item.offset
    return ExpressProfile(
        at,
        config.peek(at + Express.DEVICE_CAPABILITIES, 4),
        config.peek(at + Express.LINK_CAPABILITIES, 4),
        config.peek(at + Express.LINK_STATUS, 2),
        config.peek(at + Express.DEVICE_CAPABILITIES_2, 4),
        device_control_writable=0 if is_vf else _ALL_COMMANDS,
        device_control_2_writable=0 if is_vf else 0xFFFF,
        is_vf=is_vf,
    )


def _build_msix(config: ConfigSpace, item: Capability, _is_vf: bool) -> MsixProfile:
    vectors = (config.peek(item.offset + Msix.CONTROL, 2) & MsixControl.TABLE_SIZE) + 1
    table, pending = (config.peek(item.offset + at, 4) for at in (Msix.TABLE, Msix.PENDING_BITS))
    return MsixProfile(item.offset, vectors, table & 7, table & ~7, pending & 7, pending & ~7)


def _build_power(config: ConfigSpace, item: Capability, _is_vf: bool) -> PowerProfile:
    control = config.peek(item.offset + Power.CONTROL, 2)
    return PowerProfile(
        item.offset,
        config.peek(item.offset + Power.CAPABILITIES, 2),
        no_soft_reset=bool(control & PowerControl.NO_SOFT_RESET),
        control_writable=PowerControl.PME_ENABLE,
    )


def _build_aer(config: ConfigSpace, item: Capability, is_vf: bool) -> AerProfile:
    if is_vf:
        return AerProfile(item.offset, VF_UNCORRECTABLE_BITS, VF_CORRECTABLE_BITS, is_vf=True)
    return AerProfile(item.offset, uncorrectable_mask=config.peek(item.offset + Aer.UNCORRECTABLE_MASK, 4))


def _build_ari(config: ConfigSpace, item: Capability, _is_vf: bool) -> AriProfile:
    return AriProfile(item.offset, config.peek(item.offset + 5, 1))


_LEGACY: dict[int, Callable[[ConfigSpace, Capability, bool], LegacyCapability]] = {
    CapabilityId.EXPRESS: _build_express,
    CapabilityId.MSIX: _build_msix,
    CapabilityId.POWER_MANAGEMENT: _build_power,
}
_EXTENDED: dict[int, Callable[[ConfigSpace, Capability, bool], ExtendedCapability]] = {
    ExtendedCapabilityId.AER: _build_aer,
    ExtendedCapabilityId.ARI: _build_ari,
}
