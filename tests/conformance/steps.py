"""Short names for steps, so that a scenario can be read in one go."""

from __future__ import annotations

from sriovd.backend.steps import Step, Verb
from sriovd.pci import PciAddress

RESCAN_BUS = Step(Verb.RESCAN_BUS)


def bind(address: PciAddress, driver: str) -> Step:
    return Step(Verb.BIND, address, driver)


def unbind(address: PciAddress, driver: str) -> Step:
    return Step(Verb.UNBIND, address, driver)


def probe(address: PciAddress) -> Step:
    return Step(Verb.PROBE, address)


def reset(address: PciAddress) -> Step:
    return Step(Verb.RESET, address)


def remove(address: PciAddress) -> Step:
    return Step(Verb.REMOVE, address)


def read_driver(address: PciAddress, expect: str | None = None) -> Step:
    return Step(Verb.READ_DRIVER, address, expect=expect)


def set_override(address: PciAddress, driver: str) -> Step:
    return Step(Verb.SET_DRIVER_OVERRIDE, address, driver)


def read_override(address: PciAddress) -> Step:
    return Step(Verb.READ_DRIVER_OVERRIDE, address)


def set_autoprobe(address: PciAddress, value: str) -> Step:
    return Step(Verb.SET_AUTOPROBE, address, value)


def set_num_vfs(address: PciAddress, value: str) -> Step:
    return Step(Verb.SET_NUM_VFS, address, value)


def count_vfs(address: PciAddress) -> Step:
    return Step(Verb.COUNT_VFS, address)


def read_vf(pf: PciAddress, index: int) -> Step:
    return Step(Verb.READ_VF, pf, str(index))


def set_reset_method(address: PciAddress, value: str) -> Step:
    return Step(Verb.SET_RESET_METHOD, address, value)


def rescan_port(address: PciAddress) -> Step:
    return Step(Verb.RESCAN_PORT, address)


def read_link(address: PciAddress, argument: str = "vfs") -> Step:
    return Step(Verb.READ_LINK, address, argument)


def set_attribute(pf: PciAddress, request: str) -> Step:
    return Step(Verb.SET_VF_ATTRIBUTE, pf, request)


def switch_link(address: PciAddress, way: str) -> Step:
    return Step(Verb.SWITCH_LINK, address, way)
