"""What the verbs of all modules share: their arguments' common parts, and the reply that is a job.

Rule: a mutating verb answers with its job, and with the job's error if it failed in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sriovd.bus.dispatch import Caller
from sriovd.bus.objects import job_path
from sriovd.bus.signature import Variant
from sriovd.core.errors import InvalidArgument
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


async def answer_with_job(job: Job, given: Mapping[str, Any]) -> JobReply:
    """Wait for the job as long as the caller will. Raises the job's error."""
    await job.wait(given.get("wait-usec", WAIT_USEC))
    if job.error is not None:
        raise job.error
    return job_path(job.number), str(JobState.DONE if job.state.ended else JobState.RUNNING)
