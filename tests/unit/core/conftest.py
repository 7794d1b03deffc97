"""Fixtures of more than one module."""

from __future__ import annotations

import pytest

from sriovd.core import binder, execute


@pytest.fixture
def short_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is found out soon, and what does not has time enough on a busy machine."""
    monkeypatch.setattr(execute, "_STEP_DEADLINE_SEC", {})
    monkeypatch.setattr(execute, "_OTHER_STEP_DEADLINE_SEC", 0.1)
    monkeypatch.setattr(execute, "_PER_VF_DEADLINE_SEC", 0.0)


@pytest.fixture(autouse=True)
def short_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers of these tests give up at once, if at all."""
    monkeypatch.setattr(binder, "SETTLE_SEC", 0.02)
