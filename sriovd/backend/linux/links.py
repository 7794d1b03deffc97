"""The kernel's announcements that a network interface has changed, VF attributes included.

Rule: an announcement is a reason to look, so nothing but the function's address is taken from it, once for
many. It is in the message itself (IFLA_PARENT_DEV_NAME, since 5.14): no file and no lock is asked. What is
not about a PCI function costs one search of the message's bytes.

Seen (net/core/dev.c netdev_state_change): who sets a VF's attribute is announced while the PF's interface is
switched on, and not while it is off. What a VF's driver asks of its PF (its own MAC address) never is.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from sriovd.backend.base import EventsLost, KernelEvent, LinkChanged
from sriovd.backend.linux.pace import Pace
from sriovd.pci import AddressError, PciAddress

_log = logging.getLogger(__name__)
RECEIVE_BUFFER_BYTES = 16 * 1024 * 1024  # a limit, not an allocation; some 5,000 announcements
_SO_RCVBUFFORCE = 33
_RTMGRP_LINK = 1
_RTM_NEWLINK = 16
_MESSAGE = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTES = 16 + 16  # after it and struct ifinfomsg
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_PARENT_DEV_NAME = 56  # IFLA_PARENT_DEV_NAME
_ON_PCI = b"\x08\x00\x39\x00pci\0" if sys.byteorder == "little" else b"\x00\x08\x00\x39pci\0"
_DATAGRAM_BYTES = 65536  # without VFs, whom announcements leave out, a message has two thousand
_BATCH = 64  # datagrams read before the loop gets its turn


class LinkMonitor:
    """A subscription to the announcements of PFs and VFs, from start() to stop(). `put` takes each event;
    `is_known` says whether a function is of interest."""

    def __init__(
        self,
        put: Callable[[KernelEvent], None],
        is_known: Callable[[PciAddress], bool],
        receive_buffer_bytes: int = RECEIVE_BUFFER_BYTES,
    ) -> None:
        self._put = put
        self._is_known = is_known
        self._receive_buffer_bytes = receive_buffer_bytes
        self._socket: socket.socket | None = None
        self._pace = Pace(self._receive)
        self._lost_reason = ""

    def start(self) -> None:
        """Subscribe. Raises OSError when the kernel does not let us."""
        source = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        source.setblocking(False)
        try:
            source.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, self._receive_buffer_bytes)
        except OSError as error:  # without CAP_NET_ADMIN
            _log.warning("the link socket keeps its small buffer: %s", error)
        source.bind((0, _RTMGRP_LINK))
        self._socket = source
        self._pace.start(source)

    def stop(self) -> None:
        """Unsubscribe."""
        self._pace.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def defer(self, deferred: bool) -> None:
        """Make the pauses of a storm long, or ordinary again."""
        self._pace.defer(deferred)

    def _receive(self) -> None:
        assert self._socket is not None
        changed: dict[PciAddress, None] = {}
        for _ in range(_BATCH):
            try:
                data = self._socket.recv(_DATAGRAM_BYTES)
            except BlockingIOError:
                self._tell(changed)
                self._report_loss()
                self._pace.rest()
                return
            except OSError as error:
                self._note_error(error)
                continue
            addresses = find_functions(data)
            self._pace.count(len(addresses))
            changed.update(dict.fromkeys(addresses))
        self._tell(changed)
        self._pace.go_on()

    def _tell(self, changed: dict[PciAddress, None]) -> None:
        for address in changed:
            if self._is_known(address):
                self._put(LinkChanged(address))

    def _note_error(self, error: OSError) -> None:
        """The kernel drops on, without a further error, until the socket is empty: see uevents.py."""
        overrun = error.errno == errno.ENOBUFS
        self._lost_reason = "the link socket's buffer overran" if overrun else f"the link socket: {error}"

    def _report_loss(self) -> None:
        if self._lost_reason:
            _log.warning("Events were lost: %s", self._lost_reason)
            self._put(EventsLost(self._lost_reason))
            self._lost_reason = ""


def find_functions(data: bytes) -> list[PciAddress]:
    """The PCI functions whose interfaces a datagram's RTM_NEWLINK messages announce."""
    if _ON_PCI not in data:
        return []
    found = (_find_parent(body) for body in _split(data) if _ON_PCI in body)
    return [address for address in found if address is not None]


def _split(data: bytes) -> Iterator[bytes]:
    """The RTM_NEWLINK messages of a datagram."""
    while len(data) >= _ATTRIBUTES:
        length, kind, *_ = _MESSAGE.unpack_from(data)
        if kind == _RTM_NEWLINK:
            yield data[:length]
        data = data[max(length + 3 & ~3, _MESSAGE.size) :]


def _find_parent(message: bytes) -> PciAddress | None:
    offset = _ATTRIBUTES
    while offset + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, offset)
        if kind == _PARENT_DEV_NAME:
            name = message[offset + _ATTRIBUTE.size : offset + length].rstrip(b"\0")
            try:
                return PciAddress.parse(name.decode("ascii", "replace"))
            except AddressError:
                return None
        offset += max(length + 3 & ~3, _ATTRIBUTE.size)
    return None
