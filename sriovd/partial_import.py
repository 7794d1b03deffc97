"""Imports parts of a library without what its package loads besides.

Rule: for libraries whose package pulls in everything they have, where two modules are wanted: the daemon is
waited for when D-Bus activates it, and on a slow machine a database and a web server take two seconds to
import. Whoever imports the library as a whole later gets it as a whole.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_package(package: str) -> Iterator[None]:
    """Within, parts of `package` are imported without its own __init__."""
    spec = importlib.util.find_spec(package)
    if spec is None or package in sys.modules:
        yield
        return
    sys.modules[package] = importlib.util.module_from_spec(spec)  # and not executed
    try:
        yield
    finally:
        del sys.modules[package]
