"""What may be wrong with a PF or VF before any error happens: literal tables for the audit. Pure.

Rule: a row is one sentence of what is so and one of what to do about it, and says when that is so of a
function. That somebody holds a VF open is as it should be, and no row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from sriovd.backend.base import ErrorPath
from sriovd.core.inventory import Function
from sriovd.core.recovery.drivers import handles_errors, survives_reset
from sriovd.core.recovery.vocabulary import Rung


class Severity(StrEnum):
    """How much a finding matters, the worst first."""

    BLOCKER = "blocker"  # what the adapter needs to recover will fail for certain
    WARNING = "warning"  # a way to recover is missing, or may fail
    NOTE = "note"  # it recovers, and less is known of it, or it takes longer


@dataclass(frozen=True, slots=True)
class VfRule:
    """What may be so of VFs. `of_one`, `of_many`: the rest of a sentence that names one or several. `advice`
    has `{it}` and `{its}` for them."""

    severity: Severity
    holds: Callable[[Function], bool]
    of_one: str
    of_many: str
    advice: str


@dataclass(frozen=True, slots=True)
class PfRule:
    """What may be so of a PF. `what` has `{pf}` and `{driver}`. `rung`: it is only worth saying where that
    rung is allowed."""

    severity: Severity
    holds: Callable[[Function, ErrorPath], bool]
    what: str
    advice: str
    rung: Rung | None = None


def _is_walked(vf: Function) -> bool:
    """Whether the kernel's walk comes to it: it recurses only through bridges (drivers/pci/bus.c,
    __pci_walk_bus), and a bus of VFs alone has none (drivers/pci/iov.c, virtfn_add_bus)."""
    return vf.virtual is None or vf.virtual.parent.bus == vf.address.bus


# One function without a handler fails the recovery of its bus (drivers/pci/pcie/err.c,
# report_error_detected: "can't recover (no error_detected callback)").
_FAILS = "so that the kernel's own recovery of the whole adapter will fail"
_MAY_FAIL = "without which the kernel's own recovery of the whole adapter fails"

VF_RULES = (
    VfRule(
        Severity.BLOCKER,
        lambda vf: _is_walked(vf) and handles_errors(vf.facts.driver) is False,
        f"has no driver with error handlers, {_FAILS}",
        f"have no driver with error handlers, {_FAILS}",
        "Bind {it} to vfio-pci, which has them.",
    ),
    VfRule(
        Severity.WARNING,
        lambda vf: _is_walked(vf) and handles_errors(vf.facts.driver) is None,
        f"has a driver that is not known to have error handlers, {_MAY_FAIL}",
        f"have drivers that are not known to have error handlers, {_MAY_FAIL}",
        "Look for error_detected in the driver's source, or bind {it} to vfio-pci.",
    ),
    VfRule(
        Severity.WARNING,
        lambda vf: not _is_walked(vf),
        "has another bus number than its PF, so that the kernel tells its driver nothing of errors",
        "have another bus number than their PF, so that the kernel tells their drivers nothing of errors",
        "Let {its} owner listen to sriovd, which freezes and permits {it} all the same, or make fewer VFs.",
    ),
    VfRule(
        Severity.WARNING,
        lambda vf: not vf.facts.reset_methods,
        "has no reset method, so that nothing cleans it after an error",
        "have no reset method, so that nothing cleans them after an error",
        "Write 'default' to {its} reset_method, in case it was emptied.",
    ),
)

PF_RULES = (
    PfRule(
        Severity.BLOCKER,
        lambda pf, _: not pf.facts.driver,
        f"{{pf}} has no driver, {_FAILS}.",
        "Bind it to its driver (Bind with driver 'default').",
    ),
    PfRule(
        Severity.BLOCKER,
        lambda pf, _: bool(pf.facts.driver) and handles_errors(pf.facts.driver) is False,
        f"{{pf}} is on {{driver}}, which has no error handlers, {_FAILS}.",
        "Allow the other rungs in its policy.",
    ),
    PfRule(
        Severity.WARNING,
        lambda pf, _: handles_errors(pf.facts.driver) is None,
        f"{{pf}} is on {{driver}}, which is not known to have error handlers, {_MAY_FAIL}.",
        "Look for error_detected in its source, and allow the other rungs in its policy.",
    ),
    PfRule(
        Severity.WARNING,
        lambda pf, _: not pf.facts.reset_methods,
        "{pf} has no reset method, so that the rung function-reset is left out.",
        "Write 'default' to its reset_method, in case it was emptied.",
        Rung.FUNCTION_RESET,
    ),
    PfRule(
        Severity.NOTE,
        lambda pf, _: bool(pf.facts.reset_methods) and not survives_reset(pf.facts.driver),
        "{pf} is on {driver}, which takes no part in function resets as far as is known, so that the"
        " rung function-reset is left out.",
        "Nothing need be done as long as the rungs after it are allowed.",
        Rung.FUNCTION_RESET,
    ),
    PfRule(
        Severity.WARNING,
        lambda _, path: not path.ports,
        "{pf} has no port above it, below which the rung remove-rescan could find it again.",
        "Put the card into a slot below a root port.",
        Rung.REMOVE_RESCAN,
    ),
    PfRule(
        Severity.WARNING,
        lambda _, path: not path.has_aer,
        "{pf} has no AER capability, so that the kernel neither names nor recovers its errors.",
        "Nothing can be done on the host: sriovd notices by its own probe when it is dead.",
    ),
    PfRule(
        Severity.WARNING,
        lambda _, path: path.has_aer and not path.is_native,
        "The kernel does not handle AER of {pf} (the firmware does, or nobody), so that sriovd sees only"
        " uevents, counters and its own probe.",
        "Leave AER to the kernel in the firmware's settings, or boot with pcie_ports=native.",
    ),
    PfRule(
        Severity.NOTE,
        lambda _, path: path.has_aer and path.is_native and not path.is_recorded,
        "The kernel's records of errors of {pf} do not reach sriovd, so that it cannot always tell whose an"
        " error was.",
        "Mount tracefs at /sys/kernel/tracing, and see that the kernel has the event ras:aer_event.",
    ),
)

# Whether a rung can be tried on a PF. The kernel's is not here: it has failed when these are asked.
POSSIBLE: Mapping[Rung, Callable[[Function, ErrorPath], bool]] = {
    Rung.FUNCTION_RESET: lambda pf, _: bool(pf.facts.reset_methods) and survives_reset(pf.facts.driver),
    Rung.DRIVER_REBIND: lambda pf, _: bool(pf.facts.driver),
    Rung.REMOVE_RESCAN: lambda _, path: bool(path.ports),
}
