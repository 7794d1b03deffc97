"""The functions of the machine that scenarios are played on, and phrases of theirs: steps that belong
together.

Rule: data, as operations.py and link_operations.py.
"""

from __future__ import annotations

from sriovd.backend.steps import Chain
from sriovd.pci import PciAddress
from tests.conformance.actions import (
    Action,
    Do,
    Look,
    do,
    each,
    malformed,
)
from tests.conformance.steps import (
    bind,
    count_vfs,
    probe,
    read_driver,
    read_link,
    read_override,
    reset,
    set_attribute,
    set_autoprobe,
    set_num_vfs,
    set_override,
    set_reset_method,
    unbind,
)

IGB0, IGB1, NVME = (PciAddress.parse(f"0000:0{bus}:00.0") for bus in (1, 2, 3))
PORT = PciAddress.parse("0000:00:03.0")  # above IGB0
NOWHERE = PciAddress.parse("0000:7f:00.0")
VFS = tuple(PciAddress.from_rid(0, IGB0.rid + 128 + 2 * index) for index in range(7))
VF = VFS[0]
NVME_VFS = tuple(PciAddress.from_rid(0, NVME.rid + 1 + index) for index in range(5))
NVME_VF = NVME_VFS[0]
IN_VFIO = "vfio_unregister_group_dev"  # drivers/vfio/vfio_main.c: until the last user has closed the device
LONGEST_OVERRIDE = 4094  # drivers/base/driver.c: PAGE_SIZE - 1 is refused

MALFORMED = (
    "nonsense", "0000:03:00", "03:00.1", "0000:03:00.1 ", " 0000:03:00.1", "0000:03:00.9", "0000:7f:00.0",
    "0000:03:1F.7", "../../x", "\n", "0000:03:00.1\n",
)  # fmt: skip


def set_vfs(pf: PciAddress, *values: str) -> Do:
    """Write each value to sriov_numvfs, whatever becomes of the one before, and count the VFs after each."""
    return each(*(item for value in values for item in (set_num_vfs(pf, value), count_vfs(pf))))


def make_vfs(pf: PciAddress, count: int, autoprobe: str = "0") -> Do:
    """As sriovd does it: no driver on the way."""
    return do(set_autoprobe(pf, autoprobe), set_num_vfs(pf, str(count)))


def state(address: PciAddress) -> Do:
    """Driver and override, as far as they can be read."""
    return each(read_driver(address), read_override(address))


def move(address: PciAddress, driver: str) -> Chain:
    """The chain with which sriovd binds a function without driver."""
    return Chain(
        address,
        (
            set_override(address, driver),
            bind(address, driver),
            read_driver(address, expect=driver),
        ),
    )


def move_all(addresses: tuple[PciAddress, ...], driver: str) -> Do:
    """The same for many."""
    return Do(tuple(move(address, driver) for address in addresses))


def release(address: PciAddress, driver: str) -> Chain:
    """The chain that takes a function off its driver and forgets the override."""
    return Chain(
        address,
        (
            unbind(address, driver),
            set_override(address, ""),
            read_driver(address, expect=""),
        ),
    )


def try_everywhere(text: str) -> Do:
    """A text that is no address, to everything that takes one."""
    address = malformed(text)
    return each(
        bind(address, "vfio-pci"),
        unbind(address, "vfio-pci"),
        probe(address),
    )


def override(value: str) -> Do:
    """Write an NVMe VF's override and read it back."""
    return each(set_override(NVME_VF, value), read_override(NVME_VF))


def autoprobe(value: str) -> tuple[Action, ...]:
    """Write a value to sriov_drivers_autoprobe and look."""
    return (each(set_autoprobe(IGB0, value)), Look(IGB0))


def method(address: PciAddress, value: str) -> tuple[Action, ...]:
    """Write reset_method, reset, look."""
    return (each(set_reset_method(address, value), reset(address)), Look(address))


def set_attributes(pf: PciAddress, *requests: str) -> Do:
    """Make each request, whatever became of the one before, and read everything."""
    return each(*(set_attribute(pf, request) for request in requests), read_link(pf))
