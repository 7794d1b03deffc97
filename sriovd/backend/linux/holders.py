"""The device nodes through which a process can hold a PCI function open.

Rule: names only, from sysfs links that take no lock; the search of processes is a helper's job. Linux:
Documentation/driver-api/vfio.rst, "Group and container" and "IOMMUFD and vfio_iommu_type1".
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sriovd.pci import PciAddress


def vfio_nodes(root: str, address: PciAddress, directory: str) -> Sequence[str]:
    """The nodes below `directory` (normally /dev/vfio): the group's, shared by all its functions, its
    variant without IOMMU, and the function's own character device. Whether they exist is not asked."""
    device = f"{root}/bus/pci/devices/{address}"
    nodes = [f"{directory}/devices/{name}" for name in _list_names(f"{device}/vfio-dev")]
    group = _read_group(device)
    if group:
        nodes += [f"{directory}/{group}", f"{directory}/noiommu-{group}"]
    return nodes


def _read_group(device: str) -> str:
    try:
        return os.path.basename(os.readlink(f"{device}/iommu_group"))
    except OSError:  # no IOMMU, or the function is gone: then nobody holds it by its group
        return ""


def _list_names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
