"""How PEs stand, as clients see it: the Recovery interface of adapters, PFs and VFs.

Rule: reads the desk of recovery, writes the tree, decides nothing. A change of an adapter is a change of its
own object and its PFs'; a VF's object changes only when the VF's own PE does. However often a PE changes in
one turn of the event loop, its properties are told once, and each state that it passes by StateChanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sriovd.bus.objects import RECOVERY, Interfaces, adapter_path, function_path
from sriovd.bus.tree import Tree
from sriovd.core.inventory import Adapter, Function, Inventory
from sriovd.core.recovery.desk import RecoveryDesk
from sriovd.core.recovery.standing import PeStanding
from sriovd.pci import PciAddress

_LAST = "removed"  # told although the object has gone before: a rung may have taken the card's PFs away


class RecoveryObjects:
    """Keeps the Recovery interfaces equal to the desk from now on. `tell_owner` is given every change of a
    VF's state, whether the VF has an object at the moment or not."""

    def __init__(
        self,
        tree: Tree,
        inventory: Inventory,
        desk: RecoveryDesk,
        tell_owner: Callable[[PciAddress, PeStanding], None] = lambda _vf, _standing: None,
    ) -> None:
        self._tree = tree
        self._inventory = inventory
        self._desk = desk
        self._tell_owner = tell_owner
        desk.on_adapter = self._show_adapter
        desk.on_vf = self._show_vf

    def interfaces_of(self, new: Adapter | Function) -> Interfaces:
        """What recovery adds to a new object; a PF shows its adapter's standing."""
        if isinstance(new, Function) and new.virtual is not None:
            standing = self._desk.vf_standing(new.address)
        else:
            standing = self._desk.adapter_standing(new.slot if isinstance(new, Adapter) else new.adapter)
        return {RECOVERY: _properties(standing)}

    def _show_adapter(self, slot: str, standing: PeStanding) -> None:
        adapter = self._inventory.adapters.get(slot)
        pfs = adapter.physical_functions if adapter is not None else ()
        for path in (adapter_path(slot), *map(function_path, pfs)):
            self._show(path, standing)

    def _show_vf(self, vf: PciAddress, standing: PeStanding) -> None:
        if self._show(function_path(vf), standing):
            self._tell_owner(vf, standing)

    def _show(self, path: str, standing: PeStanding) -> bool:
        """Whether the state is news. An object that is not there yet, or no more, is shown as it stands when
        it comes."""
        if not self._tree.has(path, RECOVERY):
            if standing.state == _LAST:
                self._say(path, standing)
            return True
        before = self._tree.get(path, RECOVERY, "State")
        self._tree.update(path, RECOVERY, _properties(standing))
        if standing.state != before:
            self._say(path, standing)
        return bool(standing.state != before)

    def _say(self, path: str, standing: PeStanding) -> None:
        self._tree.emit_signal(
            path, RECOVERY, "StateChanged", standing.state, standing.cause, standing.reason
        )  # fmt: skip


def _properties(standing: PeStanding) -> Mapping[str, Any]:
    return {
        "State": standing.state,
        "Cause": standing.cause,
        "Reason": standing.reason,
        "SinceUSec": standing.since_usec,
        "Freezes": standing.freezes,
        "WaitsFor": standing.waits_for,
        "Rung": standing.rung,
        "Audit": list(standing.audit),
        "Corrected": standing.corrected,
    }
