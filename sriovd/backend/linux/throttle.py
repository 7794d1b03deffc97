"""How densely messages of drivers are told: a flood is counted, not told line by line.

Rule: what keeps saying the same pays for it alone. Each text about a device is told a few times a second,
and then once, with how often it came; so a VF whose denied requests flood the log hides no other VF's
messages. Long numbers and MAC addresses do not make a text another, because a VF's user may choose them (igb
prints each word that it does not know). Only different texts in great number are cut off together, and
counted by device.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from sriovd.backend.driver_events import DeviceReport, DriverEvent, DriverMessage, MessagesLost
from sriovd.pci import PciAddress

Message = DriverMessage | DeviceReport
_CHOSEN = re.compile(r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b|\b(?:0x)?[0-9a-f]{4,}\b", re.IGNORECASE)
WINDOW_SEC = 1.0
SAME_AT_MOST = 8  # of one text in a window
TEXTS_AT_MOST = 256  # in a window


class Throttle:
    """Passes messages on to `put`. Nothing wakes up anybody while there are none."""

    def __init__(self, put: Callable[[DriverEvent], None]) -> None:
        self._put = put
        self._seen: Counter[Message] = Counter()  # by what is said, whenever
        self._latest: dict[Message, Message] = {}  # of what has not been told one by one
        self._cut: Counter[PciAddress] = Counter()
        self._cut_usec = 0  # when the last was
        self._window: asyncio.TimerHandle | None = None

    def take(self, message: Message) -> None:
        """Tell it, now or with others like it when the window ends."""
        if self._window is None:
            self._window = asyncio.get_running_loop().call_later(WINDOW_SEC, self.flush)
        said = replace(message, at_usec=0, text=_CHOSEN.sub("#", message.text))
        if said not in self._seen and len(self._seen) >= TEXTS_AT_MOST:
            self._cut[message.address] += 1
            self._cut_usec = message.at_usec
            return
        self._seen[said] += 1
        if self._seen[said] <= SAME_AT_MOST:
            self._put(message)
        else:
            self._latest[said] = message

    def flush(self) -> None:
        """End the window: tell what was held back."""
        if self._window is not None:
            self._window.cancel()
            self._window = None
        for said, latest in self._latest.items():
            self._put(_sum_up(latest, self._seen[said] - SAME_AT_MOST))
        for address, count in self._cut.items():
            self._put(MessagesLost(address, count, self._cut_usec))
        self._seen.clear()
        self._latest.clear()
        self._cut.clear()


def _sum_up(latest: Message, times: int) -> DriverEvent:
    if isinstance(latest, DriverMessage):
        return replace(latest, times=times)
    return MessagesLost(latest.address, times, latest.at_usec)
