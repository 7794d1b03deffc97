"""A host whose adapters meet errors, and everybody who watches: the daemon, a client, and a listener who
hears every state in its order.

Rule: what the host is like is read from the simulated kernel's own objects, never from the daemon.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.kernel import Call
from sriovd.backend.steps import Access
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.bus.calls import RemoteError
from sriovd.bus.signature import Variant
from sriovd.core.engine import Places
from sriovd.pci import PciAddress
from tests.simulated.client import (
    IGB0,
    RECOVERY,
    Client,
    Options,
    Refusal,
    adapter_path,
    function_path,
    make_options,
)
from tests.simulated.inside import Inside, running_inside
from tests.simulated.leases import leases
from tests.unit.bus.support import Client as Listener

SLOT = "0000:01:00"
DEADLINE_SEC = 20.0
VFS = tuple(f"0000:01:{0x10 + number // 4:02x}.{number % 4 * 2}" for number in range(7))  # of IGB0
WHOLE = ("frozen", "collecting", "resetting", "restoring", "verifying", "permitting", "online")
OF_VF = ("frozen", "locked-out", "permitted", "recovering", "online")

MANUAL = """[match]
driver = "igb"
[recovery]
permission = "manual"
"""


@dataclass(frozen=True)
class VfTruth:
    """A VF as the kernel has it. `resets`: what may reset it. `dma`: whether it may do DMA."""

    driver: str
    attributes: Mapping[str, Any]
    resets: bool
    dma: bool


@dataclass(frozen=True)
class Ward:
    """`written`: the address of every function that somebody has written to, in order."""

    inside: Inside
    client: Client
    listener: Listener
    written: list[PciAddress]

    @property
    def backend(self) -> SimulatedBackend:
        return self.inside.backend

    # Misfortune.

    async def err(self, address: str = IGB0, severity: str = "nonfatal", status: int = 0) -> None:
        await self.client.simulate("InjectError", "ssuau", address, severity, status, [])

    async def hide(self, *sources: str) -> None:
        await self.client.simulate("HideErrors", "as", list(sources))

    def group_of(self, vf: str) -> int:
        """The VFIO group of that VF."""
        group = self.backend.host.devices[PciAddress.parse(vf)].group
        assert group is not None
        return group

    async def hold_open(self, vf: str, pid: int = 4242, name: str = "qemu-system-x86") -> None:
        await self.client.simulate("OpenDevice", "sus", vf, pid, name)

    async def close(self, vf: str) -> None:
        await self.client.simulate("CloseDevice", "s", vf)

    @asynccontextmanager
    async def kernel_held_up(self) -> AsyncIterator[None]:
        """Somebody has the lock of the first VF: the kernel's walk comes to the PF, and waits then."""
        lock = self.backend.host.devices[PciAddress.parse(VFS[0])].lock
        assert not lock.held
        lock.held = True
        try:
            yield
        finally:
            lock.release()
            self.backend.host.notify()

    # What is shown.

    def states(self, of: str) -> list[str]:
        """The states that were announced of an adapter or function, in order."""
        path = _path(of)
        return [each.body[0] for each in self.listener.named("StateChanged") if each.path == path]

    def said(self, of: str) -> list[tuple[str, str, str]]:
        """State, cause and reason of each announcement."""
        path = _path(of)
        return [tuple(each.body) for each in self.listener.named("StateChanged") if each.path == path]

    def forget(self) -> None:
        """What was announced and written until now counts no more."""
        self.listener.signals.clear()
        self.written.clear()

    async def get(self, of: str, name: str) -> Any:
        """A property of its Recovery interface; None while it is off the bus, which a rung may take it."""
        try:
            return await self.client.get(_path(of), RECOVERY, name)
        except RemoteError as error:
            if not error.name.endswith(".UnknownObject"):
                raise
            return None

    async def until(self, of: str, state: str | int, name: str = "State") -> None:
        """Until the object shows it; fails showing where it stands."""
        await until(lambda: self.get(of, name), lambda value: value == state, f"{of} {state}")

    async def until_over(self, slot: str = SLOT, pf: str = IGB0) -> None:
        """Until the adapter and all of its VFs are online."""
        await self.until(slot, "online")
        for vf in await self.client.vfs(pf):
            await self.until(vf, "online")

    async def until_audit(self, of: str, text: str) -> None:
        """Until the audit of an adapter or function finds it; empty: until it finds nothing."""
        await until(
            lambda: self.get(of, "Audit"),
            lambda found: any(text in each for each in found) if text else not found,
            f"{text!r} of {of}",
        )

    async def until_waits(self, slot: str, text: str) -> str:
        """Until the adapter waits for what `text` is part of; what it says."""
        shown = await until(
            lambda: self.get(slot, "WaitsFor"), lambda value: bool(value) and text in value, text
        )
        return str(shown)

    async def until_announced(self, of: str, *states: str) -> None:
        """Until exactly these were announced."""

        async def read() -> list[str]:
            return self.states(of)

        await until(read, lambda seen: len(seen) >= len(states), f"{of} {states}")
        assert self.states(of) == [*states]

    async def until_said(self, of: str, state: str) -> None:
        """Until that is the last state that was announced."""

        async def read() -> list[str]:
            return self.states(of)

        await until(read, lambda seen: seen[-1:] == [state], f"{of} to be {state}")

    async def refused(self, member: str, *arguments: Any, signature: str = "sa{sv}") -> Refusal:
        """A verb of the Manager that must fail; its options are put behind."""
        return await self.client.refused(member, signature, *arguments, {})

    async def unfreeze(self, vf: str, owner: str = "", **options: Any) -> str:
        (state,) = await self.client.ask("Unfreeze", "ssa{sv}", vf, owner, _options(options))
        return str(state)

    async def set_attributes(self, vf: str, wait_usec: int = 20_000_000, **wish: Variant) -> tuple[str, str]:
        """Attributes of a VF; the job and its state."""
        given = {name.replace("_", "-"): value for name, value in wish.items()}
        options = make_options(wait_usec=wait_usec)
        job, state = await self.client.ask("SetVFAttributes", "sa{sv}a{sv}", vf, given, options)
        return str(job), str(state)

    async def wait_permitted(self, vf: str, owner: str = "", timeout_usec: int = 20_000_000) -> str:
        (state,) = await self.client.ask("WaitPermitted", "sst", vf, owner, timeout_usec)
        return str(state)

    async def bundles(self, slot: str = SLOT) -> Sequence[tuple[int, int, str, str]]:
        (rows,) = await self.client.ask("ListBundles", "s", slot)
        return [tuple(row) for row in rows]

    async def until_bundles(self, *kinds: str) -> None:
        """Until these are kept of the adapter, the oldest first."""

        async def read() -> list[str]:
            return [kind for _, _, kind, _ in await self.bundles()]

        await until(read, lambda kept: kept == [*kinds], f"bundles {kinds}")

    async def until_log(self, caplog: pytest.LogCaptureFixture, text: str) -> None:
        """Until the journal has it."""

        async def read() -> list[str]:
            return [each.getMessage() for each in caplog.records]

        await until(read, lambda lines: any(text in line for line in lines), text)

    async def read_bundle(self, number: int, form: str) -> str:
        (text,) = await self.client.ask("ReadBundle", "ts", number, form)
        return str(text)

    async def lift(self, target: str) -> str:
        (state,) = await self.client.ask("Lift", "sa{sv}", target, {})
        return str(state)

    # What is so.

    def look(self, pf: str = IGB0) -> dict[int, VfTruth]:
        """The VFs of a PF by index."""
        dev = self.backend.host.devices[PciAddress.parse(pf)]
        return {
            index: VfTruth(
                vf.driver_name,
                _known(dev.vf_attributes[index]) if index < len(dev.vf_attributes) else {},
                bool(vf.reset_methods),
                bool(vf.model.config_bytes()[4] & 4),
            )
            for index, vf in enumerate(self.backend.host.list_vfs(dev))
        }

    async def leases(self) -> dict[str, str]:
        """Function object to state of every lease."""
        found = (await leases(self.client)).values()
        return {each["Function"]: each["State"] for each in found}


@asynccontextmanager
async def ward(
    address: str, root: str, policy: str = "", vfs: int = 7, driver: str = "vfio-pci", **options: Any
) -> AsyncIterator[Ward]:
    """A ward whose first adapter has its VFs. `policy`: a policy file. `options`: SimulatedBackend's."""
    directory = Path(root).parent / "policies"
    directory.mkdir(exist_ok=True)
    (directory / "10-test.toml").write_text(policy)
    places = Places(policies=(str(directory),))
    async with (
        running_inside(address, root, places=places, **options) as inside,
        Listener.connected(address) as listener,
    ):
        written: list[PciAddress] = []
        inside.backend.switch_interface(PciAddress.parse(IGB0), on=True)
        if vfs:
            await inside.client.set_num_vfs(IGB0, vfs, driver=driver)
        _count_writes(inside.backend, written)
        here = Ward(inside, inside.client, listener, written)
        here.forget()
        yield here


def _count_writes(backend: SimulatedBackend, written: list[PciAddress]) -> None:
    """Let every write to the sysfs files of a function leave its address in `written`."""
    start = backend.kernel.start

    def note(access: Access, path: str, data: bytes = b"") -> Call:
        if access is Access.WRITE and path.split("/")[-2].count(":") == 2:
            written.append(PciAddress.parse(path.split("/")[-2]))
        return start(access, path, data)

    backend.kernel.start = note  # type: ignore[method-assign]


async def until(
    read: Callable[[], Any], condition: Callable[[Any], bool], what: str, sec: float = DEADLINE_SEC
) -> Any:
    """Until what is read fulfils the condition; fails naming `what` and what was read last."""
    value = None
    try:
        async with asyncio.timeout(sec):
            while not condition(value := await read()):
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}, it is {value!r}") from None
    return value


def _known(attributes: VfAttributes) -> dict[str, Any]:
    return {each.name: getattr(attributes, each.name) for each in fields(attributes)}


def _path(of: str) -> str:
    return function_path(of) if "." in of else adapter_path(of)


def _options(given: Mapping[str, Any]) -> Options:
    return make_options(**given)
