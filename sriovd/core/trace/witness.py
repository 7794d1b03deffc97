"""What the parts of sriovd do, told to the recorder and the audit trail.

Rule: wiring only: here, and nowhere else, stands which of their doings are recorded; none of them ever meets
a defect of recording.
"""

from __future__ import annotations

from sriovd.backend.base import Evidence, KernelEvent
from sriovd.backend.steps import Script
from sriovd.core.errors import SriovdError
from sriovd.core.execute import Executor
from sriovd.core.inventory import Inventory
from sriovd.core.lease.keeper import LeaseKeeper
from sriovd.core.lease.record import Lease
from sriovd.core.lease.work import LeaseWork
from sriovd.core.picture import Picture
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.keeper import RecoveryKeeper
from sriovd.core.recovery.record import AdapterPe, VfPe
from sriovd.core.trace import audit_trail
from sriovd.core.trace.guard import guarded
from sriovd.core.trace.notes import Mark, Note
from sriovd.core.trace.recorder import Recorder
from sriovd.trace.record import Direction, RecordType, Status

# A new daemon is told the states that it has found first: each must do for the whole incident's beginning.
_MARKS = {
    **dict.fromkeys(VfState, Mark.INCIDENT),
    VfState.ONLINE: Mark.END_OF_INCIDENT,
    VfState.REMOVED: Mark.END_OF_INCIDENT,  # one that is made again begins anew
}


class Witness:
    """Sees what is done."""

    def __init__(self, recorder: Recorder, inventory: Inventory) -> None:
        self._recorder = recorder
        self._inventory = inventory

    def watch(
        self,
        executor: Executor,
        leases: LeaseKeeper,
        work: LeaseWork,
        recovery: RecoveryKeeper,
        picture: Picture,
    ) -> None:
        """Be told from now on."""
        executor.on_chain = guarded(self._recorder.note_chain)
        executor.on_refused, executor.on_hung = guarded(self._note_refused), guarded(self._note_hung)
        executor.on_written = guarded(audit_trail.tell_written)
        leases.on_owner = guarded(self._note_owner)
        leases.listen(guarded(self._note_lease), guarded(self._note_end))
        work.on_handed = guarded(self._note_handed)
        recovery.on_adapter_state = guarded(self._note_adapter)
        recovery.on_vf_state = guarded(self._note_vf)
        record, tell = guarded(self._recorder.take), picture.on_event

        def take(event: KernelEvent) -> None:
            record(event)  # first: it is the cause of what follows
            tell(event)

        picture.on_event = take

    def _note_refused(self, adapter: str, script: Script, error: SriovdError) -> None:
        self._recorder.note_refusal(script, error)
        audit_trail.tell_refused(adapter, script, error)

    def _note_hung(self, script: Script, evidence: Evidence) -> None:
        self._recorder.note_hang(script, evidence)

    def _note_owner(self, lease: Lease) -> None:
        self._recorder.speak_for((lease.pf, lease.index))

    def _note_end(self, lease: Lease) -> None:
        self._recorder.end_lease(lease.number)

    def _note_lease(self, lease: Lease) -> None:
        """Any that there is, also one that a former daemon has left released: its buffer is kept, too."""
        place = lease.pf, lease.index
        self._recorder.begin_lease(lease.number, place, lease.name)
        self._recorder.note(
            place, Note(RecordType.NOTE, Direction.TO_OWNER, Status.OK, f"lease-{lease.state}")
        )

    def _note_handed(self, lease: Lease, what: str, error: str) -> None:
        status = Status.FAILED if error else Status.OK
        note = Note(RecordType.HAND_OVER, Direction.TO_KERNEL, status, what, error or f"uid {lease.uid}")
        self._recorder.note((lease.pf, lease.index), note)
        vf = self._inventory.vfs_of(lease.pf).get(lease.index)
        if vf is not None:
            audit_trail.tell_handed(vf, str(lease.pf.slot), what, error or "done")

    def _note_adapter(self, pe: AdapterPe) -> None:
        out = {vf.place for vf in pe.vfs if vf.state is not VfState.ONLINE}
        self._recorder.note_adapter(pe.slot, str(pe.state), lambda place: _mark_of(pe.state, place in out))

    def _note_vf(self, pe: VfPe) -> None:
        cause = "own error" if pe.own else "error of its adapter"
        arguments = "" if pe.state is VfState.ONLINE else cause
        self._recorder.note_pe(pe.place, pe.state.word, arguments, _MARKS[pe.state])


def _mark_of(state: AdapterState, is_out: bool) -> Mark | None:
    """A VF that is away while its adapter suffers has no state of its own that would begin or end it."""
    if state is AdapterState.ONLINE:
        return None if is_out else Mark.END_OF_INCIDENT
    return None if state is AdapterState.REMOVED else Mark.INCIDENT
