"""What a VF's trace says of a kernel access.

Rule: only what is about that VF. What a step has read is told only of reads that cannot speak of another;
so a report on a PF's interface, which has all its VFs, never is.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from sriovd.backend.steps import Access, ChainResult, Script, Step, StepResult, Verb
from sriovd.pci import PciAddress
from sriovd.trace.record import Direction, RecordType, Status

if TYPE_CHECKING:  # loaded with the first event that is told
    from sriovd.core.trace.joining import Telling

_TYPES = {
    Access.WRITE: RecordType.WRITE,
    Access.READ: RecordType.READ,
    Access.READLINK: RecordType.READ,
    Access.COUNT: RecordType.READ,
    Access.CONFIG: RecordType.CONFIG,
    Access.LINK: RecordType.NETLINK,
}
_TELLING = frozenset({Verb.READ_DRIVER, Verb.READ_DRIVER_OVERRIDE})
_LONGEST = 256  # characters of what was read
_NOTHING = "-"  # that has been read


class Mark(Enum):
    """What a note means for those that follow and have no other cause."""

    LEASE = 1  # they hang below it
    ERROR = 2  # the next incident hangs below it
    INCIDENT = 3  # the first of them has caused what follows, until its end
    END_OF_INCIDENT = 4


class Note(NamedTuple):
    """What a record tells beside its place in the tree: see sriovd.trace.record. `time_nsec`: when it
    happened; 0: when it is put. A tuple, because one is made for every record."""

    type: RecordType
    direction: Direction
    status: Status
    operation: str
    arguments: str = ""
    errno: int = 0
    latency_nsec: int = 0
    mark: Mark | None = None
    time_nsec: int = 0


Subject = PciAddress | tuple[PciAddress, int]
"""A function, or a VF by its PF and index."""


def subject_of(step: Step) -> Subject | None:
    """Which function a step is about: that in whose directory it is done, or a VF of the PF there."""
    if step.verb is Verb.SET_VF_ATTRIBUTE and step.address is not None:
        return step.address, int(step.argument.partition(" ")[0])
    return step.address


def note_step(result: StepResult) -> Note:
    """A step that has been done."""
    step = result.step
    return Note(
        type_of(step),
        Direction.FROM_KERNEL if _is_read(step) else Direction.TO_KERNEL,
        Status.OK if result.ok else Status.FAILED,
        str(step.verb),
        _describe(result),
        result.errno,
        result.duration_usec * 1000,
    )


def shorten(chain: ChainResult) -> ChainResult:
    """The chain as it is kept: most of what can be read (4 KiB of registers) is never told."""
    if all(len(result.value) <= _LONGEST for result in chain.results):
        return chain
    results = (
        result if result.step.expect is not None else replace(result, value=result.value[:_LONGEST])
        for result in chain.results
    )
    return replace(chain, results=tuple(results))


def note_refusal(step: Step, error: Exception) -> Note:
    """A step that sriovd did not do."""
    kind = type(error).__name__
    return Note(
        type_of(step), Direction.NONE, Status.REFUSED, str(step.verb), f"{step.argument} {kind}".lstrip()
    )


def note_hang(step: Step, running_usec: int) -> Note:
    """A step that has not come back in its time."""
    return Note(
        type_of(step), Direction.TO_KERNEL, Status.FAILED, str(step.verb),
        "has not returned from the kernel", latency_nsec=running_usec * 1000,
    )  # fmt: skip


def note_telling(telling: Telling, times: int = 1) -> Note:
    """What an event tells a VF, which has come so often."""
    is_trouble = telling.type is RecordType.ERROR and telling.status is not Status.OK
    arguments = f"{telling.arguments} ({times} times)" if times > 1 else telling.arguments
    return Note(
        telling.type, telling.direction, telling.status, telling.operation, arguments,
        mark=Mark.ERROR if is_trouble else None, time_nsec=telling.time_nsec,
    )  # fmt: skip


def find_step(script: Script, text: str) -> Step | None:
    """The step of `script` that is written so, as evidence has it."""
    steps = (step for chain in script.chains for step in chain.steps)
    return next((step for step in steps if str(step) == text), None)


def type_of(step: Step) -> RecordType:
    """What kind of record tells of it."""
    return RecordType.RESET if step.verb is Verb.RESET else _TYPES[step.access]


def _is_read(step: Step) -> bool:
    return not step.writes


def _describe(result: StepResult) -> str:
    if result.step.verb not in _TELLING:
        return result.step.argument
    found = result.value or _NOTHING
    return f"{found}, and not {result.step.expect or _NOTHING}" if result.mismatch else found
