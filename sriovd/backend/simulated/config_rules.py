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
    """What a helper does with a step. EINVAL: an argument that makes no sense. ENOENT: no such device.
    EFBIG: an update beyond the end."""
    numbers = _parse_numbers(argument, 2 if verb == Verb.READ_CONFIG else 4)
    if dev is None:
        fail(errno.ENOENT)
    if verb == Verb.READ_CONFIG:
        offset, length = numbers
        everything = yield from show_config(host, dev)
        return everything[offset : offset + length].hex().encode()
    if numbers[1] not in _WIDTHS:
        fail(errno.EINVAL)
    return (yield from _update(host, dev, *numbers))


def _update(host: Host, dev: Device, offset: int, width: int, mask: int, value: int) -> Rule[bytes]:
    """pci_write_config of what pci_read_config has said, changed. All-ones: nothing answers, and nothing is
    written."""
    everything = yield from show_config(host, dev)
    config = everything[offset : offset + width]
    if len(config) < width:
        fail(errno.EFBIG)
    all_ones = (1 << 8 * width) - 1
    before = int.from_bytes(config, "little")
    after = (before & ~mask | value & mask) & all_ones
    if before not in (all_ones, after):
        _write(dev, offset, after.to_bytes(width, "little"))
        for each in (dev, *host.list_vfs(dev)):  # which a PF's register may have brought to an end
            host.refresh(each, ("config",))
    return str(before).encode()


def _write(dev: Device, offset: int, data: bytes) -> None:
    """pci_write_config: one access if it is aligned, else byte by byte. A port's registers never change."""
    if isinstance(dev.model, FixedFunction):
        return
    width = 1 if offset % len(data) else len(data)
    for at in range(0, len(data), width):
        dev.model.write(offset + at, width, int.from_bytes(data[at : at + width], "little"))


def _wait_until_free(dev: Device) -> Rule[None]:
    """pci_wait_cfg: whoever resets the function has blocked access (pci_cfg_access_lock)."""
    yield from dev.config_lock.take()
    dev.config_lock.release()


def _parse_numbers(text: str, count: int) -> list[int]:
    words = text.split(" ")
    if len(words) != count or not all(word.isascii() and word.isdecimal() for word in words):
        fail(errno.EINVAL)
    return [int(word) for word in words]
