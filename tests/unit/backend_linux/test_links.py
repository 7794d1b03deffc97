"""Announcements of network interfaces: the kernel's own, of dummy interfaces, and messages as PCI ones have
them."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING

import pytest

from sriovd.backend.base import EventsLost, KernelEvent, LinkChanged
from sriovd.backend.linux import links
from sriovd.backend.linux.links import LinkMonitor, find_functions
from sriovd.pci import PciAddress

if TYPE_CHECKING:
    from tests.unit.backend_linux.conftest import Play, WaitUntil

PF = PciAddress.parse("0000:01:00.0")
VF = PciAddress.parse("0000:01:10.0")
NOOP, NEWLINK, DELLINK = 1, 16, 17


def attribute(kind: int, value: bytes) -> bytes:
    padding = b"\0" * (-len(value) % 4)
    return struct.pack("=HH", 4 + len(value), kind) + value + padding


def announce(parent: str | None, bus: str = "pci", kind: int = NEWLINK) -> bytes:
    body = bytes(16) + attribute(3, b"eth0\0") + attribute(4, bytes(4))
    if parent is not None:
        body += attribute(56, parent.encode() + b"\0") + attribute(57, bus.encode() + b"\0")
    body += attribute(1, bytes(6))
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_a_pci_parent_is_found() -> None:
    assert find_functions(announce(str(PF))) == [PF]
    assert find_functions(announce(str(PF)) + announce(None) + announce(str(VF))) == [PF, VF]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        announce(None),
        announce("virtio0", "virtio"),
        announce(str(PF), kind=DELLINK),
        announce("0000:zz:00.0"),
        announce(str(PF))[:40],
        bytes(64) + announce(str(PF))[32:],
        announce(str(PF))[:33] + b"\xff\xff" + announce(str(PF))[35:],
    ],
)
def test_what_is_no_announcement_of_a_pci_function_says_nothing(data: bytes) -> None:
    assert find_functions(data) == []


class Source:
    """A LinkMonitor on a socket that the test writes to."""

    def __init__(self) -> None:
        self.taken: list[KernelEvent] = []
        self.monitor = LinkMonitor(self.taken.append, lambda address: address != VF)
        self.monitor.start()
        own, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        own.setblocking(False)
        self.monitor.stop()
        self.monitor._socket = own
        self.monitor._pace.start(own)

    def stop(self) -> None:
        self.monitor.stop()
        self.peer.close()


def test_a_batch_is_told_once_and_strangers_never(play: Play, wait_until: WaitUntil) -> None:
    async def story() -> None:
        source = Source()
        for parent in (str(VF), str(PF), None, str(PF), "0000:02:00.0", str(PF)):
            source.peer.send(announce(parent))
        await wait_until(lambda: bool(source.taken))
        assert source.taken == [LinkChanged(PF), LinkChanged(PciAddress.parse("0000:02:00.0"))]
        source.peer.send(announce(str(PF)))
        await wait_until(lambda: len(source.taken) == 3)
        source.stop()

    play(story())


def test_an_overrun_is_told_when_the_socket_is_empty(play: Play, wait_until: WaitUntil) -> None:
    async def story() -> None:
        taken: list[KernelEvent] = []
        monitor = LinkMonitor(taken.append, lambda _address: True, receive_buffer_bytes=1)
        monitor.start()
        flood()
        await wait_until(lambda: bool(taken))
        assert taken == [EventsLost("the link socket's buffer overran")]
        flood()  # and once more
        await wait_until(lambda: len(taken) == 2)
        monitor.stop()

    play(story())


def test_a_loss_is_told_after_a_full_batch_too(play: Play, wait_until: WaitUntil) -> None:
    """Nothing follows that would wake the monitor."""

    async def story() -> None:
        taken: list[KernelEvent] = []
        monitor = LinkMonitor(taken.append, lambda _address: True)
        monitor.start()
        assert monitor._socket is not None
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sender:
            try:
                for _ in range(links._BATCH):
                    sender.sendto(announce(None), (monitor._socket.getsockname()[0], 0))
            except OSError as error:
                pytest.skip(f"nothing can be sent to a netlink socket here: {error.strerror}")
        monitor._lost_reason = "a test"
        await wait_until(lambda: taken == [EventsLost("a test")])
        monitor.stop()

    play(story())


def flood() -> None:
    """More than the smallest buffer holds, of messages that mean nothing to whoever else may listen."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sender:
        try:
            for _ in range(100):
                sender.sendto(announce(None, kind=NOOP), (0, 1))
        except OSError as error:
            pytest.skip(f"nothing can be sent to the group of links here: {error.strerror}")


def test_stop_closes_the_socket(play: Play) -> None:
    async def story() -> None:
        monitor = LinkMonitor(lambda _event: None, lambda _address: True)
        monitor.stop()  # never started
        monitor.start()
        source = monitor._socket
        assert source is not None
        monitor.stop()
        await asyncio.sleep(0)
        assert source.fileno() == -1

    play(story())
