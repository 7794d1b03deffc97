"""Fixtures of the simulated host's tests."""

from __future__ import annotations

import pytest

from .support import Sim, root

__all__ = ["root", "sim"]


@pytest.fixture
def sim(root: str) -> Sim:
    """Two igb adapters and an NVMe drive."""
    return Sim(root)
