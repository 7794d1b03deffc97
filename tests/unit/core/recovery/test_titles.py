"""The title of a bundle says whom it concerns, and nobody whom it does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.recovery.record import AdapterPe, VfPe
from sriovd.core.recovery.titles import Concern, read_concern, title_frozen, title_given_up
from sriovd.pci import PciAddress

SLOT = "0000:01:00"
PF, OTHER_PF = PciAddress.parse("0000:01:00.0"), PciAddress.parse("0000:01:00.1")


def test_titles_are_what_people_read() -> None:
    assert title_frozen([AdapterPe(SLOT)]) == "Adapter 0000:01:00 was frozen"
    assert title_given_up(AdapterPe(SLOT)) == "Adapter 0000:01:00 was given up"
    assert title_frozen([VfPe(PF, 2), VfPe(PF, 3)]) == (
        "VF 2 of 0000:01:00.0, VF 3 of 0000:01:00.0 was frozen"
    )


def test_an_adapters_concerns_all_of_its_vfs() -> None:
    for title in (title_frozen([AdapterPe(SLOT)]), title_given_up(AdapterPe(SLOT))):
        assert read_concern(title, (PF, 6)) is Concern.ADAPTER
        assert read_concern(title, (OTHER_PF, 0)) is Concern.ADAPTER
        assert read_concern(title, (PciAddress.parse("0000:02:00.0"), 6)) is None


@given(st.sets(st.integers(0, 200), min_size=1), st.integers(0, 200))
def test_that_of_vfs_concerns_those(indices: set[int], asked: int) -> None:
    """VF 1 is not VF 11, nor that of another PF."""
    title = title_frozen(VfPe(PF, index) for index in indices)
    assert read_concern(title, (PF, asked)) is (Concern.OWN if asked in indices else None)
    assert read_concern(title, (OTHER_PF, asked)) is None


@given(st.text())
def test_any_text_is_read(title: str) -> None:
    assert read_concern(title, (PF, 1)) in (None, Concern.OWN, Concern.ADAPTER)
