"""The titles of bundles, which say of whom each is: made here, and read here. Pure.

Rule: a bundle is an adapter's, and then concerns all of its VFs, or that of VFs with errors of their own,
and then concerns those.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from sriovd.core.recovery.record import AdapterPe, Place, VfPe

_WAS = " was "
_BETWEEN = ", "


class Concern(StrEnum):
    """Why a bundle concerns a VF."""

    OWN = "own"  # its own error
    ADAPTER = "adapter"  # an error of its adapter


def title_frozen(pes: Iterable[AdapterPe | VfPe]) -> str:
    """Of a bundle that is taken when they froze."""
    return f"{_BETWEEN.join(map(str, pes))}{_WAS}frozen"


def title_given_up(pe: AdapterPe) -> str:
    """Of a bundle that is taken when the adapter was given up."""
    return f"{pe}{_WAS}given up"


def read_concern(title: str, place: Place) -> Concern | None:
    """Why a bundle of that title, of the adapter that `place` is on, concerns the VF there; None: it does
    not."""
    names = title.rpartition(_WAS)[0].split(_BETWEEN)
    if str(AdapterPe(str(place[0].slot))) in names:
        return Concern.ADAPTER
    return Concern.OWN if str(VfPe(*place)) in names else None
