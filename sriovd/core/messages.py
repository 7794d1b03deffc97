"""What sriovd tells the system's journal: one id for each kind of message, so that people can ask for
exactly those (`journalctl MESSAGE_ID=...`), and fields to filter by (`journalctl
SRIOVD_ADDRESS=0000:01:00.0`).

Rule: an id never changes its meaning; units/sriovd.catalog explains each, and a test compares the two.
"""

from __future__ import annotations

import logging
from enum import StrEnum


class Message(StrEnum):
    """The kinds of messages; values are journal message ids (128 bits in hexadecimal)."""

    STARTED = "32ab4a2a1a2a4883bb105fcd55c0a208"
    JOB_DONE = "4e244a4fabab4ab39b60ef3fca1be46c"
    JOB_FAILED = "1b17b0eae98f4431a0acd5b28daed435"
    FUNCTION_ADDED = "89c7dbc8fb9f48d994c3b1db1b596173"
    FUNCTION_REMOVED = "f1fc47d739fa49f893f2da8adc404656"
    ADAPTER_STUCK = "de92f68364ca4de88be55515d199e1c5"
    ADAPTER_UNSTUCK = "5232959913f144779670859b2d5eb330"
    QUARANTINED = "d43a7d59e54d4309aeeee1f43537b2ff"
    EVENTS_LOST = "e19868b2cda148739e4cca9175e1095c"
    POLICY_IN_SYNC = "0d4b1a6c8e5f4f2d9b3a7c61e2f08d15"
    POLICY_DRIFT = "7f2c9e1b4a6d4c3e8d5b0a91f3e7c264"
    POLICY_BROKEN = "b8e3d5a1c7f94e60a2d18f4c6b9e0372"
    LEASE = "c4a19d7e2b8f4a53915e6d3f0b7c8a26"
    RECOVERY = "5d0e8b3c71f24c6a9be27a46f1d8c935"
    PCI_ERROR = "a7c3f1e85b2d4e0f8a9d6c4b3e2f1071"
    AUDIT = "e2b96d40c8a14f7d93b5c0e7a1f4d862"
    MUTATION = "3f8a1d6e9c274b50a8e3b7d2c5f09164"


FIELDS_ATTRIBUTE = "journal_fields"  # of a LogRecord: extra journal fields by name

_LEVELS = {
    Message.JOB_FAILED: logging.WARNING,
    Message.ADAPTER_STUCK: logging.ERROR,
    Message.QUARANTINED: logging.ERROR,
    Message.EVENTS_LOST: logging.WARNING,
    Message.POLICY_DRIFT: logging.WARNING,
    Message.POLICY_BROKEN: logging.ERROR,
    Message.RECOVERY: logging.WARNING,
    Message.PCI_ERROR: logging.WARNING,
    Message.AUDIT: logging.WARNING,
}


def announce(log: logging.Logger, message: Message, text: str, **fields: str | int) -> None:
    """Write `text` to the journal as a `message`; each of `fields` becomes SRIOVD_<NAME>."""
    extra = {
        "MESSAGE_ID": message.value,
        **{f"SRIOVD_{name.upper()}": str(value) for name, value in fields.items()},
    }
    log.log(_LEVELS.get(message, logging.INFO), "%s", text, extra={FIELDS_ATTRIBUTE: extra})
