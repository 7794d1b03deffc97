"""What a device's directory shows: attribute by attribute, as drivers/pci/pci-sysfs.c, iov.c and aer.c do.

Rule: one row per attribute, with its mode and who has it; contents follow from the device alone. A recorded
machine's values win where the simulated kernel has none of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sriovd.backend.base import Severity
from sriovd.backend.simulated.device import BusRange, Device, Kind, SriovState
from sriovd.backend.simulated.tree import File
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES

# drivers/pci/pcie/aer.c: which file has which names, and what its last line is called
_COUNTERS = {
    Severity.CORRECTED: ("aer_dev_correctable", CORRECTABLE_NAMES, "TOTAL_ERR_COR"),
    Severity.NONFATAL: ("aer_dev_nonfatal", UNCORRECTABLE_NAMES, "TOTAL_ERR_NONFATAL"),
    Severity.FATAL: ("aer_dev_fatal", UNCORRECTABLE_NAMES, "TOTAL_ERR_FATAL"),
}
COUNTER_FILES = {severity: row[0] for severity, row in _COUNTERS.items()}
_LINK_SPEEDS = {1: "2.5", 2: "5.0", 3: "8.0", 4: "16.0", 5: "32.0"}  # include/linux/pci.h pci_speed_string
PREFETCHABLE = 0x2000
IO = 0x100


def _show_counters(dev: Device, severity: Severity) -> bytes:
    """aer_dev_correctable_show and its siblings. A recording has its own kernel's names, and counts to begin
    with."""
    name, names, total = _COUNTERS[severity]
    begin = dev.recorded.get(name, b"").decode("ascii", "replace").splitlines()
    rows = begin or [f"{each} 0" for each in (*names.values(), total)]
    shown = []
    for row in rows:
        word, _, count = row.rpartition(" ")
        key = "total" if word == total else word
        shown.append(f"{word} {int(count) + dev.error_counts[severity, key]}\n")
    return "".join(shown).encode()


def _line(text: object) -> bytes:
    return f"{text}\n".encode()


def _is_known_powered(dev: Device) -> bool:
    return dev.powered or dev.kind is Kind.PORT


def read_link_register(dev: Device, register: int) -> int:
    """A register of the PCI Express capability, found by walking the list that starts at 34."""
    config = dev.model.config_bytes()
    offset, steps = config[0x34], 0
    while offset and steps < 48 and config[offset] != 0x10:
        offset, steps = config[offset + 1], steps + 1
    return int.from_bytes(config[offset + register : offset + register + 2], "little") if offset else 0


def _show_speed(dev: Device, register: int) -> bytes:
    speed = _LINK_SPEEDS.get(read_link_register(dev, register) & 0xF)
    return _line(f"{speed} GT/s PCIe" if speed else "Unknown")


def _show_width(dev: Device, register: int) -> bytes:
    return _line(read_link_register(dev, register) >> 4 & 0x3F)


def uevent_properties(dev: Device) -> dict[str, str]:
    """drivers/base/core.c dev_uevent and drivers/pci/pci-driver.c pci_uevent."""
    ids = dev.ids
    properties = {"DRIVER": dev.driver_name} if dev.driver else {}
    return properties | {
        "PCI_CLASS": f"{ids.class_code:04X}",
        "PCI_ID": f"{ids.vendor:04X}:{ids.device:04X}",
        "PCI_SUBSYS_ID": f"{ids.subsystem_vendor:04X}:{ids.subsystem_device:04X}",
        "PCI_SLOT_NAME": dev.name,
        "MODALIAS": ids.modalias,
    }


def _show_uevent(dev: Device) -> bytes:
    return "".join(f"{key}={value}\n" for key, value in uevent_properties(dev).items()).encode()


def _show_override(dev: Device) -> bytes:
    return (b"(null)" if dev.driver_override is None else dev.driver_override) + b"\n"


def _show_reset_method(dev: Device) -> bytes:
    return _line(" ".join(dev.reset_methods)) if dev.reset_methods else b""


def _show_sriov(pick: Callable[[SriovState], object]) -> Callable[[Device], bytes]:
    return lambda dev: _line(pick(dev.sriov)) if dev.sriov else b""


def _show_bus(pick: Callable[[BusRange], int]) -> Callable[[Device], bytes]:
    return lambda dev: _line(pick(dev.buses)) if dev.buses else b""


def _show_dma_bits(dev: Device) -> bytes:
    return _line(64 if dev.enabled or dev.kind is Kind.PORT else 32)


def _everyone(_dev: Device) -> bool:
    return True


def _has_aer(dev: Device) -> bool:
    return dev.has_aer


def _is_physical(dev: Device) -> bool:
    return dev.sriov is not None


def _is_virtual(dev: Device) -> bool:
    return dev.kind is Kind.VIRTUAL


def _can_be_removed(dev: Device) -> bool:
    return dev.kind is not Kind.VIRTUAL  # pci_dev_hp_attrs_are_visible


def _is_resettable(dev: Device) -> bool:
    return dev.resettable


def _is_port(dev: Device) -> bool:
    return dev.kind is Kind.PORT


def _awaits_supplier(dev: Device) -> bool:
    return not dev.supplier_known and dev.kind is Kind.VIRTUAL


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: `show` None for a write-only one. `own`: its contents differ between equal
    functions."""

    name: str
    mode: int
    show: Callable[[Device], bytes] | None = None
    owners: Callable[[Device], bool] = _everyone
    own: bool = False


ATTRIBUTES: dict[str, Attribute] = {
    row.name: row
    for row in (
        Attribute(
            "aer_dev_correctable", 0o444, lambda dev: _show_counters(dev, Severity.CORRECTED), _has_aer
        ),
        Attribute("aer_dev_fatal", 0o444, lambda dev: _show_counters(dev, Severity.FATAL), _has_aer),
        Attribute("aer_dev_nonfatal", 0o444, lambda dev: _show_counters(dev, Severity.NONFATAL), _has_aer),
        Attribute("ari_enabled", 0o444, lambda _: b"1\n"),
        Attribute("broken_parity_status", 0o644, lambda _: b"0\n"),
        Attribute("class", 0o444, lambda dev: _line(f"0x{dev.ids.class_code:06x}")),
        Attribute("config", 0o644, lambda dev: dev.model.config_bytes()),
        Attribute("consistent_dma_mask_bits", 0o444, _show_dma_bits),
        Attribute("current_link_speed", 0o444, lambda dev: _show_speed(dev, 0x12)),
        Attribute("current_link_width", 0o444, lambda dev: _show_width(dev, 0x12)),
        Attribute("d3cold_allowed", 0o644, lambda dev: b"0\n" if dev.kind is Kind.VIRTUAL else b"1\n"),
        Attribute("device", 0o444, lambda dev: _line(f"0x{dev.ids.device:04x}")),
        Attribute("dma_mask_bits", 0o444, _show_dma_bits),
        Attribute("driver_override", 0o644, _show_override),
        Attribute("enable", 0o644, lambda dev: _line(int(dev.enabled))),
        Attribute("irq", 0o444, lambda dev: _line(dev.model.config_bytes()[0x3C])),
        Attribute("local_cpulist", 0o444, lambda _: b"0-1\n"),
        Attribute("local_cpus", 0o444, lambda _: b"3\n"),
        Attribute("max_link_speed", 0o444, lambda dev: _show_speed(dev, 0x0C)),
        Attribute("max_link_width", 0o444, lambda dev: _show_width(dev, 0x0C)),
        Attribute("modalias", 0o444, lambda dev: _line(dev.ids.modalias)),
        Attribute("msi_bus", 0o644, lambda _: b"1\n"),
        Attribute("numa_node", 0o644, lambda dev: _line(dev.numa_node)),
        Attribute("power/control", 0o644, lambda _: b"on\n"),
        Attribute("power/runtime_status", 0o444, lambda _: b"active\n"),
        Attribute("power_state", 0o444, lambda dev: b"D0\n" if _is_known_powered(dev) else b"unknown\n"),
        Attribute("remove", 0o220, None, _can_be_removed),
        Attribute("rescan", 0o200, None, _can_be_removed),
        Attribute("reset", 0o200, None, _is_resettable),
        Attribute("reset_method", 0o644, _show_reset_method, _is_resettable),
        Attribute(
            "resource", 0o444, lambda dev: "".join(f"{row}\n" for row in dev.resources).encode(), own=True
        ),
        Attribute("revision", 0o444, lambda dev: _line(f"0x{dev.ids.revision:02x}")),
        Attribute("secondary_bus_number", 0o444, _show_bus(lambda buses: buses.secondary), _is_port),
        Attribute(
            "sriov_drivers_autoprobe",
            0o644,
            _show_sriov(lambda state: int(state.drivers_autoprobe)),
            _is_physical,
        ),
        Attribute("sriov_numvfs", 0o644, _show_sriov(lambda state: state.num_vfs), _is_physical),
        Attribute("sriov_offset", 0o444, _show_sriov(lambda state: state.offset), _is_physical),
        Attribute("sriov_stride", 0o444, _show_sriov(lambda state: state.stride), _is_physical),
        Attribute("sriov_totalvfs", 0o444, _show_sriov(lambda state: state.driver_max_vfs), _is_physical),
        Attribute("sriov_vf_device", 0o444, _show_sriov(lambda state: f"{state.vf_device:x}"), _is_physical),
        Attribute("sriov_vf_msix_count", 0o200, None, _is_virtual),
        Attribute("sriov_vf_total_msix", 0o444, lambda _: b"0\n", _is_physical),
        Attribute("subordinate_bus_number", 0o444, _show_bus(lambda buses: buses.subordinate), _is_port),
        Attribute("subsystem_device", 0o444, lambda dev: _line(f"0x{dev.ids.subsystem_device:04x}")),
        Attribute("subsystem_vendor", 0o444, lambda dev: _line(f"0x{dev.ids.subsystem_vendor:04x}")),
        Attribute("uevent", 0o644, _show_uevent, own=True),
        Attribute("vendor", 0o444, lambda dev: _line(f"0x{dev.ids.vendor:04x}")),
        Attribute("waiting_for_supplier", 0o444, lambda _: b"0\n", _awaits_supplier),
    )
}

# what a rule may change after the device has been made; everything else a recording may have said
LIVE = frozenset({
    "aer_dev_correctable", "aer_dev_fatal", "aer_dev_nonfatal", "config", "consistent_dma_mask_bits",
    "dma_mask_bits", "driver_override", "enable", "power_state", "reset_method", "sriov_drivers_autoprobe",
    "sriov_numvfs", "sriov_offset", "sriov_stride", "sriov_totalvfs", "uevent",
})  # fmt: skip
BINDING = (
    "config", "consistent_dma_mask_bits", "dma_mask_bits", "enable", "power_state", "sriov_totalvfs",
    "uevent",
)  # fmt: skip


def make_file(dev: Device, name: str) -> File | None:
    """The file of one attribute, or None if the device has no such attribute."""
    row = ATTRIBUTES[name]
    if name in dev.hidden or not row.owners(dev):
        return None
    data = row.show(dev) if row.show else b""
    if name not in LIVE:
        data = dev.recorded.get(name, data)
    return File(name, row.mode, data, shared=not row.own)


def list_files(dev: Device) -> Iterator[File]:
    """Every attribute file of a device."""
    for name in ATTRIBUTES:
        file = make_file(dev, name)
        if file is not None:
            yield file


def list_own_files(dev: Device) -> Iterator[File]:
    """Those whose contents differ between equal functions."""
    for row in ATTRIBUTES.values():
        file = make_file(dev, row.name) if row.own else None
        if file is not None:
            yield file


def list_resource_files(dev: Device) -> Iterator[File]:
    """resourceN and resourceN_wc: drivers/pci/pci-sysfs.c pci_create_resource_files. Only their size is
    real."""
    for number, resource in enumerate(dev.resources[:6]):
        if not resource.size:
            continue
        yield File(f"resource{number}", 0o600, sparse_bytes=resource.size)
        if resource.flags & PREFETCHABLE and not resource.flags & IO:
            yield File(f"resource{number}_wc", 0o600, sparse_bytes=resource.size)
