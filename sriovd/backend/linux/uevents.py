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
from collections.abc import AsyncIterator, Callable
from typing import Any

import pyudev

from sriovd.backend.base import ErrorRecord, EventsLost, KernelEvent, Severity, Uevent, UeventAction
from sriovd.backend.linux.pace import Pace
from sriovd.pci import AddressError, PciAddress

_log = logging.getLogger(__name__)
RECEIVE_BUFFER_BYTES = 128 * 1024 * 1024  # as udevd and libvirt; a limit, not an allocation
NETWORK_SUBSYSTEM = "net"
_BATCH = 64  # events read before the loop gets its turn
# An interface that moves to another namespace says `remove` before sysfs shows it gone (net/core/dev.c
# __dev_change_net_namespace), and nothing afterwards: its function is looked at a second time.
_NETDEV_MOVES_SEC = 0.5
_PROPERTIES = ("DRIVER", "PCI_SLOT_NAME")
# Only `change` has these (drivers/pci/pci-driver.c pci_uevent_ers), and each costs all others a search.
ERROR_EVENT = "ERROR_EVENT"
_PROPERTIES_OF_CHANGE = (*_PROPERTIES, ERROR_EVENT, "DEVICE_ONLINE")


class UeventMonitor:
    """A subscription to the uevents of `subsystems`, from start() to stop(). `before_recovery` is called
    when a uevent of a recovery is about to be told, and may put() what has to come first."""

    def __init__(
        self,
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
        subsystems: tuple[str, ...] = ("pci", NETWORK_SUBSYSTEM),
        before_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        self._receive_buffer_bytes = receive_buffer_bytes
        self._subsystems = subsystems
        self._before_recovery = before_recovery
        self._monitor: Any = None
        self._socket: socket.socket | None = None
        self._queue: deque[KernelEvent] = deque()
        self._ready = asyncio.Event()
        self._lost_reason = ""
        self._pace = Pace(self._receive)

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
        self._pace.start(self._socket)

    def stop(self) -> None:
        """Unsubscribe; the iterator ends after what has been received."""
        self._pace.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._monitor = None  # closes pyudev's descriptor
        self._ready.set()

    def defer(self, deferred: bool) -> None:
        """Make the pauses of a storm long, or ordinary again."""
        self._pace.defer(deferred)

    def put(self, event: KernelEvent) -> None:
        """Add an event, of this source or another, to those that events() gives."""
        self._queue.append(event)
        self._ready.set()
        if _is_urgent(event):
            self._pace.hurry()

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
        seen = 0
        for _ in range(_BATCH):
            try:
                device = self._monitor.poll(0)
            except OSError as error:
                self._note_error(error)
                continue
            if device is None:
                self._report_loss()
                self._pace.count(seen)
                self._pace.rest()
                return
            seen += 1
            if (event := _to_event(device)) is not None:
                if ERROR_EVENT in event.properties:
                    self._before_recovery()
                self.put(event)
                if device.subsystem == NETWORK_SUBSYSTEM:
                    asyncio.get_running_loop().call_later(_NETDEV_MOVES_SEC, self.put, event)
        self._pace.count(seen)
        self._pace.go_on()  # there may be no more of them to wake us, and yet a loss to report

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
            self.put(EventsLost(self._lost_reason))
            self._lost_reason = ""


def _is_urgent(event: KernelEvent) -> bool:
    """Whether a recovery is under way or about to begin: its uevents must not wait until a storm is over."""
    if isinstance(event, ErrorRecord):
        return event.severity is not Severity.CORRECTED
    return isinstance(event, Uevent) and ERROR_EVENT in event.properties


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
