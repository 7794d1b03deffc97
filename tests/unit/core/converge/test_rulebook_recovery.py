"""What the policies in force say about errors, of a PF and of an adapter."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from sriovd.core.recovery.vocabulary import Response, Rung
from sriovd.core.recovery.wish import RecoveryWish
from sriovd.pci import PciAddress
from tests.unit.core.converge.site import A, B, made_site, run_async
from tests.unit.core.minikernel import make_pf

SECOND = PciAddress.parse("0000:01:00.1")  # of the same adapter as A
SLOT = str(A.slot)


def of(address: PciAddress, recovery: str) -> str:
    return f'[match]\naddress = "{address}"\n[recovery]\n{recovery}\n'


def read_wishes(*policies: str, wrong: bool = False) -> Mapping[PciAddress | str, RecoveryWish]:
    """What is said of A, SECOND and B, and of their adapters by slot."""
    found: dict[PciAddress | str, RecoveryWish] = {}

    async def test() -> None:
        async with made_site() as site:
            site.engine.inventory.put(make_pf(SECOND))
            for number, text in enumerate(policies):
                site.write_policy(text, f"{number}.toml")
            book = site.engine.rulebook
            await book.load()
            assert bool(book.problems) is wrong
            for pf in site.engine.inventory.physical_functions():
                found[pf.address] = book.recovery_for(pf)
                found[pf.adapter] = book.recovery_for_adapter(pf.adapter)
            found["none"] = book.recovery_for_adapter("0000:77:00")

    run_async(test())
    return found


def test_each_pf_has_its_own_and_the_adapter_the_strictest() -> None:
    wishes = read_wishes(
        of(A, 'non-fatal = "quarantine"\nclose-sec = 5'), of(SECOND, 'rungs = ["kernel"]\ngrace-sec = 7')
    )
    assert wishes[A] == RecoveryWish(non_fatal=Response.QUARANTINE, close_sec=5)
    assert wishes[SECOND] == RecoveryWish(rungs=(Rung.KERNEL,), grace_sec=7)
    assert wishes[SLOT] == RecoveryWish(
        non_fatal=Response.QUARANTINE, rungs=(Rung.KERNEL,), grace_sec=7, close_sec=60
    )
    assert wishes[B] == wishes[str(B.slot)] == wishes["none"] == RecoveryWish()


@pytest.mark.parametrize(
    ("policies", "wrong"),
    [
        ((), False),
        ((of(A, 'fatal = "quarantine"'), of(A, 'fatal = "recover"')), False),
        ((of(A, 'fatal = "quarantines"'),), True),
    ],
    ids=["no policy", "a conflict", "a broken one"],
)
def test_where_no_policy_counts_there_are_the_defaults(policies: tuple[str, ...], wrong: bool) -> None:
    wishes = read_wishes(*policies, wrong=wrong)
    assert set(wishes.values()) == {RecoveryWish()}
