"""How each PF stands to its policy, for everybody who looks.

Rule: what the policies themselves say goes first: a PF that none is about stands to nothing, and one about
which they contradict each other is in conflict, whatever a look has found meanwhile. Every change is told
once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from sriovd.core.converge.rulebook import Rulebook
from sriovd.core.errors import Cancelled, PolicyConflict, SriovdError, Stuck
from sriovd.core.inventory import Function, Inventory
from sriovd.core.messages import Message, announce
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)


class Condition(StrEnum):
    """How a PF stands to its policy."""

    NONE = "none"  # no policy is about it
    UNKNOWN = "unknown"  # not looked at yet
    IN_SYNC = "in-sync"
    DRIFTED = "drifted"  # to be repaired, or only to be reported
    REFUSED = "refused"  # what has to be done cannot be done
    CONFLICT = "conflict"  # policies contradict each other


_TOLD_AS_DRIFT = frozenset({Condition.DRIFTED, Condition.REFUSED, Condition.CONFLICT})
_RULED = frozenset({Condition.NONE, Condition.CONFLICT})  # by the policies alone


@dataclass(frozen=True, slots=True)
class Standing:
    """A PF's condition, the policy's source, and the reason in words."""

    condition: Condition = Condition.NONE
    source: str = ""
    reason: str = ""


class Standings:
    """The standings of all PFs. `on_change` is told each change."""

    def __init__(self, inventory: Inventory, rulebook: Rulebook) -> None:
        self._inventory = inventory
        self._rulebook = rulebook
        self._standings: dict[PciAddress, Standing] = {}
        self.on_change: Callable[[PciAddress, Standing], None] = lambda _pf, _standing: None

    def of(self, pf: PciAddress) -> Standing:
        """How `pf` stands to its policy."""
        return self._standings.get(pf, Standing())

    def note(self, address: PciAddress, condition: Condition, reason: str = "") -> None:
        """A look, or what was done, has found the PF in that condition."""
        pf = self._inventory.functions.get(address)
        if pf is not None:
            source = self._rulebook.name_sources(pf)
            self._put(address, self._rule(pf) or Standing(condition, source, reason))

    def note_error(self, address: PciAddress, error: SriovdError) -> None:
        """Looking, or doing what had to be done, has ended with `error`."""
        match error:
            case Stuck():  # looked at again when the adapter is back
                self.note(address, Condition.UNKNOWN, error.message)
            case Cancelled():
                self.note(address, Condition.DRIFTED, error.message)
            case _:
                self.note(address, Condition.REFUSED, str(error))

    def judge(self, pf: Function) -> bool:
        """Note what can be said of `pf` without looking at it; whether it must be looked at now."""
        ruled, known = self._rule(pf), self.of(pf.address)
        if ruled is not None:
            self._put(pf.address, ruled)
        elif known.condition in _RULED:
            self._put(pf.address, Standing(Condition.UNKNOWN, self._rulebook.name_sources(pf)))
        return ruled is None and known.condition in _RULED

    def forget(self, pf: PciAddress) -> None:
        """The PF is gone."""
        self._standings.pop(pf, None)

    def _rule(self, pf: Function) -> Standing | None:
        """What the policies alone make of `pf`."""
        try:
            return Standing() if self._rulebook.find(pf) is None else None
        except PolicyConflict as error:
            return Standing(Condition.CONFLICT, self._rulebook.name_sources(pf), error.message)

    def _put(self, address: PciAddress, after: Standing) -> None:
        if self.of(address) == after:
            return
        self._standings[address] = after
        self.on_change(address, after)
        if after.condition is Condition.IN_SYNC:
            text = f"{address} is as {after.source} says."
            announce(_log, Message.POLICY_IN_SYNC, text, address=str(address), policy=after.source)
        elif after.condition in _TOLD_AS_DRIFT:
            text = (
                f"{address} is not as {after.source} says ({after.condition}): {after.reason.rstrip('.')}."
            )
            state = str(after.condition)
            announce(
                _log, Message.POLICY_DRIFT, text, address=str(address), policy=after.source, state=state
            )
