"""What is known of drivers, and that the tables do not contradict each other."""

from __future__ import annotations

import pytest

from sriovd.core.recovery.drivers import (
    HANDLES_ERRORS,
    IGNORES_ERRORS,
    SURVIVES_RESET,
    handles_errors,
    survives_reset,
)


@pytest.mark.parametrize(
    ("driver", "handles"),
    [
        ("igb", True),
        ("vfio-pci", True),
        ("nvme", True),
        ("", False),
        ("pci-stub", False),
        ("uio_pci_generic", False),
        ("iavf", False),
        ("my_driver", None),
        ("IGB", None),
    ],
)
def test_who_lets_the_kernel_recover(driver: str, handles: bool | None) -> None:
    assert handles_errors(driver) is handles


@pytest.mark.parametrize(
    ("driver", "survives"), [("nvme", True), ("ice", True), ("", True), ("igb", False), ("my_driver", False)]
)
def test_who_can_be_reset(driver: str, survives: bool) -> None:
    assert survives_reset(driver) is survives


def test_no_driver_is_in_two_tables_that_contradict() -> None:
    assert not HANDLES_ERRORS.keys() & IGNORES_ERRORS.keys()
    assert HANDLES_ERRORS.keys() >= SURVIVES_RESET  # one structure has all of these handlers
