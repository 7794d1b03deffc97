"""The readiness audit: what would make the recovery of an adapter fail, told before any error happens. Pure.

Rule: what is wrong with many VFs is one finding of their adapter, which names some of them; a VF's own
findings need nothing but that VF. The audit is of an adapter that is online: of a frozen one, sriovd itself
has disabled the resets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sriovd.backend.base import ErrorPath
from sriovd.core.inventory import Function
from sriovd.core.recovery.audit_rules import PF_RULES, POSSIBLE, VF_RULES, Severity
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress

_NAMED_AT_MOST = 5
_MOVE_CARD = "Put the card into a slot below a root port."


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """An adapter. `paths`: how errors of each PF come to light. `vfs`: all of its PFs'. `rungs`: those that
    its policies allow."""

    slot: str
    pfs: Sequence[Function]
    paths: Mapping[PciAddress, ErrorPath]
    vfs: Sequence[Function]
    rungs: Sequence[Rung]


@dataclass(frozen=True, slots=True)
class Finding:
    """`target`: a slot, or the address of a PF or VF. `what`, `advice`: a sentence each. `rule`: what is
    wrong in general, whoever it is wrong with: by that and the target a finding is known again."""

    severity: Severity
    target: str
    what: str
    advice: str
    rule: str

    @property
    def about(self) -> tuple[str, str]:
        return self.target, self.rule

    def __str__(self) -> str:
        return f"{self.severity}: {self.what} {self.advice}"


def audit_adapter(facts: AuditFacts) -> list[Finding]:
    """Everything about the adapter, its PFs, and its VFs as a whole; the worst first."""
    found = [*_audit_ladder(facts), *_audit_vfs(facts)]
    for pf in facts.pfs:
        found += audit_pf(pf, facts.paths.get(pf.address, ErrorPath()), facts.rungs)
    return _sort(found)


def audit_pf(pf: Function, path: ErrorPath, rungs: Sequence[Rung]) -> list[Finding]:
    """What is about one PF; the worst first."""
    driver = pf.facts.driver
    return _sort(
        [
            Finding(
                rule.severity,
                str(pf.address),
                rule.what.format(pf=pf, driver=driver),
                rule.advice,
                rule.what,
            )
            for rule in PF_RULES
            if (rule.rung is None or rule.rung in rungs) and rule.holds(pf, path)
        ]
    )


def audit_vf(vf: Function) -> list[Finding]:
    """What is about one VF; the worst first."""
    return _sort(
        [
            Finding(
                rule.severity,
                str(vf.address),
                f"VF {_name(vf)} {rule.of_one}.",
                rule.advice.format(it="it", its="its"),
                rule.of_one,
            )
            for rule in VF_RULES
            if rule.holds(vf)
        ]
    )


def _sort(findings: list[Finding]) -> list[Finding]:
    order = list(Severity)
    return sorted(findings, key=lambda each: order.index(each.severity))


def _audit_vfs(facts: AuditFacts) -> Iterator[Finding]:
    """Each rule once, for all VFs that it holds for."""
    for rule in VF_RULES:
        vfs = [vf for vf in facts.vfs if rule.holds(vf)]
        if not vfs:
            continue
        is_one = len(vfs) == 1
        of_whom = rule.of_one if is_one else rule.of_many
        what = f"{len(vfs)} of {len(facts.vfs)} VFs {of_whom}: {_name_some(vfs)}."
        advice = rule.advice.format(it="it" if is_one else "them", its="its" if is_one else "their")
        yield Finding(rule.severity, facts.slot, what, advice, rule.of_one)


def _name(function: Function) -> str:
    driver = function.facts.driver
    return f"{function.address} ({driver})" if driver else str(function.address)


def _name_some(functions: Sequence[Function]) -> str:
    names = ", ".join(map(_name, functions[:_NAMED_AT_MOST]))
    more = len(functions) - _NAMED_AT_MOST
    return f"{names} and {more} more" if more > 0 else names


def _audit_ladder(facts: AuditFacts) -> Iterator[Finding]:
    """Whether something is left when the kernel cannot. Only a function that is found anew gets back
    registers that it has lost, as after a fatal error: a reset restores those that it met
    (drivers/pci/pci.c, pci_reset_function), and drivers write no BARs."""
    forbidden = Rung.REMOVE_RESCAN not in facts.rungs
    advice = f'Allow "{Rung.REMOVE_RESCAN}" in the table [recovery] of its policy.'
    if not any(_can_try(rung, facts) for rung in facts.rungs):
        what = f"Adapter {facts.slot} has no rung left when the kernel's own recovery fails: "
        what += _describe_missing(facts.rungs)
        yield Finding(
            Severity.BLOCKER, facts.slot, f"{what}.", advice if forbidden else _MOVE_CARD, "ladder"
        )
    elif forbidden:
        what = f"The policy of adapter {facts.slot} forbids {Rung.REMOVE_RESCAN}"
        what += ", and nothing else gives it back registers that a fatal error has wiped."
        yield Finding(Severity.WARNING, facts.slot, what, advice, "ladder")


def _can_try(rung: Rung, facts: AuditFacts) -> bool:
    can = POSSIBLE.get(rung)
    return can is not None and all(can(pf, facts.paths.get(pf.address, ErrorPath())) for pf in facts.pfs)


def _describe_missing(allowed: Sequence[Rung]) -> str:
    forbidden = [rung for rung in POSSIBLE if rung not in allowed]
    impossible = [rung for rung in POSSIBLE if rung in allowed]
    parts = ((forbidden, "forbidden by policy"), (impossible, "impossible here"))
    return "; ".join(f"{', '.join(rungs)} {why}" for rungs, why in parts if rungs)
