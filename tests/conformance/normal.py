"""What two hosts may differ in without either being wrong, and how it is written instead.

Rule: everything that is left out of a transcript or rewritten is in NORMALISATIONS, with its reason; the
functions here do that and nothing else.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Any

from sriovd.backend.base import FunctionFacts, Holder, Uevent
from sriovd.backend.steps import ChainResult, StepResult, Verb
from sriovd.pci import PciAddress

NORMALISATIONS = {
    "duration": "left out: the time that an access takes is no promise of the kernel's",
    "identity": "the how-manieth of its address in the scenario: a function and its successor differ, the"
    " numbers themselves (inodes) say nothing",
    "iommu_group": "the how-manieth group seen in the scenario: numbers depend on the devices that the rest"
    " of the machine has",
    "net_interfaces": "how many: udev renames what the kernel has named, and a simulated host has no udev",
    "path": "without the root",
    "uevents of network interfaces": "left out: the real backend passes udev's renames on, which name a"
    " function and no PCI event; the kernel's own PCI events have PCI_SLOT_NAME",
    "LinkChanged": "only awaited where a scenario says so: they come from another socket than uevents, in an"
    " order of their own, and an emulated carrier comes and goes when it likes",
    "uevent properties": "only those that the real backend hands on; a simulated host keeps all",
    "pid of a holder": "whether it is the one that the bench has started: its name",
    "long texts": "over 60 characters: the first 8 and the length",
    "time and step of a hang": "left out: a helper that was abandoned as it began has told the script's"
    " title only; where it sleeps stays",
}
_KEPT_PROPERTIES = ("DRIVER", "ERROR_EVENT", "DEVICE_ONLINE")
_LINE_BYTES = 32
_LONG = 60

Json = Any


class Names:
    """Numbers that mean something only within one scenario, replaced by their order of appearance."""

    def __init__(self) -> None:
        self._groups: dict[int, int] = {}
        self._identities: dict[PciAddress, list[int]] = {}

    def group(self, number: int | None) -> int | None:
        """IOMMU group, from 1."""
        return None if number is None else self._groups.setdefault(number, len(self._groups) + 1)

    def identity(self, address: PciAddress, identity: int) -> int:
        """Which function at `address` it is, from 1."""
        seen = self._identities.setdefault(address, [])
        if identity not in seen:
            seen.append(identity)
        return seen.index(identity) + 1


def show_facts(facts: FunctionFacts | None, root: str, names: Names) -> Json:
    """A function's facts, in words and numbers."""
    if facts is None:
        return None
    shown: dict[str, Json] = {
        "ids": f"{facts.vendor_id:04x}:{facts.device_id:04x}"
        f" {facts.subsystem_vendor_id:04x}:{facts.subsystem_device_id:04x}"
        f" class {facts.class_code:06x} rev {facts.revision:02x}",
        "identity": names.identity(facts.address, facts.identity),
        "driver": facts.driver,
        "iommu_group": names.group(facts.iommu_group),
        "numa_node": facts.numa_node,
        "net_interfaces": len(facts.net_interfaces),
        "reset_methods": " ".join(facts.reset_methods),
        "path": facts.path.removeprefix(root),
    }
    if facts.physical:
        physical = facts.physical
        shown["total_vfs"] = physical.total_vfs
        shown["routing"] = f"offset {physical.vf_offset} stride {physical.vf_stride}"
        shown["vf_device_id"] = f"{physical.vf_device_id:04x}"
        shown["drivers_autoprobe"] = physical.drivers_autoprobe
    if facts.virtual:
        shown["vf"] = f"{facts.virtual.index} of {facts.virtual.parent}"
    return shown


def show_result(result: ChainResult) -> Json:
    """The steps of a chain that were tried: what, what came of it, what was read."""
    return [_show_step(item) for item in result.results]


def _show_step(result: StepResult) -> Json:
    outcome = errno.errorcode.get(result.errno, str(result.errno)) if result.errno else "ok"
    if result.mismatch:
        outcome = "unexpected"
    shown = [" ".join(shorten(text) for text in str(result.step).split(" ")), outcome]
    if result.step.verb is Verb.READ_LINK:
        return [*shown, *result.value.split("\n")]
    if result.step.verb is Verb.READ_CONFIG:
        return [*shown, *_show_bytes(result)]
    return [*shown, shorten(result.value)] if result.value or not result.step.writes else shown


def _show_bytes(result: StepResult) -> Iterator[str]:
    """How many there are, and those lines of 32 that are not all 0."""
    found = bytes.fromhex(result.value)
    yield f"{len(found)} bytes"
    for offset in range(0, len(found), _LINE_BYTES):
        line = found[offset : offset + _LINE_BYTES]
        if any(line):
            yield f"+{offset:03x} {line.hex()}"


def show_event(event: Uevent) -> str | None:
    """A uevent, or None for one that is left out."""
    if "PCI_SLOT_NAME" not in event.properties:
        return None
    kept = (f"{name}={event.properties[name]}" for name in _KEPT_PROPERTIES if name in event.properties)
    return " ".join([event.action, str(event.address), *kept])


def show_holders(holders: Sequence[Holder]) -> Json:
    """The holders' names."""
    return [holder.name for holder in holders]


def shorten(text: str) -> str:
    """`text`, or if it is long its beginning and length."""
    return text if len(text) <= _LONG else f"{text[:8]}... ({len(text)})"
