"""Configuration space as user space reads and writes it: drivers/pci/pci-sysfs.c pci_read_config,
pci_write_config and drivers/pci/access.c (Linux 6.12).

Rule: every function names the kernel function that it stands for. Neither takes the device's lock; both wait
while a reset has the function's configuration space for itself.
"""

from __future__ import annotations

import errno

from sriovd.backend.simulated.device import Device, FixedFunction, Rule
from sriovd.backend.simulated.host import Host
from sriovd.backend.simulated.parse import fail
from sriovd.backend.steps import Verb

_WIDTHS = (1, 2, 4)


def show_config(_host: Host, dev: Device) -> Rule[bytes]:
    """pci_read_config, all of it: what the function answers now."""
    yield from _wait_until_free(dev)
    return dev.model.config_bytes()


def access_config(host: Host, dev: Device | None, verb: str, argument: str) -> Rule[bytes]:
    """What a helper does with a step. EINVAL: an argument that makes no sense. ENOENT: no such device."""
    numbers = _parse_numbers(argument, 2 if verb == Verb.READ_CONFIG else 4)
    if dev is None:
        fail(errno.ENOENT)
    if verb == Verb.READ_CONFIG:
        offset, length = numbers
        everything = yield from show_config(host, dev)
        return everything[offset : offset + length].hex().encode()
    return (yield from _update(host, dev, *numbers))


def _update(host: Host, dev: Device, offset: int, width: int, mask: int, value: int) -> Rule[bytes]:
    """pci_write_config of what pci_read_config has said, changed. All-ones: nothing answers, and nothing is
    written."""
    yield from _wait_until_free(dev)
    config = dev.model.config_bytes()
    if width not in _WIDTHS or offset % width or offset + width > len(config):
        fail(errno.EINVAL)
    ones = (1 << 8 * width) - 1
    before = int.from_bytes(config[offset : offset + width], "little")
    after = (before & ~mask | value & mask) & ones
    if before not in (ones, after) and not isinstance(dev.model, FixedFunction):
        dev.model.write(offset, width, after)
        host.refresh(dev, ("config",))
    return str(before).encode()


def _wait_until_free(dev: Device) -> Rule[None]:
    """pci_wait_cfg: whoever resets the function has blocked access (pci_cfg_access_lock)."""
    yield from dev.config_lock.take()
    dev.config_lock.release()


def _parse_numbers(text: str, count: int) -> list[int]:
    words = text.split(" ")
    if len(words) != count or not all(word.isascii() and word.isdecimal() for word in words):
        fail(errno.EINVAL)
    return [int(word) for word in words]
