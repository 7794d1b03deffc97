"""Climbing one rung of the ladder.

Rule: a rung that destroys VFs is not begun before nobody holds one open, for the kernel would wait for that
in the middle of it, for ever. Nothing is removed while it has VFs, and nothing is removed or looked for
beside another write on the host (drivers/pci/iov.c, pci_rescan_remove_lock). It ends when the PFs are there
with their drivers, or with an error.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
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

_log = logging.getLogger(__name__)

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
    """Until nobody holds a VF of the adapter open. Raises InUse naming the VFs that are open after that
    time."""
    deadline, told = time.monotonic() + close_sec, ""
    for look in itertools.count():
        holders = await find_holders(site, pe)
        if not holders:
            break
        vfs = ", ".join(str(vf) for vf in sorted(holders))
        if time.monotonic() > deadline:
            raise InUse(
                f"VF {vfs} was not closed within {close_sec:g} s.",
                "End what holds it open (the journal names it), then call Lift.",
            )
        who = "; ".join(f"{vf} is held open by {', '.join(map(str, each))}" for vf, each in holders.items())
        if who != told:  # names are for the journal: they are other tenants' processes
            _log.warning("The recovery of adapter %s waits: %s", pe.slot, who)
            told = who
        site.views.wait_for(pe.slot, f"VF {vfs} to be closed by its user", holders)
        await asyncio.sleep(_LOOKS_SEC[min(look, len(_LOOKS_SEC) - 1)])
    site.views.wait_for(pe.slot, "")


async def _rebind(site: Site, pe: AdapterPe) -> None:
    async with site.hands.executor.lane(pe.slot):
        for shot in pe.shots:
            pf = site.inventory.get_pf(shot.address)
            vfs = len(site.inventory.vfs_of(pf.address))
            await _switch_off(site, pf, bool(vfs))
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


async def _switch_off(site: Site, pf: Function, has_vfs: bool) -> None:
    """A PF that is dead and up must not lose its driver: igb waits for its queues for ever then, and with
    it whoever configures any interface of the host (igb_remove, igb_close, napi_disable under rtnl).
    Setting its VFs to 0 first does as well."""
    if has_vfs or not pf.facts.net_interfaces:
        return
    step = Step(Verb.SWITCH_LINK, pf.address, "down")
    script = Script(f"switching {pf.address} off", (Chain(pf.address, (step,)),))
    await site.hands.executor.run(pf.adapter, script)


async def _replug(site: Site, pe: AdapterPe) -> None:
    """Take the PFs off the bus and look for them again, below their port. Their VFs go before that, beside
    the work on other adapters."""
    async with site.hands.executor.lane(pe.slot):
        for pf in _present(site, pe):
            vfs = len(site.inventory.vfs_of(pf.address))
            await _switch_off(site, pf, bool(vfs))
            if vfs:
                await _run(site, pe.slot, scripts.destroy_script(pf.facts, vfs, False), vfs)
    view = site.views.of(pe.slot)
    async with site.hands.executor.lane(pe.slot, exclusive=True):
        view.busy = True
        try:
            for pf in _present(site, pe):
                await _run(site, pe.slot, scripts.remove_script(pf.facts, False))
            for port in list_ports(pe.shots):
                script = Script(f"looking below {port}", (Chain(port, (Step(Verb.RESCAN_PORT, port),)),))
                raise_first_failure(await site.hands.executor.run(pe.slot, script))
            for shot in pe.shots:
                site.hands.picture.look_at(shot.address)
        finally:
            view.busy = False


def _present(site: Site, pe: AdapterPe) -> list[Function]:
    """The PFs that are there: a daemon that was killed may have taken some away."""
    found = (site.inventory.functions.get(shot.address) for shot in pe.shots)
    return [pf for pf in found if pf is not None]


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
