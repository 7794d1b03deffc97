"""The readiness audit at work: keeps what audit.py finds of each adapter, and tells when that changes.

Rule: a change of a function only marks its adapter; however many come, the adapter is audited once, a moment
later. While a job works on it, or it is being recovered, the last findings stay: what is half done is no
finding. What is wrong with one VF is found when somebody asks, and not kept.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from sriovd.backend.base import Backend, HostReadError
from sriovd.core.inventory import AdapterChange, Change, Function, FunctionChange, Inventory
from sriovd.core.messages import Message, announce
from sriovd.core.recovery.audit import AuditFacts, Finding, audit_adapter, audit_vf
from sriovd.core.recovery.audit_rules import Severity
from sriovd.core.recovery.record import Place
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)

_PAUSE_SEC = 0.2


class Auditor:
    """`rungs_of`: those that an adapter's policies allow. `is_busy`: whether something is being done to an
    adapter; note() tells when that is over. `is_held`: whether a VF is out of service: sriovd itself has
    taken its resets then."""

    def __init__(
        self,
        backend: Backend,
        inventory: Inventory,
        rungs_of: Callable[[str], Sequence[Rung]],
        is_busy: Callable[[str], bool],
        is_held: Callable[[Place], bool],
    ) -> None:
        self._backend = backend
        self._inventory = inventory
        self._rungs_of = rungs_of
        self._is_busy = is_busy
        self._is_held = is_held
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self._dirty: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.on_adapter: Callable[[str], None] = lambda _slot: None
        self.on_vf: Callable[[PciAddress], None] = lambda _address: None

    def start(self) -> None:
        """Audit every adapter, and each whenever something about it changes."""
        self._inventory.listen(self._take_change)
        self.note_all()
        self._audit_dirty()

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def findings_of(self, slot: str) -> tuple[str, ...]:
        """What was found of the adapter last, in words; the worst first."""
        return tuple(map(str, self._findings.get(slot, ())))

    def findings_of_vf(self, address: PciAddress) -> tuple[str, ...]:
        """What is so of that VF now, in words; nothing while it is out of service."""
        vf = self._inventory.functions.get(address)
        return _list_findings(vf) if vf is not None and self._is_in_service(vf) else ()

    def note(self, slot: str) -> None:
        """Something about the adapter may have changed."""
        self._dirty.add(slot)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_SEC, self._audit_dirty)

    def note_all(self) -> None:
        """Something may have changed that concerns all: the policies."""
        for slot in self._inventory.adapters:
            self.note(slot)

    def _take_change(self, change: Change) -> None:
        match change:
            case AdapterChange(before=before, after=None) if before is not None:
                self._findings.pop(before.slot, None)
                self._dirty.discard(before.slot)
            case FunctionChange(before=before, after=after):
                function = after or before
                if function is not None:
                    self.note(function.adapter)
                if before is not None and after is not None and after.virtual is not None:
                    self._compare_vf(before, after)

    def _compare_vf(self, before: Function, after: Function) -> None:
        if self._is_in_service(after) and _list_findings(before) != _list_findings(after):
            self.on_vf(after.address)

    def _is_in_service(self, vf: Function) -> bool:
        place = (vf.virtual.parent, vf.virtual.index) if vf.virtual is not None else None
        return place is not None and not self._is_held(place)

    def _audit_dirty(self) -> None:
        self.stop()
        self._timer = None
        dirty, self._dirty = self._dirty, set()
        for slot in sorted(dirty & self._inventory.adapters.keys()):
            if not self._is_busy(slot):
                self._audit(slot)

    def _audit(self, slot: str) -> None:
        try:
            found = tuple(audit_adapter(self._gather(slot)))
        except HostReadError as error:
            _log.error("Adapter %s cannot be audited, its last findings stay: %s", slot, error)
            return
        before = self._findings.get(slot, ())
        self._findings[slot] = found
        known = {each.about for each in before}
        for finding in found:
            if finding.severity is Severity.BLOCKER and finding.about not in known:
                text = f"If adapter {slot} met an error: {finding.what} {finding.advice}"
                announce(_log, Message.AUDIT, text, address=finding.target, severity=finding.severity)
        if found != before:
            self.on_adapter(slot)

    def _gather(self, slot: str) -> AuditFacts:
        pfs = [self._inventory.get(pf) for pf in self._inventory.adapters[slot].physical_functions]
        vfs = [
            self._inventory.get(vf)
            for pf in pfs
            for index, vf in sorted(self._inventory.vfs_of(pf.address).items())
            if not self._is_held((pf.address, index))
        ]
        paths = {pf.address: self._backend.read_error_path(pf.address) for pf in pfs}
        return AuditFacts(slot, pfs, paths, vfs, self._rungs_of(slot))


def _list_findings(vf: Function) -> tuple[str, ...]:
    return tuple(map(str, audit_vf(vf)))
