"""The table denies what it does not name, and no refusal says more than an answer would."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from sriovd.core.errors import BackendFailed, InvalidArgument, LockedOut, SriovdError, Stuck
from sriovd.core.inspect import inspector as module
from sriovd.core.inspect.inspector import Inspector
from sriovd.core.inspect.site import Site, Subject
from sriovd.core.inspect.table import INSPECTIONS, Row
from sriovd.core.inspect.vocabulary import Inspection, Shown
from sriovd.pci import PciAddress

VF = PciAddress.parse("0000:01:10.2")
SUBJECT = Subject(VF, (PciAddress.parse("0000:01:00.0"), 1))
OTHER = "0000:01:10.4"


class HeldSite:
    """Of a VF that is out of service."""

    def refuse_held(self, _subject: Subject) -> None:
        raise LockedOut(f"VF {VF} is locked-out.")


class OpenSite:
    """Of one that is not."""

    def refuse_held(self, _subject: Subject) -> None:
        return


def inspector(site: object) -> Inspector:
    return Inspector(cast(Site, site))


def test_there_is_a_row_for_every_name() -> None:
    assert [*INSPECTIONS] == [*Inspection]
    assert all(row.shows for row in INSPECTIONS.values())


@pytest.mark.parametrize("name", ["", "memory", "RESOURCES", "resources\n", "x" * 100])
def test_what_is_not_in_the_table_is_denied_with_what_is(name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        asyncio.run(inspector(OpenSite()).inspect(SUBJECT, name))
    assert refused.value.hint == f"There are {', '.join(Inspection)}."
    assert len(refused.value.message) < 60


def plant(monkeypatch: pytest.MonkeyPatch, error: SriovdError, *, reaches: bool) -> list[str]:
    """Let the inspection "driver" fail with `error`; gives what was made."""
    made = []

    async def make(_subject: Subject, _site: Site) -> Shown:
        made.append("driver")
        raise error

    monkeypatch.setattr(module, "INSPECTIONS", {Inspection.DRIVER: Row("it", reaches, make)})
    return made


def told(site: object) -> SriovdError:
    """What the inspection "driver" is refused with."""
    with pytest.raises(SriovdError) as refused:
        asyncio.run(inspector(site).inspect(SUBJECT, "driver"))
    return refused.value


def test_what_reaches_the_device_is_not_begun_while_the_vf_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made = plant(monkeypatch, BackendFailed("x."), reaches=True)
    assert isinstance(told(HeldSite()), LockedOut)
    assert made == []


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (BackendFailed(f"VF {VF} does not answer."), True),
        (BackendFailed("It failed.", f"Look at {VF}."), True),
        (Stuck(f"Adapter 0000:01:00 is stuck: reset {OTHER} has not returned."), False),
        (BackendFailed("It failed.", f"{OTHER} is in the way."), False),
        (BackendFailed("'neighbour' (uid 1001) holds it."), False),
    ],
)
def test_an_error_that_names_somebody_else_is_told_in_other_words(
    monkeypatch: pytest.MonkeyPatch, error: SriovdError, is_told: bool
) -> None:
    plant(monkeypatch, error, reaches=False)
    refused = told(HeldSite())
    assert type(refused) is type(error)
    assert (refused is error) is is_told
    if not is_told:
        assert refused.message == f"VF {VF} could not be looked at."
