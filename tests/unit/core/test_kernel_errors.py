"""What the kernel's errno become."""

from __future__ import annotations

import errno

import pytest

from sriovd.backend.steps import Step, StepResult, Verb
from sriovd.core.errors import (
    BackendFailed,
    BindFailed,
    InUse,
    InvalidArgument,
    NoSuchFunction,
    NotSupported,
    NumVfsRejected,
    ResetFailed,
    SriovdError,
)
from sriovd.core.kernel_errors import _MEANINGS, explain
from tests.unit.core.minikernel import PF

ARGUMENTS = {
    Verb.SET_NUM_VFS: "7",
    Verb.BIND: "igbvf",
    Verb.UNBIND: "igbvf",
    Verb.SET_VF_ATTRIBUTE: "3 trust on",
}
WRITES = [
    (Verb.SET_NUM_VFS, errno.ERANGE, NumVfsRejected),
    (Verb.SET_NUM_VFS, errno.EBUSY, NumVfsRejected),
    (Verb.SET_NUM_VFS, errno.ENOENT, NumVfsRejected),
    (Verb.SET_NUM_VFS, errno.EPERM, NumVfsRejected),
    (Verb.SET_NUM_VFS, errno.ENOMEM, NumVfsRejected),
    (Verb.SET_NUM_VFS, errno.EIO, NumVfsRejected),
    (Verb.BIND, errno.ENODEV, BindFailed),
    (Verb.BIND, errno.EBUSY, BindFailed),
    (Verb.BIND, errno.ENOENT, BindFailed),
    (Verb.BIND, errno.EINVAL, BindFailed),
    (Verb.UNBIND, errno.ENODEV, BindFailed),
    (Verb.RESET, errno.ENOTTY, ResetFailed),
    (Verb.RESET, errno.ENOENT, NotSupported),
    (Verb.RESET, errno.EAGAIN, ResetFailed),
    (Verb.SET_VF_ATTRIBUTE, errno.EOPNOTSUPP, NotSupported),
    (Verb.SET_VF_ATTRIBUTE, errno.EPROTONOSUPPORT, NotSupported),
    (Verb.SET_VF_ATTRIBUTE, errno.EINVAL, InvalidArgument),
    (Verb.SET_VF_ATTRIBUTE, errno.ENODEV, NotSupported),
    (Verb.SET_VF_ATTRIBUTE, errno.EAGAIN, BackendFailed),
    (Verb.SET_VF_ATTRIBUTE, errno.EBUSY, BackendFailed),
    (Verb.READ_LINK, errno.ENODEV, NotSupported),
    (Verb.READ_LINK, errno.EMSGSIZE, NotSupported),
]


@pytest.mark.parametrize(("verb", "number", "error"), WRITES)
def test_every_known_errno(verb: Verb, number: int, error: type[SriovdError]) -> None:
    found = explain(StepResult(Step(verb, PF, ARGUMENTS.get(verb, "")), number))
    assert type(found) is error
    names = (str(PF), ARGUMENTS.get(verb) or str(PF))
    assert any(name in found.message for name in names)
    assert found.message.endswith(".")
    assert found.hint.endswith((".", ")"))
    assert "{" not in str(found)


def test_the_list_above_is_the_table() -> None:
    assert [(verb, number) for verb, number, _ in WRITES] == list(_MEANINGS)


def test_a_function_that_is_gone() -> None:
    found = explain(StepResult(Step(Verb.SET_DRIVER_OVERRIDE, PF, "igb"), errno.ENOENT))
    assert isinstance(found, NoSuchFunction)
    assert str(PF) in found.message


def test_busy_without_a_meaning_of_its_own() -> None:
    found = explain(StepResult(Step(Verb.RESET, PF), errno.EBUSY))
    assert isinstance(found, InUse)
    assert str(PF) in found.message


UNKNOWN = [
    (Step(Verb.BIND, PF, "igbvf"), errno.EIO, BindFailed, f"EIO (Input/output error) to bind {PF} igbvf."),
    (
        Step(Verb.RESCAN_BUS),
        errno.ENOENT,
        BackendFailed,
        "ENOENT (No such file or directory) to rescan-bus.",
    ),
    # ENOTSUPP, for the kernel only
    (Step(Verb.RESET, PF), 524, ResetFailed, f"524 (Unknown error 524) to reset {PF}."),
]


@pytest.mark.parametrize(("step", "number", "error", "end"), UNKNOWN)
def test_an_unknown_errno_keeps_its_name(
    step: Step, number: int, error: type[SriovdError], end: str
) -> None:
    found = explain(StepResult(step, number))
    assert (type(found), found.message) == (error, f"The kernel answered {end}")


MISMATCHES = [
    (Verb.READ_DRIVER, "igbvf", "", BindFailed, f"{PF} ended with driver none instead of igbvf."),
    (Verb.READ_DRIVER, "", "igbvf", BindFailed, f"{PF} ended with driver igbvf instead of none."),
    (Verb.COUNT_VFS, "7", "3", BackendFailed, f"count-vfs of {PF} gave 3 instead of 7."),
]


@pytest.mark.parametrize(("verb", "expect", "value", "error", "message"), MISMATCHES)
def test_a_reading_that_is_not_as_expected(
    verb: Verb, expect: str, value: str, error: type[SriovdError], message: str
) -> None:
    found = explain(StepResult(Step(verb, PF, expect=expect), 0, value))
    assert (type(found), found.message) == (error, message)
