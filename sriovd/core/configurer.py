"""Sets VF attributes: all that are wished, or none.

Rule: read, write what differs, read back; what the driver does not show afterwards was not done. A driver
that is resetting a VF says so or forgets (i40e: "VF still in reset"; sriov-cni retries for 2 s), and without
carrier, which is lost for a moment when VFs are made, it finds no sense in a rate; the same is tried again
for a while, and then the old values are put back. The caller has the adapter's lane.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sriovd.backend.steps import Chain, ChainResult, Script, Step, StepResult, Verb
from sriovd.backend.vf_attributes import Attribute, LinkReport, VfAttributes, parse_report, parse_request
from sriovd.core import attributes
from sriovd.core.capabilities import Capabilities
from sriovd.core.errors import BackendFailed, NoSuchFunction, NotSupported, SriovdError, Stuck
from sriovd.core.execute import Executor
from sriovd.core.inventory import Function
from sriovd.core.jobs import Job
from sriovd.core.kernel_errors import explain
from sriovd.core.results import Changed, Result, Unchanged

_log = logging.getLogger(__name__)

_TRIES = 20
_PAUSE_SEC = 0.1
_TRY_AGAIN = frozenset({errno.EAGAIN, errno.EBUSY})

Wishes = Mapping[int, VfAttributes]  # by VF index


@dataclass(frozen=True, slots=True)
class _Round:
    """What came of one try: nothing was left to do, or what stood in the way."""

    done: bool
    error: SriovdError | None = None
    again: bool = False


class Configurer:
    """Reads and sets VF attributes for the verbs, for policy and for leases."""

    def __init__(self, executor: Executor, capabilities: Capabilities) -> None:
        self._executor = executor
        self._capabilities = capabilities

    async def read(self, pf: Function) -> LinkReport:
        """The attributes of all VFs of `pf`. Raises NotSupported without a network interface, Stuck,
        BackendFailed."""
        return _report_of(await self._read(pf))

    async def list_told(self, pf: Function) -> Wishes:
        """The attributes of the VFs of `pf`, of none where there are more VFs than the kernel can tell of.
        Raises as read."""
        failure = (result := await self._read(pf)).failure
        if failure is not None and failure.errno == errno.EMSGSIZE:
            return {}
        return _report_of(result).vfs

    async def _read(self, pf: Function) -> ChainResult:
        refuse_without_interface(pf)
        step = Step(Verb.READ_LINK, pf.address, "vfs")
        script = Script(f"reading the VFs of {pf.address}", (Chain(pf.address, (step,)),))
        (result,) = await self._executor.run(pf.adapter, script)
        return result

    async def set_all(self, job: Job, pf: Function, wishes: Wishes) -> Result:
        """Bring the VFs of `pf` to `wishes`. Raises NotSupported, InvalidArgument, NoSuchFunction, Stuck,
        BackendFailed; then the attributes are as they were, or the error's hint says which are not."""
        before = (await self.read(pf)).vfs
        self._refuse_impossible(pf, wishes, before)
        chains = tuple(attributes.set_chains(pf.address, wishes, before))
        if not chains:
            return Unchanged(f"the attributes of {len(wishes)} VFs of {pf.address} are as wished")
        job.enter(f"setting attributes of {len(chains)} VFs of {pf.address}", 0.5)
        error = await self._converge(pf, wishes, before)
        if error is None:
            return Changed(f"Set attributes of {len(chains)} VFs of {pf.address}")
        if not isinstance(error, Stuck):  # then nothing more is written to the adapter
            await self._put_back(pf, wishes, before, error)
        raise error

    def _refuse_impossible(self, pf: Function, wishes: Wishes, before: Wishes) -> None:
        """Raises for what can be known beforehand."""
        for index, wish in sorted(wishes.items()):
            if not before:
                raise NotSupported(
                    f"The PF driver {pf.facts.driver} of {pf.address} does not tell of its VFs, so nothing"
                    " that is set could be verified.",
                    "Leave attributes out of the request or policy.",
                )
            if index not in before:
                raise NoSuchFunction(f"{pf.address} has no VF {index}.", f"It has {len(before)} VFs.")
            needed = attributes.list_differences(wish, before[index])
            self._capabilities.refuse_lacking(pf.facts.driver, needed)
            untold = attributes.list_untold(wish, before[index])
            if untold:
                raise untold_by(pf, untold)

    async def _converge(self, pf: Function, wishes: Wishes, before: Wishes) -> SriovdError | None:
        """Write and read back until nothing differs; else what stood in the way to the end."""
        have, outcome = before, _Round(False)
        for _ in range(_TRIES):
            try:
                outcome = await self._write(pf, wishes, have)
                if outcome.done or (outcome.error is not None and not outcome.again):
                    return outcome.error
                have = (await self.read(pf)).vfs
            except SriovdError as error:
                return error
            if not any(attributes.set_chains(pf.address, wishes, have)):
                return None
            await asyncio.sleep(_PAUSE_SEC)
        return outcome.error or _not_taken(pf, wishes, have)

    async def _write(self, pf: Function, wishes: Wishes, have: Wishes) -> _Round:
        """One try of everything that differs."""
        chains = tuple(attributes.set_chains(pf.address, wishes, have))
        if not chains:
            return _Round(done=True)
        script = Script(f"setting VF attributes of {pf.address}", chains, stop_on_failure=True)
        results = await self._executor.run(pf.adapter, script)
        failure = next((each.failure for each in results if each.failure is not None), None)
        if failure is None:
            return _Round(done=False)
        await self._learn(pf, failure)
        return _Round(False, explain(failure), again=_may_pass(failure))

    async def _learn(self, pf: Function, failure: StepResult) -> None:
        if failure.errno == errno.EOPNOTSUPP:
            _, attribute, _ = parse_request(failure.step.argument)
            await self._capabilities.learn(pf.facts.driver, attribute)

    async def _put_back(self, pf: Function, wishes: Wishes, before: Wishes, error: SriovdError) -> None:
        """Set what may have been changed to what it was; `error` says so when that fails."""
        undo = {index: attributes.restrict(before[index], wish) for index, wish in wishes.items()}
        try:
            now = (await self.read(pf)).vfs
            chains = tuple(attributes.set_chains(pf.address, undo, now))
            if not chains:
                return
            script = Script(f"undoing VF attributes of {pf.address}", chains)
            failures = _failures(await self._executor.run(pf.adapter, script))
        except SriovdError as failed:
            error.hint += f" The old attributes could not be put back: {failed.message}"
            return
        for failure in failures:
            _log.error("Undoing VF attributes: %s", explain(failure))
        if failures:
            error.hint += f" Could not be put back: {', '.join(each.step.argument for each in failures)}."


def refuse_without_interface(pf: Function) -> None:
    """Raises NotSupported: VF attributes are the network interface's of the PF."""
    if not pf.facts.net_interfaces:
        raise without_interface(pf)


def without_interface(pf: Function) -> NotSupported:
    """That refusal."""
    return NotSupported(
        f"PF {pf.address} has no network interface, and only through one VF attributes can be set.",
        "Bind its network driver, or leave attributes out.",
    )


def untold_by(pf: Function, untold: Sequence[Attribute]) -> NotSupported:
    """The refusal of what the driver would not show afterwards."""
    return NotSupported(
        f"The PF driver {pf.facts.driver} of {pf.address} does not tell {', '.join(untold)} of its VFs, so"
        " it cannot be verified.",
        "Leave it out of the request or policy.",
    )


def _report_of(result: ChainResult) -> LinkReport:
    if result.failure is not None:
        raise explain(result.failure)
    return parse_report(result.value(Verb.READ_LINK) or "")


def _may_pass(failure: StepResult) -> bool:
    """Whether the same may succeed soon. A rate may be no more than the link's speed, which is 0 until the
    carrier is back (drivers/net/ethernet/intel/igb/igb_main.c igb_ndo_set_vf_bw)."""
    if failure.errno == errno.EINVAL and failure.step.verb is Verb.SET_VF_ATTRIBUTE:
        return parse_request(failure.step.argument)[1] is Attribute.RATE
    return failure.errno in _TRY_AGAIN


def _failures(results: Sequence[ChainResult]) -> list[StepResult]:
    return [each.failure for each in results if each.failure is not None]


def _not_taken(pf: Function, wishes: Wishes, have: Wishes) -> SriovdError:
    """The kernel said yes every time, and shows something else."""
    for index, wish in sorted(wishes.items()):
        now = have.get(index, VfAttributes())
        if attributes.list_differences(wish, now):
            return BackendFailed(
                f"VF {index} of {pf.address} does not keep its attributes:"
                f" {attributes.describe(wish, now)} is still to be done after {_TRIES} tries.",
                "The kernel log may say why.",
            )
    return BackendFailed(f"The VFs of {pf.address} do not keep their attributes.")
