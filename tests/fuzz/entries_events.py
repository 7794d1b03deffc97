"""What the kernel and drivers tell of devices, on its way into somebody's trace."""

from __future__ import annotations

import asyncio
import os
import re
from functools import cache
from typing import Any

from sriovd.backend.base import ErrorRecord
from sriovd.backend.driver_events import DeviceReport, DriverEvent
from sriovd.backend.linux import device_reports, error_records
from sriovd.backend.linux.driver_messages import _to_text, to_message
from sriovd.backend.linux.ring_buffer import parse_fields, parse_format
from sriovd.backend.linux.throttle import SAME_AT_MOST, Throttle
from sriovd.backend.linux.trace_reader import _KIND, TraceEvent, TraceReader, _demand
from sriovd.backend.model.mailbox import MEMORY_WORDS, Mailbox, encode_command, mac_of
from sriovd.core.recovery.record import Place
from sriovd.core.trace.joining import Telling, join
from sriovd.pci import PciAddress
from sriovd.trace import layout
from sriovd.trace.record import Record
from tests.fuzz.entry import NO_ERRORS, Entry, to_text
from tests.unit.backend_linux import trace_pages as pages
from tests.unit.core.recovery.samples import TLP
from tests.unit.core.trace.test_joining import MAC_DENIED, OVERRIDE, PF, TWIN, TWIN_VFS, VFS, make_host

LINUX, MENTIONS = "sriovd.backend.linux", "sriovd.backend.vf_mentions"
# Each tracepoint with its form and a record of it.
_EVENTS: tuple[tuple[TraceEvent[Any], str, bytes], ...] = (
    (error_records._AER_EVENT, pages.AER_FORMAT, pages.make_record(str(VFS[1]), 0, 0x4000, TLP)),
    (
        device_reports._HARDWARE,
        pages.HWMSG_FORMAT,
        pages.make_hwmsg("pci", str(VFS[1]), 3, bytes(40), incoming=True, length=64),
    ),
    (
        device_reports._HEALTH,
        pages.HEALTH_FORMAT,
        pages.make_health_report("pci", str(VFS[1]), "tx", "TX timeout on queue: 1"),
    ),
)
_PLACES: dict[str, Place] = {
    str(address): place
    for pf, vfs in ((PF, VFS), (TWIN, TWIN_VFS))
    for place, address in (((pf, index), address) for index, address in vfs.items())
}
_NAMED = re.compile(r"(?<![\w:.])(?:0000:)?01:10\.[0-7](?![\w:])", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\bVF ([0-9]+)\b", re.ASCII)


class _Page(TraceReader[Any]):
    """A reader of all tracepoints, whose buffer has one page."""

    def __init__(self) -> None:
        self.told: list[ErrorRecord | DeviceReport] = []
        super().__init__("/", "fuzz", "events", (), self.told.append, lambda _reason: None)
        fields = parse_fields(pages.HEADER_PAGE)
        for event, text, _ in _EVENTS:
            form = parse_format(text)
            self._kinds[form.number] = event, form
            self._layout = {**fields, _KIND: form.fields[_KIND]}

    def read(self, page: bytes) -> list[ErrorRecord | DeviceReport]:
        """What the page tells."""
        buffer, end = os.pipe2(os.O_NONBLOCK)
        try:
            os.write(end, page)
            self._buffers = [buffer]
            self._poll.register(buffer)
            self.drain()
        finally:
            os.close(buffer)
            os.close(end)
        return self.told


def _page(page: bytes) -> object:
    """All events of a page, joined."""
    return [_join(each) for each in _Page().read(page)]


def _pages() -> tuple[bytes, ...]:
    records = [(number, record) for number, (_, _, record) in enumerate(_EVENTS, start=1)]
    mixed = pages.make_page(5, [*records, *reversed(records)])
    late = pages.make_page(2**64 - 1, records)
    return (mixed, late, *(pages.make_page(5, [each, each]) for each in records), pages.make_page(5))


def _format(data: bytes) -> object:
    """A format file, and the record of each tracepoint read by it."""
    form = parse_format(data.decode("ascii"))
    made, refused = [], []
    for event, _, record in _EVENTS:
        try:
            _demand(form.fields, (_KIND, *event.fields))
            made.append(event.decode(form.fields, 1, record))
        except ValueError as error:
            refused.append(error)
    if not made:
        raise refused[0]
    return made


def _join(event: DriverEvent | ErrorRecord) -> list[tuple[Place, Telling]]:
    """Those who are told of an event, with their records as their buffers get them."""
    told = join(event, make_host())
    for (pf, index), telling in told:
        layout.encode_record(
            Record(
                telling.type, telling.direction, telling.status, pf, telling.operation, telling.arguments,
                0, telling.time_nsec, 1, 1, 1,
            )
        )  # fmt: skip
        _check_alone(telling.arguments, pf, index)
    return told


def _check_alone(text: str, pf: PciAddress, index: int) -> None:
    """Nobody is told a text that names another VF."""
    for name in _NAMED.findall(text):
        assert _PLACES.get(name.lower()) == (pf, index), f"VF {index} of {pf} is told of {name}"
    for number in _NUMBER.findall(text):
        assert int(number) == index, f"VF {index} of {pf} is told of VF {number}"


def _message(data: bytes) -> object:
    """The journal's field DEVICE, NUL, and the message, often enough to be counted."""
    device, _, text = data.partition(b"\0")
    fields = {"_KERNEL_DEVICE": _to_text(device), "MESSAGE": _to_text(text)}
    message = to_message(fields.__getitem__, 5)
    if message is None:
        return None
    told: list[DriverEvent] = []
    throttle = Throttle(told.append)
    throttle._window = _loop().call_later(3600, lambda: None)
    for _ in range(SAME_AT_MOST + 2):
        throttle.take(message)
    throttle.flush()
    named = set(map(str.lower, _NAMED.findall(fields["MESSAGE"])))
    joined = [each for event in told for each in _join(event)]
    for place, _ in joined:
        assert all(_PLACES.get(name) == place for name in named), f"{place} is told of one of {named}"
    return joined


@cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def _messages() -> tuple[bytes, ...]:
    texts = (
        f"igb {PF}: {MAC_DENIED}", f"igb {PF}: {OVERRIDE}", f"igb {PF} eth0: VF 2: reset",
        f"igb {PF}: VF 1 and VF 2 {'x' * 480} VF 1", f"igb {PF}: VF 1 at {VFS[1]}, not {VFS[3]}",
        f"igb {PF}: {'y' * 500} VF 12",
    )  # fmt: skip
    own = (f"vfio-pci {VFS[1]}: resetting", f"vfio-pci {VFS[1]}: like {VFS[3]}", f"{VFS[1]}: VF 1 of {PF}")
    return tuple(
        f"+pci:{device}\0{text}".encode() for device, many in ((PF, texts), (VFS[1], own)) for text in many
    )


def _health(data: bytes) -> object:
    """What a device's driver says of itself."""
    reporter, _, message = to_text(data).partition("\0")
    record = pages.make_health_report("pci", str(VFS[1]), reporter[:64], message[:1024])
    event = device_reports._HEALTH.decode(parse_format(pages.HEALTH_FORMAT).fields, 5, record)
    assert event is not None
    return _join(event)


def _mailbox(data: bytes) -> object:
    """A command in words, through a mailbox."""
    command, _, argument = to_text(data).partition(" ")
    message = encode_command(command, argument)
    assert len(message) <= MEMORY_WORDS
    assert all(0 <= word < 1 << 32 for word in message)
    mailbox = Mailbox()
    mailbox.post(message)
    taken = mailbox.take()
    mailbox.answer(ok=bool(taken[1] & 1), words=message[1:3])
    return mac_of(taken), mailbox.is_acknowledged


ENTRIES = (
    Entry(
        "trace-events",
        _page,
        NO_ERRORS,
        _pages,
        (f"{LINUX}.trace_reader", f"{LINUX}.device_reports", f"{LINUX}.error_records"),
        (*(pages.word(kind, delta) for kind in (1, 9, 29, 30, 31) for delta in (0, 1)), b"\xc0\5", b"pci\0"),
        1 << 15,
    ),
    Entry(
        "event-format",
        _format,
        (ValueError,),
        lambda: tuple(text.encode() for _, text, _ in _EVENTS),
        (f"{LINUX}.ring_buffer", f"{LINUX}.trace_reader", f"{LINUX}.device_reports"),
        (b"\tfield:", b"offset:", b"size:", b";", b"\n", b"ID: ", b"buf", b"dev_name", b"99999999999"),
    ),
    Entry(
        "driver-message",
        _message,
        NO_ERRORS,
        _messages,
        (f"{LINUX}.driver_messages", f"{LINUX}.throttle", "sriovd.core.trace.joining", MENTIONS),
        (
            b"VF 1",
            b"VF ",
            b"vf",
            b"VF Reset msg received from vf ",
            b"VF reset check timeout on VF ",
            b" and ",
            b", ",
            b"+pci:",
            b"igb ",
            str(VFS[1]).encode(),
            str(VFS[3]).encode(),
            b"01:10.4",
            b"02:00:00:00:00:07",
            b": ",
            b"\n",
            b"1",
            b"\xd9\xa1",
            b"\xff",
        ),
        4096,
    ),
    Entry(
        "health-report",
        _health,
        NO_ERRORS,
        lambda: (b"tx\0TX timeout on queue: 1", f"fw\0syndrome of {VFS[1]}".encode()),
        (f"{LINUX}.device_reports", "sriovd.core.trace.joining", MENTIONS),
        (b"VF 1", b"VF 2", str(VFS[1]).encode(), str(VFS[3]).encode(), b"01:10.4", b" "),
        2048,
    ),
    Entry(
        "mailbox",
        _mailbox,
        (ValueError,),
        lambda: (
            b"reset",
            b"set-mac 02:00:00:00:00:07",
            b"set-multicast 12 345",
            b"add-vlan 100",
            b"set-promiscuous unicast",
            b"set-max-frame 9000",
        ),
        ("sriovd.backend.model.mailbox",),
        (b" ", b"65535", b"65536", b"999999999", b":", b"\xd9\xa3", b"set-multicast ", b"02"),
        1024,
    ),
)
