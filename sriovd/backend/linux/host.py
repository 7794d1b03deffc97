"""The real host: backend.base.Backend, put together from its parts.

Rule: wiring only. What it reads comes from sysfs.py, what can block goes to the helpers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from sriovd.backend.base import (
    DriverState,
    ErrorPath,
    FunctionFacts,
    Holder,
    KernelEvent,
    Leftover,
    Severity,
)
from sriovd.backend.driver_events import MessagesLost
from sriovd.backend.linux.error_records import ErrorRecords
from sriovd.backend.linux.handover import ROOT_UID, give_node
from sriovd.backend.linux.helpers import HelperPool
from sriovd.backend.linux.holders import vfio_nodes
from sriovd.backend.linux.kernel_log import read_kernel_log
from sriovd.backend.linux.links import LinkMonitor
from sriovd.backend.linux.modules import ModuleCatalog
from sriovd.backend.linux.runs import ScriptRun
from sriovd.backend.linux.trace_reader import DEVLINK_INSTANCE, discard_instance
from sriovd.backend.linux.uevents import RECEIVE_BUFFER_BYTES, UeventMonitor
from sriovd.backend.steps import ChainResult, Script
from sriovd.backend.sysfs import SysfsReader
from sriovd.pci import PciAddress

if TYPE_CHECKING:  # loaded when somebody listens
    from sriovd.backend.linux.device_reports import DeviceReports
    from sriovd.backend.linux.driver_messages import DriverMessages

_log = logging.getLogger(__name__)


class LinuxBackend:
    """This machine's kernel.

    `root`: where sysfs is mounted. `run_directory`: where helpers are registered; must be empty after a boot
    and outlive the daemon (RuntimeDirectoryPreserve=). `receive_buffer_bytes`: of the uevent socket.
    `modules_directory`: /lib/modules/RELEASE unless given. `vfio_directory`: of the VFIO device nodes.
    """

    def __init__(
        self,
        root: str = "/sys",
        run_directory: str = "/run/sriovd",
        *,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        modules_directory: str | None = None,
        vfio_directory: str = "/dev/vfio",
    ) -> None:
        release = os.uname().release
        self._reader = SysfsReader(root)
        self._modules = ModuleCatalog(self._reader.root, modules_directory or f"/lib/modules/{release}")
        self._vfio_directory = vfio_directory
        self._helpers = HelperPool(self._reader.root, run_directory)
        self._monitor = UeventMonitor(receive_buffer_bytes, before_recovery=self._tell_errors)
        self._records = ErrorRecords(self._monitor.put, self._reader.root)
        self._links = LinkMonitor(self._monitor.put, self._reader.is_function)
        self._listening = False

    @property
    def simulator(self) -> None:
        """A real host has no knobs."""
        return None

    def describe(self) -> str:
        """The kernel's name and release."""
        system = os.uname()
        return f"{system.sysname} {system.release}"

    def boot_id(self) -> str:
        """This boot's. Raises OSError."""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()

    async def start(self) -> None:
        """Listen for events and start the first helpers. Raises OSError."""
        self._monitor.start()
        self._links.start()
        self._records.start()
        discard_instance(self._reader.root, DEVLINK_INSTANCE)  # a daemon that was killed has left it
        self._helpers.start()

    async def stop(self) -> None:
        """Let go of everything; hanging helpers are left behind."""
        self.listen_to_drivers(False)
        self._records.stop()
        self._links.stop()
        self._monitor.stop()
        self._helpers.close()

    def events(self) -> AsyncIterator[KernelEvent]:
        """Every uevent of a PCI function, every change of a PF's or VF's interface and every record of an
        error since start(), a record before the uevents of its recovery; and what drivers say."""
        return self._monitor.events()

    def defer_events(self, deferred: bool) -> None:
        """Whether events may come late; see Backend."""
        self._monitor.defer(deferred)
        self._links.defer(deferred)

    @cached_property
    def _drivers(self) -> tuple[DriverMessages, DeviceReports]:
        from sriovd.backend.linux.device_reports import DeviceReports
        from sriovd.backend.linux.driver_messages import DriverMessages

        put, reader = self._monitor.put, self._reader
        return DriverMessages(put, reader.is_function), DeviceReports(put, reader.root)

    def listen_to_drivers(self, wanted: bool) -> None:
        """Follow the journal and devlink's tracepoints, or no more. See Backend."""
        listened, self._listening = self._listening, wanted
        if not wanted and not listened:
            return
        for source in self._drivers:
            if not wanted:
                source.stop()
            elif source.has_failed or not listened:
                source.start()
        if wanted and any(source.has_failed for source in self._drivers):
            self._monitor.put(MessagesLost(None, 0, time.monotonic_ns() // 1000))

    def list_functions(self) -> Sequence[PciAddress]:
        """Every PF and VF, PFs first. Raises HostReadError."""
        return self._reader.list_functions()

    def list_virtual_functions(self, pf: PciAddress) -> Mapping[int, PciAddress]:
        """The VFs of `pf` by index. Raises HostReadError."""
        return self._reader.list_virtual_functions(pf)

    def read_function(self, address: PciAddress) -> FunctionFacts | None:
        """The PF or VF at `address`. Raises HostReadError."""
        return self._reader.read_function(address)

    def driver_state(self, driver: str) -> DriverState:
        """Whether the PCI driver of that name is registered, could be loaded, or is not known."""
        return self._modules.state(driver)

    async def find_holders(self, addresses: Sequence[PciAddress]) -> Mapping[PciAddress, Sequence[Holder]]:
        """The processes that hold a VFIO node of each address open. Raises ConnectionError."""
        nodes = {address: self._nodes(address) for address in addresses}
        paths = sorted({path for own_paths in nodes.values() for path in own_paths})
        if not paths:
            return {}
        found, unreadable = await self._helpers.scan_holders(paths)
        if unreadable:
            _log.warning("%d processes could not be searched for open devices", unreadable)
        by_path: dict[str, set[Holder]] = {}
        for path, pid, comm in found:
            by_path.setdefault(path, set()).add(Holder(pid, comm))
        holders = {
            address: set[Holder]().union(*(by_path.get(path, ()) for path in own_paths))
            for address, own_paths in nodes.items()
        }
        return {address: tuple(sorted(those, key=_pid)) for address, those in holders.items() if those}

    def hand_over(self, address: PciAddress, uid: int) -> None:
        """Give the node of the function's VFIO group to `uid`. Raises OSError."""
        facts = self._reader.read_function(address)
        if facts is None or facts.iommu_group is None:
            raise OSError(errno.ENOENT, f"{address} has no IOMMU group")
        give_node(self._vfio_directory, facts.iommu_group, uid)

    def take_back(self, group: int) -> None:
        """Give the node of that VFIO group back to root. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            give_node(self._vfio_directory, group, ROOT_UID)

    async def open_group(self, group: int, timeout_sec: float) -> int:
        """A descriptor of that VFIO group, as Backend.open_group documents.

        By a helper, because the kernel makes whoever opens wait for the reset at the end of the last use
        (drivers/vfio/group.c, group_lock): a minute, when the device does not answer any more.
        """
        give_node(self._vfio_directory, group, ROOT_UID)  # sriovd has no right to pass over permissions
        return await self._helpers.open_node(f"{self._vfio_directory}/{group}", timeout_sec)

    def list_group(self, group: int) -> Sequence[str]:
        """The names of the devices in that IOMMU group."""
        return self._reader.list_group(group)

    def read_error_counters(self, address: PciAddress) -> Mapping[Severity, Mapping[str, int]]:
        """The function's AER counters. Raises HostReadError."""
        return self._reader.read_error_counters(address)

    def read_counters(self, address: PciAddress) -> Mapping[str, int]:  # noqa: ARG002
        """None: the kernel counts nothing of a VF by itself but its errors, and statistics of an interface
        are its driver's to tell (net/core/net-sysfs.c netstat_show), who may read the device for them."""
        return {}

    def read_error_path(self, address: PciAddress) -> ErrorPath:
        """The ports above the function and who handles its errors."""
        return self._reader.read_error_path(address, is_recorded=self._records.is_open)

    async def read_kernel_log(self, since_usec: int, words: Sequence[str]) -> Sequence[str]:
        """Lines of the journal; see Backend."""
        return await asyncio.to_thread(read_kernel_log, since_usec, words)

    def run(self, adapter: str, script: Script, on_result: Callable[[ChainResult], None]) -> ScriptRun:
        """Execute `script` by a helper process. `finished` has the chains that were tried."""
        return self._helpers.run(adapter, script, on_result)

    async def find_leftovers(self) -> Sequence[Leftover]:
        """The writes that a former daemon process left hanging. Raises OSError."""
        return self._helpers.find_leftovers()

    def _tell_errors(self) -> None:
        self._records.drain()

    def _nodes(self, address: PciAddress) -> Sequence[str]:
        return vfio_nodes(self._reader.root, address, self._vfio_directory)


def _pid(holder: Holder) -> int:
    return holder.pid
