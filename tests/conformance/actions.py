"""What a scenario is made of: accesses and questions through the backend's protocol, and what happens
beside it (a module is loaded, a process opens a device).

Rule: data only. Who carries an action out is transcript.py, with a bench for what no backend can do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from sriovd.backend.steps import Chain, Step
from sriovd.pci import PciAddress


@dataclass(frozen=True, slots=True)
class Malformed:
    """A text in the place of an address, written as it is."""

    text: str

    def __str__(self) -> str:
        return self.text


def malformed(text: str) -> PciAddress:
    """`text` where a Step wants an address: a step only ever prints it."""
    return cast(PciAddress, Malformed(text))


@dataclass(frozen=True, slots=True)
class Do:
    """A script: chains in order."""

    chains: tuple[Chain, ...]
    stop_on_failure: bool = False


@dataclass(frozen=True, slots=True)
class Begin:
    """A script that is expected to hang. `name`: what the scenario calls it."""

    name: str
    chains: tuple[Chain, ...]


@dataclass(frozen=True, slots=True)
class Hangs:
    """The script that was begun sleeps in the kernel function `where`, having slept elsewhere in passing."""

    name: str
    where: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The script that was begun comes back."""

    name: str


@dataclass(frozen=True, slots=True)
class Look:
    """Backend.read_function."""

    address: PciAddress


@dataclass(frozen=True, slots=True)
class ListFunctions:
    """Backend.list_functions."""


@dataclass(frozen=True, slots=True)
class ListVfs:
    """Backend.list_virtual_functions."""

    pf: PciAddress


@dataclass(frozen=True, slots=True)
class AskDriver:
    """Backend.driver_state."""

    driver: str


@dataclass(frozen=True, slots=True)
class FindHolders:
    """Backend.find_holders."""

    addresses: tuple[PciAddress, ...]


@dataclass(frozen=True, slots=True)
class AwaitLinkChanged:
    """A LinkChanged of `address` comes, or has come since the action before began."""

    address: PciAddress


@dataclass(frozen=True, slots=True)
class LoadDriver:
    """modprobe."""

    driver: str


@dataclass(frozen=True, slots=True)
class SetParameter:
    """A module's boolean parameter."""

    module: str
    name: str
    value: bool


@dataclass(frozen=True, slots=True)
class Open:
    """A process opens the VFIO device of a function and keeps it."""

    address: PciAddress


@dataclass(frozen=True, slots=True)
class Close:
    """And closes it again."""

    address: PciAddress


@dataclass(frozen=True, slots=True)
class AssignResources:
    """An NVMe VF gets queues and interrupts and goes online."""

    pf: PciAddress
    vf: PciAddress


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The PF's network interface is switched on, which its VFs' driver waits for, and has a carrier."""

    pf: PciAddress


@dataclass(frozen=True, slots=True)
class LinkDown:
    """And switched off again."""

    pf: PciAddress


@dataclass(frozen=True, slots=True)
class SetVfAttribute:
    """Somebody else sets a VF's attribute. `words`: as ip(8) has them after `vf`; `request`: the same for
    us."""

    pf: PciAddress
    words: str
    request: str


# a bench does these
Outside = LoadDriver | SetParameter | Open | Close | AssignResources | LinkUp | LinkDown | SetVfAttribute
Action = (
    Do | Begin | Hangs | Finish | Look | ListFunctions | ListVfs | AskDriver | FindHolders | AwaitLinkChanged
    | Outside
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scenario:
    """Actions on a host just out of its boot, and restored afterwards. `shows`: what it is about."""

    name: str
    shows: str
    actions: tuple[Action, ...]


def do(*steps: Step) -> Do:
    """One chain."""
    return Do((Chain(steps[0].address, steps),))


def begin(name: str, *steps: Step) -> Begin:
    """One chain that will hang."""
    return Begin(name, (Chain(steps[0].address, steps),))


def each(*steps: Step) -> Do:
    """One script, each step a chain of its own: all are tried."""
    return Do(tuple(Chain(item.address, (item,)) for item in steps))
