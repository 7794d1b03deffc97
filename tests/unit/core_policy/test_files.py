"""Which files count, in which order, and that whatever is in a directory is a problem at worst."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sriovd.core.policy.files import BYTES_AT_MOST, find_policies
from sriovd.core.policy.policy_set import PolicySet

NAME = "10-nic.toml"
GOOD = '[match]\nslot = "0000:01:00"\n[functions]\nnum-vfs = 7\n'


@pytest.fixture
def directories(tmp_path: Path) -> list[str]:
    """Three, in order of precedence; the second is not there."""
    for name in ("etc", "usr"):
        (tmp_path / name).mkdir()
    return [str(tmp_path / name) for name in ("etc", "run", "usr")]


def write(directory: str, name: str, text: str) -> str:
    path = Path(directory, name)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return str(path)


def read(directories: list[str]) -> dict[str, list[str]]:
    """The texts of every policy file by its name."""
    listing = find_policies(directories)
    assert listing.problems == () and listing.complete
    return {each.name: [text.text for text in each.texts] for each in listing.found if not each.problems}


def test_an_earlier_directory_hides_a_file_of_the_same_name(directories: list[str]) -> None:
    write(directories[2], NAME, "low")
    write(directories[2], "20.toml", "other")
    assert read(directories) == {NAME: ["low"], "20.toml": ["other"]}
    write(directories[1], NAME, "middle")
    assert read(directories)[NAME] == ["middle"]
    write(directories[0], NAME, "high")
    assert read(directories) == {NAME: ["high"], "20.toml": ["other"]}


@pytest.mark.parametrize("how", ["empty", "null"])
def test_a_mask_hides_the_file_and_its_drop_ins(directories: list[str], how: str) -> None:
    write(directories[2], NAME, "low")
    write(directories[2], f"{NAME}.d/a.toml", "a")
    mask(Path(directories[0], NAME), how)
    assert read(directories) == {}


@pytest.mark.parametrize("how", ["empty", "null"])
def test_drop_ins_are_hidden_and_masked_by_name_and_read_in_its_order(
    directories: list[str], how: str
) -> None:
    write(directories[2], NAME, "low")
    write(directories[2], f"{NAME}.d/b.toml", "b of usr")
    write(directories[0], f"{NAME}.d/c.toml", "c of etc")
    write(directories[1], f"{NAME}.d/a.toml", "a of run")
    assert read(directories)[NAME] == ["low", "a of run", "b of usr", "c of etc"]
    write(directories[0], f"{NAME}.d/b.toml", "b of etc")
    assert read(directories)[NAME] == ["low", "a of run", "b of etc", "c of etc"]
    mask(Path(directories[0], f"{NAME}.d", "a.toml"), how)
    assert read(directories)[NAME] == ["low", "b of etc", "c of etc"]


def mask(path: Path, how: str) -> None:
    if how == "null":
        path.symlink_to("/dev/null")
    else:
        path.write_text("")


@pytest.mark.parametrize(
    "name", ["README", "10-nic.conf", "10-nic.toml~", ".10-nic.toml", "10-nic.toml.bak"]
)
def test_other_names_are_not_read(directories: list[str], name: str) -> None:
    write(directories[0], name, "not TOML")
    assert read(directories) == {}


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)
    finally:
        os.chdir(here)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


ODD: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "a directory": (Path.mkdir, 0, "is a directory"),
    "a FIFO": (os.mkfifo, 0, "is a FIFO"),
    "a socket": (make_socket, 0, "is a socket"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), 0, "is a device"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), 0, "is a link to nothing"),
    "a link to itself": (lambda path: path.symlink_to(path.name), 0, "ELOOP"),
    "a link through a file": (lambda path: path.symlink_to("/dev/null/x"), 0, "ENOTDIR"),
    "a link to a directory": (lambda path: path.symlink_to("/"), 0, "is a directory"),
    "a huge file": (lambda path: path.write_bytes(b"#" * (BYTES_AT_MOST + 1)), 0, "more than 1 MiB"),
    "an enormous sparse file": (make_sparse, 0, "more than 1 MiB"),
    "Latin-1": (lambda path: path.write_bytes(GOOD.encode() + b"# f\xfcr\n"), 5, "not UTF-8: byte 0xfc"),
    "UTF-16": (lambda path: path.write_bytes(GOOD.encode("utf-16")), 1, "not UTF-8: byte 0xff"),
    "an encoded surrogate": (lambda path: path.write_bytes(b"\n# \xed\xa0\x80"), 2, "not UTF-8: byte 0xed"),
    "a binary": (lambda path: path.write_bytes(b"\x7fELF\x02\x01\x01\x00\xff"), 1, "not UTF-8"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", [NAME, f"{NAME}.d/50.toml"])
def test_an_odd_file_is_blamed_and_the_last_good_policy_stays(
    directories: list[str], kind: str, place: str
) -> None:
    write(directories[2], NAME, GOOD)
    before = PolicySet.load(directories, {})
    make, line, fragment = ODD[kind]
    path = Path(directories[0], place)
    path.parent.mkdir(exist_ok=True)
    make(path)
    now = PolicySet.load(directories, before.good_texts)
    assert [(each.file, each.line) for each in now.problems] == [(str(path), line)]
    assert fragment in str(now.problems[0])
    assert now.policies == before.policies != ()
    assert now.outdated == (NAME,)


def test_drop_ins_are_not_judged_alone_while_their_file_is_odd(directories: list[str]) -> None:
    Path(directories[0], NAME).mkdir()
    write(directories[0], f"{NAME}.d/1.toml", "[functions]\nnum-vfs = 1\n")
    broken = write(directories[0], f"{NAME}.d/2.toml", "[functions")
    problems = PolicySet.load(directories, {}).problems
    assert [each.file for each in problems] == [str(Path(directories[0], NAME)), broken]


def test_drop_ins_that_are_no_directory_are_blamed(directories: list[str]) -> None:
    write(directories[0], NAME, GOOD)
    path = write(directories[0], f"{NAME}.d", "file")
    found = PolicySet.load(directories, {})
    assert (found.policies, [each.file for each in found.problems]) == ((), [path])


def test_drop_ins_of_nothing_are_reported(directories: list[str]) -> None:
    write(directories[0], NAME, GOOD)
    write(directories[2], "10-nci.toml.d/50.toml", GOOD)
    found = PolicySet.load(directories, {})
    assert len(found.policies) == 1
    [problem] = found.problems
    assert problem.file == str(Path(directories[2], "10-nci.toml.d"))
    assert problem.suggestion == f"did you mean {NAME}?"


def test_a_name_that_cannot_be_shown_is_not_read(directories: list[str]) -> None:
    for name in (b"a\nb.toml", b"\xff.toml"):
        Path(directories[0], os.fsdecode(name)).write_text(GOOD)
    found = PolicySet.load(directories, {})
    assert found.policies == ()
    assert [len(str(each).splitlines()) for each in found.problems] == [1, 1]
    assert all(str(each).encode() for each in found.problems)


def test_a_directory_that_cannot_be_listed_leaves_everything_as_it_was(directories: list[str]) -> None:
    write(directories[0], NAME, GOOD)
    write(directories[2], "20.toml", GOOD)
    before = PolicySet.load(directories, {})
    directories[0] = write(directories[2], "no-directory", "")
    now = PolicySet.load(directories, before.good_texts)
    assert [each.file for each in now.problems] == [directories[0]]
    assert (now.policies, now.outdated) == (before.policies, (NAME, "20.toml"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.binary(max_size=50), st.dictionaries(st.just(NAME), st.text()))
def test_no_bytes_and_no_last_good_are_too_odd(
    tmp_path: Path, main: bytes, drop_in: bytes, last_good: dict[str, str]
) -> None:
    (tmp_path / NAME).write_bytes(main)
    (tmp_path / f"{NAME}.d").mkdir(exist_ok=True)
    (tmp_path / f"{NAME}.d" / "a.toml").write_bytes(GOOD.encode() + drop_in)
    for problem in PolicySet.load([str(tmp_path)], last_good).problems:
        assert len(str(problem).splitlines()) == 1
        assert str(problem).encode()
