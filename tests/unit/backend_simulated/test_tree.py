"""The tree's own promises: atomic replacement, shared inodes, identities, relative links."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sriovd.backend.simulated.tree import File, Tree, relative_target


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """On a disk, if that is what the temporary directory is on: it hands inode numbers out again."""
    return Tree(str(tmp_path / "sys"))


def test_a_directory_never_follows_itself(tree: Tree) -> None:
    inode = 0
    for _ in range(5):
        successor = tree.make_new_directory("device", unlike=[inode])
        assert successor != inode
        assert os.stat(tree.path("device")).st_ino == successor
        inode = successor
        tree.remove_directory("device")


def test_equal_files_share_an_inode_until_one_is_replaced(tree: Tree) -> None:
    tree.make_directory("d")
    tree.populate("d", [File("a", 0o444, b"1\n"), File("b", 0o444, b"1\n"), File("c", 0o644, b"1\n")])
    inodes = {name: os.stat(tree.path(f"d/{name}")).st_ino for name in "abc"}
    assert inodes["a"] == inodes["b"] != inodes["c"]
    with open(tree.path("d/a"), "rb") as reader:
        tree.replace("d", File("a", 0o444, b"2\n"))
        assert reader.read() == b"1\n"
    assert (tree.read("d/a"), tree.read("d/b")) == (b"2\n", b"1\n")
    tree.replace("d", File("a", 0o444, b"2\n"))
    assert tree.read("d/a") == b"2\n"


def test_more_links_than_the_file_system_allows(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.link
    refusals: list[str] = []

    def link(source: str, target: str) -> None:
        if not refusals:
            refusals.append(source)
            raise OSError(errno.EMLINK, "Too many links", source)
        real(source, target)

    tree.make_directory("d")
    monkeypatch.setattr(os, "link", link)
    tree.populate("d", [File("a", 0o444, b"1\n"), File("b", 0o444, b"1\n")])
    assert refusals
    assert tree.read("d/b") == b"1\n"


def test_modes_and_sizes(tree: Tree) -> None:
    tree.make_directory("d")
    tree.populate("d", [File("remove", 0o220), File("resource0", 0o600, sparse_bytes=131072)])
    assert os.stat(tree.path("d/remove")).st_mode & 0o777 == 0o220
    assert os.stat(tree.path("d/resource0")).st_size == 131072


@pytest.mark.parametrize(
    ("link", "target", "text"),
    [
        ("bus/pci/devices/x", "devices/pci0000:00/x", "../../../devices/pci0000:00/x"),
        ("devices/a/p/virtfn0", "devices/a/v", "../v"),
        ("devices/a/p/subsystem", "bus/pci", "../../../bus/pci"),
    ],
)
def test_links_are_relative(link: str, target: str, text: str) -> None:
    assert relative_target(link, target) == text
