"""What the kernel's errno mean, for each verb that can fail: the one table from (verb, errno) to a typed
error.

Rule: an errno that is not in the table is told by its name, never guessed at.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sriovd.backend.steps import ChainResult, StepResult, Verb
from sriovd.core.errors import (
    BackendFailed,
    BindFailed,
    InUse,
    InvalidArgument,
    NoSuchFunction,
    NotSupported,
    NumVfsRejected,
    ResetFailed,
    SriovdError,
)


@dataclass(frozen=True, slots=True)
class _Meaning:
    error: type[SriovdError]
    message: str  # {address}, {argument}
    hint: str


_STILL_IN_RESET = _Meaning(
    BackendFailed, "A reset is not over, so that {address} did not take: VF {argument}.", "Ask again soon."
)
_NO_INTERFACE = _Meaning(
    NotSupported,
    "{address} has no network interface here.",
    "Bind it to a network driver, and keep its interface in the host's network namespace.",
)

# drivers/pci/iov.c sriov_numvfs_store, drivers/base/bus.c bind_store and unbind_store,
# drivers/pci/pci.c pci_reset_function, net/core/rtnetlink.c do_setvfinfo; each row was seen on a Debian
# kernel unless it says otherwise.
_MEANINGS: Mapping[tuple[Verb, int], _Meaning] = {
    (Verb.SET_NUM_VFS, errno.ERANGE): _Meaning(
        NumVfsRejected, "{address} cannot have {argument} VFs: its driver allows fewer.", "See TotalVFs."
    ),
    (Verb.SET_NUM_VFS, errno.EBUSY): _Meaning(
        NumVfsRejected,
        "{address} cannot change to {argument} VFs while it has others.",
        "Set 0 VFs first; that destroys them.",
    ),
    (Verb.SET_NUM_VFS, errno.ENOENT): _Meaning(
        NumVfsRejected,
        "{address} has no driver that can make VFs.",
        "Bind its PF driver first (Bind with driver 'default').",
    ),
    (Verb.SET_NUM_VFS, errno.EPERM): _Meaning(
        NumVfsRejected, "The PF driver of {address} refused {argument} VFs.", "The kernel log says why."
    ),
    (Verb.SET_NUM_VFS, errno.ENOMEM): _Meaning(
        NumVfsRejected,
        "There is no room in PCI memory or bus numbers for {argument} VFs of {address}.",
        "Enable ARI and large BARs in the firmware, or boot with pci=realloc.",
    ),
    (Verb.SET_NUM_VFS, errno.EIO): _Meaning(
        NumVfsRejected, "The SR-IOV capability of {address} is not consistent.", "The kernel log says why."
    ),
    (Verb.BIND, errno.ENODEV): _Meaning(
        BindFailed,
        "The driver {argument} did not take {address}.",
        "The kernel log says why; for a VF without resources, assign them first.",
    ),
    (Verb.BIND, errno.EBUSY): _Meaning(
        BindFailed, "{address} was bound by somebody else meanwhile.", "Ask again when they are done."
    ),
    (Verb.BIND, errno.ENOENT): _Meaning(
        BindFailed, "The driver {argument} is not loaded.", "Load its module, e.g. with modprobe."
    ),
    (Verb.BIND, errno.EINVAL): _Meaning(
        BindFailed, "The driver {argument} refused {address}.", "The kernel log says why."
    ),
    (Verb.UNBIND, errno.ENODEV): _Meaning(
        BindFailed, "{address} was no longer bound to {argument}.", "Ask again: somebody else changed it."
    ),
    (Verb.RESET, errno.ENOTTY): _Meaning(
        ResetFailed, "The reset of {address} did not succeed.", "The kernel log says why."
    ),
    (Verb.RESET, errno.ENOENT): _Meaning(
        NotSupported, "{address} has no reset method.", "Reset its PF, or remove and rescan it."
    ),
    (Verb.RESET, errno.EAGAIN): _Meaning(
        ResetFailed, "{address} is locked by somebody else's reset.", "Ask again when it is over."
    ),
    (Verb.SET_VF_ATTRIBUTE, errno.EOPNOTSUPP): _Meaning(
        NotSupported,
        "The driver of {address} cannot do that to its VFs: VF {argument}.",
        "Leave the attribute out.",
    ),
    (Verb.SET_VF_ATTRIBUTE, errno.EPROTONOSUPPORT): _Meaning(
        NotSupported, "The driver of {address} has no such VLAN protocol: VF {argument}.", "Use 802.1Q."
    ),
    (Verb.SET_VF_ATTRIBUTE, errno.EINVAL): _Meaning(
        InvalidArgument,
        "The kernel or the driver of {address} finds no sense in: VF {argument}.",
        "The VF must exist; a MAC is no group's; a rate is at most the link's speed, 0 while it is down.",
    ),
    (Verb.SET_VF_ATTRIBUTE, errno.ENODEV): _NO_INTERFACE,
    # Not seen: i40e's "VF still in reset. Try again." (i40e_virtchnl_pf.c), and what others may call it.
    (Verb.SET_VF_ATTRIBUTE, errno.EAGAIN): _STILL_IN_RESET,
    (Verb.SET_VF_ATTRIBUTE, errno.EBUSY): _STILL_IN_RESET,
    (Verb.READ_LINK, errno.ENODEV): _NO_INTERFACE,
    # Not seen: one netlink attribute has 64 KiB, some 300 VFs (sriovd/backend/linux/netlink.py).
    (Verb.READ_LINK, errno.EMSGSIZE): _Meaning(
        NotSupported, "{address} has more VFs than the kernel can tell of at once.", "Create fewer VFs."
    ),
}


# An errno without a meaning of its own is still a failure of that kind: a probe may return any.
_KIND_OF_FAILURE: Mapping[Verb, type[SriovdError]] = {
    Verb.SET_DRIVER_OVERRIDE: BindFailed,
    Verb.BIND: BindFailed,
    Verb.PROBE: BindFailed,
    Verb.UNBIND: BindFailed,
    Verb.RESET: ResetFailed,
}


def explain(result: StepResult) -> SriovdError:
    """The typed error for a step that failed."""
    step = result.step
    if result.mismatch:
        return _explain_mismatch(result)
    meaning = _MEANINGS.get((step.verb, result.errno))
    if meaning is None:
        return _explain_unknown(result)
    values = {"address": str(step.address), "argument": step.argument}
    return meaning.error(meaning.message.format_map(values), meaning.hint)


def raise_first_failure(results: Iterable[ChainResult]) -> None:
    """Raise the typed error for the first chain that failed, if one did."""
    for result in results:
        if result.failure is not None:
            raise explain(result.failure)


def _explain_mismatch(result: StepResult) -> SriovdError:
    step = result.step
    found, wanted = result.value or "none", step.expect or "none"
    if step.verb is Verb.READ_DRIVER:
        return BindFailed(
            f"{step.address} ended with driver {found} instead of {wanted}.", "See the kernel log."
        )
    return BackendFailed(f"{step.verb} of {step.address} gave {found} instead of {wanted}.")


def _explain_unknown(result: StepResult) -> SriovdError:
    step, number = result.step, result.errno
    if number == errno.ENOENT and step.address is not None:
        return NoSuchFunction(f"{step.address} has gone.", "List the functions again.")
    if number == errno.EBUSY:
        return InUse(
            f"The kernel says that {step.address} is busy ({step.verb}).", "The kernel log says why."
        )
    name = errno.errorcode.get(number, str(number))
    error = _KIND_OF_FAILURE.get(step.verb, BackendFailed)
    return error(
        f"The kernel answered {name} ({os.strerror(number)}) to {step}.", "The kernel log may say why."
    )
