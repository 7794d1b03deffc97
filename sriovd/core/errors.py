"""What sriovd answers when it says no. One class for each kind of refusal; each carries what went wrong and
what to do about it. The bus names them org.sriovd1.Error.<class name>, so a class is never renamed.
"""

from __future__ import annotations


class SriovdError(Exception):
    """A refusal or failure that its reader can act on.

    `message`: one sentence, names the object; it names no other tenant, nor what is his. `hint`: the next
    step, empty if there is none. `inside`: what operators are told beside the message, for it may.
    """

    def __init__(self, message: str, hint: str = "", inside: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.inside = inside

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class NoSuchFunction(SriovdError):
    """No PF or VF has that address, or none that the caller may know of."""


class InvalidArgument(SriovdError):
    """An argument that could never be right."""


class NotSupported(SriovdError):
    """The device, its driver or the kernel cannot do it, whatever the arguments."""


class InUse(SriovdError):
    """Somebody uses the function; the message names the holder."""


class Frozen(SriovdError):
    """The function is frozen by an error of its own."""


class LockedOut(SriovdError):
    """The function waits for its adapter's recovery; the message says for what."""


class Quarantined(SriovdError):
    """Taken out of service after failures; an operator must lift it."""


class Stuck(SriovdError):
    """A kernel write on the adapter has not come back in its time."""


class BindFailed(SriovdError):
    """The function is not bound to the driver asked for; the original one is in place again."""


class ResetFailed(SriovdError):
    """The reset did not succeed."""


class NumVfsRejected(SriovdError):
    """The number of VFs cannot be that, now or ever; the message says which."""


class IommuGroupNotViable(SriovdError):
    """Other devices of the IOMMU group stand in the way."""


class PolicyConflict(SriovdError):
    """A policy says otherwise."""


class PoolExhausted(SriovdError):
    """Not enough left of a resource."""


class NotOwner(SriovdError):
    """Somebody else leases it."""


class NotAuthorized(SriovdError):
    """The caller may not do that."""


class TimedOut(SriovdError):
    """What was waited for did not come in time."""


class Cancelled(SriovdError):
    """The job was cancelled."""


class BackendFailed(SriovdError):
    """The kernel refused in a way that has no name of its own; the message has the errno's."""
