"""Of several wishes for the PFs of an adapter, the strictest counts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.recovery.vocabulary import Permission, Response, Rung, Storm
from sriovd.core.recovery.wish import RecoveryWish, combine_recovery

WISHES = st.builds(
    RecoveryWish,
    correctable_storm=st.sampled_from(Storm),
    storm_threshold=st.integers(1, 1000),
    non_fatal=st.sampled_from(Response),
    fatal=st.sampled_from((Response.RECOVER, Response.QUARANTINE)),
    rungs=st.sets(st.sampled_from(Rung)).map(lambda chosen: tuple(each for each in Rung if each in chosen)),
    permission=st.sampled_from(Permission),
    grace_sec=st.integers(0, 100),
    close_sec=st.integers(0, 100),
)


def test_the_strictest_of_each() -> None:
    one = RecoveryWish(
        Storm.IGNORE, 100, Response.RECOVER, Response.QUARANTINE, tuple(Rung), Permission.MANUAL, 0, 600
    )
    other = RecoveryWish(
        Storm.FREEZE, 5, Response.REPORT, Response.RECOVER, (Rung.KERNEL, Rung.REMOVE_RESCAN), grace_sec=30
    )
    assert combine_recovery([one, other]) == RecoveryWish(
        Storm.FREEZE,
        5,
        Response.RECOVER,
        Response.QUARANTINE,
        (Rung.KERNEL, Rung.REMOVE_RESCAN),
        Permission.MANUAL,
        30,
        600,
    )


def test_what_only_one_allows_is_not_allowed() -> None:
    one, other = RecoveryWish(rungs=(Rung.KERNEL,)), RecoveryWish(rungs=(Rung.REMOVE_RESCAN,))
    assert combine_recovery([one, other]).rungs == ()


def test_nobody_wishes_the_defaults() -> None:
    assert combine_recovery([]) == RecoveryWish()


@given(WISHES, WISHES, WISHES)
def test_neither_order_nor_repetition_counts(
    one: RecoveryWish, two: RecoveryWish, three: RecoveryWish
) -> None:
    every = combine_recovery([one, two, three])
    assert combine_recovery([one]) == one
    assert combine_recovery([three, one, two, one]) == every
    assert combine_recovery([combine_recovery([one, two]), three]) == every
