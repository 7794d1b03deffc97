"""One record of a VF's trace: what has happened to that VF, and because of what.

Rule: a record speaks of one VF and of nobody else's. The numbers of types, directions and states are part of
the format in memory (layout.py) and never change their meaning.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from sriovd.pci import PciAddress


class RecordType(IntEnum):
    """What a record tells of."""

    BEGIN = 1  # a transaction begins: a call, a job, a lease
    END = 2  # it has ended; same transaction
    WRITE = 3  # a write to sysfs
    READ = 4  # a read that takes a lock of the kernel's
    NETLINK = 5  # a request to the PF's network interface
    CONFIG = 6  # configuration space read or changed
    RESET = 7
    GRANT = 8  # resources given or taken
    HAND_OVER = 9  # the VFIO group given to its owner, taken back or opened
    RECOVERY = 10  # the VF's PE, or its adapter's, has come to another state
    NOTE = 11  # of the tracing itself: resumed after a restart
    UEVENT = 16
    ERROR = 17  # an AER record
    DRIVER = 18  # a message of the PF driver's, or another driver's, about the VF
    MAILBOX = 19  # a command that the VF's user has sent to the PF
    HARDWARE = 20  # a devlink hardware message
    HEALTH = 21  # a devlink health report


class Direction(IntEnum):
    """From whom to whom, as seen by sriovd."""

    NONE = 0  # inside sriovd
    FROM_OWNER = 1
    TO_KERNEL = 2
    FROM_KERNEL = 3
    TO_OWNER = 4


class Status(IntEnum):
    """How it went."""

    OK = 0
    FAILED = 1  # Record.errno says why, if the kernel has said so
    REFUSED = 2  # sriovd did not do it
    BEGUN = 3  # its END follows


class Record(NamedTuple):
    """`transaction`: its id, rising within one VF's trace. `parent`: that which caused it; 0: nothing.
    `time_nsec`: CLOCK_MONOTONIC when it had happened; `latency_nsec`: how long it took. `operation`: a word,
    `arguments`: text. `errno`: 0 for none. `lost`: how many records are missing right before it."""

    type: RecordType
    direction: Direction
    status: Status
    vf: PciAddress
    operation: str
    arguments: str = ""
    errno: int = 0
    time_nsec: int = 0
    latency_nsec: int = 0
    transaction: int = 0
    parent: int = 0
    lost: int = 0
