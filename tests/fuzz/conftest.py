"""What all tests of parsers have."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    """Parsers tell of what they refuse, and here that is nearly everything."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
