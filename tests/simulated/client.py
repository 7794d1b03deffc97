"""A client of sriovd on D-Bus: every verb with plain arguments, refusals as values.

Rule: knows the contract and nothing behind it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sriovd.bus.calls import RemoteError
from sriovd.bus.connection import BUS, BUS_PATH, Connection
from sriovd.bus.signature import Variant
from sriovd.bus.transport import connect_socket

BUS_NAME = "org.sriovd1"
ROOT = "/org/sriovd1"
SIMULATOR_PATH = f"{ROOT}/simulator"
MANAGER, ADAPTER, FUNCTION, PHYSICAL_FUNCTION, VIRTUAL_FUNCTION, JOB, LEASE, RECOVERY, TRACE, SIMULATOR = (
    f"{BUS_NAME}.{name}"
    for name in (
        "Manager", "Adapter", "Function", "PhysicalFunction", "VirtualFunction", "Job", "Lease",
        "Recovery", "Trace", "Simulator",
    )
)  # fmt: skip
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

IGB0, IGB1, NVME, DLB = "0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:05:00.0"
PFS = {IGB0: "igb", IGB1: "igb", NVME: "nvme", DLB: "dlb"}
VF0, VF1 = "0000:01:10.0", "0000:01:10.2"  # of IGB0

_OPTION_TYPES = {
    "wait-usec": "t", "force": "b", "driver": "s", "allow-short": "b",
    "errno": "s", "delay-usec": "t", "hang": "b", "times": "u", "address": "s", "pf": "s", "slot": "s",
    "vendor": "u", "device": "u", "class": "s", "bound-to": "s", "pf-driver": "s", "netdev": "s",
    "numa-node": "i", "spread": "s", "generation": "t",
}  # fmt: skip
_REPLY_LIMIT_BYTES = 64 << 20  # all objects of a full host come in one message

Options = dict[str, Variant]


def make_options(**given: Any) -> Options:
    """An a{sv} from keyword arguments: wait_usec=0 is 'wait-usec' with its type."""
    names = {name.rstrip("_").replace("_", "-"): value for name, value in given.items()}
    return {name: Variant(_OPTION_TYPES[name], value) for name, value in names.items()}


def encode(text: str) -> str:
    return "_" + re.sub("[^A-Za-z0-9]", "_", text)


def function_path(address: str) -> str:
    return f"{ROOT}/function/{encode(address)}"


def adapter_path(slot: str) -> str:
    return f"{ROOT}/adapter/{encode(slot)}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that failed: the error's name without sriovd's prefix, and its sentence."""

    name: str
    text: str

    def check(self, name: str, *parts: str) -> None:
        """That it is this one, and says all that."""
        assert self.name == name, self
        for part in parts:
            assert part in self.text, self
        assert "Traceback" not in self.text
        assert "Error(" not in self.text


@dataclass(frozen=True, slots=True)
class Client:
    """One connection to the daemon's bus."""

    connection: Connection

    @classmethod
    @asynccontextmanager
    async def connected(cls, address: str) -> AsyncIterator[Client]:
        connection = Connection(await connect_socket(address), _REPLY_LIMIT_BYTES)
        (connection.unique_name,) = await connection.call(BUS, BUS_PATH, BUS, "Hello")
        try:
            yield cls(connection)
        finally:
            await connection.close()

    async def call(self, path: str, interface: str, member: str, signature: str = "", *body: Any) -> Any:
        """Any method of any object; the tuple of its results. Raises RemoteError."""
        return await self.connection.call(BUS_NAME, path, interface, member, signature, body, 60.0)

    async def ask(self, member: str, signature: str = "", *body: Any) -> Any:
        """A method of the Manager."""
        return await self.call(ROOT, MANAGER, member, signature, *body)

    async def refused(
        self, member: str, signature: str, *body: Any, path: str = ROOT, interface: str = MANAGER
    ) -> Refusal:
        """A call that must fail."""
        try:
            result = await self.call(path, interface, member, signature, *body)
        except RemoteError as error:
            return Refusal(error.name.removeprefix(f"{BUS_NAME}.Error."), error.text)
        raise AssertionError(f"{member}{body} was not refused: {result}")

    async def set_num_vfs(self, pf: str, count: int, **options: Any) -> Any:
        return await self.ask("SetNumVFs", "sua{sv}", pf, count, make_options(**options))

    async def bind(self, address: str, driver: str, **options: Any) -> Any:
        return await self.ask("Bind", "ssa{sv}", address, driver, make_options(**options))

    async def bind_vfs(self, pf: str, driver: str, **options: Any) -> Any:
        return await self.ask("BindVFs", "ssa{sv}", pf, driver, make_options(**options))

    async def unbind(self, address: str, **options: Any) -> Any:
        return await self.ask("Unbind", "sa{sv}", address, make_options(**options))

    async def reset(self, address: str, **options: Any) -> Any:
        return await self.ask("Reset", "sa{sv}", address, make_options(**options))

    async def remove(self, address: str, **options: Any) -> Any:
        return await self.ask("Remove", "sa{sv}", address, make_options(**options))

    async def rescan(self, **options: Any) -> Any:
        return await self.ask("Rescan", "a{sv}", make_options(**options))

    async def lease(self, owner: str = "vm", **options: Any) -> tuple[str, str]:
        """Lease a VF; the lease's object and the function's."""
        lease, function, state = await self.ask("Lease", "sa{sv}", owner, make_options(**options))
        assert state == "active"
        return lease, function

    async def release(self, lease: str, owner: str = "vm", **options: Any) -> Any:
        """Release on the lease's object."""
        return await self.call(lease, LEASE, "Release", "sa{sv}", owner, make_options(**options))

    async def simulate(self, member: str, signature: str = "", *body: Any) -> Any:
        """A method of the Simulator."""
        return await self.call(SIMULATOR_PATH, SIMULATOR, member, signature, *body)

    async def inject(self, verb: str, address: str = "", **options: Any) -> None:
        """Arm a fault."""
        await self.simulate("InjectFault", "ssa{sv}", verb, address, make_options(**options))

    async def get(self, path: str, interface: str, name: str) -> Any:
        """The value of a property."""
        (value,) = await self.call(path, PROPERTIES, "Get", "ss", interface, name)
        return value.value

    async def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """The values of all properties of an interface."""
        (values,) = await self.call(path, PROPERTIES, "GetAll", "s", interface)
        return {name: value.value for name, value in values.items()}

    async def driver(self, address: str) -> str:
        """The driver of a function, by its object."""
        return str(await self.get(function_path(address), FUNCTION, "Driver"))

    async def functions(self) -> dict[str, str]:
        """Address to driver of every PF and VF."""
        (rows,) = await self.ask("ListFunctions")
        return {address: driver for _, address, _, driver in rows}

    async def vfs(self, pf: str) -> dict[str, str]:
        """Address to driver of the VFs of `pf`, by index."""
        (paths,) = await self.call(function_path(pf), PHYSICAL_FUNCTION, "ListVFs")
        found = {
            function_path(address): (address, driver) for address, driver in (await self.functions()).items()
        }
        return dict(found[path] for path in paths)

    async def managed(self) -> dict[str, dict[str, dict[str, Any]]]:
        """GetManagedObjects with plain values: path, interface, property."""
        (objects,) = await self.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        return {
            path: {
                interface: {name: value.value for name, value in values.items()}
                for interface, values in interfaces.items()
            }
            for path, interfaces in objects.items()
        }

    async def job(self, path: str) -> dict[str, Any]:
        """The properties of a job."""
        return await self.get_all(path, JOB)

    async def wait_job(self, path: str, timeout_usec: int = 20_000_000) -> str:
        """Job.Wait."""
        (state,) = await self.call(path, JOB, "Wait", "t", timeout_usec)
        return str(state)

    async def tidy(self) -> None:
        """The host as at first: nothing misbehaves, nobody holds anything, no VFs, default drivers."""
        await self.simulate("ClearFaults")
        for address, driver in (await self.functions()).items():
            if driver == "vfio-pci":
                await self.simulate("CloseDevice", "s", address)
        for path, interfaces in (await self.managed()).items():
            if LEASE in interfaces:
                await self.release(path, interfaces[LEASE]["Owner"], force=True)
        for pf, driver in PFS.items():
            if pf not in await self.functions():
                await self.rescan()
            await self.set_num_vfs(pf, 0)
            if await self.driver(pf) != driver:
                await self.bind(pf, "default")
