"""Makes and destroys the VFs of a PF.

Rule: a PF ends with the VFs asked for, each on its driver, or with none; and with the flag
sriov_drivers_autoprobe off while there are VFs, as it was otherwise. The caller has the adapter's lane.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from sriovd.backend.steps import ChainResult
from sriovd.core import scripts
from sriovd.core.binder import Binder
from sriovd.core.errors import NumVfsRejected, SriovdError, Stuck
from sriovd.core.execute import Executor
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job
from sriovd.core.kernel_errors import explain, raise_first_failure
from sriovd.core.picture import Picture
from sriovd.core.scripts import NONE
from sriovd.core.store import Store
from sriovd.pci import PciAddress


class Creator:
    """Changes VF counts for the verbs."""

    def __init__(
        self,
        inventory: Inventory,
        picture: Picture,
        executor: Executor,
        binder: Binder,
        store: Store,
        quieted: Iterable[PciAddress] = (),
    ) -> None:
        """`quieted`: PFs whose sriov_drivers_autoprobe a former daemon has turned off."""
        self._inventory = inventory
        self._picture = picture
        self._executor = executor
        self._binder = binder
        self._store = store
        self._quieted = set(quieted)

    async def create(self, job: Job, pf: Function, count: int, driver: str, allow_short: bool) -> int:
        """Give `pf`, which has none, `count` VFs on `driver` (empty: on none), or, with `allow_short`, as
        many as its driver makes. How many there are. Raises NumVfsRejected, BindFailed, Cancelled, Stuck,
        BackendFailed."""
        job.enter(f"making {count} VFs", 0.1)
        try:
            bound = await self._make(job, pf, count, driver)
            if bound == count:
                return count
            vfs = self._picture.list_vfs(pf.address)
            if len(vfs) < count and not allow_short:
                raise NumVfsRejected(
                    f"The PF driver of {pf.address} made {len(vfs)} VFs of {count}.",
                    f"Ask for {len(vfs)}, or give the option allow-short.",
                )
            if driver:  # else nothing is left to be done
                job.heed_cancel("the VFs were bound")
            await self._show(job, pf, vfs, driver)
        except Stuck:
            raise
        except SriovdError as error:
            await self._take_back(pf, error)
            raise
        return len(vfs)

    async def destroy(self, pf: Function, have: int) -> None:
        """Take the `have` VFs of `pf` away. Raises NumVfsRejected, Stuck, BackendFailed."""
        script = scripts.destroy_script(pf.facts, have, pf.address in self._quieted)
        try:
            results = await self._executor.run(pf.adapter, script, vf_count=have)
        finally:
            await self._picture.look_after_job(pf.adapter, self._picture.family(pf.address))
        raise_first_failure(results)
        await self._note_quieted(pf.address, False)

    async def _make(self, job: Job, pf: Function, count: int, driver: str) -> int:
        """Run the script that makes VFs; how many it has also bound, which were then seen on `driver`."""
        if scripts.probes_vfs(pf.facts):
            await self._note_quieted(pf.address, True)
        try:
            results = await self._run_with_progress(job, pf, count, driver)
            if not results:
                job.heed_cancel("the VFs were made")
            failure = results[-1].failure if results else None
            if failure is not None and not scripts.is_elsewhere(failure):
                raise explain(failure)
        except SriovdError:
            await self._picture.look_after_job(pf.adapter, self._picture.family(pf.address))
            raise
        return sum(result.ok and self._is_on(result, driver) for result in results[1:])

    async def note_mended(self, pf: PciAddress) -> None:
        """The flag of `pf` was put back after a daemon was killed."""
        await self._note_quieted(pf, False)

    async def _note_quieted(self, pf: PciAddress, quieted: bool) -> None:
        """Remember, before the flag is written, whose sriov_drivers_autoprobe is ours to put back."""
        if quieted is (pf in self._quieted):
            return
        (self._quieted.add if quieted else self._quieted.discard)(pf)
        await self._store.put_quieted(pf, quieted)

    def _is_on(self, result: ChainResult, driver: str) -> bool:
        """Whether the VF that `result` is about was seen on `driver` afterwards."""
        function = self._inventory.functions.get(result.chain.subject) if result.chain.subject else None
        return function is not None and function.facts.driver == ("" if driver == NONE else driver)

    async def _run_with_progress(
        self, job: Job, pf: Function, count: int, driver: str
    ) -> Sequence[ChainResult]:
        script = scripts.create_script(pf.facts, count, driver)
        position = itertools.count()

        def note(result: ChainResult) -> None:
            if result.ok and result.chain.subject is not None:
                self._picture.look_at(result.chain.subject)  # now, while the kernel is busy with the next
            if result.chain is script.chains[0] and result.ok and len(script.chains) > 1:
                job.show(f"binding {count} to {driver}", 0.5)
            job.advance(0.5 + 0.45 * next(position) / len(script.chains))

        return await self._executor.run(
            pf.adapter,
            script,
            vf_count=count,
            on_result=note,
            on_start=lambda run: job.stop_by(run.stop),
        )

    async def _show(self, job: Job, pf: Function, vfs: Sequence[PciAddress], driver: str) -> None:
        """Let VFs appear that the script that made them has not bound."""
        await self._picture.look_after_job(pf.adapter, [*vfs, pf.address])
        if driver and vfs:
            await self._binder.bind_all(job, pf.adapter, vfs, driver, force=False)

    async def _take_back(self, pf: Function, error: SriovdError) -> None:
        """Destroy what was made before `error`; its hint says so when that fails too."""
        made = len(self._picture.list_vfs(pf.address))
        try:
            if made or pf.address in self._quieted:
                await self.destroy(pf, made)
        except SriovdError as failure:
            error.hint += f" The {made} VFs made could not be destroyed: {failure.message}"
