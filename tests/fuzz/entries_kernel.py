"""Parsers of what the kernel, and helpers, tell the daemon on a real host."""

from __future__ import annotations

import datetime
import os
import re
import struct
from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

from sriovd.backend.linux import helper, kernel_log, modules, netlink, registry, uevents
from sriovd.backend.linux.error_records import to_record
from sriovd.backend.linux.links import find_functions
from sriovd.backend.linux.registry import Record
from sriovd.backend.linux.ring_buffer import parse_fields, parse_format, split_page
from sriovd.backend.steps import Step, Verb
from sriovd.backend.vf_attributes import parse_report
from sriovd.core.recovery.bundle_size import fit_bundle
from sriovd.core.recovery.report import render
from tests.fuzz.entry import NO_ERRORS, Entry, to_name, to_text
from tests.unit.backend_linux import test_links as links_test
from tests.unit.backend_linux import test_netlink as netlink_test
from tests.unit.backend_linux import trace_pages as pages
from tests.unit.core.recovery.samples import PF, TLP, make_bundle

LINUX = "sriovd.backend.linux"
_LAYOUT = parse_fields(pages.HEADER_PAGE)
_FIELDS = parse_format(pages.AER_FORMAT).fields
_WORDS = tuple(pages.word(kind, delta) for kind in (1, 9, 29, 30, 31) for delta in (0, 1, 1 << 26))


def _page(page: bytes) -> object:
    records, lost = split_page(_LAYOUT, page)
    return [to_record(_FIELDS, *record) for record in records], lost


def _pages() -> tuple[bytes, ...]:
    record = pages.make_record(str(PF), 0, 0x4000, TLP)
    recorded = bytes.fromhex(pages.CORRECTED_7_2 + pages.NONFATAL_7_2)
    stamps = pages.word(30, 7) + pages.word(1) + pages.word(31, 7) + pages.word(1) + pages.word(29, 1)
    return (
        pages.make_page(5, [(1, record), (2, record)]),
        pages.make_page(pages.RECORDED_NSEC, raw=recorded),
        pages.make_page(
            5, raw=stamps + pages.word(8) + bytes(8) + pages.word(0) + pages.word(12), flags=1 << 31
        ),
    )


def _format(data: bytes) -> object:
    """A format file as _read() gives it, and a record read by it."""
    event = parse_format(data.decode("ascii"))
    names = ("common_type", "dev_name", "status", "severity", "tlp_header_valid", "tlp_header")
    if all(name in event.fields for name in names):
        return to_record(event.fields, 1, pages.make_record(str(PF), 0, 1, TLP))
    return None


def _layout(data: bytes) -> object:
    layout = parse_fields(data.decode("ascii"))
    if {"timestamp", "commit", "data"} <= layout.keys():
        return split_page(layout, _pages()[0])
    return None


def _reply(data: bytes) -> object:
    code, text = netlink.decode_reply(data)
    return code or parse_report(text)  # what one end writes the other reads


def _replies() -> tuple[bytes, ...]:
    both = netlink_test.vf(0) + netlink_test.vf(1, guid=7, protocol=0x88A8)
    asked = netlink.encode_step(Step(Verb.SET_VF_ATTRIBUTE, PF, "3 vlan 100 2 802.1ad"))
    return netlink_test.reply(both, 2), netlink_test.reply(b"", 0), asked


def _announcements() -> tuple[bytes, ...]:
    one = links_test.announce(str(PF))
    return one, one + links_test.announce(None) + one, links_test.announce("virtio0", "virtio")


class _Device:
    """A uevent's text (lib/kobject_uevent.c) as pyudev gives it."""

    def __init__(self, data: bytes) -> None:
        pairs = (part.partition("=") for part in to_name(data).split("\0"))
        self.properties = {name: value for name, _, value in pairs}
        self.action = self.properties.get("ACTION")
        self.subsystem = self.properties.get("SUBSYSTEM")
        self.device_path = self.properties.get("DEVPATH", "")
        self.sys_name = os.path.basename(self.device_path)


def _uevents() -> tuple[bytes, ...]:
    device = (
        b"ACTION=change\0DEVPATH=/devices/pci0000:00/0000:01:00.0\0SUBSYSTEM=pci\0PCI_SLOT_NAME=0000:01:00.0"
    )
    net = b"ACTION=add\0DEVPATH=/devices/pci0000:00/0000:01:00.0/net/eth0\0SUBSYSTEM=net"
    return device + b"\0ERROR_EVENT=BEGIN_RECOVERY\0DEVICE_ONLINE=0", net


def _status(data: bytes) -> object:
    return registry.make_evidence(Record.decode(data))


@cache
def _config_path() -> str:
    """A file of as many bytes as configuration space has, without a name."""
    fd = os.memfd_create("config")
    os.ftruncate(fd, 4096)
    return f"/proc/self/fd/{fd}"


def _config(data: bytes) -> object:
    return helper._config(_config_path(), data)


class _Journal:
    """journal.Reader with one line."""

    def __init__(self, message: object) -> None:
        moment = SimpleNamespace(timestamp=datetime.timedelta(seconds=5))
        self._entries: list[dict[str, object]] = [
            {"MESSAGE": message, "__MONOTONIC_TIMESTAMP": moment},
            {"__MONOTONIC_TIMESTAMP": moment},
        ]

    def __getattr__(self, _name: str) -> Any:
        return lambda *_given, **_named: None

    def __iter__(self) -> Iterator[dict[str, object]]:
        return iter(self._entries)


def _kernel_line(data: bytes) -> object:
    """A line of the log, binary where it is no text, on its way into a report."""
    try:
        message: object = data.decode()
    except UnicodeDecodeError:
        message = data
    found = tuple(kernel_log._find(_Journal(message), 0, ("AER", "")))
    bundle = make_bundle()
    return render(fit_bundle(type(bundle)(1, bundle.slot, bundle.kind, 1, "", "", kernel_log=found)))


def _module(data: bytes) -> object:
    name = to_text(data)
    return modules._NAME.fullmatch(name) and re.search(modules._module_pattern(name), b"/a.ko:")


def _function_name(data: bytes) -> object:
    return uevents._to_event(_Device(data))


ENTRIES = (
    Entry(
        "trace-page",
        _page,
        (ValueError,),
        _pages,
        (f"{LINUX}.ring_buffer", f"{LINUX}.error_records"),
        _WORDS,
    ),
    Entry(
        "trace-format",
        _format,
        (ValueError,),
        lambda: (
            pages.AER_FORMAT.encode(),
            pages.AER_FORMAT_7_2.encode(),
        ),
        (f"{LINUX}.ring_buffer", f"{LINUX}.error_records"),
        (
            b"\tfield:",
            b"offset:",
            b"size:",
            b";",
            b"\n",
            b"ID: ",
            b"[4]",
            b"dev_name",
            b"99999999999",
        ),
    ),
    Entry(
        "trace-layout",
        _layout,
        (ValueError,),
        lambda: (pages.HEADER_PAGE.encode(),),
        (f"{LINUX}.ring_buffer",),
        (b"\tfield:", b"offset:", b"size:", b";", b"\n", b"data", b"commit"),
    ),
    Entry(
        "netlink-reply",
        _reply,
        NO_ERRORS,
        _replies,
        (f"{LINUX}.netlink",),
        tuple(struct.pack("=HH", size, kind) for size in (0, 4, 8, 65535) for kind in (1, 4, 12, 21, 22)),
    ),
    Entry(
        "netlink-announcement",
        find_functions,
        NO_ERRORS,
        _announcements,
        (f"{LINUX}.links",),
        tuple(struct.pack("=HH", size, kind) for size in (0, 4, 8, 65535) for kind in (16, 56, 57)),
    ),
    Entry(
        "uevent",
        _function_name,
        NO_ERRORS,
        _uevents,
        (f"{LINUX}.uevents",),
        (b"\0", b"=", b"ACTION=", b"DEVPATH=", b"/", b"remove", b"pci", b"net", b"\xff"),
    ),
    Entry(
        "helper-status",
        _status,
        (ValueError,),
        lambda: (Record("bind 0000:01:00.0", 5, os.getpid(), 7, "0000:01:00", "a bind").encode(),),
        (f"{LINUX}.registry",),
        (
            b'"',
            b"{",
            b"}",
            b"[",
            b"]",
            b":",
            b",",
            b"null",
            b"-1",
            b"1e9",
            b"\\u0000",
        ),
        is_json=True,
    ),
    Entry(
        "helper-config",
        _config,
        (OSError,),
        lambda: (
            b"read-config 0 4096",
            b"update-config 4 2 4 0",
            b"update-config 4092 4 4294967295 1",
        ),
        (f"{LINUX}.helper",),
        (b" ", b"0", b"9999999999", b"4", b"update-config", b"read-config"),
        256,
    ),
    Entry(
        "kernel-log",
        _kernel_line,
        NO_ERRORS,
        lambda: (b"pcieport 0000:00:03.0: AER: error", b"\x1b[2J"),
        (f"{LINUX}.kernel_log", "sriovd.core.recovery.report"),
    ),
    Entry(
        "module-name",
        _module,
        NO_ERRORS,
        lambda: (b"vfio-pci", b"mlx5_core", b"a.b+c"),
        (f"{LINUX}.modules",),
    ),
)
