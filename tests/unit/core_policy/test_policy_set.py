"""The set of all policies: drop-ins merged, the last good text, and what is kept of it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from sriovd.core.policy.files import BYTES_AT_MOST
from sriovd.core.policy.policy_set import PolicySet
from sriovd.core.policy.problems import AT_MOST

NAME = "10-nic.toml"
MATCH = '[match]\nslot = "0000:01:00"\n'
GOOD = f"{MATCH}[functions]\nnum-vfs = 7\n"
BAD = GOOD.replace("num-vfs", "num-vf")
SECONDS_AT_MOST = 20


def write(directory: Path, name: str, text: str) -> None:
    path = directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def load(directory: Path, before: PolicySet | None = None) -> PolicySet:
    return PolicySet.load([str(directory)], before.good_texts if before else {})


def test_drop_ins_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, NAME, f'{GOOD}repair = "report"\n[vf.defaults]\nvlan = 1\ntrust = true\n')
    write(tmp_path, f"{NAME}.d/1.toml", "[vf.defaults]\nvlan = 2\n[vf.3]\nvlan = 3\n")
    write(tmp_path, f"{NAME}.d/2.toml", 'match.slot = ["0000:02:00", "0000:03:00"]\nfunctions.num-vfs = 4\n')
    [policy] = load(tmp_path).policies
    assert policy.match.slot == ("0000:02:00", "0000:03:00")
    assert (policy.wish.num_vfs, policy.wish.repair) == (4, "report")
    assert [policy.wish.vf(index).attributes.vlan for index in (0, 3)] == [2, 3]
    assert policy.wish.vf(3).attributes.trust is True
    place = policy.wish.defaults["vlan"].place
    assert (place.file, place.line) == (str(tmp_path / f"{NAME}.d/1.toml"), 2)


def test_a_drop_in_can_put_right_what_is_wrong_below(tmp_path: Path) -> None:
    write(tmp_path, NAME, f"{MATCH}[functions]\nnum-vfs = -1\n")
    assert load(tmp_path).policies == ()
    write(tmp_path, f"{NAME}.d/1.toml", "functions.num-vfs = 1\n")
    assert load(tmp_path).problems == ()


def test_policies_beside_a_single_one_are_refused_over_files_too(tmp_path: Path) -> None:
    write(tmp_path, NAME, GOOD)
    write(tmp_path, f"{NAME}.d/1.toml", f"[[policy]]\n{MATCH.replace('[m', '[policy.m')}")
    assert all("beside [[policy]]" in str(each) for each in load(tmp_path).problems)
    assert len(load(tmp_path).problems) == 2


def test_defaults_that_no_vf_has_alone_need_not_be_whole(tmp_path: Path) -> None:
    write(tmp_path, NAME, f"{MATCH}[functions]\nnum-vfs = 2\n[vf.defaults]\nqos = 3\n[vf.0-1]\nvlan = 1\n")
    assert load(tmp_path).problems == ()
    write(tmp_path, f"{NAME}.d/1.toml", "functions.num-vfs = 3\n")
    assert len(load(tmp_path).problems) == 1


def test_a_wrong_file_does_not_touch_the_others(tmp_path: Path) -> None:
    write(tmp_path, NAME, BAD)
    write(tmp_path, "20.toml", GOOD)
    found = load(tmp_path)
    assert [each.source for each in found.policies] == [f"{tmp_path}/20.toml:1"]
    assert list(found.good_texts) == ["20.toml"]


def test_the_last_good_has_its_drop_ins_and_survives_them(tmp_path: Path) -> None:
    write(tmp_path, NAME, GOOD)
    write(tmp_path, f"{NAME}.d/1.toml", "functions.num-vfs = 3\n")
    before = load(tmp_path)
    write(tmp_path, f"{NAME}.d/1.toml", "functions.num-vfs = \n")
    write(tmp_path, NAME, BAD)
    now = load(tmp_path, before)
    assert [each.wish.num_vfs for each in now.policies] == [3]
    assert load(tmp_path, now) == now
    assert PolicySet.recall(now.good_texts).policies == before.policies


def test_a_file_that_is_put_right_counts_again(tmp_path: Path) -> None:
    write(tmp_path, NAME, GOOD)
    before = load(tmp_path)
    write(tmp_path, NAME, BAD)
    broken = load(tmp_path, before)
    write(tmp_path, NAME, GOOD.replace("7", "5"))
    now = load(tmp_path, broken)
    assert (now.problems, now.outdated) == ((), ())
    assert now.policies[0].wish.num_vfs == 5


@pytest.mark.parametrize("how", ["gone", "masked"])
def test_what_is_taken_away_is_not_brought_back(tmp_path: Path, how: str) -> None:
    write(tmp_path, NAME, GOOD)
    before = load(tmp_path)
    (tmp_path / NAME).unlink()
    if how == "masked":
        (tmp_path / NAME).symlink_to("/dev/null")
    assert load(tmp_path, before) == PolicySet()


# Half of a character, which no file can hold.
SURROGATE = json.dumps([["a", 'match.driver = "igb"\nrecovery.rungs = ["\ud800"]\n']])


@pytest.mark.parametrize(
    "kept",
    [
        "",
        "[]",
        "{}",
        "null",
        "[[1]]",
        "[1]",
        '[["a", "x = "]]',
        '[["a", ""]]',
        "[" * 9,
        "[" * 9999,
        SURROGATE,
    ],
)
def test_a_kept_text_that_is_not_right_is_none(tmp_path: Path, kept: str) -> None:
    write(tmp_path, NAME, BAD)
    found = PolicySet.load([str(tmp_path)], {NAME: kept})
    assert (found.policies, found.outdated, len(found.problems)) == ((), (), 1)


def test_all_that_is_wrong_is_said_in_the_order_of_lines(tmp_path: Path) -> None:
    write(
        tmp_path, NAME, 'x = 1\n[match]\nslot = 1\ny = 2\n[vf.9-0]\n[vf.0]\nqos = 9\nmac = "z"\ntrust = 1\n'
    )
    assert [each.line for each in load(tmp_path).problems] == [1, 3, 4, 5, 7, 8, 9]


def test_no_more_is_said_than_somebody_would_read(tmp_path: Path) -> None:
    write(tmp_path, NAME, GOOD + "".join(f"key{number} = 1\n" for number in range(AT_MOST + 50)))
    problems = load(tmp_path).problems
    assert len(problems) == AT_MOST + 1
    assert problems[-1].message == "50 more problems"


def test_a_problem_is_one_line_of_a_known_form(tmp_path: Path) -> None:
    write(tmp_path, NAME, BAD)
    [problem] = load(tmp_path).problems
    assert str(problem) == f"{tmp_path}/{NAME}:4: [functions] num-vf: unknown key; did you mean num-vfs?"


LARGE = {
    "keys": (f"key{number} = 1\n" for number in range(80_000)),
    "tables of VFs": (f"[vf.{number}]\nvlan=1\n" for number in range(50_000)),
    "tables that overlap": (f"[vf.{number}-{65534 - number}]\n" for number in range(32_000)),
    "bad tables of VFs": (f"[vf.x{number}]\n" for number in range(60_000)),
    "a long text": ('x = """', "a\\\\\"'" * 190_000, '"""'),
    "a long list": ("x = [", "1," * 500_000, "]"),
    "a glob": ('match.address = "', "*[0" * 300_000, '"'),
}


@pytest.mark.parametrize("kind", LARGE)
def test_the_largest_files_take_seconds(tmp_path: Path, kind: str) -> None:
    """A bound far above what they take (one or two), and far below what anything quadratic would."""
    head = "" if "glob" in kind else MATCH
    write(tmp_path, NAME, (head + "".join(LARGE[kind]))[:BYTES_AT_MOST])
    began = time.monotonic()
    load(tmp_path)
    assert time.monotonic() - began < SECONDS_AT_MOST
