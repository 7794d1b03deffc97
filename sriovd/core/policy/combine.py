"""Puts together what several tables, or several policies, say of the same thing.

Rule: none of them goes before another. What only one says counts; where two say the same, the first is
named; where they differ, both are named in a problem. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sriovd.core.policy.model import PfWish, Setting, Settings, VfRange
from sriovd.core.policy.problems import Problem, show
from sriovd.core.policy.ranges import find_cover

OnConflict = Callable[[Problem], None]


def combine_settings(all_settings: Iterable[Settings], who: str, on_conflict: OnConflict) -> Settings:
    """The sum of what is said of `who`."""
    combined: dict[str, Setting] = {}
    for settings in all_settings:
        for name, setting in settings.items():
            first = combined.setdefault(name, setting)
            if first.value != setting.value:
                on_conflict(_describe_conflict(first, setting, who))
    return combined


def _describe_conflict(first: Setting, second: Setting, who: str) -> Problem:
    return second.place.problem(
        f"{show(second.value)} for {who}, but {first.place} ({first.place.key}) says {show(first.value)}",
        "say it once",
    )


def combine_wishes(wishes: Sequence[PfWish], who: str, on_conflict: OnConflict) -> PfWish:
    """The sum of several wishes for one PF, `who`. A VF's defaults weigh as much as what is said of it by
    its index: what counts is how it would look by each wish alone."""
    vfs = f"VFs of {who}"
    functions = combine_settings((wish.functions for wish in wishes), who, on_conflict)
    defaults = combine_settings((wish.defaults for wish in wishes), vfs, on_conflict)
    ranges = [(number, each) for number, wish in enumerate(wishes) for each in wish.ranges]
    cover = find_cover([[each.span] for _, each in ranges], at_most=len(wishes))
    combined = []
    for span, covering in cover.items():
        said = dict(enumerate(wish.defaults for wish in wishes))
        said |= {ranges[each][0]: ranges[each][1].settings for each in covering}
        places = tuple(place for each in covering for place in ranges[each][1].tables)
        combined.append(VfRange(span, combine_settings(said.values(), vfs, on_conflict), places))
    errors = combine_settings((wish.errors for wish in wishes), who, on_conflict)
    return PfWish(functions, defaults, tuple(combined), errors)
