"""What a daemon that was killed has left half done, and what makes it whole or safe again. Pure.

Rule: the journal says what was under way, the picture says how far it came. A function that lost its driver
to an interrupted change is taken out of service (a policy, or whoever asked, puts it back); flags that
sriovd had turned are turned back; everything else is left as it is found, because it may be wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sriovd.backend.steps import Script, Verb
from sriovd.core import scripts
from sriovd.core.inventory import Function
from sriovd.core.store import Intent
from sriovd.pci import AddressError, PciAddress

_CHANGES_DRIVER = frozenset({Verb.BIND, Verb.UNBIND, Verb.PROBE})


@dataclass(frozen=True, slots=True)
class Mending:
    """`stranded`: functions without the driver that they had or were to get, and why. `scripts`: what puts
    flags back, with the PF that each is about. `settled`: PFs whose flag is no longer sriovd's to put
    back."""

    stranded: Mapping[PciAddress, str]
    scripts: tuple[tuple[Function, Script], ...]
    settled: tuple[PciAddress, ...]


def find_mending(
    intents: Iterable[Intent],
    functions: Mapping[PciAddress, Function],
    vf_counts: Mapping[PciAddress, int],
    quieted: Collection[PciAddress],
) -> Mending:
    """What to do after a start. `vf_counts`: of the PFs among `functions`. `quieted`: PFs whose
    sriov_drivers_autoprobe sriovd has turned off."""
    interrupted = [intent for intent in intents if intent.same_boot]
    stranded = {
        address: f"sriovd ended in the middle of {intent.title}"
        for intent in interrupted
        for address in _list_to_bind(intent.steps)
        if (function := functions.get(address)) is not None and not function.facts.driver
    }
    opened = {pf for intent in interrupted for pf in _list_opened(intent.steps)}
    mends = (
        (functions[pf], script)
        for pf in sorted(opened.union(quieted))
        if pf in functions
        and (script := _flag_script(functions[pf], vf_counts.get(pf, 0), pf in opened, pf in quieted))
    )
    idle = (pf for pf in sorted(quieted) if pf in functions and not vf_counts.get(pf, 0))
    return Mending(stranded, tuple(mends), tuple(idle))


def _flag_script(pf: Function, vf_count: int, opened: bool, quieted: bool) -> Script | None:
    """What puts the flag right, if it is not. Without VFs it is as it was before sriovd came; it is on while
    there are VFs if somebody wanted it so, unless an interrupted script had opened it."""
    if quieted and not vf_count:
        return None if scripts.probes_vfs(pf.facts) else scripts.loosen_script(pf.facts)
    return scripts.quieten_script(pf.facts) if opened and scripts.probes_vfs(pf.facts) else None


def _list_to_bind(steps: Sequence[str]) -> list[PciAddress]:
    """The functions that `steps`, as the journal spells them, were to leave on a driver."""
    last = {subject: verb for verb, subject, _ in _parse(steps) if verb in _CHANGES_DRIVER}
    return [subject for subject, verb in last.items() if verb != Verb.UNBIND]


def _list_opened(steps: Sequence[str]) -> list[PciAddress]:
    """The PFs whose flag `steps` were to turn on for a while: scripts.probe_script."""
    values: dict[PciAddress, list[str]] = {}
    for verb, subject, argument in _parse(steps):
        if verb == Verb.SET_AUTOPROBE:
            values.setdefault(subject, []).append(argument)
    return [pf for pf, written in values.items() if written == ["1", "0"]]


def _parse(steps: Sequence[str]) -> list[tuple[str, PciAddress, str]]:
    """Verb, function and argument; what is about no function is left out."""
    found = []
    for step in steps:
        verb, _, rest = step.partition(" ")
        address, _, argument = rest.partition(" ")
        try:
            found.append((verb, PciAddress.parse(address), argument))
        except AddressError:
            continue
    return found
