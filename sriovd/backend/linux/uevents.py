"""The kernel's uevents of PCI functions, and of their network interfaces, which udev renames.

Rule: an event is a reason to look, so nothing but its action, its address and what a recovery needs is
taken from it. The source is the kernel's multicast group, not udev's: no decision depends on what udev's
rules add, and events keep coming while udevd is slow, stopped or restarted.

The socket's error is fetched here and not left to pyudev, whose poll treats it as fatal. After ENOBUFS the
kernel goes on dropping events, without a further error, until the queue has been read empty
(net/netlink/af_netlink.c: netlink_overrun, netlink_rcv_wake). So EventsLost is told when it is empty: only
then does a look at everything miss nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import pyudev

from sriovd.backend.base import EventsLost, KernelEvent, Uevent, UeventAction
from sriovd.pci import AddressError, PciAddress

_log = logging.getLogger(__name__)
RECEIVE_BUFFER_BYTES = 128 * 1024 * 1024  # as udevd and libvirt; a limit, not an allocation
NETWORK_SUBSYSTEM = "net"
_BATCH = 64  # events read before the loop gets its turn
# In a storm (120 VFs come with some 400 events) every wake-up costs as much as a bind; a pause lets events
# gather. The first events of a storm, which may tell of an error, are taken at once.
_STORM_EVENTS = 32  # so many without _STORM_PAUSE_SEC of silence are a storm
_STORM_PAUSE_SEC = 0.1
# While a job runs, which looks by itself at what it touches: on two CPUs, taking 120 VFs' events meanwhile
# makes it a third slower, and taking 32 before the pause one by one still a twentieth.
_DEFERRED_STORM_EVENTS = 4
_DEFERRED_PAUSE_SEC = 2.0
# An interface that moves to another namespace says `remove` before sysfs shows it gone (net/core/dev.c
# __dev_change_net_namespace), and nothing afterwards: its function is looked at a second time.
_NETDEV_MOVES_SEC = 0.5
_PROPERTIES = ("DRIVER", "PCI_SLOT_NAME")
# Only `change` has these (drivers/pci/pci-driver.c pci_uevent_ers), and each costs all others a search.
_PROPERTIES_OF_CHANGE = (*_PROPERTIES, "ERROR_EVENT", "DEVICE_ONLINE")


class UeventMonitor:
    """A subscription to the uevents of `subsystems`, from start() to stop()."""

    def __init__(
        self,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        subsystems: tuple[str, ...] = ("pci", NETWORK_SUBSYSTEM),
    ) -> None:
        self._receive_buffer_bytes = receive_buffer_bytes
        self._subsystems = subsystems
        self._monitor: Any = None
        self._socket: socket.socket | None = None
        self._queue: deque[KernelEvent] = deque()
        self._ready = asyncio.Event()
        self._lost_reason = ""
        self._seen_in_a_row = 0
        self._last_seen_sec = 0.0
        self._pause: asyncio.TimerHandle | None = None
        self._deferred = False

    def start(self) -> None:
        """Subscribe. Raises OSError when the kernel does not let us."""
        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in self._subsystems:
            self._monitor.filter_by(subsystem)
        try:
            self._monitor.set_receive_buffer_size(self._receive_buffer_bytes)
        except OSError as error:  # without CAP_NET_ADMIN
            _log.warning("the uevent socket keeps its small buffer: %s", error)
        self._monitor.start()
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))
        self._resume()

    def stop(self) -> None:
        """Unsubscribe; the iterator ends after what has been received."""
        if self._pause is not None:
            self._pause.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        self._monitor = None  # closes pyudev's descriptor
        self._ready.set()

    def defer(self, deferred: bool) -> None:
        """Make the pauses of a storm long, or ordinary again."""
        self._deferred = deferred
        if not deferred and self._pause is not None:  # not at once: the job's reply goes first
            self._pause.cancel()
            self._pause = asyncio.get_running_loop().call_later(_STORM_PAUSE_SEC, self._resume)

    async def events(self) -> AsyncIterator[KernelEvent]:
        """Every event, in the kernel's order. One consumer."""
        while True:
            while self._queue:
                yield self._queue.popleft()
            if self._socket is None:
                return
            self._ready.clear()
            await self._ready.wait()

    def _receive(self) -> None:
        self._begin_count()
        for _ in range(_BATCH):
            try:
                device = self._monitor.poll(0)
            except OSError as error:
                self._note_error(error)
                continue
            if device is None:
                self._report_loss()
                self._pause_in_a_storm()
                break
            self._seen_in_a_row += 1
            if (event := _to_event(device)) is not None:
                self._queue.append(event)
                if device.subsystem == NETWORK_SUBSYSTEM:
                    asyncio.get_running_loop().call_later(_NETDEV_MOVES_SEC, self._repeat, event)
        else:  # there may be no more of them to wake us, and yet a loss to report
            asyncio.get_running_loop().call_soon(self._receive_more)
        if self._queue:
            self._ready.set()

    def _receive_more(self) -> None:
        if self._socket is not None and self._pause is None:
            self._receive()

    def _repeat(self, event: Uevent) -> None:
        self._queue.append(event)
        self._ready.set()

    def _begin_count(self) -> None:
        now_sec = asyncio.get_running_loop().time()
        if now_sec - self._last_seen_sec > 2 * _STORM_PAUSE_SEC:
            self._seen_in_a_row = 0
        self._last_seen_sec = now_sec

    def _pause_in_a_storm(self) -> None:
        loop = asyncio.get_running_loop()
        enough, pause_sec = (
            (_DEFERRED_STORM_EVENTS, _DEFERRED_PAUSE_SEC)
            if self._deferred
            else (_STORM_EVENTS, _STORM_PAUSE_SEC)
        )
        if self._seen_in_a_row >= enough and self._socket is not None:
            loop.remove_reader(self._socket)
            self._pause = loop.call_later(pause_sec, self._resume)

    def _resume(self) -> None:
        self._pause = None
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._receive)

    def _note_error(self, error: OSError) -> None:
        assert self._socket is not None
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or error.errno
        if code in (errno.ENOBUFS, None):
            size = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            self._lost_reason = f"the uevent socket's buffer of {size} bytes overran"
        else:
            self._lost_reason = f"a uevent could not be read: {error}"

    def _report_loss(self) -> None:
        if self._lost_reason:
            _log.warning("Events were lost: %s", self._lost_reason)
            self._queue.append(EventsLost(self._lost_reason))
            self._lost_reason = ""


def _name_of_function(device: Any) -> str:  # noqa: ANN401
    """The device's own name, or for a network interface (.../0000:01:00.0/net/eth0) its device's."""
    if device.subsystem != NETWORK_SUBSYSTEM:
        return str(device.sys_name)
    return os.path.basename(os.path.dirname(os.path.dirname(str(device.device_path))))


def _to_event(device: Any) -> Uevent | None:  # noqa: ANN401  pyudev has no types
    """The event, or None if it is not about a PCI function."""
    try:
        address = PciAddress.parse(_name_of_function(device))
        action = UeventAction(device.action)
    except AddressError:
        return None
    except ValueError:
        _log.warning("a uevent of %s has an unknown action: %r", device.sys_name, device.action)
        return None
    names = _PROPERTIES_OF_CHANGE if action is UeventAction.CHANGE else _PROPERTIES
    found = ((name, device.properties.get(name)) for name in names)
    return Uevent(action, address, {name: value for name, value in found if value is not None})
