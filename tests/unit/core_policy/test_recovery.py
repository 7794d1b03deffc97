"""The table [recovery]: what it says of a PF, and that it speaks the words of recovery."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from sriovd.core.policy import schema
from sriovd.core.policy.schema import RecoveryTable
from sriovd.core.recovery.vocabulary import Permission, Response, Rung, Storm
from sriovd.core.recovery.wish import RecoveryWish
from tests.unit.core_policy.test_match import decide_texts

EVERYTHING = """[recovery]
correctable-storm = "freeze"
storm-threshold = 7
non-fatal = "report"
fatal = "quarantine"
rungs = ["remove-rescan", "kernel"]
permission = "manual"
grace-sec = 86400
close-sec = 0
"""


def read_wish(*texts: str) -> RecoveryWish:
    """What policies with these texts say of one PF."""
    decision = decide_texts(*texts)
    assert decision.wish is not None, decision.conflicts
    return decision.wish.recovery


def test_everything_that_is_written_is_wished() -> None:
    assert read_wish(EVERYTHING) == RecoveryWish(
        correctable_storm=Storm.FREEZE,
        storm_threshold=7,
        non_fatal=Response.REPORT,
        fatal=Response.QUARANTINE,
        rungs=(Rung.KERNEL, Rung.REMOVE_RESCAN),
        permission=Permission.MANUAL,
        grace_sec=86400,
        close_sec=0,
    )


@pytest.mark.parametrize("text", ["", "[recovery]\n", "functions.num-vfs = 3\n"])
def test_what_is_not_written_has_its_default(text: str) -> None:
    assert read_wish(text) == RecoveryWish()


def test_a_key_that_is_left_out_beside_others_has_its_default() -> None:
    assert read_wish("recovery.close-sec = 9") == RecoveryWish(close_sec=9)


def test_what_several_policies_say_counts_together() -> None:
    wish = read_wish("recovery.fatal = 'quarantine'", "recovery.grace-sec = 5", "functions.num-vfs = 1")
    assert wish == RecoveryWish(fatal=Response.QUARANTINE, grace_sec=5)


def test_the_order_of_rungs_is_no_difference() -> None:
    one = "recovery.rungs = ['kernel', 'driver-rebind']"
    assert read_wish(one, "recovery.rungs = ['driver-rebind', 'kernel']").rungs == (
        Rung.KERNEL,
        Rung.DRIVER_REBIND,
    )


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (schema.StormAnswer, Storm),
        (schema.NonFatalAnswer, Response),
        (schema.RungName, Rung),
        (schema.Permitter, Permission),
    ],
)
def test_files_and_recovery_have_the_same_words(kind: Any, words: Any) -> None:
    assert get_args(get_args(kind)[0]) == tuple(words)


def test_files_and_recovery_have_the_same_fields() -> None:
    assert RecoveryTable.__struct_fields__ == tuple(RecoveryWish.__dataclass_fields__)
