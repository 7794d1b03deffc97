"""A disk on which nothing can be written, as the database meets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sriovd.core.store import Store


@contextmanager
def taking_nothing(store: Store) -> Iterator[None]:
    """SQLite refuses every write meanwhile, and its errors take the way of a full disk's."""
    store._database.execute("PRAGMA query_only = ON")
    try:
        yield
    finally:
        store._database.execute("PRAGMA query_only = OFF")
