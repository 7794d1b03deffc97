"""How densely messages of drivers are told: a flood is counted, not told line by line.

Rule: what keeps saying the same pays for it alone. Each text about a device is told a few times a second,
and then once, with how often it came; so a VF whose denied requests flood the log hides no other VF's
messages. Numbers do not make a text another, except that of a VF, because a VF's user may choose them (igb
prints each word that it does not know, ice the number of each request). Different texts in great number are
cut off for each VF that they name, and for each device those that name none: who makes them hides his own.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from sriovd.backend.driver_events import TEXT_LIMIT, DeviceReport, DriverEvent, DriverMessage, MessagesLost
from sriovd.backend.vf_mentions import find_addresses, find_index
from sriovd.pci import PciAddress

Message = DriverMessage | DeviceReport
_CHOSEN = re.compile(
    r"(?<!\bvf )(?:\b0x[0-9a-f]+\b|\b[0-9a-f]{2,}\b|(?<![0-9])[0-9]+)", re.ASCII | re.IGNORECASE
)
WINDOW_SEC = 1.0
SAME_AT_MOST = 8  # of one text in a window
TEXTS_AT_MOST = 32  # of one subject in a window
ALL_TEXTS_AT_MOST = 4096  # in a window: some MB


class _Subject(NamedTuple):
    """Whom messages concern: a device, or the VF of it that they name (None: none for sure)."""

    address: PciAddress
    vf: int | None


class Throttle:
    """Passes messages on to `put`. Nothing wakes up anybody while there are none."""

    def __init__(self, put: Callable[[DriverEvent], None]) -> None:
        self._put = put
        self._seen: Counter[Message] = Counter()  # by what is said, whenever
        self._texts: Counter[_Subject] = Counter()
        self._latest: dict[Message, Message] = {}  # of what has not been told one by one
        self._cut: dict[_Subject, MessagesLost] = {}
        self._window: asyncio.TimerHandle | None = None

    def take(self, message: Message) -> None:
        """Tell it, now or with others like it when the window ends."""
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(WINDOW_SEC, self.flush)
        said = replace(message, at_usec=0, text=_CHOSEN.sub("#", message.text))
        if said not in self._seen and not self._has_room(message):
            return
        self._seen[said] += 1
        if self._seen[said] <= SAME_AT_MOST:
            self._put(message)
        else:
            self._latest[said] = message

    def _has_room(self, message: Message) -> bool:
        """Whether one more text about its subject may be told in this window; else it is counted."""
        subject = _Subject(message.address, _find_vf(message))
        if self._texts[subject] < TEXTS_AT_MOST and len(self._seen) < ALL_TEXTS_AT_MOST:
            self._texts[subject] += 1
            return True
        count = self._cut[subject].count if subject in self._cut else 0
        self._cut[subject] = MessagesLost(subject.address, count + 1, message.at_usec, subject.vf)
        return False

    def flush(self) -> None:
        """End the window: tell what was held back."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        for said, latest in self._latest.items():
            self._put(_sum_up(latest, self._seen[said] - SAME_AT_MOST))
        for lost in self._cut.values():
            self._put(lost)
        for each in (self._seen, self._texts, self._latest, self._cut):
            each.clear()


def _find_vf(message: Message) -> int | None:
    """The one VF that a PF's driver names. Of what may name others, too, nobody knows whose it is."""
    if isinstance(message, DeviceReport) or len(message.text) >= TEXT_LIMIT or find_addresses(message.text):
        return None
    return find_index(message.driver, message.text)


def _sum_up(latest: Message, times: int) -> DriverEvent:
    if isinstance(latest, DriverMessage):
        return replace(latest, times=times)
    return MessagesLost(latest.address, times, latest.at_usec)
