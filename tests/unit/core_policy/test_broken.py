"""Every broken policy file gives a problem at the right line, and leaves the last good policy in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from sriovd.core.policy.policy_set import PolicySet
from tests.unit.core_policy.broken import Broken
from tests.unit.core_policy.broken_keys import KEYS
from tests.unit.core_policy.broken_recovery import RECOVERY
from tests.unit.core_policy.broken_syntax import SYNTAX
from tests.unit.core_policy.broken_together import TOGETHER
from tests.unit.core_policy.broken_values import VALUES

EVERY = [*SYNTAX, *KEYS, *VALUES, *TOGETHER, *RECOVERY]
NAME = "10-nic.toml"
GOOD = '[match]\nslot = "0000:01:00"\n[functions]\nnum-vfs = 7\n'
AT_LEAST = 200


def write_broken(directory: Path, text: str | tuple[str, ...]) -> Path:
    """The file, and its drop-ins if there are several texts; answers the last."""
    main, *drop_ins = (text,) if isinstance(text, str) else text
    path = directory / NAME
    path.write_text(main, newline="")
    for number, each in enumerate(drop_ins):
        path = directory / f"{NAME}.d" / f"{number}.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(each, newline="")
    return path


@pytest.mark.parametrize("broken", EVERY, ids=lambda broken: broken.name)
def test_a_broken_file_is_blamed_and_the_last_good_policy_stays(broken: Broken, tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(GOOD)
    before = PolicySet.load([str(tmp_path)], {})
    assert before.problems == ()
    blamed = write_broken(tmp_path, broken.text)
    now = PolicySet.load([str(tmp_path)], before.good_texts)
    places = [(each.file, each.line) for each in now.problems if broken.fragment in str(each)]
    assert (str(blamed), broken.line) in places, "\n".join(map(str, now.problems))
    assert all(len(str(each).splitlines()) == 1 for each in now.problems)
    assert now.policies == before.policies != ()
    assert now.good_texts == before.good_texts
    assert now.outdated == (NAME,)


@pytest.mark.parametrize("broken", EVERY, ids=lambda broken: broken.name)
def test_a_broken_file_says_one_thing_for_one_mistake(broken: Broken, tmp_path: Path) -> None:
    """Nothing that follows from the mistake is said besides it, or the reader looks in the wrong place."""
    write_broken(tmp_path, broken.text)
    now = PolicySet.load([str(tmp_path)], {})
    assert (now.policies, now.good_texts, now.outdated) == ((), {}, ())
    assert len(now.problems) == 1 or broken.name in SEVERAL, "\n".join(map(str, now.problems))


# Those that really are several mistakes.
SEVERAL = {"policies in the plural", "matches in the plural"}


def test_there_are_enough_kinds_and_no_kind_twice() -> None:
    assert len(EVERY) >= AT_LEAST
    assert len({each.name for each in EVERY}) == len({each.text for each in EVERY}) == len(EVERY)
