"""Looking at the registers of PFs: reads only.

Rule: small, because every start looks once; what mends is loaded when there is something to mend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sriovd.backend.steps import Chain, Script, Verb
from sriovd.core.recovery.probe import Signs, read_config_step, read_signs
from sriovd.core.recovery.site import Site
from sriovd.pci import PciAddress


async def read_signs_of(site: Site, slot: str, pfs: Sequence[PciAddress]) -> Mapping[PciAddress, Signs]:
    """The signs of PFs of one adapter. The caller has the lane. Raises SriovdError."""
    if not pfs:
        return {}
    chains = tuple(Chain(pf, (read_config_step(pf),)) for pf in pfs)
    results = await site.hands.executor.run(slot, Script(f"looking at {slot}", chains))
    read = (result.value(Verb.READ_CONFIG) or "" for result in results)
    return {pf: read_signs(each) for pf, each in zip(pfs, read, strict=False)}
