"""Fixtures of the simulated host's tests."""

from __future__ import annotations

import pytest

from .errors import equip
from .support import Sim, root

__all__ = ["card", "root", "sim"]


@pytest.fixture
def sim(root: str) -> Sim:
    """Two igb adapters and an NVMe drive."""
    return Sim(root)


@pytest.fixture
def card(sim: Sim) -> Sim:
    """An igb with two VFs on vfio-pci."""
    return equip(sim)
