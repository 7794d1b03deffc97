"""Record the SR-IOV part of a sysfs tree: `python -m sriovd.backend.simulated.record [ADDRESS...]`.

Rule: reads only, and by default only what cannot block: attributes whose show functions take the device's
lock are noted as `unread`, and the configuration space, which waits for a reset to end, is read by a child
that is left behind if it does not return. Attributes that this program does not know are noted, never read:
some do things when read.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from sriovd.backend.simulated.attributes import ATTRIBUTES
from sriovd.backend.simulated.fixture import (
    Attribute,
    Directory,
    Entry,
    Link,
    Recording,
    format_fixture,
    resolve_link,
)
from sriovd.pci import AddressError, PciAddress

_DEADLINE_SECONDS = 5.0
_BUS = "bus/pci"
_LOCKING = frozenset({"driver_override", "sriov_numvfs", "sriov_vf_total_msix", "uevent"})
_SLOW = "config"
_NET = frozenset({
    "addr_len", "address", "dev_id", "dev_port", "flags", "ifindex", "iflink", "mtu", "operstate", "type",
})  # fmt: skip
_OTHER = frozenset(
    {"address", "drivers_autoprobe", "enable_sriov", "reserved_regions", "control", "runtime_status", "type"}
)
_READABLE = (frozenset(ATTRIBUTES) | _OTHER) - _LOCKING - {_SLOW}
_SERIAL_NUMBER_CAPABILITY = 0x0003  # PCIe 7.9.3: 8 bytes at 4
_BAR_FILE = re.compile(r"resource\d+(_wc)?|rom")  # reading one reads the device's memory
_SUBDIRECTORIES = frozenset({"net", "power", "vfio-dev"})  # of a device, recorded with what is in them


class Recorder:
    """One recording of the tree at `root`. `blocking`: read attributes that take the device's lock as well.
    `anonymize`: replace MAC addresses and device serial numbers. `warn` is told what could not be read."""

    def __init__(self, root: str, *, blocking: bool, anonymize: bool, warn: Callable[[str], None]) -> None:
        self._root = os.path.abspath(root)
        self._blocking = blocking
        self._anonymize = anonymize
        self._warn = warn
        self._recording = Recording(_kernel_release(self._root))
        self._macs: dict[bytes, bytes] = {}

    def record(self, addresses: Sequence[PciAddress] = ()) -> Recording:
        """The PFs and VFs at `addresses`, or all; with the bridges above and everything in their IOMMU
        groups.

        Raises ValueError for an address where no PF or VF is, OSError.
        """
        chosen = self._choose(addresses)
        for directory in chosen:
            self._record_device(directory, chosen)
        names = {directory.rpartition("/")[2] for directory in chosen}
        self._record_bus(names)
        self._take("kernel/iommu_groups")  # all of them: the next VF's gets the lowest free number
        for group in sorted({self._group(directory) for directory in chosen} - {""}):
            self._take(f"kernel/iommu_groups/{group}")
            self._take(f"kernel/iommu_groups/{group}/devices")
            self._take_link("class/vfio", group)
        return self._recording

    def _choose(self, addresses: Sequence[PciAddress]) -> list[str]:
        every = dict(self._list_devices())
        wanted = [str(address) for address in addresses] or [
            name for name, path in every.items() if self._is_sriov(path)
        ]
        for name in wanted:
            if name not in every or not self._is_sriov(every[name]):
                raise ValueError(f"no PF or VF is at {name}")
        if not wanted:
            self._warn("no PF and no VF is here; the recording has the bus and its drivers only")
        chosen: set[str] = set()
        pending = [every[name] for name in wanted]
        while pending:
            directory = pending.pop()
            if directory not in chosen:
                chosen.add(directory)
                pending += self._list_related(directory, every)
        return sorted(chosen)

    def _list_devices(self) -> Iterator[tuple[str, str]]:
        directory = f"{_BUS}/devices"
        for name in sorted(os.listdir(self._path(directory))):
            target = resolve_link(directory, os.readlink(self._path(f"{directory}/{name}")))
            if target is not None:
                yield name, target

    def _list_related(self, directory: str, every: dict[str, str]) -> list[str]:
        """Bridges above, the PF or the VFs, the other members of the IOMMU group."""
        related = [every[part] for part in directory.split("/")[:-1] if part in every]
        links = [
            name
            for name in os.listdir(self._path(directory))
            if name == "physfn" or name.startswith("virtfn")
        ]
        related += [target for name in links if (target := self._resolve(directory, name))]
        group = self._group(directory)
        if group:
            members = os.listdir(self._path(f"kernel/iommu_groups/{group}/devices"))
            related += [every[name] for name in members if name in every]
        return related

    def _record_device(self, directory: str, chosen: Sequence[str]) -> None:
        entries = self._recording.directories.setdefault(directory, {})
        for name in sorted(os.listdir(self._path(directory))):
            path = f"{directory}/{name}"
            if os.path.islink(self._path(path)) or not os.path.isdir(self._path(path)):
                entries[name] = self._entry(path)
            elif name in _SUBDIRECTORIES:
                self._record_below(path)
            elif path not in chosen and not _is_address(name):
                entries[name] = Directory()

    def _record_below(self, directory: str) -> None:
        """`net`, `power`, `vfio-dev`: files, and directories one level further down."""
        entries = self._take(directory)
        for name in os.listdir(self._path(directory)):
            if not isinstance(entries.get(name), Directory):
                continue
            del entries[name]
            self._take(f"{directory}/{name}")
            self._take_link("class/net", name)
        if not entries and any(path.startswith(f"{directory}/") for path in self._recording.directories):
            del self._recording.directories[directory]

    def _record_bus(self, names: set[str]) -> None:
        bus = self._take(_BUS)
        for name in ("devices", "drivers", "slots"):
            bus.pop(name, None)
        self._keep(self._take(f"{_BUS}/devices"), names)
        for driver in sorted(os.listdir(self._path(f"{_BUS}/drivers"))):
            entries = self._take(f"{_BUS}/drivers/{driver}")
            self._keep(entries, names)
            self._record_module(f"{_BUS}/drivers/{driver}", driver)
        slots = {name.rpartition(".")[0] for name in names}
        for slot in sorted(os.listdir(self._path(f"{_BUS}/slots"))):
            if (self._read(f"{_BUS}/slots/{slot}/address") or b"").decode(
                "ascii", "replace"
            ).strip() in slots:
                self._take(f"{_BUS}/slots/{slot}")

    def _record_module(self, directory: str, driver: str) -> None:
        module = self._resolve(directory, "module")
        if module:
            self._take(f"{module}/drivers", only=f"pci:{driver}")
            self._take(f"{module}/parameters", only="enable_sriov")

    def _take(self, directory: str, only: str = "") -> dict[str, Entry]:
        """Record a directory's own files and links; its directories as empty ones."""
        entries = self._recording.directories.setdefault(directory, {})
        try:
            names = [only] if only else sorted(os.listdir(self._path(directory)))
        except FileNotFoundError:
            names = []
        for name in names:
            if os.path.lexists(self._path(f"{directory}/{name}")):
                entries[name] = self._entry(f"{directory}/{name}")
        return entries

    def _take_link(self, directory: str, name: str) -> None:
        if os.path.islink(self._path(f"{directory}/{name}")):
            self._recording.directories.setdefault(directory, {})[name] = self._entry(f"{directory}/{name}")

    @staticmethod
    def _keep(entries: dict[str, Entry], names: set[str]) -> None:
        """Drop links to devices that are not recorded."""
        for name in [name for name in entries if _is_address(name) and name not in names]:
            del entries[name]

    def _entry(self, path: str) -> Entry:
        full = self._path(path)
        if os.path.islink(full):
            return Link(os.readlink(full))
        if os.path.isdir(full):
            return Directory()
        status = os.stat(full)
        name = path.rpartition("/")[2]
        mode = status.st_mode & 0o7777
        if _BAR_FILE.fullmatch(name):
            return Attribute(mode, None, status.st_size)
        return Attribute(mode, self._read_known(path, name) if mode & 0o444 else None)

    def _read_known(self, path: str, name: str) -> bytes | None:
        in_net = path.split("/")[-3:-2] == ["net"]
        if in_net:
            data = self._read(path) if name in _NET else None
            return self._replace_mac(data) if data and name == "address" else data
        if name == _SLOW:
            data = self._read_guarded(path)
            return _without_serial(data) if data and self._anonymize else data
        if name in _LOCKING:
            return self._read_guarded(path) if self._blocking else None
        return self._read(path) if name in _READABLE else None

    def _replace_mac(self, mac: bytes) -> bytes:
        if not self._anonymize:
            return mac
        number = len(self._macs) + 1
        return self._macs.setdefault(mac, f"02:00:00:00:{number >> 8:02x}:{number & 0xFF:02x}\n".encode())

    def _read(self, path: str) -> bytes | None:
        try:
            with open(self._path(path), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            self._warn(f"{path}: {error.strerror}")
            return None

    def _read_guarded(self, path: str) -> bytes | None:
        """Read by a child. One that sleeps in the kernel cannot be killed and is not waited for."""
        child = subprocess.Popen(
            ["cat", "--", self._path(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        try:
            data, _ = child.communicate(timeout=_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self._warn(f"{path}: no answer from the kernel in {_DEADLINE_SECONDS:.0f} s; left out")
            return None
        if child.returncode:
            self._warn(f"{path}: cannot be read")
            return None
        return data

    def _is_sriov(self, directory: str) -> bool:
        return any(
            os.path.lexists(self._path(f"{directory}/{name}")) for name in ("sriov_totalvfs", "physfn")
        )

    def _group(self, directory: str) -> str:
        return self._resolve(directory, "iommu_group").rpartition("/")[2]

    def _resolve(self, directory: str, name: str) -> str:
        try:
            return resolve_link(directory, os.readlink(self._path(f"{directory}/{name}"))) or ""
        except OSError:
            return ""

    def _path(self, relative: str) -> str:
        return f"{self._root}/{relative}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    options = _parse_arguments(arguments)

    def warn(message: str) -> None:
        sys.stderr.write(f"record: {message}\n")

    try:
        addresses = [PciAddress.parse(text) for text in options.address]
        recorder = Recorder(options.root, blocking=options.blocking, anonymize=options.anonymize, warn=warn)
        text = format_fixture(recorder.record(addresses))
        if options.output == "-":
            sys.stdout.write(text)
        else:
            with open(options.output, "w", encoding="utf-8") as file:
                file.write(text)
    except (AddressError, ValueError, OSError) as error:
        warn(str(error))
        return 1
    return 0


def _parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sriovd.backend.simulated.record",
        description="Record what the kernel shows of PFs and VFs, for the simulated host or a bug report.",
        epilog="Nothing is changed. Run it as root: others see 64 bytes of configuration space only.",
    )
    parser.add_argument(
        "address", nargs="*", metavar="ADDRESS", help="a PF or VF, like 0000:01:00.0; default: all"
    )
    parser.add_argument("--root", default="/sys", help="where sysfs is (default: /sys)")
    parser.add_argument(
        "--output", default="-", metavar="FILE", help="where to write (default: standard output)"
    )
    parser.add_argument(
        "--blocking", action="store_true", help="read attributes that wait for the device's lock, too"
    )
    parser.add_argument("--anonymize", action="store_true", help="replace MAC addresses and serial numbers")
    return parser.parse_args(arguments)


def _without_serial(config: bytes) -> bytes:
    """Zero the Device Serial Number capability, wherever the extended list has it."""
    data, offset, seen = bytearray(config), 0x100, set[int]()
    while 0x100 <= offset <= len(data) - 12 and offset not in seen:
        seen.add(offset)
        header = int.from_bytes(data[offset : offset + 4], "little")
        if header & 0xFFFF == _SERIAL_NUMBER_CAPABILITY:
            data[offset + 4 : offset + 12] = bytes(8)
        offset = header >> 20
    return bytes(data)


def _is_address(name: str) -> bool:
    try:
        PciAddress.parse(name)
    except AddressError:
        return False
    return True


def _kernel_release(root: str) -> str:
    return os.uname().release if root == "/sys" else "unknown"


if __name__ == "__main__":
    sys.exit(main())
