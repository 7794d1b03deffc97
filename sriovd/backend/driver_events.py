"""What drivers and their devices say of functions, as events of a host: texts, where uevents and error
records have fields.

Rule: they are for whoever traces a VF, and no decision rests on one: their words are a driver's own and
change with releases. Followed only while somebody asks for them (Backend.listen_to_drivers).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sriovd.pci import PciAddress

TEXT_LIMIT = 512
"""Characters of a text; one that long may have been cut, and nobody knows whom the rest names. The kernel
cuts longer lines only (kernel/printk/printk.c: PRINTKRB_RECORD_MAX)."""


@dataclass(frozen=True, slots=True)
class DriverMessage:
    """A line of the kernel's log that a driver has printed about a device (dev_printk).

    `address`: the device's, as the kernel's structured field says it, never the text. `driver`: whose line
    it is; empty where the line does not begin with that. `text`: what follows; may have several lines.
    `at_usec`: CLOCK_MONOTONIC. `times`: how often it has come since it was last told; 1 unless it floods.
    """

    address: PciAddress
    driver: str
    text: str
    at_usec: int
    times: int = 1


class ReportSource(StrEnum):
    """Where a device's report comes from: devlink's tracepoints (include/trace/events/devlink.h)."""

    HARDWARE_MESSAGE = "devlink-hwmsg"
    HEALTH = "devlink-health"


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """What a device or its driver has reported through devlink. `at_usec`: CLOCK_MONOTONIC."""

    address: PciAddress
    source: ReportSource
    text: str
    at_usec: int


@dataclass(frozen=True, slots=True)
class MailboxMessage:
    """A command that the user of the VF at `address` has sent to its PF, and the answer: `ok` for ACK, else
    NACK. `argument`: as text; empty for none. `at_usec`: CLOCK_MONOTONIC. Only a simulated host sees it."""

    address: PciAddress
    command: str
    argument: str
    ok: bool
    at_usec: int


@dataclass(frozen=True, slots=True)
class MessagesLost:
    """`count` messages or reports about the device at `address` are missing: they came too densely, or their
    source has failed. `address` None: whose they were is not known; `count` 0: how many is not. `vf`: the
    index of the VF that each of them named, and no other (backend/vf_mentions.py); None: not known."""

    address: PciAddress | None
    count: int
    at_usec: int
    vf: int | None = None


DriverEvent = DriverMessage | DeviceReport | MailboxMessage | MessagesLost
