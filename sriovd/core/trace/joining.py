"""Which VFs an event of the host concerns, and what their records say of it. Pure.

Rule: default deny. An event belongs to a VF when the kernel's own fields say so, or when it is about its PF
and names exactly one VF in the form of the PF's driver (backend/vf_mentions.py). What names another VF,
several, or another function's address belongs to nobody: a trace is read by a tenant, who learns nothing of
his neighbours. Nor has a text whose end may be missing an owner.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, LinkChanged, Severity, Uevent
from sriovd.backend.driver_events import (
    TEXT_LIMIT,
    DeviceReport,
    DriverEvent,
    DriverMessage,
    MailboxMessage,
    MessagesLost,
    ReportSource,
)
from sriovd.backend.vf_mentions import find_addresses, find_index
from sriovd.core.recovery.record import Place
from sriovd.pci import PciAddress
from sriovd.pci_aer import CORRECTABLE_NAMES, UNCORRECTABLE_NAMES, bit_names
from sriovd.trace.record import Direction, RecordType, Status

# Whatever could be meant for a VF's number, in any spelling.
_ANY_NUMBER = re.compile(r"(?:vf|virtual function|virtfn|vport)s?\W{0,2}([0-9]+)", re.IGNORECASE | re.ASCII)
# Of a uevent's properties.
_SHOWN = ("DRIVER", "ERROR_EVENT", "DEVICE_ONLINE")
Told = Uevent | ErrorRecord | EventsLost | DriverEvent


@dataclass(frozen=True, slots=True)
class Telling:
    """What an event gives a record. `time_nsec`: CLOCK_MONOTONIC; 0: now."""

    type: RecordType
    direction: Direction
    status: Status
    operation: str
    arguments: str = ""
    time_nsec: int = 0


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """Who is who on the host, as far as joining has to know.

    `place_of`: the place of the VF at an address, None for what is no VF. `pf_driver_of`: the driver of the
    PF at an address, empty for none and for what is no PF. `vfs_of`: the VFs of a PF, by index.
    `pfs_beside`: all PFs of the adapter of the PF at an address, itself too; none for what is no PF.
    `list_traced`: the VFs whose owners read along.
    """

    place_of: Callable[[PciAddress], Place | None]
    pf_driver_of: Callable[[PciAddress], str]
    vfs_of: Callable[[PciAddress], Mapping[int, PciAddress]]
    pfs_beside: Callable[[PciAddress], tuple[PciAddress, ...]]
    list_traced: Callable[[], Collection[Place]]


def join(event: KernelEvent, host: Neighbourhood) -> list[tuple[Place, Telling]]:
    """The places of the VFs that `event` concerns, with what is told of it, the same to each; none for most.
    What the whole host has lost may be anybody's, who would believe that nothing is missing."""
    if isinstance(event, LinkChanged):
        return []
    if isinstance(event, EventsLost) or event.address is None:
        telling = describe(event, is_own=False)
        return [(each, telling) for each in host.list_traced()]
    place = host.place_of(event.address)
    own = [] if place is None else [place]
    if isinstance(event, DriverMessage | DeviceReport):
        places = [] if len(event.text) >= TEXT_LIMIT else _find_own(event, own) or _find_named(event, host)
        return [(each, describe(event)) for each in places]
    if isinstance(event, Uevent | MailboxMessage) or own:
        return [(each, describe(event)) for each in own]
    if isinstance(event, MessagesLost) and event.vf is not None:
        is_there = event.vf in host.vfs_of(event.address)
        return [((event.address, event.vf), describe(event))] if is_there else []
    # What befalls one of an adapter's PFs befalls all. Of other lost messages nobody knows whom they named.
    pfs = host.pfs_beside(event.address) if isinstance(event, ErrorRecord) else (event.address,)
    telling = describe(event, is_own=False)
    return [((pf, index), telling) for pf in pfs for index in sorted(host.vfs_of(pf))]


def _find_own(message: DriverMessage | DeviceReport, own: list[Place]) -> list[Place]:
    """The VF that the message is about, unless its text has another's number or address."""
    known = {message.address, *(pf for pf, _ in own)}
    numbers = {int(number) for number in _ANY_NUMBER.findall(message.text)}
    is_alone = numbers <= {index for _, index in own} and _names_no_other(message.text, known)
    return own if is_alone else []


def _find_named(message: DriverMessage | DeviceReport, host: Neighbourhood) -> list[Place]:
    """The VF that its PF's driver names; reports have no form that is known."""
    pf = message.address
    if isinstance(message, DeviceReport) or not message.driver or host.pf_driver_of(pf) != message.driver:
        return []
    index, vfs = find_index(message.driver, message.text), host.vfs_of(pf)
    if index is None or index not in vfs:
        return []
    return [(pf, index)] if _names_no_other(message.text, {pf, vfs[index]}) else []


def _names_no_other(text: str, known: set[PciAddress]) -> bool:
    """Whether every PCI address in `text` is of `known`."""
    return find_addresses(text) <= {str(address) for address in known}


def describe(event: Told, *, is_own: bool = True) -> Telling:
    """What a record says of `event`. `is_own`: it is about the VF itself; else about its PF, of whose doings
    a VF is told no more than what befalls itself."""
    match event:
        case Uevent():
            words = [f"{name}={value}" for name, value in event.properties.items() if name in _SHOWN]
            return _tell(RecordType.UEVENT, str(event.action), " ".join(words))
        case ErrorRecord():
            return _describe_error(event, is_own=is_own)
        case DriverMessage():
            text = f"{event.text} ({event.times} times)" if event.times > 1 else event.text
            return _tell(RecordType.DRIVER, event.driver or "kernel", text, event.at_usec)
        case DeviceReport():
            kind = RecordType.HEALTH if event.source is ReportSource.HEALTH else RecordType.HARDWARE
            return _tell(kind, str(event.source), event.text, event.at_usec)
        case MailboxMessage():
            status = Status.OK if event.ok else Status.FAILED
            return _tell(RecordType.MAILBOX, event.command, event.argument, event.at_usec, status)
        case MessagesLost():
            whose = f"{event.count} of this VF" if is_own and event.count else "perhaps of this VF"
            return _tell(RecordType.NOTE, "messages-lost", whose, event.at_usec, Status.FAILED)
        case EventsLost():
            return _tell(RecordType.NOTE, "events-lost", "perhaps of this VF", 0, Status.FAILED)


def _describe_error(event: ErrorRecord, *, is_own: bool) -> Telling:
    """Of a PF's the header is left out: it may be of anybody's transaction."""
    is_corrected = event.severity is Severity.CORRECTED
    names = bit_names(event.status, CORRECTABLE_NAMES if is_corrected else UNCORRECTABLE_NAMES)
    words = [event.severity, *(names or ["status-unknown"])]
    if is_own and event.tlp_header:
        words += ["tlp", *(f"{each:08x}" for each in event.tlp_header)]
    status = Status.OK if is_corrected else Status.FAILED
    operation = "vf-error" if is_own else "pf-error"
    return _tell(RecordType.ERROR, operation, " ".join(words), event.at_usec, status)


def _tell(
    kind: RecordType, operation: str, arguments: str, at_usec: int = 0, status: Status = Status.OK
) -> Telling:
    return Telling(kind, Direction.FROM_KERNEL, status, operation, arguments, at_usec * 1000)
