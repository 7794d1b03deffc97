"""What outlives the daemon: one SQLite database (WAL, synchronous=FULL).

Rule: an intent is on disk before its first kernel write, its outcome after the last. Who keeps something
here keeps it in memory too and reads the database once, at start; what it gives is awaited before anybody is
told. The database is touched by one thread of its own, so that a slow disk never stops the daemon answering.

kill -9 at any moment leaves the last commit. A database that cannot be read is put aside, never deleted. One
daemon at a time has it: a second would mend what the first is in the middle of.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sriovd.backend.steps import Script
from sriovd.core.errors import BackendFailed
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)
T = TypeVar("T")

MEMORY = ":memory:"
_VERSION = 1
_PATIENCE_SEC = 5.0  # for a daemon that is just ending
_RETRY_SEC = 0.05
_INTENTS_KEPT = 1000  # ended ones: the trail of what was done
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
"""


@dataclass(frozen=True, slots=True)
class Intent:
    """A script that was about to run and whose end nobody has noted: the daemon died meanwhile.

    `steps`: the writes that it consists of, one per line, in order. `same_boot`: whether the kernel that it
    wrote to still runs.
    """

    number: int
    adapter: str
    requester: str
    title: str
    steps: tuple[str, ...]
    same_boot: bool


@dataclass(frozen=True, slots=True)
class Generation:
    """The function that was last seen at an address; `identity` counts in its own boot only."""

    same_boot: bool
    identity: int
    generation: int


@dataclass(frozen=True, slots=True)
class Saved:
    """Everything that was in the database at start."""

    intents: tuple[Intent, ...] = ()
    generations: Mapping[PciAddress, Generation] = field(default_factory=dict)
    macs: Mapping[tuple[PciAddress, int], str] = field(default_factory=dict)
    quarantines: Mapping[PciAddress, tuple[int, str]] = field(default_factory=dict)  # identity, reason
    quieted: frozenset[PciAddress] = frozenset()  # of this boot, as the quarantines
    unsupported: frozenset[tuple[str, str]] = frozenset()  # PF driver and attribute, on this kernel
    policies: Mapping[str, str] = field(default_factory=dict)
    leases: tuple[tuple[bool, dict[str, Any]], ...] = ()  # of the same boot?, and the record
    last_lease: int = 0


class Store:
    """The open database. `path`: its file, or ":memory:". `boot`: this boot's id. `kernel`: the release that
    runs, because capabilities are the kernel's."""

    def __init__(self, path: str, boot: str, kernel: str) -> None:
        self._boot = boot
        self._kernel = kernel
        # memory is never slow
        self._thread = None if path == MEMORY else ThreadPoolExecutor(1, thread_name_prefix="store")
        self._lock = _lock(path)
        self._database = _open(path)

    def load(self) -> Saved:
        """What former daemons have left. Called once, before anything else."""
        rows = self._database.execute
        return Saved(
            intents=tuple(
                Intent(number, adapter, requester, title, tuple(json.loads(steps)), boot == self._boot)
                for number, boot, adapter, requester, title, steps in rows(
                    "SELECT id, boot, adapter, requester, title, steps FROM intents WHERE outcome IS NULL"
                )
            ),
            generations={
                PciAddress.parse(address): Generation(boot == self._boot, identity, generation)
                for address, boot, identity, generation in rows("SELECT * FROM generations")
            },
            macs={(PciAddress.parse(pf), index): mac for pf, index, mac in rows("SELECT * FROM macs")},
            quarantines={
                PciAddress.parse(address): (identity, reason)
                for address, identity, reason in rows(
                    "SELECT address, identity, reason FROM quarantines WHERE boot = ?", (self._boot,)
                )
            },
            quieted=frozenset(
                PciAddress.parse(pf)
                for (pf,) in rows("SELECT pf FROM quieted WHERE boot = ?", (self._boot,))
            ),
            unsupported=frozenset(
                rows("SELECT driver, attribute FROM unsupported WHERE kernel = ?", (self._kernel,))
            ),
            policies=dict(rows("SELECT name, text FROM policies")),
            leases=tuple(
                (boot == self._boot, json.loads(record))
                for boot, record in rows("SELECT boot, record FROM leases ORDER BY number")
            ),
            last_lease=_counter(self._database, "lease"),
        )

    async def close(self) -> None:
        """Finish what was given and close the file."""
        await self._do(self.drop)
        if self._thread is not None:
            self._thread.shutdown()

    def drop(self) -> None:
        """Let go of the file at once, as the end of the process does."""
        self._database.close()
        if self._lock is not None:  # afterwards: closing a file's descriptor drops SQLite's own locks
            os.close(self._lock)
            self._lock = None

    async def begin(self, adapter: str, requester: str, script: Script) -> int:
        """Note that `script` is about to run; the number of its intent."""
        steps = [str(step) for chain in script.chains for step in chain.steps if step.writes]
        row = (self._boot, _now_usec(), adapter, requester, script.title, json.dumps(steps))
        statement = (
            "INSERT INTO intents (boot, begun_usec, adapter, requester, title, steps)"
            " VALUES (?, ?, ?, ?, ?, ?)"
        )
        return await self._do(lambda: int(self._database.execute(statement, row).lastrowid or 0))

    async def finish(self, intent: int, outcome: str) -> None:
        """Note how it ended, in a sentence; the oldest ended ones are forgotten."""
        await self._write(
            ("UPDATE intents SET outcome = ? WHERE id = ?", (outcome, intent)),
            (
                "DELETE FROM intents WHERE outcome IS NOT NULL AND id <= ?",
                (intent - _INTENTS_KEPT,),
            ),
        )

    async def put_generations(self, rows: Mapping[PciAddress, tuple[int, int]]) -> None:
        """Identity and generation of functions that have appeared."""
        statement = "INSERT OR REPLACE INTO generations VALUES (?, ?, ?, ?)"
        await self._write(*((statement, (str(each), self._boot, *row)) for each, row in rows.items()))

    def put_quarantine(self, address: PciAddress, identity: int, reason: str) -> Awaitable[None]:
        """The function of that identity is out of service because of `reason`; empty: it is back. On its way
        to the disk when this returns: whatever is given to the store later comes after it."""
        if not reason:
            return self._write(("DELETE FROM quarantines WHERE address = ?", (str(address),)))
        row = (str(address), self._boot, identity, reason)
        return self._write(("INSERT OR REPLACE INTO quarantines VALUES (?, ?, ?, ?)", row))

    async def put_macs(self, rows: Mapping[tuple[PciAddress, int], str]) -> None:
        """Administrative MAC addresses that have been given to places, for ever."""
        statement = "INSERT INTO macs VALUES (?, ?, ?)"
        await self._write(*((statement, (str(pf), index, mac)) for (pf, index), mac in rows.items()))

    async def put_quieted(self, pf: PciAddress, quieted: bool) -> None:
        """Whether it was sriovd that turned sriov_drivers_autoprobe of `pf` off."""
        if quieted:
            await self._write(("INSERT OR REPLACE INTO quieted VALUES (?, ?)", (str(pf), self._boot)))
        else:
            await self._write(("DELETE FROM quieted WHERE pf = ?", (str(pf),)))

    async def put_unsupported(self, driver: str, attribute: str) -> None:
        """The PF driver `driver` cannot set `attribute`."""
        row = (driver, attribute, self._kernel)
        await self._write(("INSERT OR REPLACE INTO unsupported VALUES (?, ?, ?)", row))

    async def put_policies(self, texts: Mapping[str, str]) -> None:
        """The last good text of every policy file; others are forgotten."""
        rows = (("INSERT INTO policies VALUES (?, ?)", each) for each in texts.items())
        await self._write(("DELETE FROM policies", ()), *rows)

    async def put_lease(self, number: int, record: Mapping[str, Any]) -> None:
        """A lease as it is now."""
        row = (number, self._boot, json.dumps(record))
        counter = "INSERT INTO counters VALUES ('lease', ?) ON CONFLICT DO UPDATE SET value = max(value, ?)"
        await self._write(
            ("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", row), (counter, (number, number))
        )

    async def forget_lease(self, number: int) -> None:
        """The lease has ended."""
        await self._write(("DELETE FROM leases WHERE number = ?", (number,)))

    def _write(self, *statements: tuple[str, Sequence[Any]]) -> Awaitable[None]:
        """All of `statements` or none."""

        def write() -> None:
            with self._database:
                self._database.execute("BEGIN")
                for statement, row in statements:
                    self._database.execute(statement, row)

        return self._do(write)

    def _do(self, work: Callable[[], T]) -> Awaitable[T]:
        """Give `work` to the thread, which does one after the other; raises BackendFailed when the disk does
        not take it."""

        def attempt() -> T:
            try:
                return work()
            except sqlite3.Error as error:
                hint = "Look whether the disk of its state directory is full or broken."
                raise BackendFailed(f"sriovd's database cannot be written: {error}.", hint) from error

        loop = asyncio.get_running_loop()
        if self._thread is not None:
            return loop.run_in_executor(self._thread, attempt)
        done: asyncio.Future[T] = loop.create_future()
        done.set_result(attempt())
        return done


def _open(path: str) -> sqlite3.Connection:
    """The database at `path`, made if there is none; one that is broken is put aside."""
    try:
        return _connect(path)
    except sqlite3.OperationalError as error:
        raise OSError(f"{path} cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        aside = f"{path}.broken-{time.time_ns()}"
        for suffix in ("", "-wal"):
            if os.path.exists(path + suffix):
                os.rename(path + suffix, aside + suffix)
        _log.error("%s cannot be read (%s) and was put aside as %s", path, error, aside)
        return _connect(path)


def _lock(path: str) -> int | None:
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


def _connect(path: str) -> sqlite3.Connection:
    """Raises DatabaseError for what is no whole database, OperationalError for what cannot be read."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_PATIENCE_SEC)
    try:
        _prepare(database, path)
    except BaseException:
        database.close()
        raise
    return database


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


def _counter(database: sqlite3.Connection, name: str) -> int:
    row = database.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _now_usec() -> int:
    return time.time_ns() // 1000
