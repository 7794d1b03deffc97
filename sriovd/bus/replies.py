"""What the verbs of all modules share: their arguments' common parts, and the reply that is a job.

Rule: a mutating verb answers with its job, and with the job's error if it failed in time. What a caller does
not see does not exist for him, whatever he names it by: that is said before anything is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sriovd.bus.actions import INSPECT
from sriovd.bus.dispatch import Caller
from sriovd.bus.objects import ROOT, Objects, job_path
from sriovd.bus.paths import encode_path_element
from sriovd.bus.signature import Variant
from sriovd.core.errors import InvalidArgument, NoSuchFunction, NotAuthorized
from sriovd.core.jobs import Job, JobState
from sriovd.pci import AddressError, PciAddress

WAIT_USEC = 20_000_000
WAIT = {"wait-usec": "t"}
WAIT_FORCE = {**WAIT, "force": "b"}
GENERATION = {"generation": "t"}

Options = Mapping[str, Variant]
JobReply = tuple[str, str]


def parse_address(text: str) -> PciAddress:
    """The address in an argument. Raises InvalidArgument."""
    try:
        return PciAddress.parse(text)
    except AddressError as error:
        raise InvalidArgument(f"{error}.") from error


def name_caller(caller: Caller) -> str:
    """The caller, for the journal."""
    return str(caller)


def is_forced(given: Mapping[str, Any]) -> bool:
    """Whether the option force was given."""
    return bool(given.get("force", False))


def require_sight(caller: Caller, target: PciAddress | str) -> None:
    """That the caller sees the function at that address, or is an operator; a tenant sees no adapter by its
    slot. Raises NoSuchFunction. The path is made anew: function_path() is quicker with what is there."""
    if caller.is_operator:
        return
    if isinstance(target, str) or not caller.sees(f"{ROOT}/function/{encode_path_element(str(target))}"):
        raise refuse_unseen(target)


def refuse_unseen(target: PciAddress | str) -> NoSuchFunction:
    """What is told to who does not see it."""
    return NoSuchFunction(f"There is no function {target} for you.", "ListFunctions lists those there are.")


def require_operator(caller: Caller) -> None:
    """For what tells of the whole host, whatever else it needs. Raises NotAuthorized."""
    if not caller.is_operator:
        raise NotAuthorized(f"polkit does not allow {INSPECT} to the caller")


async def answer_with_job(objects: Objects, caller: Caller, job: Job, given: Mapping[str, Any]) -> JobReply:
    """Wait for the job as long as the caller will, who sees it from now on. Raises the job's error."""
    objects.share_job(job, caller.uid)
    await job.wait(given.get("wait-usec", WAIT_USEC))
    if job.error is not None:
        raise job.error
    return job_path(job.number), str(JobState.DONE if job.state.ended else JobState.RUNNING)
