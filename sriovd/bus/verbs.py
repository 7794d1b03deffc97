"""What clients can ask for: each method of the contract, from its arguments to its reply.

Rule: first the arguments are understood, then polkit is asked, then it is looked whether the caller sees
what he speaks of (replies.py), then core does it. To look, one needs to see it and nothing else. A mutating
verb answers with its job, and with the job's error if it failed in time.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sriovd.backend.base import Fault, Holder, Severity, SimulatorControl
from sriovd.bus.actions import (
    ACTION_OF_OPERATION,
    BIND_DRIVER,
    HOTPLUG,
    RESET,
    SET_NUM_VFS,
    SIMULATE,
)
from sriovd.bus.dispatch import Caller, Handler
from sriovd.bus.objects import (
    FUNCTION,
    JOB,
    MANAGER,
    PHYSICAL_FUNCTION,
    SIMULATOR_INTERFACE,
    Objects,
    adapter_path,
    function_path,
)
from sriovd.bus.options import parse_options
from sriovd.bus.polkit import Authority
from sriovd.bus.replies import (
    GENERATION,
    WAIT,
    WAIT_FORCE,
    JobReply,
    Options,
    answer_with_job,
    is_forced,
    name_caller,
    parse_address,
    require_operator,
    require_sight,
)
from sriovd.bus.tenure import Tenure
from sriovd.core.errors import InvalidArgument, NoSuchFunction
from sriovd.core.inventory import Function, Inventory
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lifecycle import CountOptions, Lifecycle
from sriovd.pci import AddressError, PciAddress, PciSlot

_FUNCTION_OPTIONS = {**WAIT_FORCE, **GENERATION}
_COUNT_OPTIONS = {**WAIT_FORCE, "driver": "s", "allow-short": "b"}


class Verbs:
    """The handlers of all methods."""

    def __init__(
        self,
        inventory: Inventory,
        lifecycle: Lifecycle,
        leases: LeaseKeeper,
        objects: Objects,
        authority: Authority,
    ) -> None:
        self._inventory = inventory
        self._lifecycle = lifecycle
        self._leases = leases
        self._objects = objects
        self._authority = authority

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Interface and method name to handler: the verbs on a function's object are those by its
        address."""
        by_address: dict[str, Callable[..., Awaitable[JobReply]]] = {
            "SetNumVFs": self.set_num_vfs,
            "Bind": self.bind,
            "BindVFs": self.bind_vfs,
            "Unbind": self.unbind,
            "Reset": self.reset,
            "Remove": self.remove,
        }
        on_object = {
            FUNCTION: ("Bind", "Unbind", "Reset"),
            PHYSICAL_FUNCTION: ("SetNumVFs", "BindVFs", "Remove"),
        }
        return {
            **{(MANAGER, name): self._at_address(verb) for name, verb in by_address.items()},
            **{
                (interface, name): self._at_object(by_address[name])
                for interface, names in on_object.items()
                for name in names
            },
            (MANAGER, "Rescan"): self.rescan,
            (MANAGER, "GetFunction"): self.get_function,
            (MANAGER, "GetAdapter"): self.get_adapter,
            (MANAGER, "ListFunctions"): self.list_functions,
            (PHYSICAL_FUNCTION, "ListVFs"): self.list_vfs,
            (JOB, "Wait"): self.wait_job,
            (JOB, "Cancel"): self.cancel_job,
        }

    def _at_address(self, verb: Callable[..., Awaitable[JobReply]]) -> Handler:
        async def handle(caller: Caller, _path: str, address: str, *arguments: Any) -> JobReply:
            return await verb(caller, parse_address(address), *arguments)

        return handle

    def _at_object(self, verb: Callable[..., Awaitable[JobReply]]) -> Handler:
        async def handle(caller: Caller, path: str, *arguments: Any) -> JobReply:
            return await verb(caller, self._objects.address_at(path), *arguments)

        return handle

    async def set_num_vfs(self, caller: Caller, pf: PciAddress, count: int, options: Options) -> JobReply:
        given = parse_options(options, _COUNT_OPTIONS)
        wanted = CountOptions(
            driver=given.get("driver", ""),
            force=given.get("force", False),
            allow_short=given.get("allow-short", False),
        )
        await self._authorize(caller, SET_NUM_VFS, pf)
        if wanted.driver:
            await self._authorize(caller, BIND_DRIVER, pf)
        return await answer_with_job(
            self._objects, caller, self._lifecycle.set_num_vfs(pf, count, wanted, name_caller(caller)), given
        )

    async def bind(self, caller: Caller, address: PciAddress, driver: str, options: Options) -> JobReply:
        given = parse_options(options, _FUNCTION_OPTIONS)
        tenure = await self._authorize(caller, BIND_DRIVER, address)
        job = self._lifecycle.bind(
            address, driver, is_forced(given), name_caller(caller), given.get("generation", 0)
        )
        return await answer_with_job(self._objects, caller, tenure.cover(job), given)

    async def bind_vfs(self, caller: Caller, pf: PciAddress, driver: str, options: Options) -> JobReply:
        given = parse_options(options, WAIT_FORCE)
        await self._authorize(caller, BIND_DRIVER, pf)
        return await answer_with_job(
            self._objects,
            caller,
            self._lifecycle.bind_vfs(pf, driver, is_forced(given), name_caller(caller)),
            given,
        )

    async def unbind(self, caller: Caller, address: PciAddress, options: Options) -> JobReply:
        given = parse_options(options, _FUNCTION_OPTIONS)
        tenure = await self._authorize(caller, BIND_DRIVER, address)
        job = self._lifecycle.unbind(
            address, is_forced(given), name_caller(caller), given.get("generation", 0)
        )
        return await answer_with_job(self._objects, caller, tenure.cover(job), given)

    async def reset(self, caller: Caller, address: PciAddress, options: Options) -> JobReply:
        given = parse_options(options, _FUNCTION_OPTIONS)
        tenure = await self._authorize(caller, RESET, address)
        job = self._lifecycle.reset(
            address, is_forced(given), name_caller(caller), given.get("generation", 0)
        )
        return await answer_with_job(self._objects, caller, tenure.cover(job), given)

    async def remove(self, caller: Caller, pf: PciAddress, options: Options) -> JobReply:
        given = parse_options(options, WAIT_FORCE)
        await self._authorize(caller, HOTPLUG, pf)
        return await answer_with_job(
            self._objects, caller, self._lifecycle.remove(pf, is_forced(given), name_caller(caller)), given
        )

    async def rescan(self, caller: Caller, _path: str, options: Options) -> JobReply:
        given = parse_options(options, WAIT)
        await self._authority.check(caller, HOTPLUG)
        require_operator(caller)
        job = self._lifecycle.rescan(name_caller(caller))
        return await answer_with_job(self._objects, caller, job, given)

    async def get_function(self, caller: Caller, _path: str, address: str) -> tuple[str]:
        wanted = parse_address(address)
        require_sight(caller, wanted)
        return (function_path(self._inventory.get(wanted).address),)

    async def get_adapter(self, caller: Caller, _path: str, slot: str) -> tuple[str]:
        try:
            found = str(PciSlot.parse(slot))
        except AddressError as error:
            raise InvalidArgument(f"{error}.") from error
        require_sight(caller, found)
        if found not in self._inventory.adapters:
            raise NoSuchFunction(
                f"No adapter with SR-IOV is in slot {found}.", "ListFunctions lists the PFs."
            )
        return (adapter_path(found),)

    async def list_functions(self, caller: Caller, _path: str) -> tuple[list[tuple[str, str, str, str]]]:
        functions = self._inventory.functions
        seen = sorted(functions) if caller.is_operator else self._objects.functions_of(caller.uid)
        return ([_row_of(functions[address]) for address in seen],)

    async def list_vfs(self, _caller: Caller, path: str) -> tuple[list[str]]:
        vfs = self._inventory.vfs_of(self._objects.address_at(path))
        return ([function_path(address) for _, address in sorted(vfs.items())],)

    async def wait_job(self, _caller: Caller, path: str, timeout_usec: int) -> tuple[str]:
        job = self._objects.job_at(path)
        await job.wait(timeout_usec)
        return (str(job.state),)

    async def cancel_job(self, caller: Caller, path: str) -> tuple[()]:
        job = self._objects.job_at(path)
        await self._authority.check(caller, ACTION_OF_OPERATION[job.operation])
        job.cancel()
        return ()

    async def _authorize(self, caller: Caller, action: str, address: PciAddress) -> Tenure:
        """The right to do that to the function now. Raises NotAuthorized, NoSuchFunction."""
        await self._authority.check(caller, action, {"address": str(address)})
        tenure = Tenure(caller, self._leases, address)
        tenure.require_active()
        return tenure


class SimulatorVerbs:
    """The handlers of the simulated host's own interface."""

    def __init__(self, simulator: SimulatorControl, authority: Authority) -> None:
        self._simulator = simulator
        self._authority = authority

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Interface and method name to handler."""
        verbs: dict[str, Callable[..., tuple[Any, ...] | None]] = {
            "ListProfiles": lambda: (list(self._simulator.profiles()),),
            "Plug": lambda profile, address: self._simulator.plug(profile, parse_address(address)),
            "Unplug": lambda address: self._simulator.unplug(parse_address(address)),
            "InjectFault": self._inject_fault,
            "ClearFaults": self._simulator.clear_faults,
            "OpenDevice": lambda address, pid, name: self._simulator.open_device(
                parse_address(address), Holder(pid, name)
            ),
            "CloseDevice": lambda address: self._simulator.close_device(parse_address(address)),
            "SetVFAttribute": lambda address, request: self._simulator.set_vf_attribute(
                parse_address(address), request
            ),
            "SendMailbox": lambda address, command, argument: (
                self._simulator.send_mailbox(parse_address(address), command, argument),
            ),
            "InjectError": self._inject_error,
            "HideErrors": self._simulator.hide_errors,
            "LoseEvents": self._simulator.lose_events,
        }
        return {(SIMULATOR_INTERFACE, name): self._owners_only(verb) for name, verb in verbs.items()}

    def _owners_only(self, verb: Callable[..., tuple[Any, ...] | None]) -> Handler:
        async def handle(caller: Caller, _path: str, *arguments: Any) -> tuple[Any, ...]:
            await self._authority.check(caller, SIMULATE)
            try:
                return verb(*arguments) or ()
            except ValueError as error:
                raise InvalidArgument(f"{error}.") from error

        return handle

    def _inject_error(self, address: str, severity: str, status: int, tlp_header: Sequence[int]) -> None:
        if severity not in {*Severity}:
            raise InvalidArgument(
                f"{severity[:32]!r} is no severity of an error.", f"There are {', '.join(Severity)}."
            )
        self._simulator.inject_error(parse_address(address), Severity(severity), status, tlp_header)

    def _inject_fault(self, verb: str, address: str, options: Options) -> None:
        given = parse_options(options, {"errno": "s", "delay-usec": "t", "hang": "b", "times": "u"})
        fault = Fault(
            verb=verb,
            address=parse_address(address) if address else None,
            errno=_errno_number(given.get("errno", "")),
            delay_usec=given.get("delay-usec", 0),
            hang=given.get("hang", False),
            times=given.get("times", 0),
        )
        self._simulator.inject_fault(fault)


def _row_of(function: Function) -> tuple[str, str, str, str]:
    """What ListFunctions says of one."""
    kind = "vf" if function.virtual else "pf"
    return function_path(function.address), str(function.address), kind, function.facts.driver


def _errno_number(name: str) -> int:
    number = getattr(errno, name, None) if name.startswith("E") else None
    if name and not isinstance(number, int):
        raise InvalidArgument(
            f"{name[:32]!r} is not the name of an errno.", "Write it as in errno(3), e.g. EIO."
        )
    return number or 0
