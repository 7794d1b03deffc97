"""One directory of sysfs, open: what its attributes and links say, as values.

Rule: everything is read through the directory's descriptor, so that all of it is of one device. Contents
that make no sense are a HostReadError that names the file.
"""

from __future__ import annotations

import errno
import os
from typing import Self

from sriovd.backend.base import HostReadError
from sriovd.pci import AddressError, PciAddress

GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ENXIO})
_MAX_ATTRIBUTE_BYTES = 4096  # sysfs gives one page at most


class Directory:
    """The directory of one device, open from __enter__ to __exit__. Its methods raise OSError, with
    ENOENT once the device is gone, and HostReadError for contents that make no sense; names are relative."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1

    def __enter__(self) -> Self:
        self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def identity(self) -> int:
        """The inode number: a successor at the same address has another."""
        return os.fstat(self._fd).st_ino

    def basename_of_link(self, name: str) -> str | None:
        """The last part of what a symbolic link points to, or None when there is no link."""
        try:
            return os.readlink(name, dir_fd=self._fd).rpartition("/")[2]
        except FileNotFoundError:
            return None

    def link_address(self, name: str) -> PciAddress | None:
        """The PCI function that a link points to, or None when there is no link."""
        target = self.basename_of_link(name)
        try:
            return None if target is None else PciAddress.parse(target)
        except AddressError as error:
            raise HostReadError(f"{self.path}/{name} points to {target!r}: {error}") from error

    def names_in(self, name: str) -> tuple[str, ...]:
        """What is in a directory below, sorted; nothing if there is none."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return ()
        try:
            raw = [os.fsencode(each) for each in os.listdir(fd)]
        finally:
            os.close(fd)
        return tuple(sorted(each.decode("utf-8", "backslashreplace") for each in raw))

    def text(self, name: str) -> str | None:
        """An attribute's text without its newline, None where there is none such."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        try:
            raw = os.read(fd, _MAX_ATTRIBUTE_BYTES)
        finally:
            os.close(fd)
        try:
            return raw.decode("ascii").rstrip("\n")
        except UnicodeDecodeError as error:
            raise HostReadError(f"{self.path}/{name} holds {raw[:32]!r}, which is not ASCII text") from error

    def text_or_check(self, name: str) -> str:
        """As text, empty where there is none such. To be read last: raises FileNotFoundError when the device
        has gone since __enter__, for then what was missing before may have been missing for that."""
        text = self.text(name)
        if text is None:
            os.stat("vendor", dir_fd=self._fd)
        return text or ""

    def number(
        self, name: str, maximum: int, *, minimum: int = 0, base: int = 0, missing: int | None = None
    ) -> int:
        """An attribute's number; `missing` where there is none such, if given."""
        text = self.text(name)
        if text is not None:
            return to_number(f"{self.path}/{name}", text, minimum, maximum, base)
        if missing is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.path}/{name}")
        return missing


def unreadable(error: OSError, directory: str) -> HostReadError:
    path = os.path.join(directory, os.fsdecode(error.filename or ""))
    return HostReadError(f"{path.rstrip('/')}: {error.strerror}")


def is_there(path: str) -> bool:
    """Whether there is such an entry. One that cannot be looked at counts: whoever reads it will say why,
    and a function does not vanish because of it."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in GONE
    return True


def to_number(path: str, text: str, minimum: int, maximum: int, base: int = 0) -> int:
    try:
        number = int(text, base)
    except ValueError as error:
        raise HostReadError(f"{path} holds {text[:32]!r}, which is not a number") from error
    if not minimum <= number <= maximum:
        raise HostReadError(f"{path} holds {text[:32]!r}, which is outside {minimum} to {maximum}")
    return number
