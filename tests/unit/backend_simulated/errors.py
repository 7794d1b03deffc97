"""Errors on a small simulated host, and what is told of them."""

from __future__ import annotations

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.backend.model import PhysicalFunctionModel
from sriovd.pci import PciAddress

from .support import IGB, VF, VF1, Sim

PORT = "0000:00:01.0"
HEADER = (0x4000_0001, 0x0000_220F, 0x1000_0000, 0)
POISONED, TIMEOUT, MALFORMED, ECRC = 0x1000, 0x4000, 0x4_0000, 0x8_0000
ALL_ONES = b"\xff" * 4096


def equip(sim: Sim) -> Sim:
    sim.enable(IGB, 2)
    for vf in (VF, VF1):
        sim.bind(vf, "vfio-pci")
    return sim


def inject(
    sim: Sim, address: str, severity: Severity, status: int = 0, header: tuple[int, ...] = ()
) -> list[str]:
    """What is told of the error, in order."""
    sim.events()
    sim.backend.inject_error(PciAddress.parse(address), severity, status, header)
    return sim.events()


def record_of(sim: Sim, address: str, severity: Severity, status: int = 0) -> ErrorRecord:
    """The record of an error, which is the first thing that is told."""
    sim.events()
    sim.backend.inject_error(PciAddress.parse(address), severity, status, HEADER)
    first = sim.backend.host.uevents.drain()[0]
    assert isinstance(first, ErrorRecord)
    return first


def said(event: str, *addresses: str) -> list[str]:
    return [f"{event} {address}" for address in addresses]


def pf_model(sim: Sim, address: str = IGB) -> PhysicalFunctionModel:
    model = sim.device(address).model
    assert isinstance(model, PhysicalFunctionModel)
    return model


def config(sim: Sim, address: str) -> bytes:
    """What `cat config` shows."""
    with open(sim.backend.host.tree.path(sim.expand(f"{address}/config")), "rb") as file:
        return file.read()


def counters(sim: Sim, address: str) -> dict[str, dict[str, int]]:
    found = sim.backend.read_error_counters(PciAddress.parse(address))
    return {str(severity): dict(counts) for severity, counts in found.items() if counts["total"]}


def log(sim: Sim, *words: str) -> list[str]:
    """The lines without their times."""
    return [line.partition("] ")[2] for line in sim.backend.host.errors.read_log(0, words or ("",))]
