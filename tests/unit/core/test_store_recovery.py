"""What the store keeps of recovery: how each adapter stands, the forensic bundles, what was done last."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from sriovd.backend.steps import Chain, Script, Step, Verb
from sriovd.core import store as store_module
from sriovd.core.errors import BackendFailed
from sriovd.core.recovery.standing import BundleHead
from sriovd.core.store import KEPT_BUNDLES, MEMORY, Store
from sriovd.pci import PciAddress
from tests.unit.core.disk import taking_nothing
from tests.unit.core.test_store import load, use

VF = PciAddress.parse("0000:01:10.0")
CARD, OTHER = "0000:01:00", "0000:02:00"


def script(title: str) -> Script:
    return Script(title, (Chain(VF, (Step(Verb.UNBIND, VF, "igbvf"),)),))


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "db")


async def fill(store: Store) -> None:
    await store.put_recovery(CARD, {"state": "frozen"})
    await store.put_recovery(OTHER, {"state": "online"})
    await store.put_recovery(CARD, {"state": "collecting"})
    assert await store.put_bundle(CARD, 10, "freeze", "first", {"x": [1]}) == 1
    assert await store.put_bundle(OTHER, 20, "freeze", "second", {"x": [2]}) == 2
    assert await store.put_bundle(CARD, 30, "give-up", "third", {"x": [3]}) == 3


HEADS = {
    CARD: (BundleHead(1, 10, "freeze", "first"), BundleHead(3, 30, "give-up", "third")),
    OTHER: (BundleHead(2, 20, "freeze", "second"),),
}


def test_how_it_stands_comes_back(path: str) -> None:
    use(path, fill)
    saved = load(path)
    assert saved.recoveries == {CARD: (True, {"state": "collecting"}), OTHER: (True, {"state": "online"})}
    assert load(path, boot="next").recoveries[CARD] == (False, {"state": "collecting"})


def test_how_it_stands_is_forgotten(path: str) -> None:
    async def forget(store: Store) -> None:
        await store.forget_recovery(CARD)
        await store.forget_recovery("0000:03:00")  # of which nothing is known

    use(path, fill)
    use(path, forget)
    assert set(load(path).recoveries) == {OTHER}


def test_a_standing_given_first_is_written_first(path: str) -> None:
    """Who does not wait for it has it on disk before the intent that he waits for."""

    async def work(store: Store) -> None:
        order: list[str] = []
        store.put_recovery(CARD, {}).add_done_callback(lambda _: order.append("standing"))  # type: ignore[attr-defined]
        await store.begin(CARD, "x", script("a reset"))
        assert order == ["standing"]

    use(path, work)


@pytest.mark.parametrize("place", ["file", MEMORY])
def test_bundles_are_listed_and_read(place: str, path: str) -> None:
    async def look(store: Store) -> None:
        await fill(store)
        assert await store.list_bundles() == HEADS
        assert await store.read_bundle(2) == {"x": [2], "number": 2}
        assert await store.read_bundle(4) is None

    use(path if place == "file" else place, look)
    if place == "file":
        assert load(path, boot="next").bundles == HEADS, "of whatever boot"


def test_the_oldest_are_forgotten_but_for_the_newest_of_an_adapter(path: str) -> None:
    async def work(store: Store) -> None:
        await fill(store)
        for count in range(KEPT_BUNDLES):
            await store.put_bundle(CARD, count, "freeze", "later", {})
        heads = await store.list_bundles()
        assert [head.number for head in heads[CARD]] == list(range(4, 4 + KEPT_BUNDLES))
        assert heads[OTHER] == HEADS[OTHER]
        assert await store.read_bundle(1) is None
        assert await store.read_bundle(2) is not None

    use(path, work)


def test_a_number_is_never_used_again(path: str) -> None:
    async def put(store: Store) -> None:
        assert await store.put_bundle(CARD, 40, "freeze", "fourth", {}) == 4

    use(path, fill)
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM bundles")
    database.close()
    use(path, put)


def test_a_bundle_that_the_disk_does_not_take_is_an_error(path: str) -> None:
    async def work(store: Store) -> None:
        await fill(store)
        with taking_nothing(store), pytest.raises(BackendFailed):
            await store.put_bundle(CARD, 40, "freeze", "fourth", {})
        assert await store.list_bundles() == HEADS

    use(path, work)


def test_what_was_done_last_is_told_in_order(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(100, 200))
    monkeypatch.setattr(store_module, "_now_usec", lambda: next(times))

    async def work(store: Store) -> None:
        for title in ("a", "b", "c"):
            number = await store.begin(CARD, "x", script(title))
            if title != "c":
                await store.finish(number, f"{title} is done")
        await store.begin(OTHER, "x", script("elsewhere"))
        assert await store.read_recent_intents(CARD, 2) == [("b", "b is done", 101), ("c", "", 102)]
        assert await store.read_recent_intents("0000:03:00", 2) == []

    use(path, work)
