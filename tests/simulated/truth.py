"""What sriovd's objects must show, read from the tree with nothing but open() and readlink().

Rule: none of sriovd's own readers is used here: this is what they are compared with.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.simulated.client import (
    ADAPTER,
    FUNCTION,
    PHYSICAL_FUNCTION,
    RECOVERY,
    ROOT,
    TRACE,
    VIRTUAL_FUNCTION,
    adapter_path,
    function_path,
)

Objects = dict[str, dict[str, dict[str, Any]]]
_ELSEWHERE = (RECOVERY, TRACE)  # of which a tree knows nothing


def read(path: Path) -> str:
    return path.read_text().strip()


def link_name(path: Path) -> str:
    """The last part of a symlink's target; empty if there is no link."""
    return os.readlink(path).rpartition("/")[2] if path.is_symlink() else ""


def vf_links(device: Path) -> dict[int, str]:
    """Index to address, by the virtfn links."""
    return {int(link.name[6:]): link_name(link) for link in device.glob("virtfn*")}


def expected_objects(root: str) -> Objects:
    """The objects of all functions and adapters of the tree at `root`, without Generation, Quarantined and
    how they stand after errors, of which a tree knows nothing."""
    devices = Path(root) / "bus/pci/devices"
    objects: Objects = {}
    for device in devices.iterdir():
        if (device / "sriov_totalvfs").exists():
            objects[function_path(device.name)] = {
                FUNCTION: _function(device, "pf", device.name), PHYSICAL_FUNCTION: _physical(device)
            }  # fmt: skip
            slot = device.name.rpartition(".")[0]
            objects[adapter_path(slot)] = {
                ADAPTER: {
                    "Address": slot, "PhysicalFunctions": [function_path(device.name)],
                    "Stuck": False, "StuckReason": "",
                }
            }  # fmt: skip
        elif (device / "physfn").is_symlink():
            parent = link_name(device / "physfn")
            (index,) = [index for index, vf in vf_links(devices / parent).items() if vf == device.name]
            virtual = {"PhysicalFunction": function_path(parent), "Index": index}
            objects[function_path(device.name)] = {
                FUNCTION: _function(device, "vf", parent), VIRTUAL_FUNCTION: virtual
            }  # fmt: skip
    return objects


def shown_objects(managed: Objects) -> Objects:
    """The same part of what the daemon shows."""
    shown = {
        path: {name: dict(values) for name, values in interfaces.items() if name not in _ELSEWHERE}
        for path, interfaces in managed.items()
        if path.startswith((f"{ROOT}/function/", f"{ROOT}/adapter/"))
    }
    for interfaces in shown.values():
        for name in ("Generation", "Quarantined"):
            interfaces.get(FUNCTION, {}).pop(name, None)
        for name in ("Policy", "PolicyState", "PolicyReason"):
            interfaces.get(PHYSICAL_FUNCTION, {}).pop(name, None)
    return shown


def _function(device: Path, kind: str, pf: str) -> dict[str, Any]:
    group = link_name(device / "iommu_group")
    net = device / "net"
    return {
        "Address": device.name,
        "Kind": kind,
        "Adapter": adapter_path(pf.rpartition(".")[0]),
        "Path": str(device.resolve()),
        "VendorID": int(read(device / "vendor"), 16),
        "DeviceID": int(read(device / "device"), 16),
        "SubsystemVendorID": int(read(device / "subsystem_vendor"), 16),
        "SubsystemDeviceID": int(read(device / "subsystem_device"), 16),
        "Class": int(read(device / "class"), 16),
        "Revision": int(read(device / "revision"), 16),
        "NUMANode": int(read(device / "numa_node")) if (device / "numa_node").exists() else -1,
        "Driver": link_name(device / "driver"),
        "IOMMUGroup": int(group) if group else -1,
        "NetworkInterfaces": sorted(each.name for each in net.iterdir()) if net.is_dir() else [],
        "ResetMethods": read(device / "reset_method").split() if (device / "reset_method").exists() else [],
    }


def _physical(device: Path) -> dict[str, Any]:
    return {
        "TotalVFs": int(read(device / "sriov_totalvfs")),
        "NumVFs": len(vf_links(device)),
        "VFDeviceID": int(read(device / "sriov_vf_device"), 16),
        "DriversAutoprobe": read(device / "sriov_drivers_autoprobe") == "1",
    }
