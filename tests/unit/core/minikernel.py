"""A kernel of a few dictionaries: what the steps of core do to drivers, overrides and VF counts.

It imitates drivers/pci/iov.c sriov_numvfs_store, drivers/base/bus.c bind_store and unbind_store, and
drivers/pci/pci-driver.c pci_match_device and pci_device_can_probe, and nothing else: no time, no uevents,
no files. The simulated host does those; this one is small enough to be believed by reading.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace

from sriovd.backend.base import FunctionFacts, PhysicalFacts, VirtualFacts
from sriovd.backend.steps import Chain, ChainResult, Step, StepResult, Verb
from sriovd.pci import PciAddress, vf_address

PF = PciAddress.parse("0000:01:00.0")
OTHER_PF = PciAddress.parse("0000:02:00.0")
NATURAL = {"pf": "igb", "vf": "igbvf"}  # the drivers whose id tables name the functions


def make_pf(
    address: PciAddress = PF, identity: int = 1, driver: str = "igb", **physical: int
) -> FunctionFacts:
    """A NIC's PF with 7 VFs at offset 0x80, stride 2."""
    values = {"total_vfs": 7, "vf_offset": 0x80, "vf_stride": 2, "vf_device_id": 0x10CA, **physical}
    quiet = not values.pop("drivers_autoprobe", 1)
    return replace(
        _make_facts(address, identity, driver),
        device_id=0x10C9,
        physical=PhysicalFacts(**values, drivers_autoprobe=not quiet),
    )


def make_vf(index: int, parent: PciAddress = PF, identity: int = 100, driver: str = "") -> FunctionFacts:
    """VF `index` of a PF made by make_pf. Its class is not a NIC's, so that no rule asks for its netdev."""
    address = vf_address(parent, 0x80, 2, index)
    facts = _make_facts(address, identity + index, driver)
    return replace(facts, device_id=0x10CA, class_code=0x010802, virtual=VirtualFacts(parent, index))


def _make_facts(address: PciAddress, identity: int, driver: str) -> FunctionFacts:
    return FunctionFacts(
        address=address,
        identity=identity,
        vendor_id=0x8086,
        device_id=0,
        subsystem_vendor_id=0x8086,
        subsystem_device_id=0xA03C,
        class_code=0x020000,
        revision=1,
        driver=driver,
        iommu_group=None,
        numa_node=-1,
        net_interfaces=(),
        reset_methods=("flr",),
        path=f"/sys/devices/pci0000:00/{address}",
    )


class MiniKernel:
    """`functions` and `overrides` are the state; `drivers` those that are loaded; `short`: how many VFs the
    PF driver makes at most; `config`: the configuration space of each; `links`: the interfaces that somebody
    has switched; `failures`: (verb, address or None for any) to an errno that is given instead of
    doing it, for ever; `writes`: every write that came, as text."""

    def __init__(self, *functions: FunctionFacts) -> None:
        self.functions = {each.address: each for each in functions}
        self.overrides: dict[PciAddress, str] = {}
        self.drivers = {"igb", "igbvf", "vfio-pci", "pci-stub"}
        self.short: int | None = None
        self.failures: dict[tuple[Verb, PciAddress | None], int] = {}
        self.writes: list[str] = []
        self.config: dict[PciAddress, bytearray] = {}
        self.links: dict[PciAddress, str] = {}
        self.bus_finds: list[FunctionFacts] = []
        self._next_identity = 1000

    def run_chain(self, chain: Chain) -> ChainResult:
        """Do the steps until one fails."""
        results = []
        for step in chain.steps:
            results.append(self.do(step))
            if not results[-1].ok:
                break
        return ChainResult(chain, tuple(results))

    def do(self, step: Step) -> StepResult:
        """One access and what the kernel says to it."""
        if step.writes:
            self.writes.append(str(step))
        failure = self.failures.get((step.verb, step.address)) or self.failures.get((step.verb, None))
        if failure:
            return StepResult(step, failure)
        if step.address is not None and step.address not in self.functions:
            return StepResult(step, errno.ENOENT)
        answer = self._rules()[step.verb](step)
        return StepResult(step, answer) if isinstance(answer, int) else StepResult(step, 0, answer)

    def vfs_of(self, pf: PciAddress) -> dict[int, PciAddress]:
        """The VFs by index."""
        vfs = [each for each in self.functions.values() if each.virtual and each.virtual.parent == pf]
        return {vf.virtual.index: vf.address for vf in vfs if vf.virtual}

    def driver(self, address: PciAddress) -> str:
        """Who has it."""
        return self.functions[address].driver

    def _rules(self) -> dict[Verb, Callable[[Step], int | str]]:
        return {
            Verb.SET_NUM_VFS: self._set_num_vfs,
            Verb.COUNT_VFS: lambda step: str(len(self.vfs_of(_address(step)))),
            Verb.READ_VF: lambda step: str(self.vfs_of(_address(step)).get(int(step.argument), "")),
            Verb.SET_AUTOPROBE: self._set_autoprobe,
            Verb.READ_DRIVER_OVERRIDE: lambda step: self.overrides.get(_address(step)) or "(null)",
            Verb.SET_DRIVER_OVERRIDE: self._set_override,
            Verb.BIND: self._bind,
            Verb.UNBIND: self._unbind,
            Verb.PROBE: self._probe,
            Verb.READ_DRIVER: lambda step: self.driver(_address(step)),
            Verb.RESET: lambda _: 0,
            Verb.REMOVE: self._remove,
            Verb.RESCAN_BUS: self._rescan,
            Verb.RESCAN_PORT: self._rescan,
            Verb.READ_CONFIG: self._read_config,
            Verb.UPDATE_CONFIG: self._update_config,
            Verb.SWITCH_LINK: self._switch_link,
        }

    def _set_num_vfs(self, step: Step) -> int:
        pf, wanted = self.functions[_address(step)], int(step.argument)
        have = len(self.vfs_of(pf.address))
        assert pf.physical is not None
        if wanted > pf.physical.total_vfs:
            return errno.ERANGE
        if wanted == have:
            return 0
        if not pf.driver:
            return errno.ENOENT
        if wanted and have:
            return errno.EBUSY
        for vf in self.vfs_of(pf.address).values():
            del self.functions[vf]
            self.overrides.pop(vf, None)
        for index in range(min(wanted, wanted if self.short is None else self.short)):
            vf_facts = make_vf(index, pf.address, self._new_identity())
            self.functions[vf_facts.address] = vf_facts
            if self._may_probe(vf_facts.address):
                self._attach(vf_facts.address, NATURAL["vf"])
        return 0

    def _new_identity(self) -> int:
        self._next_identity += 1000
        return self._next_identity

    def _set_autoprobe(self, step: Step) -> int:
        pf = self.functions[_address(step)]
        assert pf.physical is not None
        physical = replace(pf.physical, drivers_autoprobe=step.argument == "1")
        self.functions[pf.address] = replace(pf, physical=physical)
        return 0

    def _set_override(self, step: Step) -> int:
        self.overrides[_address(step)] = step.argument
        return 0

    def _may_probe(self, address: PciAddress) -> bool:
        virtual = self.functions[address].virtual
        parent = self.functions[virtual.parent].physical if virtual else None
        return parent is None or parent.drivers_autoprobe or bool(self.overrides.get(address))

    def _matching(self, address: PciAddress) -> str:
        kind = "vf" if self.functions[address].virtual else "pf"
        return self.overrides.get(address) or NATURAL[kind]

    def _bind(self, step: Step) -> int:
        address = _address(step)
        if step.argument not in self.drivers:
            return errno.ENOENT
        if self._matching(address) != step.argument or not self._may_probe(address):
            return errno.ENODEV
        if self.driver(address):
            return errno.EBUSY
        self._attach(address, step.argument)
        return 0

    def _unbind(self, step: Step) -> int:
        address = _address(step)
        if step.argument not in self.drivers or self.driver(address) != step.argument:
            return errno.ENODEV
        self._attach(address, "")
        return 0

    def _probe(self, step: Step) -> int:
        address = _address(step)
        found = self._matching(address)
        if not self.driver(address) and self._may_probe(address) and found in self.drivers:
            self._attach(address, found)
        return 0

    def _attach(self, address: PciAddress, driver: str) -> None:
        self.functions[address] = replace(self.functions[address], driver=driver)

    def _remove(self, step: Step) -> int:
        self.unplug(_address(step))
        return 0

    def unplug(self, pf: PciAddress) -> None:
        """It is gone, with its VFs."""
        for vf in self.vfs_of(pf).values():
            del self.functions[vf]
        del self.functions[pf]

    def _rescan(self, _step: Step) -> int:
        self.functions |= {each.address: each for each in self.bus_finds}
        return 0

    def config_of(self, address: PciAddress) -> bytearray:
        """The function's configuration space, all 0 but for a command register that lets it work."""
        return self.config.setdefault(address, bytearray(b"\0\0\0\0\6".ljust(4096, b"\0")))

    def _read_config(self, step: Step) -> str:
        offset, length = map(int, step.argument.split())
        return self.config_of(_address(step))[offset : offset + length].hex()

    def _update_config(self, step: Step) -> str:
        offset, width, mask, value = map(int, step.argument.split())
        config = self.config_of(_address(step))
        before = int.from_bytes(config[offset : offset + width], "little")
        if before != (1 << 8 * width) - 1:
            after = before & ~mask | value & mask
            config[offset : offset + width] = after.to_bytes(width, "little")
        return str(before)

    def _switch_link(self, step: Step) -> int:
        self.links[_address(step)] = step.argument
        return 0


def _address(step: Step) -> PciAddress:
    assert step.address is not None
    return step.address
