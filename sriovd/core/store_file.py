"""The file of the store: its lock, its tables, and what is done when it is broken.

Rule: a database that cannot be read is put aside, never deleted. One daemon at a time has it: a second would
mend what the first is in the middle of.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import time

_log = logging.getLogger(__name__)

MEMORY = ":memory:"
_VERSION = 1
_PATIENCE_SEC = 5.0  # for a daemon that is just ending
_RETRY_SEC = 0.05
# Within a version tables are only ever added.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS intents (
    id INTEGER PRIMARY KEY AUTOINCREMENT, boot TEXT NOT NULL, begun_usec INTEGER NOT NULL,
    adapter TEXT NOT NULL, requester TEXT NOT NULL, title TEXT NOT NULL, steps TEXT NOT NULL, outcome TEXT);
CREATE INDEX IF NOT EXISTS open_intents ON intents (id) WHERE outcome IS NULL;
CREATE TABLE IF NOT EXISTS generations (
    address TEXT PRIMARY KEY, boot TEXT NOT NULL, identity INTEGER NOT NULL, generation INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS macs (
    pf TEXT NOT NULL, vf INTEGER NOT NULL, mac TEXT NOT NULL UNIQUE, PRIMARY KEY (pf, vf));
CREATE TABLE IF NOT EXISTS quarantines (
    address TEXT PRIMARY KEY, boot TEXT NOT NULL, identity INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS quieted (pf TEXT PRIMARY KEY, boot TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS unsupported (
    driver TEXT NOT NULL, attribute TEXT NOT NULL, kernel TEXT NOT NULL,
    PRIMARY KEY (driver, attribute, kernel));
CREATE TABLE IF NOT EXISTS policies (name TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS leases (number INTEGER PRIMARY KEY, boot TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS recovery (slot TEXT PRIMARY KEY, boot TEXT NOT NULL, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS bundles (
    number INTEGER PRIMARY KEY AUTOINCREMENT, slot TEXT NOT NULL, taken_usec INTEGER NOT NULL,
    kind TEXT NOT NULL, title TEXT NOT NULL, record TEXT NOT NULL);
"""


def lock(path: str) -> int | None:
    """Have the database for this daemon: a second one would mend what the first is in the middle of. Others
    may read it. The descriptor holds the lock, which ends with the process, however that ends. Raises
    OSError when somebody has it."""
    if path == MEMORY:
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise OSError(f"{path} cannot be opened: {error.strerror}") from error
    deadline = time.monotonic() + _PATIENCE_SEC
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise OSError(f"{path} is locked: another sriovd uses it") from None
            time.sleep(_RETRY_SEC)


def open_database(path: str) -> sqlite3.Connection:
    """The database at `path`, made if there is none; one that is broken is put aside."""
    try:
        return _connect(path)
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be opened: {error}") from error
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a name may be garbled
        aside = f"{path}.broken-{time.time_ns()}"
        for suffix in ("", "-wal"):
            if os.path.exists(path + suffix):
                os.rename(path + suffix, aside + suffix)
        _log.error("%s cannot be read (%s) and was put aside as %s", path, error, aside)
        return _connect(path)


def _connect(path: str) -> sqlite3.Connection:
    """Raises DatabaseError for what is no whole database, OperationalError for what cannot be read."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_PATIENCE_SEC)
    database.text_factory = _to_text
    try:
        _prepare(database, path)
    except BaseException:
        database.close()
        raise
    return database


def _to_text(raw: bytes) -> str:
    """A bit that the disk has lost makes one row wrong, not the daemon unable to read any."""
    return raw.decode("utf-8", "replace")


def _prepare(database: sqlite3.Connection, path: str) -> None:
    """See that it is whole, and make what is not there yet."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise OSError(f"{path} is of version {version}; this sriovd reads version {_VERSION}")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    # Nothing is written where nothing is new: every write waits for the disk, and clients for the daemon.
    new = f"PRAGMA user_version = {_VERSION};" if version == 0 else ""
    database.executescript(f"BEGIN; {_SCHEMA} {new} COMMIT;")
