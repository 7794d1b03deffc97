"""The format: its numbers stay what they are, and the codec keeps what it is given."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.pci import PciAddress
from sriovd.trace.layout import (
    ARGUMENTS_BYTES,
    HEADER_BYTES,
    HEADER_FIELDS,
    OPERATION_BYTES,
    RECORD_BYTES,
    RECORD_FIELDS,
    Field,
    Flag,
    Header,
    TraceError,
    decode_header,
    decode_record,
    encode_header,
    encode_record,
)
from sriovd.trace.record import Direction, Record, RecordType, Status
from tests.unit.trace.buffers import PLAIN, RECORDS, U32, U64, VF, replace

# Written down a second time on purpose: programs were compiled with these.
HEADER_OFFSETS = {
    "magic": 0, "major": 8, "minor": 10, "header_bytes": 12, "record_bytes": 16, "capacity": 20, "flags": 24,
    "vf": 28, "started_nsec": 32, "realtime_nsec": 40, "lease": 48, "producer": 64, "lost": 72,
    "next_transaction": 80, "consumer": 128,
}  # fmt: skip
RECORD_OFFSETS = {
    "sequence": 0, "type": 8, "direction": 10, "status": 11, "size": 12, "time_nsec": 16, "latency_nsec": 24,
    "transaction": 32, "parent": 40, "vf": 48, "error": 52, "lost": 56, "zero": 60, "operation": 64,
    "arguments": 88,
}  # fmt: skip


def test_no_field_ever_moves() -> None:
    assert {field.name: field.offset for field in HEADER_FIELDS} == HEADER_OFFSETS
    assert {field.name: field.offset for field in RECORD_FIELDS} == RECORD_OFFSETS


@pytest.mark.parametrize(
    ("fields", "size"),
    [(HEADER_FIELDS, HEADER_BYTES), (RECORD_FIELDS, RECORD_BYTES)],
    ids=["header", "record"],
)
def test_fields_are_aligned_and_do_not_overlap(fields: tuple[Field, ...], size: int) -> None:
    end = 0
    for field in fields:
        assert field.offset >= end
        assert field.code.endswith("s") or field.offset % field.size == 0
        end = field.offset + field.size
    assert end <= size


def test_a_record_byte_by_byte() -> None:
    body = encode_record(replace(PLAIN, errno=16, lost=3, status=Status.FAILED))
    assert body == b"".join(
        [
            struct.pack("<HBBI", 3, 2, 1, 8),
            struct.pack("<QQQQ", 12_345_678_000, 1_234_000, 5, 2),
            struct.pack("<IiII", 0x0000_0182, 16, 3, 0),
            b"bind".ljust(24, b"\0"),
            b"vfio-pci".ljust(168, b"\0"),
        ]
    )


@given(RECORDS)
def test_a_record_comes_back(record: Record) -> None:
    decoded, cut_bytes = decode_record(encode_record(record))
    operation, arguments = record.operation.rstrip("\0"), record.arguments.rstrip("\0")
    assert (decoded, cut_bytes) == (replace(record, operation=operation, arguments=arguments), 0)


@given(st.text(min_size=20, max_size=400), st.text(min_size=10, max_size=60))
def test_texts_are_cut_at_a_characters_border(arguments: str, operation: str) -> None:
    record = replace(PLAIN, arguments=arguments, operation=operation)
    decoded, cut_bytes = decode_record(encode_record(record))
    assert arguments.startswith(decoded.arguments)
    assert operation.startswith(decoded.operation)
    encoded = arguments.encode()
    if len(encoded) > ARGUMENTS_BYTES:
        kept = decoded.arguments.encode()
        assert cut_bytes == len(encoded) - len(kept)
        assert ARGUMENTS_BYTES - 4 < len(kept.ljust(ARGUMENTS_BYTES - 3, b"\0")) <= ARGUMENTS_BYTES
    assert len(decoded.operation.encode()) <= OPERATION_BYTES


def test_a_text_fills_its_field_to_the_last_byte() -> None:
    record = replace(PLAIN, arguments="a" * 166 + "é", operation="o" * 24)
    assert decode_record(encode_record(record)) == (record, 0)
    record = replace(PLAIN, arguments="a" * 167 + "é" + "b" * 10)
    assert decode_record(encode_record(record)) == (replace(record, arguments="a" * 167), 12)


def test_what_is_no_unicode_is_written_all_the_same() -> None:
    record = replace(PLAIN, arguments="x\udcff\ud800")
    assert decode_record(encode_record(record))[0].arguments == "x\\udcff\\ud800"


def test_bytes_that_are_no_utf_8_are_read_all_the_same() -> None:
    body = encode_record(PLAIN).replace(b"vfio-pci", b"vfio\xff\xfepc")
    assert decode_record(body)[0].arguments == "vfio\udcff\udcfepc"


def test_lost_records_are_counted_to_the_end_of_their_field() -> None:
    assert decode_record(encode_record(replace(PLAIN, lost=2**40)))[0].lost == 2**32 - 1


def test_a_domain_that_does_not_fit_is_cut() -> None:
    record = replace(PLAIN, vf=PciAddress(0x12345, 1, 2, 3))
    assert decode_record(encode_record(record))[0].vf == PciAddress(0x2345, 1, 2, 3)


@pytest.mark.parametrize(("offset", "known"), [(0, RecordType), (2, Direction), (3, Status)])
def test_a_number_without_a_meaning_is_no_record(offset: int, known: type[RecordType]) -> None:
    body = bytearray(encode_record(PLAIN))
    for number in range(256):
        body[offset] = number
        if number in list(known):
            decode_record(bytes(body))
        else:
            with pytest.raises(TraceError, match=str(number)):
                decode_record(bytes(body))


HEADERS = st.builds(
    Header,
    vf=st.builds(PciAddress.from_rid, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    capacity=st.integers(2, 2**32 - 1),
    flags=st.builds(Flag, U32),
    started_nsec=U64,
    realtime_nsec=U64,
    lease=U64,
    producer=U64,
    lost=U64,
    next_transaction=U64,
    consumer=U64,
    minor=st.integers(0, 0xFFFF),
)


@given(HEADERS)
def test_a_header_comes_back(header: Header) -> None:
    page = encode_header(header)
    assert len(page) == HEADER_BYTES
    assert decode_header(page, header.buffer_bytes) == header


HEADER = encode_header(Header(VF, 4))
BAD_HEADERS = {
    "too short": (HEADER[:-1], "4095 bytes are too few"),
    "empty": (b"", "0 bytes are too few"),
    "another magic number": (b"X" + HEADER[1:], "begins with"),
    "another major version": (HEADER[:8] + b"\2\0" + HEADER[10:], "format is 2.0"),
    "another header": (HEADER[:12] + struct.pack("<I", 8192) + HEADER[16:], "8192 bytes of header"),
    "other records": (HEADER[:16] + struct.pack("<I", 0) + HEADER[20:], "0 a record"),
    "one record": (HEADER[:20] + struct.pack("<I", 1) + HEADER[24:], "cannot hold 1 records"),
    "one more than fits": (HEADER[:20] + struct.pack("<I", 5) + HEADER[24:], "cannot hold 5 records"),
    "the most": (HEADER[:20] + struct.pack("<I", 2**32 - 1) + HEADER[24:], "cannot hold 4294967295"),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_a_header_that_cannot_be_is_refused(what: str) -> None:
    page, reason = BAD_HEADERS[what]
    with pytest.raises(TraceError, match=reason):
        decode_header(page, HEADER_BYTES + 4 * RECORD_BYTES + 255)


def test_a_higher_minor_version_is_read() -> None:
    page = HEADER[:10] + b"\7\0" + HEADER[12:]
    assert decode_header(page, 8192).minor == 7
