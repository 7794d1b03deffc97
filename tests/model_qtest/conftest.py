"""Fixtures of the comparison with QEMU."""

from __future__ import annotations

import os

import pytest

from tests.model_qtest.qemu import QemuMissing, find_qemu


@pytest.fixture(scope="session")
def qemu() -> str:
    """The QEMU command prefix; without one the tests are left out with the reason, or fail where CI=true."""
    try:
        return find_qemu()
    except QemuMissing as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"model against QEMU: {missing}")
        pytest.skip(f"model against QEMU left out: {missing}")
