"""Trace buffers: some as the kernel made them, and others of our own making, in its form (x86-64)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

HEADER_PAGE = """\
\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;
"""
AER_FORMAT = """\
name: aer_event
ID: 1348
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] dev_name;\toffset:8;\tsize:4;\tsigned:0;
\tfield:u32 status;\toffset:12;\tsize:4;\tsigned:0;
\tfield:u8 severity;\toffset:16;\tsize:1;\tsigned:0;
\tfield:u8 tlp_header_valid;\toffset:17;\tsize:1;\tsigned:0;
\tfield:u32 tlp_header[4];\toffset:20;\tsize:16;\tsigned:0;

print fmt: "%s PCIe Bus Error: severity=%s, %s, TLP Header=%s
", __get_str(dev_name)
"""
AER_EVENT = 1348
# Recorded on Linux 7.2 in the lab: room for more of the header, another field, and two pages of its buffer.
AER_FORMAT_7_2 = """\
name: aer_event
ID: 1440
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] dev_name;\toffset:8;\tsize:4;\tsigned:0;
\tfield:u32 status;\toffset:12;\tsize:4;\tsigned:0;
\tfield:u8 severity;\toffset:16;\tsize:1;\tsigned:0;
\tfield:u8 tlp_header_valid;\toffset:17;\tsize:1;\tsigned:0;
\tfield:u32 tlp_header[14];\toffset:20;\tsize:56;\tsigned:0;
\tfield:__data_loc char[] bus_type;\toffset:76;\tsize:4;\tsigned:0;
"""
RECORDED_NSEC = 187387276715
_NAMES_7_2 = "303030303a30313a30302e300050434965000000"
CORRECTED_7_2 = "19000000a00500003900000050000d004100000002000000" + 56 * "00" + "5d000500" + _NAMES_7_2
NONFATAL_7_2 = (
    "de007b3e02000000" "19000000a00500003900000050000d000000100000010000010000400f22000000000010"
    + 44 * "00" + "5d000500" + _NAMES_7_2
)  # fmt: skip


def word(kind: int, delta: int = 0) -> bytes:
    """A record's first word, or just a number."""
    return struct.pack("<I", kind | delta << 5)


def _head(delta: int, length: int) -> bytes:
    """What precedes `length` bytes: more than 28 words are counted in a word of their own."""
    return word(length // 4, delta) if length <= 28 * 4 else word(0, delta) + word(length + 4)


def make_page(
    time_nsec: int,
    records: Sequence[tuple[int, bytes]] = (),
    *,
    raw: bytes = b"",
    flags: int = 0,
    size: int | None = None,
) -> bytes:
    """A page with `records` of time since the one before and data, then `raw`."""
    body = b"".join(_head(delta, len(data)) + data for delta, data in records) + raw
    committed = len(body) if size is None else size
    return struct.pack("<QQ", time_nsec, committed | flags) + body


def make_record(
    name: str,
    severity: int,
    status: int = 0,
    tlp_header: Sequence[int] | None = None,
    *,
    event: int = AER_EVENT,
) -> bytes:
    """The record of an error; `severity` is the kernel's number."""
    text = name.encode() + b"\0"
    place = len(text) << 16 | 36
    fixed = struct.pack("<HBBiIIBBxx", event, 0, 0, 1, place, status, severity, tlp_header is not None)
    header = struct.pack("<4I", *(tlp_header or (0xAA,) * 4))
    data = fixed + header + text
    return data + bytes(-len(data) % 4)


# devlink's tracepoints as Linux 6.12 describes them; 6.1 and 7.2 differ in nothing but the ID and whether a
# locator is said to have a sign.
HWMSG_FORMAT = """\
name: devlink_hwmsg
ID: 1472
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] bus_name;\toffset:8;\tsize:4;\tsigned:0;
\tfield:__data_loc char[] dev_name;\toffset:12;\tsize:4;\tsigned:0;
\tfield:__data_loc char[] driver_name;\toffset:16;\tsize:4;\tsigned:0;
\tfield:bool incoming;\toffset:20;\tsize:1;\tsigned:0;
\tfield:unsigned long type;\toffset:24;\tsize:8;\tsigned:0;
\tfield:__data_loc u8[] buf;\toffset:32;\tsize:4;\tsigned:0;
\tfield:size_t len;\toffset:40;\tsize:8;\tsigned:0;

print fmt: "bus_name=%s dev_name=%s driver_name=%s incoming=%d type=%lu buf=0x[%*phD] len=%zu", \
__get_str(bus_name), __get_str(dev_name), __get_str(driver_name), REC->incoming, REC->type, (int) REC->len, \
__get_dynamic_array(buf), REC->len
"""
HEALTH_FORMAT = """\
name: devlink_health_report
ID: 1470
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] bus_name;\toffset:8;\tsize:4;\tsigned:0;
\tfield:__data_loc char[] dev_name;\toffset:12;\tsize:4;\tsigned:0;
\tfield:__data_loc char[] driver_name;\toffset:16;\tsize:4;\tsigned:0;
\tfield:__data_loc char[] reporter_name;\toffset:20;\tsize:4;\tsigned:0;
\tfield:__data_loc char[] msg;\toffset:24;\tsize:4;\tsigned:0;

print fmt: "bus_name=%s dev_name=%s driver_name=%s reporter_name=%s: %s", __get_str(bus_name), \
__get_str(dev_name), __get_str(driver_name), __get_str(reporter_name), __get_str(msg)
"""
HWMSG_EVENT, HEALTH_EVENT = 1472, 1470


def make_hwmsg(bus: str, name: str, kind: int, buf: bytes, *, incoming: bool, length: int) -> bytes:
    """A record of devlink_hwmsg."""
    places, data = _locate(48, [bus.encode() + b"\0", name.encode() + b"\0", b"mlxsw\0", buf])
    fixed = struct.pack(
        "<HBBi3I?xxxQIxxxxQ", HWMSG_EVENT, 0, 0, 1, *places[:3], incoming, kind, places[3], length
    )
    return fixed + data


def make_health_report(bus: str, name: str, reporter: str, message: str) -> bytes:
    """A record of devlink_health_report."""
    texts = [each.encode() + b"\0" for each in (bus, name, "mlx5_core", reporter, message)]
    places, data = _locate(28, texts)
    return struct.pack("<HBBi5I", HEALTH_EVENT, 0, 0, 1, *places) + data


def _locate(begin: int, parts: Sequence[bytes]) -> tuple[list[int], bytes]:
    """__data_loc of each of `parts`, which follow each other from `begin` on, and all of them."""
    places, data = [], b""
    for part in parts:
        places.append(len(part) << 16 | begin + len(data))
        data += part
    return places, data + bytes(-(begin + len(data)) % 4)
