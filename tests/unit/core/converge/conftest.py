"""Times that a test need not wait for."""

from __future__ import annotations

import pytest

from sriovd.core import binder, configurer
from sriovd.core.converge import keeper


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers give up at once, if at all, and what is tried again is so without delay."""
    monkeypatch.setattr(binder, "SETTLE_SEC", 0.0)
    monkeypatch.setattr(configurer, "_PAUSE_SEC", 0.0)
    monkeypatch.setattr(keeper, "PAUSE_SEC", 0.01)
