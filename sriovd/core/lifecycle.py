"""The verbs: VF count, bind, unbind, reset, remove, rescan. Checks by rules, acts by scripts, and ends with
the picture showing what is.

Rule: a verb ends in the state asked for or in the one it found; what it cannot put back it quarantines and
says so. Nothing here knows a file or waits for the kernel itself.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sriovd.backend.base import Backend, FunctionFacts
from sriovd.backend.steps import ChainResult, Script, Verb
from sriovd.core import rules, scripts
from sriovd.core.errors import BindFailed, Cancelled, InvalidArgument, NumVfsRejected, SriovdError, Stuck
from sriovd.core.execute import HOST, Executor
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.kernel_errors import explain
from sriovd.core.messages import Message, announce
from sriovd.core.picture import Picture
from sriovd.core.results import Changed, Created, Result, Unchanged
from sriovd.core.scripts import DEFAULT, NONE, Binding
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CountOptions:
    """`driver`: what new VFs are bound to, empty for nothing. `force`: destroy VFs that are in use.
    `allow_short`: keep what there is when the PF driver makes fewer."""

    driver: str = ""
    force: bool = False
    allow_short: bool = False


class Lifecycle:
    """Starts verbs as jobs. Each verb says no at once to what could never work; the job checks again when
    its turn comes, because the host may have changed meanwhile."""

    def __init__(
        self, backend: Backend, inventory: Inventory, picture: Picture, executor: Executor, jobs: JobRegistry
    ) -> None:
        self._backend = backend
        self._inventory = inventory
        self._picture = picture
        self._executor = executor
        self._jobs = jobs

    def set_num_vfs(self, pf: PciAddress, count: int, options: CountOptions, requester: str) -> Job:
        """Give `pf` exactly `count` VFs. Raises NumVfsRejected, InvalidArgument, NoSuchFunction, Stuck."""
        function = self._inventory.get_pf(pf)
        if options.driver:
            self._check_driver(options.driver)
        rules.check_vf_count(function, len(self._inventory.vfs_of(pf)), count)
        return self._start(
            "SetNumVFs", [function], requester, lambda job: self._set_num_vfs(job, pf, count, options)
        )

    def bind(self, address: PciAddress, driver: str, force: bool, requester: str) -> Job:
        """Bind a PF or VF to `driver`. Raises InvalidArgument, BindFailed, InUse, NoSuchFunction, Stuck."""
        function = self._inventory.get(address)
        self._check_driver(driver)
        rules.check_bindable(function, len(self._inventory.vfs_of(address)), driver)
        return self._start(
            "Bind", [function], requester, lambda job: self._bind(job, [address], driver, force)
        )

    def bind_vfs(self, pf: PciAddress, driver: str, force: bool, requester: str) -> Job:
        """Bind all VFs of `pf`, or none of them. Raises as bind does."""
        self._inventory.get_pf(pf)
        self._check_driver(driver)
        vfs = [address for _, address in sorted(self._inventory.vfs_of(pf).items())]
        if not vfs:
            raise InvalidArgument(f"{pf} has no VFs to bind.", "Create them with SetNumVFs.")
        functions = [self._inventory.get(vf) for vf in vfs]
        return self._start("BindVFs", functions, requester, lambda job: self._bind(job, vfs, driver, force))

    def unbind(self, address: PciAddress, force: bool, requester: str) -> Job:
        """Take the driver away. Raises InUse, NoSuchFunction, Stuck."""
        function = self._inventory.get(address)
        rules.check_bindable(function, len(self._inventory.vfs_of(address)), "no driver")
        return self._start("Unbind", [function], requester, lambda job: self._unbind(job, address, force))

    def reset(self, address: PciAddress, force: bool, requester: str) -> Job:
        """Reset a function. Raises NotSupported, InUse, Quarantined, NoSuchFunction, Stuck."""
        function = self._inventory.get(address)
        rules.check_in_service(function)
        rules.check_resettable(function, 0 if force else len(self._inventory.vfs_of(address)))
        return self._start("Reset", [function], requester, lambda job: self._reset(job, address, force))

    def remove(self, address: PciAddress, force: bool, requester: str) -> Job:
        """Take a PF and its VFs off the bus. Raises InvalidArgument, NoSuchFunction, Stuck."""
        function = self._inventory.get(address)
        rules.check_removable(function)
        return self._start("Remove", [function], requester, lambda job: self._remove(job, address, force))

    def rescan(self, requester: str) -> Job:
        """Look for new functions on all PCI buses, and at all that are known. Raises Stuck."""
        self._executor.refuse_stuck(HOST)
        return self._jobs.start("Rescan", [], requester, self._rescan)

    def _start(
        self,
        operation: str,
        functions: list[Function],
        requester: str,
        work: Callable[[Job], Awaitable[Result]],
    ) -> Job:
        self._executor.refuse_stuck(functions[0].adapter)
        return self._jobs.start(operation, functions, requester, work)

    def _check_driver(self, driver: str) -> None:
        rules.check_driver_name(driver)
        if driver not in (DEFAULT, NONE):
            rules.check_driver_state(driver, self._backend.driver_state(driver))

    # The verbs' work, in the lane of their adapter.

    async def _set_num_vfs(self, job: Job, pf: PciAddress, count: int, options: CountOptions) -> Result:
        async with self._working_on(self._inventory.get_pf(pf).adapter):
            function, have = self._inventory.get_pf(pf), len(self._inventory.vfs_of(pf))
            rules.check_vf_count(function, have, count)
            if have == count:
                return await self._keep_vfs(job, function, count, options)
            if have:
                await self._check_unused(self._vfs(pf), options.force)
                await self._change_count(job, function, 0, have)
                return Changed(f"Destroyed the {have} VFs of {pf}")
            made = await self._create_vfs(job, function, count, options)
            return Created(f"{made} VFs of {pf}" + (f" on {options.driver}" if options.driver else ""))

    async def _keep_vfs(self, job: Job, pf: Function, count: int, options: CountOptions) -> Result:
        if count and options.driver:
            vfs = [vf.address for vf in self._vfs(pf.address)]
            return await self._bind_all(job, pf.adapter, vfs, options.driver, options.force)
        return Unchanged(f"{pf.address} has {count} VFs")

    async def _create_vfs(self, job: Job, pf: Function, count: int, options: CountOptions) -> int:
        """New VFs, bound if asked for; all or nothing."""
        made = await self._change_count(job, pf, count, 0)
        try:
            if made < count and not options.allow_short:
                raise NumVfsRejected(
                    f"The PF driver of {pf.address} made {made} VFs of {count}.",
                    f"Ask for {made}, or give the option allow-short.",
                )
            if options.driver and made:
                vfs = [address for _, address in sorted(self._inventory.vfs_of(pf.address).items())]
                await self._bind_all(job, pf.adapter, vfs, options.driver, force=False)
        except Stuck:
            raise
        except SriovdError:
            await self._change_count(None, pf, 0, made)
            raise
        return made

    async def _change_count(self, job: Job | None, pf: Function, count: int, have: int) -> int:
        """Write the count and look at what came of it; how many VFs there are now."""
        if job is not None:
            job.enter(f"setting {count} VFs", 0.1)
        script = scripts.count_script(pf.facts, count)
        cleanup = Script(f"{script.title}: putting sriov_drivers_autoprobe back", script.chains[1:-1])
        try:
            results = await self._executor.run(
                pf.adapter, script, vf_count=max(count, have), cleanup=cleanup if cleanup.chains else None
            )
        finally:
            await self._picture.look_after_job(pf.adapter, self._family(pf.address))
        self._raise_first_failure(results)
        return len(self._inventory.vfs_of(pf.address))

    async def _bind(self, job: Job, addresses: Sequence[PciAddress], driver: str, force: bool) -> Result:
        adapter = self._inventory.get(addresses[0]).adapter
        async with self._working_on(adapter):
            return await self._bind_all(job, adapter, addresses, driver, force)

    async def _bind_all(
        self, job: Job, adapter: str, addresses: Sequence[PciAddress], driver: str, force: bool
    ) -> Result:
        functions = [self._inventory.get(address) for address in addresses]
        open_ones = [each for each in functions if not scripts.is_satisfied(each.facts, driver)]
        if not open_ones:
            self._lift(functions)
            return Unchanged(f"{_name(functions)} already on {driver}")
        await self._check_unused([each for each in open_ones if each.facts.driver], force)
        bindings = [Binding(each.address, each.facts.driver, driver) for each in open_ones]
        job.enter(f"binding {len(bindings)} to {driver}", 0.5)
        try:
            await self._run_bindings(job, adapter, bindings)
        finally:
            await self._picture.look_after_job(adapter, addresses)
        self._lift(functions)
        return Changed(f"Bound {_name(open_ones)} to {driver}")

    async def _run_bindings(self, job: Job, adapter: str, bindings: list[Binding]) -> None:
        """Bind, and on the first failure or when cancelled put all back."""
        chains = tuple(scripts.bind_chain(binding) for binding in bindings)
        script = scripts.probe_script(self._quiet_pf(bindings), chains, f"binding to {bindings[0].wanted}")
        results = await self._run_with_progress(job, adapter, script)
        done = {result.chain.subject: result for result in results if result.chain in chains}
        error = self._judge_bindings(job, bindings, done)
        if error is None:
            return
        await self._undo(adapter, bindings, done)
        if len(bindings) > 1:
            error.hint = f"{error.hint} All {len(bindings)} functions are as they were."
        raise error

    async def _run_with_progress(self, job: Job, adapter: str, script: Script) -> Sequence[ChainResult]:
        start, share = job.progress, (0.95 - job.progress) / len(script.chains)
        count = itertools.count(1)
        return await self._executor.run(
            adapter,
            script,
            on_result=lambda _: job.advance(start + share * next(count)),
            on_start=lambda run: setattr(job, "on_cancel", run.stop),
        )

    def _judge_bindings(
        self, job: Job, bindings: list[Binding], done: Mapping[PciAddress | None, ChainResult]
    ) -> SriovdError | None:
        for binding in bindings:
            result = done.get(binding.address)
            if result is None and job.cancel_asked:
                return Cancelled(f"{job.operation} was cancelled; what was bound is unbound again.")
            if result is not None and result.failure is not None:
                return explain(result.failure)
            if result is not None and binding.wanted == DEFAULT and not result.value(Verb.READ_DRIVER):
                return BindFailed(
                    f"No loaded driver took {binding.address}.",
                    "Load its driver's module, or name the driver.",
                )
        return None

    async def _undo(
        self, adapter: str, bindings: list[Binding], done: Mapping[PciAddress | None, ChainResult]
    ) -> None:
        chains = [
            chain
            for binding in reversed(bindings)
            if (result := done.get(binding.address)) and (chain := scripts.undo_chain(binding, result))
        ]
        if not chains:
            return
        for result in await self._executor.run(adapter, Script("undoing binds", tuple(chains))):
            if result.failure is not None and result.chain.subject is not None:
                reason = f"its driver could not be put back: {explain(result.failure).message}"
                self._inventory.quarantine(result.chain.subject, reason)
                announce(
                    _log, Message.QUARANTINED, f"{result.chain.subject} is quarantined: {reason}",
                    address=str(result.chain.subject),
                )  # fmt: skip

    async def _unbind(self, job: Job, address: PciAddress, force: bool) -> Result:
        adapter = self._inventory.get(address).adapter
        async with self._working_on(adapter):
            function = self._inventory.get(address)
            driver = function.facts.driver
            if not driver:
                return Unchanged(f"{address} has no driver")
            await self._check_unused([function], force)
            script = Script(f"unbinding {address}", (scripts.unbind_chain(address, driver),))
            await self._run_one(job, adapter, script, [address])
            return Changed(f"Unbound {address} from {driver}")

    async def _reset(self, job: Job, address: PciAddress, force: bool) -> Result:
        adapter = self._inventory.get(address).adapter
        async with self._working_on(adapter):
            function = self._inventory.get(address)
            await self._check_unused([function, *self._vfs(address)], force)
            family = [address, *(vf.address for vf in self._vfs(address))]
            await self._run_one(job, adapter, scripts.reset_script(address), family)
            return Changed(f"Reset {address}")

    async def _remove(self, job: Job, address: PciAddress, force: bool) -> Result:
        adapter = self._inventory.get(address).adapter
        async with self._working_on(adapter, exclusive=True):
            function, vfs = self._inventory.get_pf(address), self._vfs(address)
            await self._check_unused([function, *vfs], force)
            family = [*(vf.address for vf in vfs), address]
            script = scripts.remove_script(function.facts, bool(vfs))
            await self._run_one(job, adapter, script, family, vf_count=len(vfs))
            return Changed(f"Removed {address}" + (f" and its {len(vfs)} VFs" if vfs else ""))

    async def _rescan(self, job: Job) -> Result:
        async with self._executor.lane(HOST, exclusive=True):
            before = set(self._inventory.functions)
            job.enter("rescanning the PCI buses", 0.1)
            self._raise_first_failure(await self._executor.run(HOST, scripts.rescan_script()))
            await self._picture.rescan()
            found = set(self._inventory.functions) - before
            return Created(f"{len(found)} functions") if found else Unchanged("the rescan found nothing new")

    # What they share.

    @asynccontextmanager
    async def _working_on(self, adapter: str, *, exclusive: bool = False) -> AsyncIterator[None]:
        async with self._executor.lane(adapter, exclusive=exclusive):
            self._picture.begin_job(adapter)
            try:
                yield
            finally:
                self._picture.end_job(adapter)

    async def _run_one(
        self, job: Job, adapter: str, script: Script, family: Sequence[PciAddress], vf_count: int = 0
    ) -> None:
        """A script whose failure leaves nothing to undo."""
        job.enter(script.title, 0.1)
        try:
            results = await self._executor.run(adapter, script, vf_count=vf_count)
        finally:
            await self._picture.look_after_job(adapter, family)
        self._raise_first_failure(results)

    def _raise_first_failure(self, results: Sequence[ChainResult]) -> None:
        for result in results:
            if result.failure is not None:
                raise explain(result.failure)

    async def _check_unused(self, functions: Sequence[Function], force: bool) -> None:
        if functions and not force:
            holders = await self._backend.find_holders([each.address for each in functions])
            rules.check_unused(functions, holders)

    def _vfs(self, pf: PciAddress) -> list[Function]:
        return [self._inventory.get(vf) for _, vf in sorted(self._inventory.vfs_of(pf).items())]

    def _family(self, pf: PciAddress) -> list[PciAddress]:
        """`pf` with every VF that it had or has now; the departed first."""
        present = list(self._backend.list_virtual_functions(pf).values())
        departed = set(self._inventory.vfs_of(pf).values()).difference(present)
        return [*sorted(departed), *present, pf]

    def _quiet_pf(self, bindings: list[Binding]) -> FunctionFacts | None:
        """The PF that keeps drivers away from its VFs, when it is the kernel that shall choose the
        driver."""
        function = self._inventory.get(bindings[0].address)
        if bindings[0].wanted != DEFAULT or function.virtual is None:
            return None
        return self._inventory.get(function.virtual.parent).facts

    def _lift(self, functions: Sequence[Function]) -> None:
        """A function that took a driver again is in service again."""
        for function in functions:
            self._inventory.quarantine(function.address, "")


def _name(functions: Sequence[Function]) -> str:
    return str(functions[0]) if len(functions) == 1 else f"{len(functions)} functions"
