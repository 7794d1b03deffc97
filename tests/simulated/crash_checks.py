"""What holds after any crash, and all moments of a plan."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from sriovd.backend.vf_attributes import VfAttributes
from tests.simulated.crash_host import Scene
from tests.simulated.crash_plays import Plan, Play, play

NO_MAC = "00:00:00:00:00:00"


def play_at(plan: Plan, place: Path, dies_at: int | None) -> Play:
    """Play it in a directory of its own."""
    directory = Path(tempfile.mkdtemp(dir=place))
    try:
        return asyncio.run(play(plan, directory, dies_at))
    finally:
        shutil.rmtree(directory)


def play_all(plan: Plan, place: Path, check: Callable[[Plan, Play, Scene], None]) -> None:
    """Kill at every moment; `check` what came of it against what an undisturbed daemon makes."""
    model = play_at(plan, place, None)
    assert not model.rewritten
    for pf, flag in model.end.autoprobe.items():
        assert flag is (count(model.end, pf) == 0), "the flag is off while there are VFs"
    assert not model.written_again
    assert len(model.moments) > 5
    for moment, name in enumerate(model.moments):
        try:
            seen = play_at(plan, place, moment)
            assert without_mac(seen.moments[-1]) == without_mac(name), "the moments have no order"
            check_common(seen)
            check(plan, seen, model.end)
        except AssertionError as error:
            raise AssertionError(f"killed {name} (moment {moment} of {len(model.moments)})") from error


def without_mac(moment: str) -> str:
    return moment.partition(" mac ")[0]


def check_common(seen: Play) -> None:
    """What is right after any crash."""
    assert seen.macs_at_crash.items() <= seen.macs.items()
    assert seen.open_intents == 0
    assert seen.written_again == 0
    for address, function in seen.functions.items():
        known = seen.known.get(address)
        if known is not None:
            same = known.facts.identity == function.facts.identity
            assert (
                function.generation == known.generation if same else function.generation > known.generation
            )
        later = seen.again[address]
        assert (later.generation, bool(later.quarantine)) == (function.generation, bool(function.quarantine))


def check_crash(plan: Plan, seen: Play, goal: Scene) -> None:
    """Nothing is open to anybody to whom it was not, and will not be."""
    start, crash = seen.start, seen.crash
    for place, vf in crash.vfs.items():
        old, wanted = start.vfs.get(place), goal.vfs.get(place)
        if old is not None and old.device is not vf.device:
            old = None
        allowed = {"", plan.asked, old.driver if old else "", wanted.driver if wanted else ""}
        assert vf.driver in allowed, f"{place} is on {vf.driver}"
        if wanted is not None and vf.driver and (old is None or old.driver != vf.driver):
            assert is_same(vf.attributes, wanted.attributes), f"{place} is handed out as {vf.attributes}"
    for pf in crash.autoprobe:
        assert count(crash, pf) in {0, count(start, pf), count(goal, pf)}


def is_same(have: VfAttributes, wanted: VfAttributes) -> bool:
    """All but the address, which must be none where none is wanted."""
    names = [field.name for field in fields(VfAttributes) if field.name != "mac"]
    has_mac, wants_mac = have.mac not in (None, NO_MAC), wanted.mac not in (None, NO_MAC)
    return has_mac == wants_mac and all(getattr(have, name) == getattr(wanted, name) for name in names)


def count(scene: Scene, pf: object) -> int:
    return sum(place[0] == pf for place in scene.vfs)
