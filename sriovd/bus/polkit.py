"""May this caller do that? Root may; for everybody else polkit decides, per verb.

The subject is the caller's bus name, which the bus itself wrote into the message, so it cannot be forged and
its process cannot be swapped while polkit looks. Without polkit on the bus only root may change anything.
Rules: polkit reference manual, "org.freedesktop.PolicyKit1.Authority".
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Mapping

from sriovd.bus.actions import INSPECT
from sriovd.bus.calls import BusError, ServiceMissing
from sriovd.bus.connection import Connection
from sriovd.bus.dispatch import Caller
from sriovd.bus.presence import wait_while_present
from sriovd.bus.signature import Value, Variant
from sriovd.core.errors import NotAuthorized

POLKIT = "org.freedesktop.PolicyKit1"
POLKIT_PATH = "/org/freedesktop/PolicyKit1/Authority"
POLKIT_INTERFACE = "org.freedesktop.PolicyKit1.Authority"

ALLOW_USER_INTERACTION = 1
DECISION_TIMEOUT_S = 10.0
DIALOG_TIMEOUT_S = 300.0  # somebody has to find the password

_ROOT_UID = 0


class Authority:
    """Asks polkit on one connection.

    private: the bus is a private one (simulated host), where the daemon's own user is what root is
    elsewhere.
    """

    def __init__(self, connection: Connection, private: bool) -> None:
        self._connection = connection
        self._trusted = {_ROOT_UID, os.getuid()} if private else {_ROOT_UID}
        self._ids = (f"sriovd-{number}" for number in itertools.count(1))

    def trusts(self, caller: Caller) -> bool:
        """Whether `caller` may do everything, so that nobody is asked."""
        return self.trusts_user(caller.uid)

    def trusts_user(self, uid: int) -> bool:
        """The same, of every caller of that user."""
        return uid in self._trusted

    async def may_inspect(self, sender: str, uid: int) -> bool:
        """Whether the connection `sender` may see everything; nobody is asked for a password. Without an
        answer it may not."""
        try:
            await self.check(Caller(sender, uid, interactive=False), INSPECT)
        except NotAuthorized:
            return False
        return True

    async def check(self, caller: Caller, action: str, details: Mapping[str, str] | None = None) -> None:
        """Return when `caller` may do `action` (a polkit action id); else raise NotAuthorized.

        details: shown in the password dialog and readable by polkit rules. A dialog is opened only when the
        caller's message allows it, and closed when the caller leaves the bus or the call is cancelled.
        """
        if self.trusts(caller):
            return
        try:
            if caller.interactive:
                authorized, challenge = await self._ask_until_gone(caller, action, details or {})
            else:
                authorized, challenge = await self._ask(caller, action, details or {}, "")
        except ServiceMissing:
            raise NotAuthorized(f"{action} needs root: this bus has no polkit to ask") from None
        except BusError as error:
            raise NotAuthorized(f"polkit did not decide on {action}: {error}") from error
        if not authorized:
            raise _refusal(action, challenge, caller.interactive)

    async def _ask_until_gone(
        self, caller: Caller, action: str, details: Mapping[str, str]
    ) -> tuple[bool, bool]:
        """A question with a dialog: it may take minutes, so it ends when the caller does."""
        cancellation_id = next(self._ids)
        question = self._ask(caller, action, details, cancellation_id)
        try:
            return await wait_while_present(self._connection, caller.sender, question)
        except asyncio.CancelledError:
            await self._cancel(cancellation_id)
            raise

    async def _ask(
        self, caller: Caller, action: str, details: Mapping[str, str], cancellation_id: str
    ) -> tuple[bool, bool]:
        """Polkit's answer: authorized, and whether a password could make it so. Raises BusError."""
        subject = ("system-bus-name", {"name": Variant("s", caller.sender)})
        flags = ALLOW_USER_INTERACTION if caller.interactive else 0
        timeout_s = DIALOG_TIMEOUT_S if caller.interactive else DECISION_TIMEOUT_S
        body = (subject, action, details, flags, cancellation_id)
        (result,) = await self._call("CheckAuthorization", "(sa{sv})sa{ss}us", body, timeout_s)
        return result[0], result[1]

    async def _cancel(self, cancellation_id: str) -> None:
        """Close the dialog of a question that nobody waits for. Best effort: polkit may have answered
        already.
        """
        try:
            await self._call("CancelCheckAuthorization", "s", (cancellation_id,), DECISION_TIMEOUT_S)
        except BusError:
            return

    async def _call(
        self, member: str, signature: str, body: tuple[Value, ...], timeout_s: float
    ) -> tuple[Value, ...]:
        return await self._connection.call(
            POLKIT, POLKIT_PATH, POLKIT_INTERFACE, member, signature, body, timeout_s
        )


def _refusal(action: str, challenge: bool, interactive: bool) -> NotAuthorized:
    if challenge and not interactive:
        return NotAuthorized(
            f"{action} needs a password", "Allow the question: busctl --allow-interactive-authorization=yes."
        )
    return NotAuthorized(f"polkit does not allow {action} to the caller")
