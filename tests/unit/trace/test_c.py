"""The C header says what layout.py says, and a reader built on it says what the one in Python says."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from sriovd.trace.header import make_header
from sriovd.trace.layout import CONSUMER, HEADER_FIELDS, RECORD_FIELDS, Flag, TraceError
from sriovd.trace.reader import TraceReader
from sriovd.trace.source import MemorySource
from sriovd.trace.text import format_counts, format_entry
from tests.unit.trace.buffers import Buffer, damage, make_random_buffer, make_random_record
from tests.unit.trace.conftest import HEADERS, Compile

LINE_LENGTH = 109


def test_the_header_is_what_is_generated() -> None:
    """If not: python -m sriovd.trace.header > sriovd/trace/sriovd-trace.h"""
    assert (HEADERS / "sriovd-trace.h").read_text() == make_header()


def test_every_field_lies_where_the_table_says(compile_c: Compile, tmp_path: Path) -> None:
    checks = [
        f"_Static_assert(offsetof(struct {name}, {field.name}) == {field.offset}"
        f' && sizeof(((struct {name} *)0)->{field.name}) == {field.size}, "{field.name}");'
        for name, fields in (("sriovd_trace_header", HEADER_FIELDS), ("sriovd_trace_record", RECORD_FIELDS))
        for field in fields
    ]
    source = tmp_path / "layout.c"
    source.write_text("\n".join(['#include "sriovd-trace.h"', "#include <stddef.h>", *checks, ""]))
    done = compile_c(source, tmp_path / "layout.o", "-c")
    assert (done.returncode, done.stderr) == (0, "")
    source.write_text(source.read_text().replace("producer) == 64", "producer) == 72"))
    assert compile_c(source, tmp_path / "layout.o", "-c").returncode != 0


def read_in_python(memory: bytes, path: Path) -> tuple[list[str], list[str]]:
    """What the command says of it, on standard output and on standard error."""
    lines = []
    try:
        reader = TraceReader(MemorySource(memory))
        lines += [format_entry(entry) for entry in reader.read()]
    except TraceError:
        return lines, [f"{path}: cannot be read"]
    counts = format_counts(len(lines), reader.lost, reader.damaged)
    return lines, [f"{path}: {counts}"] if reader.lost or reader.damaged else []


def compare(c_reader: Path, directory: Path, buffers: list[bytes]) -> tuple[list[str], list[str]]:
    """Have both readers read `buffers`; what they say is the same, and is returned."""
    lines, complaints = [], []
    paths = []
    for number, memory in enumerate(buffers):
        path = directory / str(number)
        path.write_bytes(memory)
        paths.append(str(path))
        told = read_in_python(memory, path)
        lines += told[0]
        complaints += told[1]
    done = subprocess.run([str(c_reader), *paths], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.splitlines() == complaints
    assert done.stdout.splitlines() == lines
    assert done.returncode == any(each.endswith("cannot be read") for each in complaints)
    return lines, complaints


def test_both_readers_say_the_same_of_whole_buffers(c_reader: Path, tmp_path: Path) -> None:
    source = random.Random(1)
    buffers = [make_random_buffer(source) for _ in range(400)]
    lines, complaints = compare(c_reader, tmp_path, buffers)
    assert len(lines) > 1000
    assert len(complaints) > 100
    assert not any(each.endswith("be read") or not each.endswith(" 0 damaged") for each in complaints)


def test_both_readers_say_the_same_of_damaged_buffers(c_reader: Path, tmp_path: Path) -> None:
    """And neither crashes: the C one runs with sanitizers."""
    source = random.Random(2)
    buffers = [damage(source, make_random_buffer(source)) for _ in range(800)]
    lines, complaints = compare(c_reader, tmp_path, buffers)
    assert len(lines) > 1000
    assert sum(each.endswith("be read") for each in complaints) > 50
    assert sum(not each.endswith(" 0 damaged") for each in complaints) > 50


def test_both_readers_say_the_same_of_noise(c_reader: Path, tmp_path: Path) -> None:
    source = random.Random(3)
    compare(
        c_reader, tmp_path, [source.randbytes(source.choice([0, 1, 4095, 4096, 9000])) for _ in range(50)]
    )


@pytest.mark.parametrize("flags", [Flag.ACTIVE, Flag.DROP])
def test_both_readers_count_the_same_loss(c_reader: Path, tmp_path: Path, flags: Flag) -> None:
    source = random.Random(4)
    buffer = Buffer(4, flags)
    buffers = []
    for _ in range(12):
        buffer.write(make_random_record(source))
        buffers.append(bytes(buffer.memory))
        if buffer.producer == 3:
            buffer.store(CONSUMER, 2)
    complaints = compare(c_reader, tmp_path, buffers)[1]
    assert len(complaints) == (9 if flags & Flag.ACTIVE else 6)


def test_the_header_is_no_wider_than_the_code() -> None:
    assert max(map(len, (HEADERS / "sriovd-trace.h").read_text().splitlines())) <= LINE_LENGTH
