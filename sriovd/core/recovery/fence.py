"""Fencing VFs and taking the fence down again: as scripts, pure.

Rule: a fenced VF can do no DMA (Bus Master Enable is clear) and cannot be reset, by nobody: one reset of
a VF whose adapter is dead keeps the whole card busy for 70 s (drivers/pci/pci.c pci_dev_wait). What is
put back is what was found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sriovd.backend.steps import Chain, ChainResult, Script, Step, Verb
from sriovd.core.inventory import Function
from sriovd.core.recovery.probe import is_bus_master, master_step, read_command_step
from sriovd.core.recovery.snapshot import VfShot


def look_script(slot: str, vfs: Iterable[Function]) -> Script:
    """What is there to be taken away."""
    chains = (Chain(vf.address, (read_command_step(vf.address),)) for vf in vfs)
    return Script(f"looking at the VFs of {slot}", tuple(chains))


def read_masters(vfs: Sequence[Function], results: Sequence[ChainResult]) -> dict[int, bool]:
    """Who may do DMA, by VF index, of what look_script has read."""
    return {
        vf.virtual.index: result.ok and is_bus_master(result.value(Verb.READ_CONFIG) or "")
        for vf, result in zip(vfs, results, strict=False)
        if vf.virtual is not None
    }


def fence_script(slot: str, vfs: Iterable[Function]) -> Script:
    """No resets first: that one the kernel takes from whatever is dead, too."""
    chains = []
    for vf in vfs:
        master = Chain(vf.address, (master_step(vf.address, on=False),))
        if vf.facts.reset_methods:
            step = Step(Verb.SET_RESET_METHOD, vf.address, "")
            chains.append(Chain(vf.address, (step,)))
        chains.append(master)
    return Script(f"fencing the VFs of {slot}", tuple(chains))


def unfence_chain(vf: Function, shot: VfShot) -> Chain | None:
    """DMA and resets as they were; None where nothing was taken, or the VF was made anew since."""
    steps = []
    if vf.generation != shot.generation:
        return None
    if shot.reset_methods and not vf.facts.reset_methods:
        steps.append(Step(Verb.SET_RESET_METHOD, vf.address, " ".join(shot.reset_methods)))
    if shot.bus_master:
        steps.append(master_step(vf.address, on=True))
    return Chain(vf.address, tuple(steps)) if steps else None


def unfence_script(slot: str, chains: Iterable[Chain]) -> Script:
    """All of them."""
    return Script(f"taking down the fence of VFs of {slot}", tuple(chains))
