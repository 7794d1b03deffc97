"""What a scenario needs beside a backend, on the two kinds of host.

Rule: only what happens to a host from elsewhere: modules, other processes, management commands. Nothing
that a backend can do is done here.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from sriovd.backend.base import Backend, Holder, UeventAction
from sriovd.backend.linux.host import LinuxBackend
from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.driver_rules import load_driver
from sriovd.pci import PciAddress
from tests.conformance.actions import (
    AssignResources,
    Close,
    LinkDown,
    LinkUp,
    LoadDriver,
    Open,
    Outside,
    SetParameter,
    SetVfAttribute,
)

HOLDER_NAME = "vfio-user"
START_MODULES = ("vfio-pci", "igbvf")
LATER_MODULE = "pci-stub"
COMMAND_TIMEOUT_S = 60.0
# Linux: Documentation/driver-api/vfio.rst, "VFIO Usage Example"; numbers of include/uapi/linux/vfio.h.
_HOLDER_PROGRAM = """
import fcntl, os, sys
group, name, comm = sys.argv[1:]
open("/proc/self/comm", "w").write(comm)
container, group = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(f"/dev/vfio/{group}", os.O_RDWR)
fcntl.ioctl(group, 0x3B68, bytearray(container.to_bytes(4, sys.byteorder)))  # VFIO_GROUP_SET_CONTAINER
fcntl.ioctl(container, 0x3B66, 1)  # VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU
device = fcntl.ioctl(group, 0x3B6A, bytearray(name.encode() + b"\\0"))  # VFIO_GROUP_GET_DEVICE_FD
print("open", flush=True)
sys.stdin.read()
"""


class BenchError(Exception):
    """Something that a scenario needs could not be had; the message says what and why."""


class Bench(Protocol):
    """A host with its backend."""

    @property
    def backend(self) -> Backend:
        """The host as sriovd sees it."""

    def prepare(self) -> None:
        """Modules as operations.py promises them. Raises BenchError."""

    def perform(self, action: Outside) -> None:
        """What happens beside the backend. Raises BenchError."""

    def mark(self, address: PciAddress) -> None:
        """Let the host send a `change` event for `address`: everything before it is then known to have
        come."""

    def close(self) -> None:
        """End what perform() has begun."""


class LinuxBench:
    """This machine. As root."""

    def __init__(self, run_directory: str, sysfs: str = "/sys") -> None:
        self._linux = LinuxBackend(sysfs, run_directory)
        self._sysfs = Path(sysfs)
        self._holders: dict[PciAddress, subprocess.Popen[str]] = {}

    @property
    def backend(self) -> Backend:
        return self._linux

    def prepare(self) -> None:
        for module in START_MODULES:
            run_command("modprobe", module)
        if (self._sysfs / "module" / LATER_MODULE.replace("-", "_")).exists():
            run_command("modprobe", "--remove", LATER_MODULE)

    def perform(self, action: Outside) -> None:
        match action:
            case LoadDriver(driver):
                run_command("modprobe", driver)
            case SetParameter(module, name, value):
                self._write(f"module/{module}/parameters/{name}", "Y" if value else "N")
            case Open(address):
                self._open(address)
            case Close(address):
                end(self._holders.pop(address))
            case AssignResources(pf, vf):
                self._assign(pf, vf)
            case LinkUp(pf):
                self._switch_on(pf)
            case LinkDown(pf):
                run_command("ip", "link", "set", self._interface(pf).name, "down")
            case SetVfAttribute(pf, words, _):
                run_command("ip", "link", "set", self._interface(pf).name, "vf", *words.split())

    def mark(self, address: PciAddress) -> None:
        self._write(f"bus/pci/devices/{address}/uevent", str(UeventAction.CHANGE))

    def close(self) -> None:
        for process in self._holders.values():
            end(process)

    def _write(self, path: str, text: str) -> None:
        (self._sysfs / path).write_text(text)

    def _open(self, address: PciAddress) -> None:
        group = (self._device(address) / "iommu_group").resolve().name
        argv = [sys.executable, "-c", _HOLDER_PROGRAM, group, str(address), HOLDER_NAME]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._holders[address] = process
        if process.stdout is None or process.stdout.readline() != "open\n":
            raise BenchError(f"the VFIO device {address} (group {group}) could not be opened")

    def _assign(self, pf: PciAddress, vf: PciAddress) -> None:
        """NVMe 1.4, 5.22 Virtualization Management: the PF keeps fewer, the VF gets two queues and an
        interrupt."""
        device = next((self._device(pf) / "nvme").iterdir()).name
        facts = self._linux.read_function(vf)
        if facts is None or facts.virtual is None:
            raise BenchError(f"{vf} is no VF")
        controller = str(facts.virtual.index + 1)
        for arguments in (("-r0", "-n2", "-a8"), ("-r1", "-n1", "-a8"), ("-a9",)):
            run_command("nvme", "virt-mgmt", f"/dev/{device}", "-c", controller, *arguments)

    def _switch_on(self, pf: PciAddress) -> None:
        """Wait for the interface's driver to report that it runs: igb opens the mailbox to its VFs then."""
        interface = self._interface(pf)
        run_command("ip", "link", "set", interface.name, "up")
        wait_for(lambda: (interface / "operstate").read_text() == "up\n", f"{interface.name} to be up")

    def _interface(self, pf: PciAddress) -> Path:
        run_command("udevadm", "settle")  # which renames interfaces
        return next((self._device(pf) / "net").iterdir())

    def _device(self, address: PciAddress) -> Path:
        return self._sysfs / "bus/pci/devices" / str(address)


class SimulatedBench:
    """A simulated host in `root`, an empty directory, begun from the recording `fixture`."""

    def __init__(self, root: str, fixture: str) -> None:
        self._simulated = SimulatedBackend(root, fixture=fixture)
        self._simulated.host.spawn = self._simulated.kernel.execute  # a carrier is there at once
        self._pid = 1000

    @property
    def backend(self) -> Backend:
        return self._simulated

    def prepare(self) -> None:
        for module in START_MODULES:
            if module not in self._simulated.host.drivers:
                self._load(module)

    def perform(self, action: Outside) -> None:
        match action:
            case LoadDriver(driver):
                self._load(driver)
            case SetParameter(module, name, value):
                self._simulated.kernel.write(f"module/{module}/parameters/{name}", "Y" if value else "N")
            case Open(address):
                self._simulated.open_device(address, Holder(self._pid, HOLDER_NAME))
            case Close(address):
                self._simulated.close_device(address)
            case AssignResources(_, vf):
                self._simulated.assign_resources(vf)
            case LinkUp(pf):
                self._switch(pf, on=True)
            case LinkDown(pf):
                self._switch(pf, on=False)
            case SetVfAttribute(pf, _, request):
                self._simulated.set_vf_attribute(pf, request)

    def mark(self, address: PciAddress) -> None:
        self._simulated.kernel.write(f"bus/pci/devices/{address}/uevent", str(UeventAction.CHANGE))

    def close(self) -> None:
        return

    def _switch(self, pf: PciAddress, *, on: bool) -> None:
        self._simulated.switch_interface(pf, on=on)

    def _load(self, driver: str) -> None:
        """modprobe, which returns when the driver has been offered the devices."""
        self._simulated.kernel.execute(load_driver(self._simulated.host, driver))


def run_command(*argv: str) -> None:
    """Run a program. Raises BenchError with what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(argv)}: status {done.returncode}: {done.stdout}{done.stderr}".rstrip())


def end(process: subprocess.Popen[str]) -> None:
    """Close a holder's input, at which it ends."""
    process.communicate(timeout=COMMAND_TIMEOUT_S)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Raises BenchError when `condition` does not come true in time."""
    deadline_s = time.monotonic() + COMMAND_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise BenchError(f"waited {COMMAND_TIMEOUT_S:.0f} s for {what}")
        time.sleep(0.05)
