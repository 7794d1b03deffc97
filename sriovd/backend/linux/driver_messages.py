"""What drivers print about functions, live, from the systemd journal.

Rule: whose message it is is read from the kernel's structured fields (drivers/base/core.c set_dev_info, as
the journal keeps them), never from its text. A network driver's messages have them too: netdev_printk
(net/core/dev.c) is a dev_printk about the device below the interface. The journal and not /dev/kmsg, which
needs CAP_SYSLOG. Nobody but the kernel can set fields that begin with an underscore.

However dense the messages are, a turn of the event loop takes a bounded number of them and others have
their turn in between; the journal keeps the rest meanwhile. Who falls behind counts instead of reading.

Seen on systemd 252 and 257: the journal tells its followers of new lines up to 0.25 s late.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from systemd import journal

from sriovd.backend.driver_events import TEXT_LIMIT, DriverEvent, DriverMessage, MessagesLost
from sriovd.backend.linux.throttle import Throttle
from sriovd.outside import add_reader
from sriovd.pci import AddressError, PciAddress

_log = logging.getLogger(__name__)
_BUS = "+pci:"  # before a PCI device's name in the kernel's DEVICE field
_BATCH = 64  # messages in a turn
_STEPS = 512  # in a turn, when they are only counted
_PAUSE_SEC = 0.03  # after a turn that has not come to the end: some 2,000 messages a second are read
# So late are messages not told any more. Of a burst of 600 lines journald itself tells 2 s late (emulated).
_BEHIND_USEC = 10_000_000


class KernelJournal(journal.Reader):  # type: ignore[misc]  # systemd-python has no types
    """This boot's kernel messages about PCI devices. Reads single fields, where get_next() of the library
    would fetch and convert twenty. Raises OSError."""

    def __init__(self) -> None:
        super().__init__(journal.LOCAL_ONLY | journal.SYSTEM_ONLY)
        self.this_boot()
        self.add_match(_TRANSPORT="kernel", _KERNEL_SUBSYSTEM="pci")
        self.seek_tail()
        # At the tail of nothing there is no way on (sd_journal_next of systemd 252): then the first that
        # comes is the journal's first.
        if not self._previous():
            self.seek_head()

    def step(self) -> bool:
        """Go to the next message; False when there is none."""
        return bool(self._next())

    def at_usec(self) -> int:
        """When it was received, CLOCK_MONOTONIC. The kernel's own time is of another clock."""
        return int(self._get_monotonic()[0])

    def field(self, name: str) -> str:
        """One of its fields. Raises KeyError."""
        return _to_text(self._get(name))


class DriverMessages:
    """A subscription to messages about functions, from start() to stop(). `put` takes each; `is_known` says
    whether a function is of interest. `has_failed`: it has ended by itself, and was not started since."""

    def __init__(self, put: Callable[[DriverEvent], None], is_known: Callable[[PciAddress], bool]) -> None:
        self._put = put
        self._is_known = is_known
        self._throttle = Throttle(put)
        self._journal: Any = None
        self._fd = -1
        self._pause: asyncio.TimerHandle | None = None
        self._passed_over = 0
        self.has_failed = False

    def start(self) -> None:
        """Subscribe to what comes from now on; without a journal, to nothing."""
        try:
            self._journal = KernelJournal()
            self._fd = self._journal.fileno()
        except OSError as error:
            _log.warning("Messages of drivers cannot be followed, the journal cannot be read: %s", error)
            return
        self.has_failed = False
        add_reader(self._fd, self._wake_up)

    def stop(self) -> None:
        """Unsubscribe."""
        if self._journal is None:
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._throttle.flush()
        self._journal.close()
        self._journal = None

    def _wake_up(self) -> None:
        """Something was added to the journal, by whomever: the descriptor does not know our match."""
        try:
            self._journal.process()
            if self._pause is None:
                self._receive()
        except OSError as error:
            _log.warning("Messages of drivers cannot be followed any more: %s", error)
            self.stop()
            self.has_failed = True
            self._put(MessagesLost(None, 0, _now_usec()))

    def _receive(self) -> None:
        is_end = self._count() if self._passed_over else self._read()
        if not is_end:
            self._pause = asyncio.get_running_loop().call_later(_PAUSE_SEC, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._wake_up()

    def _read(self) -> bool:
        """Tell some messages; whether those were all."""
        for _ in range(_BATCH):
            if not self._journal.step():
                return True
            at_usec = self._journal.at_usec()
            if _now_usec() - at_usec > _BEHIND_USEC:
                self._passed_over = 1
                return False
            if (message := to_message(self._journal.field, at_usec)) and self._is_known(message.address):
                self._throttle.take(message)
        return False

    def _count(self) -> bool:
        """Pass over some messages; whether those were all."""
        for _ in range(_STEPS):
            is_end = not self._journal.step()
            self._passed_over += not is_end
            if is_end or _now_usec() - self._journal.at_usec() < _BEHIND_USEC // 2:
                _log.warning("%d messages of drivers came too densely to be read", self._passed_over)
                self._put(MessagesLost(None, self._passed_over, _now_usec()))
                self._passed_over = 0
                return is_end
        return False


def to_message(field: Callable[[str], str], at_usec: int) -> DriverMessage | None:
    """The message whose fields `field` reads, or None for one that is not about a PCI device.

    Its text begins with the driver's and the device's name, and an interface's if it has one: that is what
    dev_printk and netdev_printk put there.
    """
    try:
        device, text = field("_KERNEL_DEVICE"), field("MESSAGE")
        name = device.removeprefix(_BUS)
        address = PciAddress.parse(name)
    except (KeyError, AddressError):
        return None
    if device == name:
        return None
    head, colon, rest = text.partition(": ")
    words = head.split(" ")
    begins = bool(colon) and len(words) in (2, 3) and words[1] == name
    driver, said = (words[0], rest) if begins else ("", text)
    return DriverMessage(address, driver, said.strip()[:TEXT_LIMIT], at_usec)


def _to_text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def _now_usec() -> int:
    return time.monotonic_ns() // 1000
