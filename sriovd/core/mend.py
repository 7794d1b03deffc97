"""What a daemon that was killed has left half done, and what makes it whole or safe again. Pure.

Rule: the journal says what was under way, the picture says how far it came. A function that lost its driver
to an interrupted change is taken out of service (a policy, or whoever asked, puts it back); flags that
sriovd had turned are turned back; everything else is left as it is found, because it may be wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sriovd.backend.steps import Script, Verb
from sriovd.core import scripts
from sriovd.core.inventory import Function
from sriovd.core.store import Intent
from sriovd.pci import AddressError, PciAddress

_TAKES_DRIVER = frozenset({Verb.BIND, Verb.UNBIND, Verb.PROBE})


@dataclass(frozen=True, slots=True)
class Mending:
    """`stranded`: functions without the driver that they had or were to get, and why. `scripts`: what puts
    flags back, with the PF that each is about."""

    stranded: Mapping[PciAddress, str]
    scripts: tuple[tuple[Function, Script], ...]


def find_mending(
    intents: Iterable[Intent],
    functions: Mapping[PciAddress, Function],
    vf_counts: Mapping[PciAddress, int],
    quieted: Iterable[PciAddress],
) -> Mending:
    """What to do after a start. `quieted`: PFs whose sriov_drivers_autoprobe sriovd has turned off."""
    interrupted = [intent for intent in intents if intent.same_boot]
    stranded = {
        address: f"sriovd ended in the middle of {intent.title}"
        for intent in interrupted
        for address in _changed_drivers(intent.steps)
        if (function := functions.get(address)) is not None and not function.facts.driver
    }
    busy = {intent.adapter for intent in interrupted}
    mends = (
        (functions[pf], script)
        for pf in quieted
        if pf in functions
        and (script := _flag_script(functions[pf], vf_counts.get(pf, 0), functions[pf].adapter in busy))
    )
    return Mending(stranded, tuple(mends))


def _flag_script(pf: Function, vf_count: int, interrupted: bool) -> Script | None:
    """The flag belongs off while there are VFs, and on otherwise. That somebody else has turned it on is
    told from an interrupted probe by the journal."""
    if not vf_count:
        return scripts.destroy_script(pf.facts, 0, restore_autoprobe=True)
    return scripts.quieten_script(pf.facts) if interrupted and scripts.probes_vfs(pf.facts) else None


def _changed_drivers(steps: Sequence[str]) -> list[PciAddress]:
    """The functions whose driver `steps`, as the journal spells them, were to change."""
    found = []
    for step in steps:
        words = step.split(" ")
        if words[0] in _TAKES_DRIVER and len(words) > 1:
            try:
                found.append(PciAddress.parse(words[1]))
            except AddressError:
                continue
    return found
