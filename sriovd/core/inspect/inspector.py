"""Carries inspections out, and sees to it that no refusal says more than an answer would.

Rule: the table (table.py) says what there is; what reaches the device is refused here while the VF is out of
service, before anything is read.
"""

from __future__ import annotations

from sriovd.core.discretion import is_discreet
from sriovd.core.errors import InvalidArgument, SriovdError
from sriovd.core.inspect.site import Site, Subject
from sriovd.core.inspect.table import INSPECTIONS
from sriovd.core.inspect.vocabulary import Inspection, Shown


class Inspector:
    """Asks for one inspection at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def inspect(self, subject: Subject, name: str) -> Shown:
        """What the inspection of that name shows of the VF. Raises InvalidArgument for a name that is not in
        the table; NoSuchFunction while there is no VF; LockedOut, Frozen or Quarantined while it is out of
        service; TimedOut, Stuck, NotSupported, BackendFailed."""
        row = INSPECTIONS[parse_inspection(name)]
        if row.reaches_device:
            self._site.refuse_held(subject)
        try:
            return await row.make(subject, self._site)
        except SriovdError as error:
            raise _make_discreet(error, subject) from error


def parse_inspection(name: str) -> Inspection:
    """The inspection of that name. Raises InvalidArgument."""
    try:
        return Inspection(name)
    except ValueError:
        raise InvalidArgument(
            f"{name[:32]!r} is no inspection.", f"There are {', '.join(Inspection)}."
        ) from None


def _make_discreet(error: SriovdError, subject: Subject) -> SriovdError:
    """The error itself, or one of its kind that names nobody: what hangs may be another's reset."""
    own = f"VF {subject.address}"
    if all(is_discreet(text.replace(own, ""), subject.address) for text in (error.message, error.hint)):
        return error
    return type(error)(f"{own} could not be looked at.", "Ask again later; its Recovery says how it stands.")
