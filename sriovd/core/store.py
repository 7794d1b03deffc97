"""What outlives the daemon: one SQLite database (WAL, synchronous=FULL).

Rule: an intent is on disk before its first kernel write, its outcome after the last. Who keeps something
here keeps it in memory too and reads the database once, at start; what it gives is awaited before anybody is
told. The database is touched by one thread of its own, so that a slow disk never stops the daemon answering.

A row that makes no sense (disks err) is told and passed over, never a reason not to start. kill -9 at any
moment leaves the last commit. store_file.py has the file and its tables.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sriovd.backend.steps import Script
from sriovd.core import fields, store_file
from sriovd.core.errors import BackendFailed
from sriovd.core.recovery.standing import BundleHead
from sriovd.pci import AddressError, PciAddress

T = TypeVar("T")

_log = logging.getLogger(__name__)
MEMORY = store_file.MEMORY
KEPT_BUNDLES = 64  # forensic ones of all adapters together
_INTENTS_KEPT = 1000  # ended ones: the trail of what was done


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
    recoveries: Mapping[str, tuple[bool, dict[str, Any]]] = field(default_factory=dict)  # by slot, as leases
    bundles: Mapping[str, tuple[BundleHead, ...]] = field(default_factory=dict)  # by slot, the oldest first


class Store:
    """The open database. `path`: its file, or ":memory:". `boot`: this boot's id. `kernel`: the release that
    runs, because capabilities are the kernel's."""

    def __init__(self, path: str, boot: str, kernel: str) -> None:
        self._boot = boot
        self._kernel = kernel
        # memory is never slow
        self._thread = None if path == MEMORY else ThreadPoolExecutor(1, thread_name_prefix="store")
        self._lock = store_file.lock(path)
        self._database = store_file.open_database(path)

    def load(self) -> Saved:
        """What former daemons have left. Called once, before anything else."""
        rows = self._database.execute
        return Saved(
            intents=tuple(
                Intent(number, adapter, requester, title, _read_steps(steps), boot == self._boot)
                for number, boot, adapter, requester, title, steps in rows(
                    "SELECT id, boot, adapter, requester, title, steps FROM intents WHERE outcome IS NULL"
                )
            ),
            generations={
                address: Generation(boot == self._boot, identity, generation)
                for address, boot, identity, generation in _addressed(rows("SELECT * FROM generations"))
            },
            macs={(pf, index): mac for pf, index, mac in _addressed(rows("SELECT * FROM macs"))},
            quarantines={
                address: (identity, reason)
                for address, identity, reason in _addressed(
                    rows("SELECT address, identity, reason FROM quarantines WHERE boot = ?", (self._boot,))
                )
            },
            quieted=frozenset(
                pf for (pf,) in _addressed(rows("SELECT pf FROM quieted WHERE boot = ?", (self._boot,)))
            ),
            unsupported=frozenset(
                rows("SELECT driver, attribute FROM unsupported WHERE kernel = ?", (self._kernel,))
            ),
            policies=dict(rows("SELECT name, text FROM policies")),
            leases=tuple(
                (boot == self._boot, fields.load_record(record))
                for boot, record in rows("SELECT boot, record FROM leases ORDER BY number")
            ),
            last_lease=_counter(self._database, "lease"),
            recoveries={
                slot: (boot == self._boot, fields.load_record(record))
                for slot, boot, record in rows("SELECT slot, boot, record FROM recovery")
            },
            bundles=_list_bundles(self._database),
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

    async def read_recent_intents(self, adapter: str, count: int) -> list[tuple[str, str, int]]:
        """Title, outcome (empty: not ended) and begin (CLOCK_REALTIME, us) of the last `count` scripts that
        ran on `adapter`, the oldest first."""
        statement = (
            "SELECT title, coalesce(outcome, ''), begun_usec FROM intents WHERE adapter = ?"
            " ORDER BY id DESC LIMIT ?"
        )
        return await self._do(lambda: self._database.execute(statement, (adapter, count)).fetchall()[::-1])

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

    def put_recovery(self, slot: str, record: Mapping[str, Any]) -> Awaitable[None]:
        """How the recovery of an adapter stands. On its way to the disk when this returns."""
        row = (slot, self._boot, json.dumps(record))
        return self._write(("INSERT OR REPLACE INTO recovery VALUES (?, ?, ?)", row))

    def forget_recovery(self, slot: str) -> Awaitable[None]:
        """There is nothing to be known of that adapter's recovery."""
        return self._write(("DELETE FROM recovery WHERE slot = ?", (slot,)))

    async def put_bundle(
        self, slot: str, taken_usec: int, kind: str, title: str, record: Mapping[str, Any]
    ) -> int:
        """Keep a forensic bundle: its number, which is never used again. Beyond KEPT_BUNDLES the oldest are
        forgotten, but never the newest of an adapter."""
        head = (slot, taken_usec, kind, title)
        insert = "INSERT INTO bundles (slot, taken_usec, kind, title, record) VALUES (?, ?, ?, ?, ?)"
        forget = (
            "DELETE FROM bundles WHERE number NOT IN (SELECT max(number) FROM bundles GROUP BY slot)"
            " AND number NOT IN (SELECT number FROM bundles ORDER BY number DESC LIMIT ?)"
        )

        def put() -> int:
            row = (*head, json.dumps(record))  # here, because it is long
            with self._database:
                self._database.execute("BEGIN")
                number = int(self._database.execute(insert, row).lastrowid or 0)
                self._database.execute(forget, (KEPT_BUNDLES,))
            return number

        return await self._do(put)

    async def list_bundles(self) -> Mapping[str, tuple[BundleHead, ...]]:
        """The bundles that are kept, by slot, the oldest first."""
        return await self._do(lambda: _list_bundles(self._database))

    async def read_bundle(self, number: int) -> dict[str, Any] | None:
        """The record of that bundle with its number as "number"; None when it is not kept."""

        def read() -> dict[str, Any] | None:
            rows = self._database.execute("SELECT record FROM bundles WHERE number = ?", (number,))
            found = rows.fetchone()
            return None if found is None else {**fields.load_record(found[0]), "number": number}

        return await self._do(read)

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


def _addressed(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """The rows whose first value is the address of a function, with that as an address."""
    for text, *rest in rows:
        try:
            yield PciAddress.parse(str(text)), *rest
        except AddressError as error:
            _log.error("A row of the database makes no sense and is left there: %s", error)


def _read_steps(text: str) -> tuple[str, ...]:
    """The steps of an intent; none when they are not to be read."""
    try:
        steps = json.loads(text)
    except (ValueError, RecursionError):
        steps = None
    if isinstance(steps, list) and all(isinstance(step, str) for step in steps):
        return tuple(steps)
    _log.error("The steps of an interrupted change cannot be read: %.64r", text)
    return ()


def _list_bundles(database: sqlite3.Connection) -> dict[str, tuple[BundleHead, ...]]:
    heads: dict[str, tuple[BundleHead, ...]] = {}
    for slot, *head in database.execute(
        "SELECT slot, number, taken_usec, kind, title FROM bundles ORDER BY number"
    ):
        heads[slot] = (*heads.get(slot, ()), BundleHead(*head))
    return heads


def _counter(database: sqlite3.Connection, name: str) -> int:
    row = database.execute("SELECT value FROM counters WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else 0


def _now_usec() -> int:
    return time.time_ns() // 1000
