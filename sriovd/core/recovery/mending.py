"""Putting an adapter back as it was when it froze, and looking whether it is.

Rule: what is restored is what the snapshot says, with the wishes that came meanwhile over it. VFs are
made but not touched: their drivers are their own recovery's. Verifying believes nothing that was only
written: it reads registers and attributes, and counts errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from sriovd.backend.steps import Chain, Script, Step, Verb
from sriovd.backend.vf_attributes import FIELDS_OF, VfAttributes, parse_report
from sriovd.core import attributes
from sriovd.core.errors import BackendFailed
from sriovd.core.inventory import Function
from sriovd.core.jobs import Job
from sriovd.core.kernel_errors import raise_first_failure
from sriovd.core.recovery.looking import read_signs_of
from sriovd.core.recovery.probe import Signs, is_alive, read_command_step
from sriovd.core.recovery.record import AdapterPe
from sriovd.core.recovery.site import Site, count_uncorrected
from sriovd.core.recovery.snapshot import PfShot, VfShot, overlay
from sriovd.pci import PciAddress


async def restore(site: Site, pe: AdapterPe, job: Job) -> None:
    """Bring PFs, their number of VFs and the VFs' attributes back. Raises SriovdError."""
    async with site.hands.executor.lane(pe.slot):
        for shot in pe.shots:
            pf = site.inventory.get_pf(shot.address)
            if shot.driver and pf.facts.driver != shot.driver:
                await site.hands.binder.bind_all(job, pe.slot, [pf.address], shot.driver, force=True)
            await _make_vfs(site, job, pf, len(shot.vfs))
            if shot.up:  # afterwards: a driver that makes VFs takes its link down for that
                await _switch_on(site, site.inventory.get_pf(pf.address))
            wishes = wished(site, pe, shot)
            if wishes:
                await site.hands.configurer.set_all(job, site.inventory.get_pf(pf.address), wishes)


async def _switch_on(site: Site, pf: Function) -> None:
    """What `ip link set ... up` does, if it is not so: VF drivers wait for their PF."""
    if not pf.facts.net_interfaces:
        return
    look = Script(
        f"reading the link of {pf.address}", (Chain(pf.address, (Step(Verb.READ_LINK, pf.address),)),)
    )
    results = await site.hands.executor.run(pf.adapter, look)
    raise_first_failure(results)
    if parse_report(results[0].value(Verb.READ_LINK) or "").up:
        return
    step = Step(Verb.SWITCH_LINK, pf.address, "up")
    script = Script(f"switching {pf.address} on", (Chain(pf.address, (step,)),))
    raise_first_failure(await site.hands.executor.run(pf.adapter, script))


async def _make_vfs(site: Site, job: Job, pf: Function, count: int) -> None:
    have = len(site.inventory.vfs_of(pf.address))
    if have == count:
        return
    if have:
        await site.hands.creator.destroy(pf, have)
    if count:
        await site.hands.creator.create(job, site.inventory.get_pf(pf.address), count, "", allow_short=False)


def wished(site: Site, pe: AdapterPe, shot: PfShot) -> dict[int, VfAttributes]:
    """What each VF of that PF shall be, as far as its driver can set it. Who has left it behind meanwhile
    has not been cleaned up after, if his VF is gone: its successor gets nothing of his."""
    pf = site.inventory.get_pf(shot.address)
    if not pf.facts.net_interfaces:
        return {}
    lacking = site.hands.capabilities.lacking_of(pf.facts.driver)
    barred = {name for attribute in lacking for name in FIELDS_OF[attribute]}
    found = {}
    for vf in shot.vfs:
        if _is_left_behind(site, shot, vf):
            wish = attributes.restrict_to_told(attributes.NEUTRAL, vf.attributes)
        else:
            wish = overlay(vf.attributes, pe.vf((shot.address, vf.index)).wish)
        settable = {
            each.name: getattr(wish, each.name) for each in fields(VfAttributes) if each.name not in barred
        }
        if any(value is not None for value in settable.values()):
            found[vf.index] = VfAttributes(**settable)
    return found


def _is_left_behind(site: Site, shot: PfShot, vf: VfShot) -> bool:
    """Whether the lease that had it when it froze is over."""
    lease = site.leases.find_at_place((shot.address, vf.index))
    return bool(vf.lease) and (lease is None or lease.number != vf.lease or lease.is_over)


async def look(site: Site, pe: AdapterPe) -> Mapping[PciAddress, Signs]:
    """The signs of each PF that is there."""
    pfs = [shot.address for shot in pe.shots if shot.address in site.inventory.functions]
    async with site.hands.executor.lane(pe.slot):
        return await read_signs_of(site, pe.slot, pfs)


async def verify(site: Site, pe: AdapterPe) -> None:
    """Raises SriovdError saying what is not as it should be."""
    signs = await look(site, pe)
    for shot in pe.shots:
        _check_pf(site, shot, signs.get(shot.address, Signs()))
    await _check_vfs(site, pe)
    for shot in pe.shots:
        await _check_attributes(site, pe, shot)
    _check_counters(site, pe)


def _check_pf(site: Site, shot: PfShot, signs: Signs) -> None:
    pf = site.inventory.get_pf(shot.address)
    count = len(shot.vfs)
    if not signs.answers or not signs.keeps_registers:
        raise BackendFailed(
            f"{pf} does not answer." if not signs.answers else f"{pf} has lost its registers."
        )
    if shot.driver and pf.facts.driver != shot.driver:
        raise BackendFailed(f"{pf} is on {pf.facts.driver or 'no driver'} and not on {shot.driver}.")
    if signs.vf_enable is not bool(count) or (count and signs.num_vfs != count):
        raise BackendFailed(f"{pf} has {signs.num_vfs} VFs in its SR-IOV capability, and not {count}.")
    if len(site.inventory.vfs_of(pf.address)) != count:
        raise BackendFailed(f"{pf} has {len(site.inventory.vfs_of(pf.address))} VFs, and not {count}.")


async def _check_vfs(site: Site, pe: AdapterPe) -> None:
    """Reading only: they are locked out."""
    vfs = [vf for shot in pe.shots for _, vf in sorted(site.inventory.vfs_of(shot.address).items())]
    if not vfs:
        return
    script = Script(
        f"looking at the VFs of {pe.slot}", tuple(Chain(vf, (read_command_step(vf),)) for vf in vfs)
    )
    async with site.hands.executor.lane(pe.slot):
        results = await site.hands.executor.run(pe.slot, script)
    dead = [
        str(vf)
        for vf, result in zip(vfs, results, strict=False)
        if not result.ok or not is_alive(result.value(Verb.READ_CONFIG) or "")
    ]
    if dead or len(results) != len(vfs):
        raise BackendFailed(f"{len(dead)} of {len(vfs)} VFs do not answer: {', '.join(dead[:5])}.")


async def _check_attributes(site: Site, pe: AdapterPe, shot: PfShot) -> None:
    ended = {vf.index for vf in shot.vfs if _is_left_behind(site, shot, vf)}  # cleaning may have begun
    wishes = {index: wish for index, wish in wished(site, pe, shot).items() if index not in ended}
    if not wishes:
        return
    async with site.hands.executor.lane(pe.slot):
        have = (await site.hands.configurer.read(site.inventory.get_pf(shot.address))).vfs
    for index, wish in wishes.items():
        if attributes.list_differences(wish, have.get(index, VfAttributes())):
            differs = attributes.describe(wish, have.get(index, VfAttributes()))
            raise BackendFailed(f"VF {index} of {shot.address} has not kept its attributes: {differs}.")


def _check_counters(site: Site, pe: AdapterPe) -> None:
    pfs = [shot.address for shot in pe.shots]
    for pf, count in count_uncorrected(site.backend, pfs).items():
        before = site.views.of(pe.slot).counted.get(pf, 0)
        if count > before:
            raise BackendFailed(f"{pf} met {count - before} more errors while it was being recovered.")
