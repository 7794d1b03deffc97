"""Errors as callers see them: one table of D-Bus names, and the rule that nothing internal ever leaves.

A refusal of core becomes its D-Bus error with "message (hint)". Anything else is a defect: the caller gets a
short sentence and an incident id, the journal gets the traceback under the same id.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sriovd.bus.calls import BadBody, BusError
from sriovd.bus.tree import NoSuchObject
from sriovd.bus.wire import WireError
from sriovd.core import errors as core

STANDARD = "org.freedesktop.DBus.Error."
OWN = "org.sriovd1.Error."

_log = logging.getLogger(__name__)


class BusRefusal(Exception):
    """A call that does not fit the interface: refused before anything of sriovd sees it. name: D-Bus error
    name.
    """

    name = STANDARD + "Failed"


class InvalidArgs(BusRefusal):
    """The arguments do not have the types that the member takes."""

    name = STANDARD + "InvalidArgs"


class UnknownObject(BusRefusal):
    """There is nothing at that path."""

    name = STANDARD + "UnknownObject"


class UnknownInterface(BusRefusal):
    """The object does not have that interface."""

    name = STANDARD + "UnknownInterface"


class UnknownMethod(BusRefusal):
    """The interface has no such method."""

    name = STANDARD + "UnknownMethod"


class UnknownProperty(BusRefusal):
    """The interface has no such property."""

    name = STANDARD + "UnknownProperty"


class PropertyReadOnly(BusRefusal):
    """Properties are changed by methods, never by Set."""

    name = STANDARD + "PropertyReadOnly"


class LimitsExceeded(BusRefusal):
    """The caller asks for more at once than one caller may, or for more than a message can hold."""

    name = STANDARD + "LimitsExceeded"


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """A class of core, the D-Bus name it has outside, and the hint when the error itself brings none."""

    cls: type[core.SriovdError]
    name: str
    hint: str


@dataclass(frozen=True, slots=True)
class ReplyError:
    """What a caller gets. name: D-Bus error name; text: one or two sentences."""

    name: str
    text: str


ERRORS: tuple[ErrorRow, ...] = (
    ErrorRow(core.NoSuchFunction, OWN + "NoSuchFunction", "Manager.ListFunctions lists what there is."),
    ErrorRow(
        core.InvalidArgument, OWN + "InvalidArgument", "busctl introspect --xml-interface documents it."
    ),
    ErrorRow(
        core.NotSupported, OWN + "NotSupported", "The interfaces that the object has say what it can do."
    ),
    ErrorRow(core.InUse, OWN + "InUse", "Let the holder close it first."),
    ErrorRow(core.Frozen, OWN + "Frozen", "Recovery.Unfreeze thaws it."),
    ErrorRow(core.LockedOut, OWN + "LockedOut", "Recovery.WaitPermitted returns when its turn has come."),
    ErrorRow(core.Quarantined, OWN + "Quarantined", "Recovery.Lift ends the quarantine."),
    ErrorRow(core.Stuck, OWN + "Stuck", "The adapter's properties show the write that hangs."),
    ErrorRow(core.BindFailed, OWN + "BindFailed", "The kernel log has the driver's reason."),
    ErrorRow(core.ResetFailed, OWN + "ResetFailed", "The kernel log has the reason."),
    ErrorRow(
        core.NumVfsRejected, OWN + "NumVfsRejected", "PhysicalFunction.TotalVFs is the most there can be."
    ),
    ErrorRow(core.IommuGroupNotViable, OWN + "IommuGroupNotViable", "Bind the group's other devices first."),
    ErrorRow(core.PolicyConflict, OWN + "PolicyConflict", "The policy is in /etc/sriovd/*.toml."),
    ErrorRow(core.PoolExhausted, OWN + "PoolExhausted", "The Resources interface shows what is left."),
    ErrorRow(core.NotOwner, OWN + "NotOwner", "Only the owner of the lease may do that."),
    ErrorRow(core.NotAuthorized, OWN + "NotAuthorized", "Ask as root, or have polkit allow it."),
    ErrorRow(core.TimedOut, OWN + "TimedOut", "The job's State tells whether it is still going."),
    ErrorRow(core.Cancelled, OWN + "Cancelled", ""),
    ErrorRow(core.BackendFailed, OWN + "BackendFailed", "The kernel log may have the reason."),
)

_ROWS: Mapping[type[core.SriovdError], ErrorRow] = MappingProxyType({row.cls: row for row in ERRORS})


def reply_for(error: BaseException, doing: str = "the operation", to_operator: bool = False) -> ReplyError:
    """What to tell the caller about `error`. doing: what was going on, for the sentence and the journal."""
    if isinstance(error, core.SriovdError):
        return _core_reply(error, to_operator)
    if isinstance(error, BusRefusal):
        return ReplyError(error.name, str(error))
    if isinstance(error, BadBody):
        return ReplyError(InvalidArgs.name, str(error))
    if isinstance(error, NoSuchObject):
        return ReplyError(UnknownObject.name, str(error))
    if isinstance(error, BusError):
        return ReplyError(OWN + "BackendFailed", f"{doing}: {error}")
    if isinstance(error, asyncio.CancelledError):
        return ReplyError(OWN + "Cancelled", f"{doing} was cancelled")
    return _incident_reply(error, doing)


def _core_reply(error: core.SriovdError, to_operator: bool) -> ReplyError:
    row = next(_ROWS[cls] for cls in (*type(error).__mro__, core.BackendFailed) if cls in _ROWS)
    hint = error.hint or row.hint
    message = f"{error.message} {error.inside}".rstrip() if to_operator else error.message
    return ReplyError(row.name, f"{message} ({hint})" if hint else message)


def _incident_reply(error: BaseException, doing: str) -> ReplyError:
    incident = os.urandom(4).hex()
    _log.error("incident %s: %s failed by a defect of sriovd", incident, doing, exc_info=error)
    what = "a result that cannot be sent" if isinstance(error, WireError) else "an internal error"
    text = f"{doing} ended in {what} (see the journal for incident {incident})"
    return ReplyError(OWN + "BackendFailed", text)
