"""The scenarios about configuration space.

Rule: as operations.py, of which they are a part. Read are the parts that are the same after every boot, and
of a VF those that every VF has: the recorded machine had none.
"""

from __future__ import annotations

from sriovd.backend.steps import Step, Verb
from sriovd.pci import PciAddress
from tests.conformance.actions import Do, Scenario, do, each
from tests.conformance.phrases import IGB0, NOWHERE, PORT, VF, VFS, make_vfs, move, release
from tests.conformance.steps import reset

COMMAND = "4 2"


def read_config(address: PciAddress, argument: str) -> Step:
    return Step(Verb.READ_CONFIG, address, argument)


def update_config(address: PciAddress, argument: str) -> Step:
    return Step(Verb.UPDATE_CONFIG, address, argument)


def set_bus_master(address: PciAddress, on: bool) -> Step:
    """Bus Master Enable of the command register."""
    return update_config(address, f"{COMMAND} 4 {4 if on else 0}")


CONFIG_SCENARIOS = (
    Scenario("config-read", "of a PF and a VF, as far as there is any", (
        make_vfs(IGB0, 2),
        each(read_config(IGB0, "0 16"), read_config(IGB0, "256 4"), read_config(IGB0, "352 36"),
             read_config(IGB0, "4088 64"), read_config(IGB0, "4096 4"), read_config(IGB0, "9 3"),
             read_config(NOWHERE, "0 64")),
        each(read_config(VF, "0 64")),
        each(read_config(IGB0, ""), read_config(IGB0, "0"), read_config(IGB0, "0 -1"),
             read_config(IGB0, "0 0"), read_config(IGB0, "0 x"), read_config(IGB0, "0 64 64")),
    )),
    Scenario("config-bus-master", "of a VF, as fencing clears it", (
        make_vfs(IGB0, 2), Do((move(VFS[1], "vfio-pci"),)),
        *(each(set_bus_master(vf, True), read_config(vf, COMMAND), set_bus_master(vf, True),
               set_bus_master(vf, False), read_config(vf, COMMAND), set_bus_master(vf, False))
          for vf in VFS[:2]),
        do(set_bus_master(VF, True), reset(VF), read_config(VF, COMMAND)),
        do(set_bus_master(VF, False)), Do((release(VFS[1], "vfio-pci"),)),
    )),
    Scenario("config-update", "bits that can be changed, that cannot, and requests that make no sense", (
        make_vfs(IGB0, 1),
        each(update_config(VF, "0 2 255 0"), update_config(VF, "4 2 65535 0"),
             update_config(VF, "52 1 255 0"), update_config(IGB0, "12 1 255 165"),
             update_config(IGB0, "12 1 240 0"), update_config(IGB0, "11 2 65280 0"),
             read_config(IGB0, "12 1")),
        each(*(update_config(IGB0, text) for text in (
            "", "4", "4 2 4", "4 3 4 4", "4 0 4 4", "4 8 4 4", "4095 2 4 4", "4096 1 4 4", "4 2 -4 4",
            "4 2 x 4", "4 2 4 4 4",
        )), update_config(NOWHERE, "4 2 4 4")),
        each(update_config(PORT, "4 2 0 0"),),
    )),
)  # fmt: skip
