"""What may be done to whom. Pure: the picture in, a typed refusal or nothing out.

Rule: whatever the kernel would refuse for certain is refused here first, with a better sentence; the kernel
has the last word all the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from sriovd.backend.base import DriverState, Holder
from sriovd.core.errors import (
    BindFailed,
    InUse,
    InvalidArgument,
    NotSupported,
    NumVfsRejected,
    Quarantined,
)
from sriovd.core.inventory import Function
from sriovd.core.scripts import DEFAULT, NONE
from sriovd.pci import PciAddress

_DRIVER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}", re.ASCII)
_NETWORK_CLASS = 0x02
_DRIVERS_WITHOUT_NETDEV = ("", "vfio-pci", "pci-stub")
_NAMED_AT_MOST = 5


def check_vf_count(pf: Function, have: int, wanted: int) -> None:
    """Whether `pf`, which has `have` VFs, may be asked for `wanted`. Raises NumVfsRejected."""
    if pf.physical is None:
        raise InvalidArgument(f"{pf.address} is a VF and has no VFs of its own.", "Ask its PF.")
    if wanted > pf.physical.total_vfs:
        raise NumVfsRejected(
            f"{pf.address} cannot have {wanted} VFs: its driver allows {pf.physical.total_vfs}.",
            f"Ask for 0 to {pf.physical.total_vfs}.",
        )
    if have and wanted and have != wanted:
        raise NumVfsRejected(
            f"{pf.address} has {have} VFs, and the kernel cannot go from {have} to {wanted} directly.",
            f"Set 0 VFs first; that destroys the {have}.",
        )
    if wanted and not pf.facts.driver:
        raise NumVfsRejected(
            f"{pf.address} has no driver, and only a driver can make VFs.",
            "Bind its PF driver first (Bind with driver 'default').",
        )


def check_driver_name(name: str) -> None:
    """Whether `name` can be a driver's at all. Raises InvalidArgument."""
    if name not in (DEFAULT, NONE) and not _DRIVER_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name[:64]!r} is not a driver name.",
            "Give 'vfio-pci', 'pci-stub', 'default', 'none' or the name of a PCI driver.",
        )


def check_driver_state(name: str, state: DriverState) -> None:
    """Whether the driver is there to bind to. Raises BindFailed, InvalidArgument."""
    if state is DriverState.NOT_LOADED:
        raise BindFailed(f"The driver {name} is not loaded.", f"Load it first: modprobe {name}")
    if state is DriverState.UNKNOWN:
        raise InvalidArgument(
            f"This kernel has no PCI driver {name}.", "See /sys/bus/pci/drivers, and check the spelling."
        )


def check_bindable(function: Function, vf_count: int, wanted: str) -> None:
    """Whether the driver of `function` may be changed at all. Raises InUse."""
    if function.physical is not None and vf_count:
        raise InUse(
            f"PF {function.address} has {vf_count} VFs, which its driver {function.facts.driver} serves; "
            f"it cannot change to {wanted}.",
            "Set 0 VFs first.",
        )


def check_resettable(function: Function, vf_count: int) -> None:
    """Whether a reset can work and spares others. Raises NotSupported, InUse."""
    if not function.facts.reset_methods:
        raise NotSupported(
            f"{function} has no reset method, or its resets were disabled.",
            "Write 'default' to its reset_method to bring them back.",
        )
    if vf_count:
        raise InUse(
            f"PF {function.address} has {vf_count} VFs, which its reset would destroy.",
            "Set 0 VFs first, or give the option force.",
        )


def check_removable(function: Function) -> None:
    """Only PFs are removed by themselves. Raises InvalidArgument."""
    if function.virtual is not None:
        raise InvalidArgument(
            f"{function.address} is a VF, which cannot be removed alone.",
            f"Set a smaller number of VFs on its PF {function.virtual.parent}: 0.",
        )


def check_in_service(function: Function) -> None:
    """Raises Quarantined for a function that was taken out of service."""
    if function.quarantine:
        raise Quarantined(
            f"{function} is quarantined: {function.quarantine}",
            "Bind it to a driver to put it back into service.",
        )


def check_unused(users: Mapping[PciAddress, str]) -> None:
    """Whether nobody is in `users`, which describe_use has described. Raises InUse naming who is."""
    if users:
        texts = list(users.values())
        more = f" and {len(texts) - _NAMED_AT_MOST} more" if len(texts) > _NAMED_AT_MOST else ""
        raise InUse(
            f"In use: {'; '.join(texts[:_NAMED_AT_MOST])}{more}.",
            "End that use first, or give the option force.",
        )


def describe_use(function: Function, holders: Mapping[PciAddress, Sequence[Holder]], lease: str) -> str:
    """Who uses `function`, in words; empty for nobody. `lease`: whose lease it is under, empty if none."""
    held_by = holders.get(function.address)
    if held_by:
        return f"{function} is held open by {', '.join(map(str, held_by))}"
    if lease:
        return f"{function} is leased to {lease}"
    if netdev_is_elsewhere(function):
        return f"the network interface of {function} is in another network namespace"
    return ""


def netdev_is_elsewhere(function: Function) -> bool:
    """Whether a NIC function has a network driver and yet shows no interface in our namespace: sysfs lists
    net/ per namespace, so it was moved into a container's (net/core/net-sysfs.c)."""
    facts = function.facts
    return (
        function.virtual is not None
        and facts.class_code >> 16 == _NETWORK_CLASS
        and facts.driver not in _DRIVERS_WITHOUT_NETDEV
        and not facts.net_interfaces
    )
