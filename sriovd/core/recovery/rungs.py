"""Climbing one rung of the ladder.

Rule: a rung that destroys VFs is not begun before nobody holds one open, for the kernel would wait for that
in the middle of it, for ever. Nothing is removed while it has VFs, and nothing is removed or looked for
beside another write on the host (drivers/pci/iov.c, pci_rescan_remove_lock). It ends when the PFs are there
with their drivers, or with an error.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence

from sriovd.backend.base import Holder
from sriovd.backend.steps import Chain, Script, Step, Verb
from sriovd.core import scripts
from sriovd.core.errors import BackendFailed, InUse, NoSuchFunction
from sriovd.core.inventory import Function
from sriovd.core.kernel_errors import raise_first_failure
from sriovd.core.recovery.record import AdapterPe
from sriovd.core.recovery.site import Site
from sriovd.core.recovery.snapshot import PfShot, list_ports
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress

_LOOKS_SEC = (0.1, 0.2, 0.5, 1.0)  # between looks at who holds a VF open; the last for ever
_DRIVER_SEC = 30.0  # that a PF driver may take, which may probe later than the rescan returns
_AGAIN_SEC = 0.02


async def climb(site: Site, pe: AdapterPe, rung: Rung) -> None:
    """Do what `rung` is. Raises SriovdError; NoSuchFunction when the adapter is not there any more."""
    match rung:
        case Rung.KERNEL:
            return
        case Rung.FUNCTION_RESET:
            async with site.hands.executor.lane(pe.slot):
                for shot in pe.shots:
                    await _run(site, pe.slot, scripts.reset_script(shot.address))
        case Rung.DRIVER_REBIND:
            await _rebind(site, pe)
        case Rung.REMOVE_RESCAN:
            await _replug(site, pe)
    await _await_drivers(site, pe)


async def find_holders(site: Site, pe: AdapterPe) -> Mapping[PciAddress, Sequence[Holder]]:
    """Who holds VFs of the adapter open."""
    vfs = [vf for shot in pe.shots for vf in site.inventory.vfs_of(shot.address).values()]
    return await site.hands.usage.holders_of(vfs) if vfs else {}


async def wait_closed(site: Site, pe: AdapterPe, close_sec: float) -> None:
    """Until nobody holds a VF of the adapter open. Raises InUse naming who does so after that time."""
    deadline = time.monotonic() + close_sec
    for look in itertools.count():
        holders = await find_holders(site, pe)
        if not holders:
            break
        text = "; ".join(
            f"{', '.join(map(str, who))} to close VF {vf}" for vf, who in sorted(holders.items())
        )
        if time.monotonic() > deadline:
            raise InUse(
                f"Waited {close_sec:g} s in vain for {text}.", "End those processes, then call Lift."
            )
        site.views.wait_for(pe.slot, text)
        await asyncio.sleep(_LOOKS_SEC[min(look, len(_LOOKS_SEC) - 1)])
    site.views.wait_for(pe.slot, "")


async def _rebind(site: Site, pe: AdapterPe) -> None:
    async with site.hands.executor.lane(pe.slot):
        for shot in pe.shots:
            pf = site.inventory.get_pf(shot.address)
            vfs = len(site.inventory.vfs_of(pf.address))
            await _run(site, pe.slot, _rebind_script(pf, shot.driver, bool(vfs)), vfs)


def _rebind_script(pf: Function, driver: str, has_vfs: bool) -> Script:
    """The driver goes, the function is reset, the driver comes."""
    steps = [Step(Verb.SET_NUM_VFS, pf.address, "0")] if has_vfs else []
    if pf.facts.driver:
        steps.append(Step(Verb.UNBIND, pf.address, pf.facts.driver))
    if pf.facts.reset_methods:
        steps.append(Step(Verb.RESET, pf.address))
    steps += [Step(Verb.BIND, pf.address, driver), Step(Verb.READ_DRIVER, pf.address, expect=driver)]
    return Script(f"binding {pf.address} to {driver} anew", (Chain(pf.address, tuple(steps)),))


async def _replug(site: Site, pe: AdapterPe) -> None:
    """Take the PFs off the bus and look for them again, below their port."""
    view = site.views.of(pe.slot)
    async with site.hands.executor.lane(pe.slot, exclusive=True):
        view.busy = True
        try:
            for shot in pe.shots:
                pf = site.inventory.functions.get(shot.address)
                if pf is not None:  # else a daemon that was killed has come so far
                    vfs = len(site.inventory.vfs_of(pf.address))
                    await _run(site, pe.slot, scripts.remove_script(pf.facts, bool(vfs)), vfs)
            for port in list_ports(pe.shots):
                script = Script(f"looking below {port}", (Chain(port, (Step(Verb.RESCAN_PORT, port),)),))
                raise_first_failure(await site.hands.executor.run(pe.slot, script))
            for shot in pe.shots:
                site.hands.picture.look_at(shot.address)
        finally:
            view.busy = False


async def _run(site: Site, slot: str, script: Script, vf_count: int = 0) -> None:
    """One script on a PF, and a look at what has become of it and its VFs."""
    families = [
        each
        for pf in {chain.subject for chain in script.chains if chain.subject is not None}
        for each in site.hands.picture.family(pf)
    ]
    try:
        results = await site.hands.executor.run(slot, script, vf_count=vf_count)
    finally:
        await site.hands.picture.look_after_job(slot, families)
    raise_first_failure(results)


async def _await_drivers(site: Site, pe: AdapterPe) -> None:
    """Until each PF has the driver that it had. Raises NoSuchFunction, BackendFailed."""
    deadline = time.monotonic() + _DRIVER_SEC
    for shot in pe.shots:
        while not _is_ready(site, shot):
            if time.monotonic() > deadline:
                raise BackendFailed(
                    f"{shot.address} did not get its driver {shot.driver} back in {_DRIVER_SEC:g} s."
                )
            await asyncio.sleep(_AGAIN_SEC)


def _is_ready(site: Site, shot: PfShot) -> bool:
    site.hands.picture.look_at(shot.address)
    pf = site.inventory.functions.get(shot.address)
    if pf is None:
        raise NoSuchFunction(f"{shot.address} is not there any more.")
    return (
        pf.facts.driver == shot.driver
        or (bool(pf.facts.driver) and shot.driver in ("", scripts.NONE))
        or (
            shot.driver in ("vfio-pci", "pci-stub")  # restored by hand: the kernel would not choose them
        )
    )
