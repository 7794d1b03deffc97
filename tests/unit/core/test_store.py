"""What outlives the daemon: everything comes back, and nothing that was half written."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from sriovd.backend.steps import Chain, Script, Step, Verb
from sriovd.core import store as store_module
from sriovd.core import store_file
from sriovd.core.errors import BackendFailed
from sriovd.core.store import MEMORY, Generation, Saved, Store
from sriovd.pci import PciAddress

PF, VF = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:10.0")
MAC = "02:00:00:00:00:01"
SCRIPT = Script(
    "a bind",
    (
        Chain(
            VF,
            (Step(Verb.READ_DRIVER_OVERRIDE, VF), Step(Verb.UNBIND, VF, "igbvf"), Step(Verb.BIND, VF, "x")),
        ),
    ),
)

Use = Callable[[Store], Awaitable[object]]


def use(path: str, work: Use, *, boot: str = "boot", kernel: str = "6.12") -> Saved:
    """Open, read, work and close: what was read."""

    async def main() -> Saved:
        store = Store(path, boot, kernel)
        saved = store.load()
        await work(store)
        await store.close()
        return saved

    return asyncio.run(main())


async def nothing(_store: Store) -> None:
    pass


def load(path: str, *, boot: str = "boot", kernel: str = "6.12") -> Saved:
    return use(path, nothing, boot=boot, kernel=kernel)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "db")


async def fill(store: Store) -> None:
    await store.finish(await store.begin("a", "somebody", SCRIPT), "done")
    await store.begin("a", "somebody", SCRIPT)
    await store.put_generations({VF: (7, 3)})
    await store.put_quarantine(VF, 7, "lost its driver")
    await store.put_macs({(PF, 0): MAC})
    await store.put_quieted(PF, True)
    await store.put_unsupported("igb", "trust")
    await store.put_policies({"10.toml": "[match]"})
    await store.put_lease(4, {"number": 4})
    await store.put_lease(2, {"number": 2})


def test_all_comes_back(path: str) -> None:
    assert use(path, fill) == Saved()
    saved = load(path)
    [intent] = saved.intents
    assert (intent.adapter, intent.requester, intent.title, intent.same_boot) == (
        "a",
        "somebody",
        "a bind",
        True,
    )
    assert intent.steps == (f"unbind {VF} igbvf", f"bind {VF} x")  # no reads
    assert saved.generations == {VF: Generation(True, 7, 3)}
    assert saved.quarantines == {VF: (7, "lost its driver")}
    assert saved.macs == {(PF, 0): MAC}
    assert saved.quieted == {PF}
    assert saved.unsupported == {("igb", "trust")}
    assert saved.policies == {"10.toml": "[match]"}
    assert saved.leases == ((True, {"number": 2}), (True, {"number": 4}))
    assert saved.last_lease == 4


def test_another_boot_knows_what_is_still_true(path: str) -> None:
    use(path, fill)
    saved = load(path, boot="next", kernel="6.13")
    assert not saved.intents[0].same_boot
    assert saved.generations == {VF: Generation(False, 7, 3)}
    assert (saved.quarantines, saved.quieted, saved.unsupported) == ({}, frozenset(), frozenset())
    assert saved.macs == {(PF, 0): MAC}
    assert [same_boot for same_boot, _ in saved.leases] == [False, False]


def test_what_is_taken_back_is_gone(path: str) -> None:
    async def take_back(store: Store) -> None:
        await store.finish(2, "interrupted")
        await store.put_quarantine(VF, 7, "")
        await store.put_quieted(PF, False)
        await store.put_policies({"20.toml": ""})
        await store.forget_lease(4)
        await store.forget_lease(2)

    use(path, fill)
    use(path, take_back)
    saved = load(path)
    assert (saved.intents, saved.quarantines, saved.quieted, saved.leases) == ((), {}, frozenset(), ())
    assert saved.policies == {"20.toml": ""}
    assert saved.last_lease == 4, "a lease's number is never used again"


def test_an_address_belongs_to_one_place(path: str) -> None:
    async def steal(store: Store) -> None:
        with pytest.raises(BackendFailed, match="UNIQUE"):
            await store.put_macs({(PF, 1): "02:00:00:00:00:02", (PF, 2): MAC})

    use(path, fill)
    use(path, steal)
    assert load(path).macs == {(PF, 0): MAC}, "all or none"


def test_old_intents_are_forgotten_but_for_open_ones(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_INTENTS_KEPT", 2)

    async def work(store: Store) -> None:
        await store.begin("a", "open", SCRIPT)
        for _ in range(5):
            await store.finish(await store.begin("a", "ended", SCRIPT), "done")

    use(path, work)
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT id FROM intents").fetchall() == [(1,), (5,), (6,)]


def test_what_is_given_first_is_written_first(path: str) -> None:
    """A quarantine for which nobody waits is on disk before the intent that led to it is closed."""

    async def work(store: Store) -> None:
        number = await store.begin("a", "x", SCRIPT)
        order: list[str] = []
        store.put_quarantine(VF, 7, "why").add_done_callback(lambda _: order.append("quarantine"))  # type: ignore[attr-defined]
        await store.finish(number, "failed")
        assert order == ["quarantine"]

    use(path, work)
    assert load(path).quarantines == {VF: (7, "why")}


def test_memory_works_alike() -> None:
    assert use(MEMORY, fill) == Saved()


KILLED = """
import asyncio, sys
from sriovd.core.store import Store
from sriovd.pci import PciAddress
async def main():
    store = Store(sys.argv[1], "boot", "6.12")
    store.load()
    for count in range(10**9):
        await store.put_policies({f"{each}.toml": str(count) for each in range(50)})
        print(count, flush=True)
asyncio.run(main())
"""


def test_kill_leaves_the_last_commit(path: str) -> None:
    for _ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", KILLED, path], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        while int(writer.stdout.readline()) < 20:
            pass
        writer.send_signal(signal.SIGKILL)
        told = [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        texts = load(path).policies
        assert len(texts) == 50
        [last] = set(texts.values())
        assert int(last) >= max(told, default=20), "what was answered is on disk"


def test_a_second_daemon_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_file, "_PATIENCE_SEC", 0.1)

    async def second(store: Store) -> None:
        await store.put_policies({"a": "b"})
        with pytest.raises(OSError, match="locked"):
            Store(path, "boot", "6.12")
        await store.put_policies({"a": "c"})

    use(path, second)
    assert load(path).policies == {"a": "c"}
    assert os.listdir(os.path.dirname(path)) == ["db"], "nothing was put aside"


def garble_all(path: str) -> None:
    Path(path).write_bytes(b"this is no database" * 1000)


def garble_a_page(path: str) -> None:
    with sqlite3.connect(path) as database:
        (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'intents'").fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    with open(path, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)


def garble_a_name(path: str) -> None:
    """SQLite complains of it in text that is not Unicode."""
    with open(path, "r+b") as file:
        data = (
            file.read()
            .replace(b"tablepoliciespolicies", b"tablepolici\xccspolicies")
            .replace(b"TABLE policies (name TEXT", b"TABLE policies name( TEXT")
        )
        file.seek(0)
        file.write(data)


def cut(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


@pytest.mark.parametrize("damage", [garble_all, garble_a_page, garble_a_name, cut])
def test_a_broken_file_is_put_aside(path: str, damage: Callable[[str], None]) -> None:
    use(path, fill)
    damage(path)
    broken = Path(path).read_bytes()
    assert use(path, fill) == Saved()
    [aside] = Path(path).parent.glob("db.broken-*")
    assert aside.read_bytes() == broken, "as it was, for whoever wants to look"
    assert len(load(path).intents) == 1


NONSENSE = ["", "nonsense", "[" * 9999, "[1]", "7", '"x"', "\ufffd"]


@pytest.mark.parametrize("text", NONSENSE)
def test_a_row_that_makes_no_sense_does_not_keep_the_others_from_being_read(path: str, text: str) -> None:
    use(path, fill)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE intents SET steps = ?", (text,))
        database.execute("UPDATE leases SET record = ? WHERE number = 2", (text,))
        for table in ("generations", "quarantines"):
            database.execute(f"INSERT INTO {table} VALUES (?, 'boot', 1, 1)", (text,))
        database.execute("INSERT INTO macs VALUES (?, 0, 'x')", (text,))
        database.execute("INSERT INTO quieted VALUES (?, 'boot')", (text,))
        database.execute("INSERT INTO recovery VALUES ('0000:01:00', 'boot', ?)", (text,))
    database.close()
    saved = load(path)
    assert [intent.steps for intent in saved.intents] == [()]
    assert saved.leases == ((True, {}), (True, {"number": 4}))
    assert saved.generations == {VF: Generation(True, 7, 3)}
    assert saved.quieted == {PF}
    assert (saved.quarantines, saved.macs) == ({VF: (7, "lost its driver")}, {(PF, 0): MAC})
    assert saved.recoveries == {"0000:01:00": (True, {})}


def test_a_bit_that_the_disk_has_lost_costs_one_row(path: str) -> None:
    use(path, fill)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE policies SET text = CAST(x'5bff5d' AS TEXT)")
    database.close()
    saved = load(path)
    assert saved.policies == {"10.toml": "[\ufffd]"}
    assert saved.macs == {(PF, 0): MAC}


def test_a_newer_version_is_refused_and_left_alone(path: str) -> None:
    use(path, fill)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    before = Path(path).read_bytes()
    with pytest.raises(OSError, match="version 2"):
        Store(path, "boot", "6.12")
    assert Path(path).read_bytes() == before


def test_a_table_that_is_new_is_added(path: str) -> None:
    use(path, fill)
    with sqlite3.connect(path) as database:
        database.execute("DROP TABLE quarantines")
    database.close()
    assert load(path).macs == {(PF, 0): MAC}


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be opened"):
        Store(str(tmp_path / "missing" / "db"), "boot", "6.12")


def test_a_full_disk_is_said(path: str) -> None:
    async def work(store: Store) -> None:
        store._database.execute("PRAGMA max_page_count = 1")  # that is: what there is by now
        with pytest.raises(BackendFailed, match="full"):
            await store.put_policies({"big": "x" * 100_000})
        await store.put_quieted(PF, True)

    use(path, fill)
    use(path, work)
    assert load(path).policies == {"10.toml": "[match]"}
