"""Which kernel accesses a verb needs, in which order. Pure: facts in, steps out.

Rule: the fewest writes that are safe. Each chain leaves its function consistent when it ends, and undo()
takes back exactly what a chain did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sriovd.backend.base import FunctionFacts
from sriovd.backend.steps import Chain, ChainResult, Script, Step, StepResult, Verb
from sriovd.pci import AddressError, PciAddress, vf_address

DEFAULT = "default"  # the driver that the kernel would choose
NONE = "none"  # no driver, and none shall come


@dataclass(frozen=True, slots=True)
class Binding:
    """What a function's driver shall be: DEFAULT, NONE or a driver's name."""

    address: PciAddress
    current: str  # driver now, empty for none
    wanted: str


def is_satisfied(facts: FunctionFacts, wanted: str) -> bool:
    """Whether nothing need be written. `none` is never taken for granted: the override that keeps drivers
    away cannot be read without a lock."""
    if wanted == DEFAULT:
        return facts.driver not in ("", "vfio-pci", "pci-stub")
    return wanted != NONE and facts.driver == wanted


def bind_chain(binding: Binding) -> Chain:
    """From the current driver to the wanted one, and a look whether that came true.

    driver_override is set for every named bind, because a VF whose PF has sriov_drivers_autoprobe=0 binds to
    nothing without it (drivers/pci/pci-driver.c pci_device_can_probe), and before the unbind, because the
    override decides which drivers match from then on.
    """
    address, wanted = binding.address, binding.wanted
    override = "" if wanted == DEFAULT else wanted
    steps = [Step(Verb.READ_DRIVER_OVERRIDE, address), Step(Verb.SET_DRIVER_OVERRIDE, address, override)]
    if binding.current:
        steps.append(Step(Verb.UNBIND, address, binding.current))
    if wanted == DEFAULT:
        steps += [Step(Verb.PROBE, address), Step(Verb.READ_DRIVER, address)]
    elif wanted == NONE:
        steps.append(Step(Verb.READ_DRIVER, address, expect=""))
    else:
        steps += [Step(Verb.BIND, address, wanted), Step(Verb.READ_DRIVER, address, expect=wanted)]
    return Chain(address, tuple(steps))


def unbind_chain(address: PciAddress, driver: str) -> Chain:
    """Away from `driver`; the override stays as it is."""
    return Chain(address, (Step(Verb.UNBIND, address, driver), Step(Verb.READ_DRIVER, address, expect="")))


def read_overrides_script(addresses: Sequence[PciAddress]) -> Script:
    """What each of `addresses` is kept for."""
    chains = (Chain(each, (Step(Verb.READ_DRIVER_OVERRIDE, each),)) for each in addresses)
    return Script("reading driver overrides", tuple(chains))


def settles_at_once(wanted: str) -> bool:
    """Whether a driver that took a function is known to keep it. Others may give it up after their probe has
    returned: nvme before 6.5 initialises the controller later (drivers/nvme/host/pci.c nvme_async_probe)."""
    return wanted in (NONE, "vfio-pci", "pci-stub")


def with_driver(done: ChainResult, driver: str) -> ChainResult:
    """`done` (a bind_chain's) as if its last look had found `driver`."""
    *before, last = done.results
    return replace(done, results=(*before, replace(last, value=driver)))


def undo_chain(binding: Binding, done: ChainResult) -> Chain | None:
    """Back to the driver and the override that `done` (a bind_chain) started from, or None if it has changed
    nothing.

    The override is rewritten first: the bus refuses the old driver while it names another.
    """
    written = {result.step.verb for result in done.results if result.step.writes and result.ok}
    if not written:
        return None
    address, override = binding.address, done.value(Verb.READ_DRIVER_OVERRIDE) or ""
    original = "" if override == "(null)" else override
    steps = [Step(Verb.SET_DRIVER_OVERRIDE, address, binding.current or original)]
    now = _driver_after(binding, done)
    if now and now != binding.current:
        steps.append(Step(Verb.UNBIND, address, now))
    if binding.current and now != binding.current:
        steps.append(Step(Verb.BIND, address, binding.current))
    if binding.current and binding.current != original:
        steps.append(Step(Verb.SET_DRIVER_OVERRIDE, address, original))
    steps.append(Step(Verb.READ_DRIVER, address, expect=binding.current))
    return Chain(address, tuple(steps))


def _driver_after(binding: Binding, done: ChainResult) -> str:
    """Which driver the function has after `done`, as far as it got."""
    read = next((result for result in done.results if result.step.verb is Verb.READ_DRIVER), None)
    if read is not None and read.errno == 0:
        return read.value
    if any(result.step.verb is Verb.BIND and result.ok for result in done.results):
        return binding.wanted
    unbound = any(result.step.verb is Verb.UNBIND and result.ok for result in done.results)
    return "" if unbound or not binding.current else binding.current


def create_script(pf: FunctionFacts, count: int, driver: str = "") -> Script:
    """From no VFs to `count`, with no driver let near them; bound to `driver`, if given, where
    _places_to_bind() tells their places.

    A driver that waits for its PF blocks the write for seconds per VF. The flag stays off as long as the VFs
    live: udev loads their driver's module when it hears of them, and a driver that registers late takes
    every VF that it may (drivers/base/bus.c bus_add_driver).
    """
    quiet = (Step(Verb.SET_AUTOPROBE, pf.address, "0"),) if probes_vfs(pf) else ()
    make = (*quiet, Step(Verb.SET_NUM_VFS, pf.address, str(count)))
    title, vfs = f"setting {count} VFs on {pf.address}", _places_to_bind(pf, count, driver)
    if not vfs:
        return Script(title, (Chain(pf.address, make),))
    look = (_look_for_vf(pf, 0, vfs[0]), _look_for_vf(pf, count - 1, vfs[-1]))
    binds = (_bind_new_chain(vf, driver) for vf in vfs)
    return Script(title, (Chain(pf.address, (*make, *look)), *binds), stop_on_failure=True)


def is_elsewhere(result: StepResult) -> bool:
    """Whether a create_script went no further because the VFs are not where they were computed, or fewer."""
    return result.step.verb is Verb.READ_VF and result.mismatch


def _places_to_bind(pf: FunctionFacts, count: int, driver: str) -> list[PciAddress]:
    """Where the VFs will be that the script that makes them can also bind. None, where they have to be
    looked at first or once more: a PF on vfio-pci has its VFs bound by the kernel, and not every driver
    settles_at_once."""
    if not driver or not settles_at_once(driver) or pf.driver == "vfio-pci" or pf.physical is None:
        return []
    offset, stride = pf.physical.vf_offset, pf.physical.vf_stride
    try:
        return [vf_address(pf.address, offset, stride, index) for index in range(count)]
    except AddressError:
        return []


def _look_for_vf(pf: FunctionFacts, index: int, vf: PciAddress) -> Step:
    """See that VF `index` is at `vf`. That of the first and the last tells of all, because their places are
    linear; a PF may change First VF Offset and VF Stride with its number of VFs (PCIe 9.3.3.9)."""
    return Step(Verb.READ_VF, pf.address, str(index), expect=str(vf))


def _bind_new_chain(vf: PciAddress, driver: str) -> Chain:
    """Bind what has just been made: it is on no driver and has no override. Whether that came true, the
    kernel's answer tells for these drivers; whoever runs the script looks at the VF anyway."""
    override = Step(Verb.SET_DRIVER_OVERRIDE, vf, driver)
    return Chain(vf, (override,) if driver == NONE else (override, Step(Verb.BIND, vf, driver)))


def destroy_script(pf: FunctionFacts, have: int, restore_autoprobe: bool) -> Script:
    """From `have` VFs to none; and the flag that create_script turned off back on."""
    chains = [Chain(pf.address, (Step(Verb.SET_NUM_VFS, pf.address, "0"),))] if have else []
    if restore_autoprobe:
        chains += loosen_script(pf).chains
    return Script(f"setting 0 VFs on {pf.address}", tuple(chains), stop_on_failure=True)


def probes_vfs(pf: FunctionFacts) -> bool:
    """Whether the kernel offers new VFs of `pf` to drivers."""
    return pf.physical is not None and pf.physical.drivers_autoprobe


def probe_script(quiet_pf: FunctionFacts | None, chains: tuple[Chain, ...], title: str) -> Script:
    """`chains` with the VFs of `quiet_pf`, a PF that keeps drivers away from them, open to drivers
    meanwhile."""
    close = quieten_script(quiet_pf)
    if quiet_pf is None or close is None:
        return Script(title, chains, stop_on_failure=True)
    opened = Chain(quiet_pf.address, (Step(Verb.SET_AUTOPROBE, quiet_pf.address, "1"),))
    return Script(title, (opened, *chains, *close.chains))


def quieten_script(quiet_pf: FunctionFacts | None) -> Script | None:
    """The end of a probe_script by itself: keep drivers away from the VFs again."""
    if quiet_pf is None:
        return None
    step = Step(Verb.SET_AUTOPROBE, quiet_pf.address, "0")
    return Script(f"keeping drivers away from VFs of {quiet_pf.address}", (Chain(step.address, (step,)),))


def loosen_script(pf: FunctionFacts) -> Script:
    """Offer VFs to drivers again."""
    step = Step(Verb.SET_AUTOPROBE, pf.address, "1")
    return Script(f"letting drivers have VFs of {pf.address}", (Chain(step.address, (step,)),))


def reset_script(address: PciAddress) -> Script:
    """Reset one function by the first of its reset methods."""
    return Script(f"resetting {address}", (Chain(address, (Step(Verb.RESET, address),)),))


def remove_script(pf: FunctionFacts, has_vfs: bool) -> Script:
    """Take a PF off the bus. Its VFs go first: kernels of 2025 deadlock on themselves when a PF is removed
    with VFs (commit 05703271c3cd, since reverted)."""
    address = pf.address
    chains = [Chain(address, (Step(Verb.SET_NUM_VFS, address, "0"),))] if has_vfs else []
    chains.append(Chain(address, (Step(Verb.REMOVE, address),)))
    return Script(f"removing {address}", tuple(chains), stop_on_failure=True)


def rescan_script() -> Script:
    """Look for new functions on all buses."""
    return Script("rescanning the PCI buses", (Chain(None, (Step(Verb.RESCAN_BUS),)),))
