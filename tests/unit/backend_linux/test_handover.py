"""Whose a VFIO group's node is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.linux.handover import give_node

ALICE = 1000


class Nodes:
    """A directory of nodes whose owners are remembered, for a test may not change real ones."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = str(directory)
        self.owners: dict[str, int] = {}
        self.changes: list[tuple[int, int]] = []
        self._stat = os.stat
        monkeypatch.setattr(os, "chown", self._chown)
        monkeypatch.setattr(os, "stat", self._look)

    def add(self, group: int, uid: int) -> None:
        path = f"{self.directory}/{group}"
        Path(path).touch()
        self.owners[path] = uid

    def _chown(self, path: str, uid: int, gid: int) -> None:
        self.changes.append((uid, gid))
        self.owners[path] = uid

    def _look(self, path: Any, **named: Any) -> os.stat_result:
        found = list(self._stat(path, **named))
        found[4] = self.owners.get(path, found[4])
        return os.stat_result(found)


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    return Nodes(tmp_path, monkeypatch)


def test_only_the_user_changes_and_only_if_need_be(nodes: Nodes) -> None:
    nodes.add(7, 0)
    give_node(nodes.directory, 7, ALICE)
    give_node(nodes.directory, 7, ALICE)
    assert nodes.changes == [(ALICE, -1)]


def test_a_group_that_is_none(nodes: Nodes) -> None:
    with pytest.raises(FileNotFoundError):
        give_node(nodes.directory, 7, ALICE)
