"""Which PCI drivers the running kernel has or could load, by name.

Rule: reads the registered drivers and the module lists of the running kernel's release, nothing else, and a
name that no driver can have is answered without touching a file: it may come from any client.
"""

from __future__ import annotations

import os
import re

from sriovd.backend.base import DriverState

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", re.ASCII)
_LISTS = ("modules.dep", "modules.builtin")
_Stamp = tuple[tuple[int, int, int] | None, ...]


class ModuleCatalog:
    """The drivers below `root` (normally /sys) and the modules below `directory` (/lib/modules/RELEASE)."""

    def __init__(self, root: str, directory: str) -> None:
        self._drivers = os.path.join(root, "bus/pci/drivers")
        self._lists = tuple(os.path.join(directory, name) for name in _LISTS)
        self._stamp: _Stamp = ()
        self._known: dict[str, bool] = {}

    def state(self, driver: str) -> DriverState:
        """LOADED if the driver is registered; NOT_LOADED if a module of that name exists; else UNKNOWN.

        A driver whose module has another name is not found that way before it is loaded."""
        if not _NAME.fullmatch(driver):
            return DriverState.UNKNOWN
        if os.path.isdir(os.path.join(self._drivers, driver)):
            return DriverState.LOADED
        return DriverState.NOT_LOADED if self._has_module(driver) else DriverState.UNKNOWN

    def _has_module(self, name: str) -> bool:
        stamp = tuple(_stamp(path) for path in self._lists)
        if stamp != self._stamp:  # depmod has run
            self._stamp = stamp
            self._known.clear()
        if name not in self._known:
            # Searched as a whole, once per name: the list has megabytes and its modules are thousands.
            pattern = re.compile(_module_pattern(name), re.MULTILINE)
            self._known[name] = any(pattern.search(_read(path)) for path in self._lists)
        return self._known[name]


def _module_pattern(name: str) -> bytes:
    """A module's path in modules.dep(5): `-` and `_` are the same, and the file may be compressed."""
    folded = "[-_]".join(re.escape(part) for part in re.split("[-_]", name))
    return rb"/" + folded.encode("ascii") + rb"\.ko(?:\.[a-z0-9]+)?(?=[:\s]|\Z)"


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
