"""The hardware of the simulated host: root ports and what is plugged into them. It outlives the kernel's
idea of it.

Rule: no kernel state here. `remove` makes the kernel forget a device, `rescan` finds it again because it is
still in this file's lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sriovd.backend.model import Adapter, AdapterProfile, PhysicalFunctionModel, VirtualFunctionModel
from sriovd.backend.model.adapter import sriov_profile
from sriovd.backend.model.configspace import ConfigLayout
from sriovd.backend.simulated.device import BusRange, Resource
from sriovd.backend.simulated.recorded import dress_config, dress_layout
from sriovd.backend.simulated.resources import AddressSpace, assign_resources
from sriovd.pci import PciAddress

HOST_BRIDGE = (0x8086, 0x29C0, 0x060000)  # vendor, device, class of the q35 machine's
ROOT_PORT = (0x1B36, 0x000C, 0x060400)
_LAST_SLOT = 0x1F
_EXPRESS = 0x54  # where the port's PCI Express capability is


@dataclass(slots=True, eq=False)
class Port:
    """A PCI Express root port."""

    address: PciAddress
    buses: BusRange
    config: bytes
    recorded: dict[str, bytes] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Card:
    """An adapter in a slot, with the addresses that its BARs have been given and what was recorded of its
    PFs."""

    adapter: Adapter
    port: Port
    resources: dict[PciAddress, tuple[Resource, ...]] = field(default_factory=dict)
    recorded: dict[PciAddress, dict[str, bytes]] = field(default_factory=dict)
    vf_dumps: dict[PciAddress, bytes] = field(default_factory=dict)  # a recorded VF's configuration, by PF
    _vf_layout: ConfigLayout | None = None

    def make_vf(self, pf: PhysicalFunctionModel, index: int) -> VirtualFunctionModel:
        """VF `index` of `pf`, with the registers that were recorded if there was one."""
        vf = pf.virtual_function(index)
        dump = self.vf_dumps.get(pf.address)
        if dump is not None:
            if self._vf_layout is None:
                self._vf_layout = dress_layout(vf.config.layout, dump)
            if vf.config.layout is not self._vf_layout:
                dress_config(vf.config, self._vf_layout)
        return vf


class Machine:
    """What is there, whether the kernel has found it or not."""

    def __init__(self, links_return: bool = False) -> None:
        """`links_return`: whether the links of the ports that are built here are known to come back after a
        reset; those of QEMU's are not."""
        self.links_return = links_return
        self.ports: dict[PciAddress, Port] = {}
        self.cards: dict[PciAddress, Card] = {}  # by the address of function 0
        self.space = AddressSpace()

    def make_vf(self, pf: PhysicalFunctionModel, index: int) -> VirtualFunctionModel:
        """The model of VF `index` of `pf`, which exists while VF Enable is set."""
        card = self.find_card(pf.address)
        return card.make_vf(pf, index) if card else pf.virtual_function(index)

    def plug(self, profile: AdapterProfile, address: PciAddress) -> Card:
        """Put an adapter at `address`, below the port that has its bus, or a new port. Raises ValueError
        naming what is in the way."""
        if address in self.cards:
            raise ValueError(f"{address} has an adapter already")
        if address.bus == 0:
            raise ValueError(f"{address}: bus 00 is the host bridge's; adapters are below root ports")
        if address.device:
            raise ValueError(f"{address}: a root port has one slot, which is device 00, function 0")
        adapter = Adapter(profile, address)
        port = self.find_port(address) or self.add_port(
            address.domain, address.bus, last_bus(profile, address)
        )
        if last_bus(profile, address) not in port.buses:
            raise ValueError(
                f"{address}: the VFs of {profile.name} need bus numbers past {port.buses.subordinate:02x}"
            )
        card = Card(adapter, port)
        for pf in adapter.physical_functions:
            card.resources[pf.address] = assign_resources(pf, self.space)
        self.cards[address] = card
        return card

    def unplug(self, address: PciAddress) -> Card:
        """Pull the adapter with the PF at `address` out. Raises ValueError if there is none."""
        card = self.find_card(address)
        if card is None:
            raise ValueError(f"nothing is plugged in at {address}")
        card.adapter.surprise_down()
        del self.cards[card.adapter.address]
        return card

    def reset_bus(self, port: PciAddress) -> None:
        """A secondary bus reset below the port at `port`."""
        for card in self.cards.values():
            if card.port.address == port:
                card.adapter.hot_reset()

    def find_card(self, address: PciAddress) -> Card | None:
        """The adapter whose PF is at `address`."""
        card = self.cards.get(PciAddress(address.domain, address.bus, address.device, 0))
        known = card and any(pf.address == address for pf in card.adapter.physical_functions)
        return card if known else None

    def find_port(self, address: PciAddress) -> Port | None:
        """The port that leads to `address`."""
        fitting = (
            port
            for port in self.ports.values()
            if port.address.domain == address.domain and address.bus in port.buses
        )
        return next(fitting, None)

    def add_port(self, domain: int, secondary: int, subordinate: int) -> Port:
        """Build a root port with these buses at the first free slot of bus 0. Raises ValueError when they
        overlap another port's or nothing is free."""
        for port in self.ports.values():
            overlap = port.buses.secondary <= subordinate and secondary <= port.buses.subordinate
            if port.address.domain == domain and overlap:
                raise ValueError(
                    f"buses {secondary:02x} to {subordinate:02x} overlap those of port {port.address}"
                )
        address = self._free_place(domain)
        buses = BusRange(secondary, subordinate)
        port = Port(address, buses, build_port_config(buses, self.links_return))
        self.ports[address] = port
        return port

    def _free_place(self, domain: int) -> PciAddress:
        for device in range(1, _LAST_SLOT + 1):
            for function in range(8):
                place = PciAddress(domain, 0, device, function)
                if place not in self.ports:
                    return place
        raise ValueError("no place is left on bus 00 for another root port")


def last_bus(profile: AdapterProfile, address: PciAddress) -> int:
    """The bus number of the last VF that an adapter at `address` could ever have."""
    sriov = sriov_profile(profile.pf)
    reach = max(row.offset + row.stride * (sriov.total_vfs - 1) for row in sriov.routings)
    return (address.rid + profile.physical_functions - 1 + reach) >> 8


def build_port_config(buses: BusRange, is_link_active: bool) -> bytes:
    """A root port's configuration space: type 1 header (PCI-to-PCI bridge 3.2) and a PCI Express capability
    with a slot, ARI forwarding on (PCIe 7.5.3). `is_link_active`: what it says of its link, if it says so
    at all."""
    link_status = 0x2013 if is_link_active else 0x0013
    vendor, device, class_code = ROOT_PORT
    config = bytearray(4096)
    for offset, width, value in (
        (0x00, 2, vendor), (0x02, 2, device), (0x04, 2, 0x0507), (0x06, 2, 0x0010), (0x09, 3, class_code),
        (0x0E, 1, 0x01),
        (0x19, 1, buses.secondary), (0x1A, 1, buses.subordinate), (0x34, 1, _EXPRESS), (0x3D, 1, 1),
        (_EXPRESS, 2, 0x0010), (_EXPRESS + 0x02, 2, 0x0142), (_EXPRESS + 0x04, 4, 0x8020),
        (_EXPRESS + 0x0C, 4, 0x0010_0813), (_EXPRESS + 0x12, 2, link_status),
        (_EXPRESS + 0x14, 4, 0x0000_007B),
        (_EXPRESS + 0x24, 4, 0x0000_0020), (_EXPRESS + 0x28, 2, 0x0020), (_EXPRESS + 0x2C, 4, 0x0000_001E),
    ):  # fmt: skip
        config[offset : offset + width] = value.to_bytes(width, "little")
    return bytes(config)


def build_bridge_config() -> bytes:
    """The host bridge's configuration space: a bare type 0 header."""
    vendor, device, class_code = HOST_BRIDGE
    config = bytearray(256)
    for offset, width, value in ((0x00, 2, vendor), (0x02, 2, device), (0x09, 3, class_code)):
        config[offset : offset + width] = value.to_bytes(width, "little")
    return bytes(config)
