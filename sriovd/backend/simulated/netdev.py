"""Network interfaces of NIC drivers: the directory below the PCI device and the link in the class.

Rule: the kernel's own names, ethN with the lowest free N (net/core/dev.c dev_alloc_name); udev, which would
rename them, is no part of the kernel.
"""

from __future__ import annotations

from sriovd.backend.simulated.device import Device
from sriovd.backend.simulated.iommu import NumberPool
from sriovd.backend.simulated.tree import File, Tree

_FIRST_INDEX = 2  # 1 is the loopback's
_PREFIX = "eth"
NO_MAC = "00:00:00:00:00:00"


def _files(dev: Device, number: int) -> tuple[File, ...]:
    """net/core/net-sysfs.c, what tools ask for."""
    texts = {
        "address": _find_mac(dev), "addr_len": "6", "dev_id": "0x0", "dev_port": "0", "flags": "0x1002",
        "ifindex": str(_FIRST_INDEX + number), "iflink": str(_FIRST_INDEX + number), "mtu": "1500",
        "operstate": "down", "type": "1",
    }  # fmt: skip
    return tuple(File(name, 0o444, f"{text}\n".encode()) for name, text in texts.items())


def invent_mac(dev: Device) -> str:
    """The address of an interface that nobody has given one: locally administered, with the routing id."""
    return f"02:00:00:{dev.address.domain & 0xFF:02x}:{dev.address.bus:02x}:{dev.address.rid & 0xFF:02x}"


def _find_mac(dev: Device) -> str:
    """A VF's is what its PF has for it when the VF's driver probes."""
    known = dev.physfn.vf_attributes[dev.vf_index : dev.vf_index + 1] if dev.physfn else []
    return next((each.mac for each in known if each.mac not in (None, NO_MAC)), None) or invent_mac(dev)


def add_netdev(tree: Tree, numbers: NumberPool, dev: Device, name: str = "") -> None:
    """Register the interface of `dev`. `name`: what a recorded one was called."""
    number = _number(name) if name else numbers.take()
    if name and number is not None:
        numbers.claim(number)
    dev.net_interface = name or f"{_PREFIX}{number}"
    directory = f"{dev.directory}/net/{dev.net_interface}"
    tree.make_directory(directory)
    tree.populate(directory, _files(dev, number or 0))
    tree.link(f"{directory}/device", dev.directory)
    tree.link(f"{directory}/subsystem", "class/net")
    tree.link(f"class/net/{dev.net_interface}", directory)


def remove_netdev(tree: Tree, numbers: NumberPool, dev: Device) -> None:
    """Unregister it, if there is one."""
    if not dev.net_interface:
        return
    tree.unlink(f"class/net/{dev.net_interface}")
    tree.remove_directory(f"{dev.directory}/net")
    number = _number(dev.net_interface)
    if number is not None:
        numbers.give_back(number)
    dev.net_interface = ""
    dev.is_up = dev.has_carrier = dev.is_detached = False


def show_state(tree: Tree, dev: Device) -> None:
    """Rewrite what tells whether the interface is switched on (IFF_UP) and whether it has a carrier."""
    directory = f"{dev.directory}/net/{dev.net_interface}"
    tree.replace(directory, File("flags", 0o644, b"0x1003\n" if dev.is_up else b"0x1002\n"))
    running = dev.is_up and dev.has_carrier
    tree.replace(directory, File("operstate", 0o444, b"up\n" if running else b"down\n"))


def _number(name: str) -> int | None:
    """N of ethN; None for a name that udev has given."""
    digits = name.removeprefix(_PREFIX)
    return int(digits) if digits.isdecimal() else None
