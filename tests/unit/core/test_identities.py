"""One address for each place, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from sriovd.core.attributes import check_value
from sriovd.core.identities import Identities
from sriovd.core.store import MEMORY, Store
from sriovd.pci import PciAddress

PF, PF2 = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:02:00.0")

Macs = Mapping[tuple[PciAddress, int], str]


def saved_macs(store: Store) -> Macs:
    return store.load().macs


def test_addresses_are_unique_and_locally_administered_unicast() -> None:
    async def main() -> None:
        identities = Identities(Store(MEMORY, "b", "k"), {})
        macs = [
            *(await identities.macs_of(PF, 500)).values(),
            *(await identities.macs_of(PF2, 500)).values(),
        ]
        assert len(set(macs)) == 1000
        assert {int(mac[:2], 16) & 0b11 for mac in macs} == {0b10}
        assert not any(check_value("mac", mac) for mac in macs)

    asyncio.run(main())


def test_a_place_keeps_its_address() -> None:
    async def main() -> None:
        store = Store(MEMORY, "b", "k")
        first = await Identities(store, {}).macs_of(PF, 3)
        assert saved_macs(store) == {(PF, index): mac for index, mac in first.items()}
        after = await Identities(store, saved_macs(store)).macs_of(PF, 5)
        assert {index: after[index] for index in range(3)} == first
        fewer = await Identities(store, saved_macs(store)).macs_of(PF, 1)
        assert fewer == {0: first[0]}

    asyncio.run(main())


def test_a_taken_address_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    throws = iter([b"\0\0\0\0\1", b"\0\0\0\0\1", b"\0\0\0\0\2"])
    monkeypatch.setattr("sriovd.core.identities.os.urandom", lambda _: next(throws))

    async def main() -> None:
        store = Store(MEMORY, "b", "k")
        macs = await Identities(store, {(PF2, 0): "02:00:00:00:00:01"}).macs_of(PF, 1)
        assert macs == {0: "02:00:00:00:00:02"}

    asyncio.run(main())


class SlowStore:
    """A disk that takes its time. `written`: what has arrived."""

    def __init__(self) -> None:
        self.written: dict[tuple[PciAddress, int], str] = {}

    async def put_macs(self, rows: Macs) -> None:
        await asyncio.sleep(0)
        assert not rows.keys() & self.written.keys(), "two addresses for one place"
        self.written |= rows


def test_two_who_ask_at_once_get_the_same_and_only_when_it_is_on_disk() -> None:
    async def main() -> None:
        store = SlowStore()
        identities = Identities(store, {})  # type: ignore[arg-type]

        async def ask(count: int) -> None:
            macs = await identities.macs_of(PF, count)
            assert {(PF, index): mac for index, mac in macs.items()}.items() <= store.written.items()

        await asyncio.gather(ask(2), ask(4), ask(3))

    asyncio.run(main())
