"""The host on which daemons are killed: what is there, as the simulated kernel has it, and every write.

Rule: the truth is taken from the kernel's own objects and never from the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.device import Device
from sriovd.backend.simulated.kernel import Call
from sriovd.backend.steps import Access, Verb
from sriovd.backend.vf_attributes import VfAttributes, parse_request
from sriovd.pci import PciAddress

MACHINE = (("igb", "0000:01:00.0"), ("igb", "0000:02:00.0"), ("nvme", "0000:03:00.0"))
PF, PF2, NVME = (PciAddress.parse(address) for _, address in MACHINE)

Place = tuple[PciAddress, int]  # PF and index


@dataclass(frozen=True)
class Vf:
    """A VF at one moment. `device`: the kernel's object, another one for a successor."""

    device: Device
    driver: str
    override: str
    attributes: VfAttributes


@dataclass(frozen=True)
class Scene:
    """The host at one moment."""

    vfs: Mapping[Place, Vf]
    autoprobe: Mapping[PciAddress, bool]
    writes: int  # so many had been made by then


class CrashHost:
    """A simulated host that counts."""

    def __init__(self, root: str) -> None:
        self.backend = SimulatedBackend(root, machine=MACHINE)
        self.written: list[Place | PciAddress] = []  # what each write was about, in order
        for pf in (PF, PF2):
            self.backend.switch_interface(pf, on=True)
        start = self.backend.kernel.start

        def count(access: Access, path: str, data: bytes = b"") -> Call:
            subject = _subject_of(access, path, data)
            if subject is not None:
                self.written.append(subject)
            return start(access, path, data)

        self.backend.kernel.start = count  # type: ignore[method-assign]

    def look(self) -> Scene:
        """The host now."""
        devices = self.backend.host.devices
        pfs = [devices[pf] for pf in (PF, PF2, NVME) if pf in devices]
        vfs = {
            (pf.address, index): _vf(pf, index, vf)
            for pf in pfs
            for index, vf in enumerate(self.backend.host.list_vfs(pf))
        }
        autoprobe = {pf.address: pf.sriov.drivers_autoprobe for pf in pfs if pf.sriov}
        return Scene(vfs, autoprobe, len(self.written))

    def writes_since(self, scene: Scene) -> set[Place]:
        """The VFs that were written to."""
        places = {vf.device.address: place for place, vf in self.look().vfs.items()}
        since = self.written[scene.writes :]
        named = {each for each in since if not isinstance(each, PciAddress)}
        return named | {places[each] for each in since if isinstance(each, PciAddress) and each in places}


def _vf(pf: Device, index: int, vf: Device) -> Vf:
    known = index < len(pf.vf_attributes)
    override = (vf.driver_override or b"").decode()
    return Vf(vf, vf.driver_name, override, pf.vf_attributes[index] if known else VfAttributes())


def _subject_of(access: Access, path: str, data: bytes) -> Place | PciAddress | None:
    if access is Access.LINK:
        verb, _, request = data.decode().partition(" ")
        if verb != Verb.SET_VF_ATTRIBUTE:
            return None
        pf = PciAddress.parse(path.split("/")[-2])
        return pf, parse_request(request)[0]
    if access is not Access.WRITE:
        return None
    text = data.decode().strip() if "/drivers" in path else path.split("/")[-2]
    return PciAddress.parse(text) if text.count(":") == 2 else None
