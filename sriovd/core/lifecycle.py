"""The verbs: VF count, bind, unbind, reset, remove, rescan. Checks by rules, acts by scripts, and ends with
the picture showing what is.

Rule: a verb ends in the state asked for or in the one it found; when it cannot put something back its error
says so. Nothing here knows a file or waits for the kernel itself.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from sriovd.backend.base import Backend
from sriovd.backend.steps import Script
from sriovd.backend.vf_attributes import LinkReport, VfAttributes
from sriovd.core import rules, scripts
from sriovd.core.configurer import refuse_without_interface
from sriovd.core.converge.apply import Hands
from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.errors import Frozen, InvalidArgument, LockedOut, NoSuchFunction
from sriovd.core.execute import HOST
from sriovd.core.inventory import Function
from sriovd.core.jobs import Job, JobRegistry
from sriovd.core.kernel_errors import raise_first_failure
from sriovd.core.recovery.keeper import RecoveryKeeper
from sriovd.core.results import Changed, Created, Result, Unchanged
from sriovd.core.scripts import DEFAULT, NONE
from sriovd.core.workplace import Workplace
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
        self,
        backend: Backend,
        jobs: JobRegistry,
        workplace: Workplace,
        hands: Hands,
        rulebook: Rulebook,
        recovery: RecoveryKeeper,
    ) -> None:
        self._recovery = recovery
        self._backend = backend
        self._jobs = jobs
        self._workplace = workplace
        self._rulebook = rulebook
        self._inventory = hands.inventory
        self._picture = hands.picture
        self._executor = hands.executor
        self._usage = hands.usage
        self._binder = hands.binder
        self._creator = hands.creator
        self._configurer = hands.configurer

    def set_num_vfs(self, pf: PciAddress, count: int, options: CountOptions, requester: str) -> Job:
        """Give `pf` exactly `count` VFs. Raises NumVfsRejected, InvalidArgument, NoSuchFunction, Stuck."""
        self._refuse_held(pf)
        function = self._inventory.get_pf(pf)
        if options.driver:
            self._check_driver(options.driver)
        rules.check_vf_count(function, len(self._inventory.vfs_of(pf)), count)
        self._rulebook.refuse_count(function, count, options.driver)
        return self._start(
            "SetNumVFs", [function], requester, lambda job: self._set_num_vfs(job, pf, count, options)
        )

    def bind(
        self, address: PciAddress, driver: str, force: bool, requester: str, generation: int = 0
    ) -> Job:
        """Bind a PF or VF to `driver`. `generation`: of that function and no successor of it, here and
        below; 0 for any. Raises InvalidArgument, BindFailed, InUse, NoSuchFunction, Stuck."""
        self._refuse_held(address)
        function = self._inventory.get(address, generation)
        self._check_driver(driver)
        self._refuse_driver(function, driver)
        self._check_bindable(function, driver)
        return self._start(
            "Bind", [function], requester, lambda job: self._bind(job, [address], driver, force, generation)
        )

    def bind_vfs(self, pf: PciAddress, driver: str, force: bool, requester: str) -> Job:
        """Bind all VFs of `pf`, or none of them. Raises as bind does."""
        self._refuse_held(pf)
        self._inventory.get_pf(pf)
        self._check_driver(driver)
        functions = self._vfs(pf)
        if not functions:
            raise InvalidArgument(f"{pf} has no VFs to bind.", "Create them with SetNumVFs.")
        vfs = [vf.address for vf in functions]
        for vf in functions:
            self._refuse_driver(vf, driver)
        return self._start("BindVFs", functions, requester, lambda job: self._bind(job, vfs, driver, force))

    def unbind(self, address: PciAddress, force: bool, requester: str, generation: int = 0) -> Job:
        """Take the driver away. Raises InUse, NoSuchFunction, Stuck."""
        self._refuse_held(address)
        function = self._inventory.get(address, generation)
        rules.check_bindable(function, len(self._inventory.vfs_of(address)), "no driver")
        self._refuse_driver(function, NONE)
        return self._start(
            "Unbind", [function], requester, lambda job: self._unbind(job, address, force, generation)
        )

    def reset(self, address: PciAddress, force: bool, requester: str, generation: int = 0) -> Job:
        """Reset a function. Raises NotSupported, InUse, Quarantined, NoSuchFunction, Stuck."""
        self._refuse_held(address)
        function = self._inventory.get(address, generation)
        self._check_reset(function, force)
        return self._start(
            "Reset", [function], requester, lambda job: self._reset(job, address, force, generation)
        )

    def remove(self, address: PciAddress, force: bool, requester: str) -> Job:
        """Take a PF and its VFs off the bus. Raises InvalidArgument, NoSuchFunction, Stuck."""
        self._refuse_held(address)
        function = self._inventory.get(address)
        rules.check_removable(function)
        return self._start("Remove", [function], requester, lambda job: self._remove(job, address, force))

    def set_attributes(
        self, address: PciAddress, wish: VfAttributes, requester: str, generation: int = 0
    ) -> Job:
        """Set attributes of a VF, all that are wished or none. Raises InvalidArgument, NotSupported,
        PolicyConflict, NoSuchFunction, Stuck."""
        if self._recovery.is_away(address):
            return self._jobs.start("SetAttributes", [], requester, self._attributes_work(address, wish, 0))
        vf = self._inventory.get(address, generation)
        pf, index = self._place(vf)
        self._rulebook.refuse_attributes(pf, index, wish)
        refuse_without_interface(pf)
        work = self._attributes_work(address, wish, generation)
        return self._jobs.start("SetAttributes", [vf], requester, work)

    def _attributes_work(
        self, address: PciAddress, wish: VfAttributes, generation: int
    ) -> Callable[[Job], Awaitable[Result]]:
        """What is asked for while the VF is being recovered is done by its recovery."""

        async def work(job: Job) -> Result:
            while True:
                job.admit()  # nor is it kept for another's VF
                kept = await self._recovery.keep_wish(address, wish, job)
                vf = self._inventory.get(address, 0 if kept else generation)
                try:
                    async with self._workplace.working_on(job, vf.adapter):
                        pf, index = self._place(self._inventory.get(address, vf.generation))
                        return await self._configurer.set_all(job, pf, {index: wish})
                except (Frozen, LockedOut):
                    continue  # it has frozen since

        return work

    async def read_attributes(self, address: PciAddress) -> tuple[VfAttributes, LinkReport]:
        """The attributes of a VF as the kernel has them now, and its PF's link. Raises as set_attributes."""
        vf = self._inventory.get(address)
        pf, index = self._place(vf)
        async with self._executor.lane(vf.adapter):
            report = await self._configurer.read(pf)
        if index not in report.vfs:
            raise NoSuchFunction(f"{pf.address} does not tell of a VF {index}.")
        return report.vfs[index], report

    def rescan(self, requester: str) -> Job:
        """Look for new functions on all PCI buses, and at all that are known. Raises Stuck."""
        self._executor.refuse_stuck(HOST)
        return self._jobs.start("Rescan", [], requester, self._rescan)

    def _refuse_held(self, address: PciAddress) -> None:
        """First of all, for what a verb may do follows from how a function is, and one that is out of
        service is not as it was. Raises Frozen, LockedOut, Quarantined."""
        self._recovery.gate.refuse_function(address)

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

    def _check_bindable(self, function: Function, driver: str) -> None:
        if not scripts.is_satisfied(function.facts, driver):
            rules.check_bindable(function, len(self._inventory.vfs_of(function.address)), driver)

    def _check_reset(self, function: Function, force: bool) -> None:
        rules.check_in_service(function)
        rules.check_resettable(function, 0 if force else len(self._inventory.vfs_of(function.address)))

    # The verbs' work, in the lane of their adapter. Each looks first: some attributes change without an
    # event (sriov_drivers_autoprobe, reset_method), and events may be on their way.

    async def _set_num_vfs(self, job: Job, pf: PciAddress, count: int, options: CountOptions) -> Result:
        async with self._workplace.working_on(job, self._inventory.get_pf(pf).adapter):
            await self._picture.refresh(self._picture.family(pf))
            function, have = self._inventory.get_pf(pf), len(self._inventory.vfs_of(pf))
            rules.check_vf_count(function, have, count)
            if have == count:
                return await self._keep_vfs(job, function, count, options)
            if have:
                await self._usage.refuse_used(self._vfs(pf), options.force)
                job.enter("destroying the VFs", 0.1)
                await self._creator.destroy(function, have)
                return Changed(f"Destroyed the {have} VFs of {pf}")
            made = await self._creator.create(job, function, count, options.driver, options.allow_short)
            return Created(f"{made} VFs of {pf}" + (f" on {options.driver}" if options.driver else ""))

    async def _keep_vfs(self, job: Job, pf: Function, count: int, options: CountOptions) -> Result:
        if count and options.driver:
            vfs = [vf.address for vf in self._vfs(pf.address)]
            return await self._binder.bind_all(job, pf.adapter, vfs, options.driver, options.force)
        return Unchanged(f"{pf.address} has {count} VFs")

    async def _bind(
        self, job: Job, addresses: Sequence[PciAddress], driver: str, force: bool, generation: int = 0
    ) -> Result:
        adapter = self._inventory.get(addresses[0]).adapter
        async with self._workplace.working_on(job, adapter):
            await self._picture.refresh(addresses)
            for address in addresses:
                self._check_bindable(self._inventory.get(address, generation), driver)
            return await self._binder.bind_all(job, adapter, addresses, driver, force)

    async def _unbind(self, job: Job, address: PciAddress, force: bool, generation: int) -> Result:
        adapter = self._inventory.get(address).adapter
        async with self._workplace.working_on(job, adapter):
            self._picture.look_at(address)
            function = self._inventory.get(address, generation)
            driver = function.facts.driver
            if not driver:
                return Unchanged(f"{address} has no driver")
            rules.check_bindable(function, len(self._inventory.vfs_of(address)), "no driver")
            await self._usage.refuse_used([function], force)
            script = Script(f"unbinding {address}", (scripts.unbind_chain(address, driver),))
            await self._run_one(job, adapter, script, [address])
            return Changed(f"Unbound {address} from {driver}")

    async def _reset(self, job: Job, address: PciAddress, force: bool, generation: int) -> Result:
        adapter = self._inventory.get(address).adapter
        async with self._workplace.working_on(job, adapter):
            self._picture.look_at(address)
            function = self._inventory.get(address, generation)
            self._check_reset(function, force)
            await self._usage.refuse_used([function, *self._vfs(address)], force)
            family = [address, *(vf.address for vf in self._vfs(address))]
            await self._run_one(job, adapter, scripts.reset_script(address), family)
            return Changed(f"Reset {address}")

    async def _remove(self, job: Job, address: PciAddress, force: bool) -> Result:
        adapter = self._inventory.get(address).adapter
        async with self._workplace.working_on(job, adapter, exclusive=True):
            await self._picture.refresh(self._picture.family(address))
            function, vfs = self._inventory.get_pf(address), self._vfs(address)
            await self._usage.refuse_used([function, *vfs], force)
            family = [*(vf.address for vf in vfs), address]
            script = scripts.remove_script(function.facts, bool(vfs))
            await self._run_one(job, adapter, script, family, vf_count=len(vfs))
            return Changed(f"Removed {address}" + (f" and its {len(vfs)} VFs" if vfs else ""))

    async def _rescan(self, job: Job) -> Result:
        async with self._executor.lane(HOST, exclusive=True):
            before = set(self._inventory.functions)
            job.enter("rescanning the PCI buses", 0.1)
            raise_first_failure(await self._executor.run(HOST, scripts.rescan_script()))
            await self._picture.rescan()
            found = set(self._inventory.functions) - before
            return Created(f"{len(found)} functions") if found else Unchanged("the rescan found nothing new")

    # What they share.

    def _place(self, vf: Function) -> tuple[Function, int]:
        """PF and index. Raises InvalidArgument for a PF."""
        if vf.virtual is None:
            raise InvalidArgument(f"{vf.address} is a PF; only VFs have VF attributes.", "Name a VF.")
        return self._inventory.get_pf(vf.virtual.parent), vf.virtual.index

    def _refuse_driver(self, function: Function, driver: str) -> None:
        if function.virtual is not None:
            self._rulebook.refuse_driver(*self._place(function), driver)

    async def _run_one(
        self, job: Job, adapter: str, script: Script, family: Sequence[PciAddress], vf_count: int = 0
    ) -> None:
        """A script whose failure leaves nothing to undo."""
        job.enter(script.title, 0.1)
        try:
            results = await self._executor.run(adapter, script, vf_count=vf_count)
        finally:
            await self._picture.look_after_job(adapter, family)
        raise_first_failure(results)

    def _vfs(self, pf: PciAddress) -> list[Function]:
        return [self._inventory.get(vf) for _, vf in sorted(self._inventory.vfs_of(pf).items())]
