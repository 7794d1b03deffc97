"""The audit trail: every mutation of the host in the system's journal, with who asked and what became of it.

Rule: one message for each script, which is what a helper does in one go: binding 120 VFs is one. Those that
were refused are told, too. `journalctl MESSAGE_ID=...` gives exactly these (units/sriovd.catalog).
"""

from __future__ import annotations

import logging

from sriovd.backend.steps import Script
from sriovd.core.errors import SriovdError
from sriovd.core.messages import Message, announce
from sriovd.core.trace.transaction import CURRENT, current_requester
from sriovd.pci import PciAddress

_log = logging.getLogger(__name__)


def tell_written(adapter: str, script: Script, outcome: str) -> None:
    """A script has been carried out, or was in part."""
    _tell(adapter, script.title, outcome, _name_subject(script))


def tell_refused(adapter: str, script: Script, error: SriovdError) -> None:
    """A script was not begun."""
    _tell(adapter, script.title, f"refused: {error.message}", _name_subject(script))


def tell_handed(vf: PciAddress, adapter: str, what: str, outcome: str) -> None:
    """Something other than a script was done to a VF."""
    _tell(adapter, f"{what} of {vf}", outcome, str(vf))


def _tell(adapter: str, title: str, outcome: str, subject: str) -> None:
    transaction = CURRENT.get()
    requester, operation = current_requester(), transaction.operation if transaction is not None else ""
    text = f"{title}, for {requester}: {outcome}"
    announce(
        _log, Message.MUTATION, text, adapter=adapter, address=subject, requester=requester,
        operation=operation, outcome=outcome,
    )  # fmt: skip


def _name_subject(script: Script) -> str:
    """The function that a script is about, where it is one."""
    subjects = {chain.subject for chain in script.chains}
    return str(subjects.pop() or "") if len(subjects) == 1 else ""
