"""Binds functions to a driver: all of them, or none.

Rule: what was bound before a failure gets its driver and override back; a function that cannot be put back
is quarantined, and the journal and the error say so. The caller has the adapter's lane.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence

from sriovd.backend.base import FunctionFacts
from sriovd.backend.steps import ChainResult, Script, Verb
from sriovd.core import scripts
from sriovd.core.errors import BindFailed, Cancelled, SriovdError, Stuck
from sriovd.core.execute import Executor
from sriovd.core.inventory import Function, Inventory
from sriovd.core.jobs import Job
from sriovd.core.kernel_errors import explain
from sriovd.core.messages import Message, announce
from sriovd.core.picture import Picture
from sriovd.core.results import Changed, Result, Unchanged
from sriovd.core.scripts import DEFAULT, Binding
from sriovd.core.usage import Usage
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

SETTLE_SEC = 1.0  # how long a driver that took a function may still give it up

Results = dict[PciAddress | None, ChainResult]  # by the chain's subject, as far as they have come


class Binder:
    """Changes drivers for the verbs."""

    def __init__(self, usage: Usage, inventory: Inventory, picture: Picture, executor: Executor) -> None:
        self._usage = usage
        self._inventory = inventory
        self._picture = picture
        self._executor = executor

    async def bind_all(
        self, job: Job, adapter: str, addresses: Sequence[PciAddress], driver: str, force: bool
    ) -> Result:
        """Bind the functions at `addresses`, of one adapter, to `driver`. Raises InUse, BindFailed,
        NoSuchFunction, Cancelled, Stuck, BackendFailed."""
        functions = [self._inventory.get(address) for address in addresses]
        open_ones = [each for each in functions if not scripts.is_satisfied(each.facts, driver)]
        if not open_ones:
            self._lift(functions)
            return Unchanged(f"{_name(functions)} already on {driver}")
        await self._usage.refuse_used([each for each in open_ones if each.facts.driver], force)
        bindings = [Binding(each.address, each.facts.driver, driver) for each in open_ones]
        virtual = functions[0].virtual
        parent = self._inventory.get(virtual.parent) if virtual else None
        await self._bind_or_undo(job, adapter, bindings, _quiet_pf(parent, driver))
        self._lift(functions)
        return Changed(f"Bound {_name(open_ones)} to {driver}")

    async def _bind_or_undo(
        self, job: Job, adapter: str, bindings: list[Binding], quiet_pf: FunctionFacts | None
    ) -> None:
        """Bind, and on the first failure or when cancelled put all back."""
        job.enter(f"binding {len(bindings)} to {bindings[0].wanted}", 0.5)
        done: Results = {}
        close = scripts.quieten_script(quiet_pf)
        error = await self._try_bindings(job, adapter, bindings, quiet_pf, done)
        if error is None:
            return
        addresses = [binding.address for binding in bindings]
        reasons: dict[PciAddress, str] = {}
        try:
            if not isinstance(error, Stuck):  # then nothing more is written to the adapter
                reasons = await self._undo(adapter, bindings, close, done)
        finally:
            await self._picture.look_after_job(adapter, addresses)
            lost = self._quarantine_changed(bindings, reasons)
        if lost:
            error.hint += f" Could not be put back and is quarantined: {', '.join(map(str, lost))}."
        elif len(bindings) > 1 and not isinstance(error, Stuck):
            error.hint += f" All {len(bindings)} functions are as they were."
        raise error

    async def _try_bindings(
        self,
        job: Job,
        adapter: str,
        bindings: list[Binding],
        quiet_pf: FunctionFacts | None,
        done: Results,
    ) -> SriovdError | None:
        """Fill `done` with what came of each; the error that it ended with, if it did."""
        chains = tuple(scripts.bind_chain(binding) for binding in bindings)
        script = scripts.probe_script(quiet_pf, chains, f"binding to {bindings[0].wanted}")
        close = scripts.quieten_script(quiet_pf)
        try:
            await self._run_with_progress(job, adapter, script, close, done)
        except SriovdError as error:
            return error
        return _judge(job, bindings, close, done) or await self._settle(job, bindings, close, done)

    async def _settle(
        self, job: Job, bindings: list[Binding], close: Script | None, done: Results
    ) -> SriovdError | None:
        """Look once more where a driver may have given up meanwhile."""
        if scripts.settles_at_once(bindings[0].wanted):
            return None
        await asyncio.sleep(SETTLE_SEC)
        for binding in bindings:
            self._picture.look_at(binding.address)
            function = self._inventory.functions.get(binding.address)
            driver = function.facts.driver if function else ""
            done[binding.address] = scripts.with_driver(done[binding.address], driver)
        return _judge(job, bindings, close, done)

    async def _run_with_progress(
        self, job: Job, adapter: str, script: Script, cleanup: Script | None, done: Results
    ) -> Sequence[ChainResult]:
        start, share = job.progress, (0.95 - job.progress) / len(script.chains)
        count = itertools.count(1)

        def note(result: ChainResult) -> None:
            done[result.chain.subject] = result
            subject = result.chain.subject
            if subject is not None and result.chain.steps[-1].verb is Verb.READ_DRIVER:
                self._picture.look_at(subject)  # now, while the kernel is busy with the next
            job.advance(start + share * next(count))

        return await self._executor.run(
            adapter,
            script,
            on_result=note,
            on_start=lambda run: job.stop_by(run.stop),
            cleanup=cleanup,
        )

    async def _undo(
        self, adapter: str, bindings: list[Binding], close: Script | None, done: Results
    ) -> dict[PciAddress, str]:
        """Take back what was done, the last first; why that failed, by function."""
        chains = [
            chain
            for binding in reversed(bindings)
            if (result := done.get(binding.address)) and (chain := scripts.undo_chain(binding, result))
        ]
        if close is not None and _result_of_closing(close, done) is None:
            chains += close.chains
        if not chains:
            return {}
        results = await self._executor.run(adapter, Script("undoing binds", tuple(chains)), cleanup=close)
        failures = [result.failure for result in results if result.failure is not None]
        for failure in failures:
            _log.error("Undoing a bind: %s", explain(failure))
        return {each.step.address: explain(each).message for each in failures if each.step.address}

    def _quarantine_changed(
        self, bindings: Sequence[Binding], reasons: Mapping[PciAddress, str]
    ) -> Sequence[PciAddress]:
        """Take out of service what is not as it was, be it that undoing failed, or that nobody could."""
        lost = [
            binding.address
            for binding in bindings
            if (function := self._inventory.functions.get(binding.address))
            and (binding.address in reasons or function.facts.driver != binding.current)
        ]
        for address in lost:
            reason = f"its driver could not be put back: {reasons.get(address, 'the bind was cut short.')}"
            self._inventory.quarantine(address, reason)
            text = f"{address} is quarantined: {reason}"
            announce(_log, Message.QUARANTINED, text, address=str(address))
        return lost

    def _lift(self, functions: Sequence[Function]) -> None:
        """A function that took a driver again is in service again."""
        for function in functions:
            self._inventory.quarantine(function.address, "")


def _quiet_pf(pf: Function | None, driver: str) -> FunctionFacts | None:
    """The PF that keeps drivers away from its VFs, when it is the kernel that shall choose the driver."""
    return pf.facts if pf and driver == DEFAULT and not scripts.probes_vfs(pf.facts) else None


def _judge(job: Job, bindings: Sequence[Binding], close: Script | None, done: Results) -> SriovdError | None:
    cancelled = Cancelled(f"{job.operation} was cancelled; what was bound is unbound again.")
    for binding in bindings:
        result = done.get(binding.address)
        if result is None and job.cancel_asked:
            return cancelled
        if result is not None and result.failure is not None:
            return explain(result.failure)
        if result is not None and binding.wanted == DEFAULT and not result.value(Verb.READ_DRIVER):
            return BindFailed(
                f"No loaded driver took {binding.address}.",
                "Load its driver's module, or name the driver.",
            )
    if close is None:
        return None
    closing = _result_of_closing(close, done)
    if closing is None:
        return cancelled
    return explain(closing.failure) if closing.failure else None


def _result_of_closing(close: Script, done: Results) -> ChainResult | None:
    """What came of `close`, which a probe_script ends with, or None when it was cut before."""
    result = done.get(close.chains[0].subject)
    return result if result is not None and result.chain in close.chains else None


def _name(functions: Sequence[Function]) -> str:
    return str(functions[0]) if len(functions) == 1 else f"{len(functions)} functions"
