"""A small simulated host, and words for what is written to it."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from sriovd.backend.base import ErrorRecord, KernelEvent, LinkChanged, Uevent
from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.device import Device
from sriovd.backend.steps import Chain, ChainResult, Script, Step, Verb
from sriovd.pci import PciAddress

IGB = "0000:01:00.0"
IGB2 = "0000:02:00.0"
NVME = "0000:03:00.0"
VF = "0000:01:10.0"
VF1 = "0000:01:10.2"
NVME_VF = "0000:03:00.1"
SMALL = (("igb", IGB), ("igb", IGB2), ("nvme", NVME))
DEADLINE_SECONDS = 20.0


def make_root() -> str:
    """A directory in memory if there is any: a disk makes thousands of files slow and says nothing about
    them."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return tempfile.mkdtemp(prefix="sriovd-test-", dir=memory)


@pytest.fixture
def root() -> Iterator[str]:
    """A directory for a tree, removed afterwards."""
    path = make_root()
    yield path
    shutil.rmtree(path)


class Sim:
    """A backend that listens, with short ways to write and look."""

    def __init__(self, root: str, **options: Any) -> None:
        self.backend = SimulatedBackend(f"{root}/sys", **{"machine": SMALL, **options})
        self.kernel = self.backend.kernel
        self.backend.host.uevents.open()

    def write(self, path: str, data: str | bytes) -> str:
        """The errno's name of one write, or `ok`. A path that begins with an address is a device's."""
        try:
            self.kernel.write(self.expand(path), data)
        except BlockingIOError:
            return "blocks"
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "ok"

    def must(self, path: str, data: str | bytes) -> None:
        """A write that has to succeed."""
        assert self.write(path, data) == "ok", f"{path} <- {data!r}"

    def read(self, path: str) -> str:
        """What is read, or the errno's name."""
        try:
            return self.kernel.read(self.expand(path)).decode()
        except BlockingIOError:
            return "blocks"
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def expand(self, path: str) -> str:
        """The path below the root."""
        if path[:5] == "0000:":
            return f"bus/pci/devices/{path}"
        return path if path.startswith(("bus/", "devices/", "module/")) else f"bus/pci/{path}"

    def exists(self, path: str) -> bool:
        """Whether a path of the tree exists, links not followed."""
        return os.path.lexists(self.backend.host.tree.path(self.expand(path)))

    def link(self, path: str) -> str:
        """What a symlink contains; empty if there is none."""
        full = self.backend.host.tree.path(self.expand(path))
        return os.readlink(full) if os.path.islink(full) else ""

    def driver(self, address: str) -> str:
        """The driver's name by the link."""
        return self.link(f"{address}/driver").rpartition("/")[2]

    def device(self, address: str) -> Device:
        """The kernel's object."""
        return self.backend.host.devices[PciAddress.parse(address)]

    def names(self) -> list[str]:
        """Every PF and VF."""
        return [str(address) for address in self.backend.list_functions()]

    def enable(self, pf: str, count: int, autoprobe: bool = False) -> None:
        """Make VFs and forget the events."""
        self.must(f"{pf}/sriov_drivers_autoprobe", "1" if autoprobe else "0")
        self.must(f"{pf}/sriov_numvfs", str(count))
        self.events()

    def bind(self, address: str, driver: str) -> None:
        """Override and probe, and forget the events."""
        self.must(f"{address}/driver_override", driver)
        self.must("drivers_probe", address)
        assert self.driver(address) == driver
        self.events()

    def events(self) -> list[str]:
        """`action address` of the uevents that have come since the last call."""
        events = self.backend.host.uevents.drain()
        return [describe(event) for event in events if not isinstance(event, LinkChanged)]

    def changed_links(self) -> list[str]:
        """The addresses of the LinkChanged that have come since the last call; uevents are passed over."""
        events = self.backend.host.uevents.drain()
        return [str(event.address) for event in events if isinstance(event, LinkChanged)]


def describe(event: KernelEvent) -> str:
    """An event in a few words."""
    if isinstance(event, ErrorRecord):
        return f"{event.severity} {event.address}"
    if not isinstance(event, Uevent):
        return "lost"
    return f"{event.properties.get('ERROR_EVENT', event.action)} {event.address}"


def step(verb: Verb, address: str | None = None, argument: str = "", expect: str | None = None) -> Step:
    """A step on the function at `address`."""
    return Step(verb, PciAddress.parse(address) if address else None, argument, expect)


def script(*chains: tuple[Step, ...], stop: bool = False) -> Script:
    """A script of these chains."""
    return Script("test", tuple(Chain(chain[0].address, chain) for chain in chains), stop)


def ignore(_result: ChainResult) -> None:
    """A listener who does not care."""


def run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine to its end, or fail when it takes too long."""
    asyncio.run(asyncio.wait_for(main(), DEADLINE_SECONDS))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop go on until the condition holds; the test's deadline ends it otherwise."""
    while not condition():
        await asyncio.sleep(0.001)
