"""What a tenant is shown, and his own memory that the daemon writes to."""

from __future__ import annotations

import json
import mmap
import os
import re
import struct
from collections.abc import Coroutine
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

from sriovd.core.discretion import is_about, is_discreet
from sriovd.core.error_data.error_data import ErrorData, _show_cut
from sriovd.core.errors import SriovdError
from sriovd.core.fields import load_record
from sriovd.core.inspect.site import Site, Subject
from sriovd.core.inspect.table import show_registers, show_resources
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.recovery.bundle import Bundle
from sriovd.core.recovery.record import AdapterPe, VfPe
from sriovd.core.recovery.standing import BundleHead
from sriovd.core.recovery.titles import Concern, read_concern, title_frozen, title_given_up
from sriovd.core.trace.buffer import BufferWriter
from sriovd.core.trace.ledger import LEDGER_BYTES, SLOT_BYTES, Account, Ledger, make_ledger
from sriovd.pci import PciAddress
from sriovd.pci_registers import LEGACY_CONFIG_BYTES
from sriovd.trace import layout
from sriovd.trace.reader import TraceReader
from sriovd.trace.source import MemorySource
from tests.fuzz.entries_core import configs
from tests.fuzz.entries_records import JSON_WORDS
from tests.fuzz.entry import NO_ERRORS, Entry, to_text
from tests.unit.core.inspect.test_resources import IGB_VF
from tests.unit.core.recovery.samples import PF, VF, make_bundle
from tests.unit.core.trace.buffers import make_record

_OTHER = PciAddress.parse("0000:01:10.6")
_SUBJECT = Subject(VF, (PF, 1), 7)
_CAPACITY = 4
_BUFFER_BYTES = layout.HEADER_BYTES + _CAPACITY * layout.RECORD_BYTES
_OTHERS = re.compile(r"(?<![0-9a-z:])(?:0000:)?01:1[01]\.[0-7](?![0-9a-z.])", re.ASCII)


def _finish(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of what waits for nobody here."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits")


def _cut(data: bytes) -> object:
    """A bundle that the store had, as far as its document."""
    bundle = Bundle.from_dict(load_record(to_text(data)))

    async def read_bundle(_number: int, _form: str) -> str:
        return json.dumps(bundle.to_dict())

    site = SimpleNamespace(desk=SimpleNamespace(read_bundle=read_bundle))
    head = BundleHead(1, 17, "freeze", "x")
    made = _finish(ErrorData(cast(Site, site), cast(Any, None))._cut(_SUBJECT, head, Concern.OWN))
    document = _show_cut(made)
    shown = json.dumps(document)
    others = {name for name in _OTHERS.findall(shown) if name != str(VF)}
    assert not others, f"it tells of {others}"
    return made


def _bundles() -> tuple[bytes, ...]:
    whole = make_bundle().to_dict()
    lines = [f"[ 1.5] vfio-pci {VF}: reset", f"[ 1.5] vfio-pci {VF}: as {_OTHER}", f"[ 1.5] igb {PF}: VF 3"]
    actions = [f"resetting {VF}: done", f"resetting {_OTHER}: done", f"binding {VF} to vfio-pci: done"]
    mine = {**Bundle.from_dict(whole).to_dict(), "kernel_log": lines, "actions": actions}
    return tuple(json.dumps(each).encode() for each in (whole, mine, {**mine, "functions": []}))


def _discretion(data: bytes) -> object:
    text = to_text(data)
    shown = is_discreet(text, VF)
    assert not shown or all(name == str(VF) for name in _OTHERS.findall(text.lower())), "it names another"
    assert shown or not is_about(text, VF)
    return shown


def _titles(data: bytes) -> object:
    """Whose a bundle is, and that nobody is taken for another."""
    text = to_text(data)
    own, beside = read_concern(text, (PF, 1)), read_concern(text, (PF, 2))
    assert own is not Concern.OWN or str(VfPe(PF, 1)) in text
    return own, beside


def _title_seeds() -> tuple[bytes, ...]:
    adapter, vfs = (
        AdapterPe("0000:01:00", AdapterState.FROZEN),
        [VfPe(PF, n, VfState.FAILED) for n in (1, 2)],
    )
    titles = title_frozen([adapter]), title_frozen(vfs), title_frozen(vfs[1:]), title_given_up(adapter)
    return tuple(title.encode() for title in titles)


@cache
def _ledger() -> tuple[Ledger, mmap.mmap]:
    """With a second view."""
    fd = make_ledger()
    try:
        return Ledger(fd), mmap.mmap(fd, LEDGER_BYTES)
    finally:
        os.close(fd)


def _account(data: bytes) -> object:
    """A slot that a former daemon has left, the consumer that the tenant has written, then his header."""
    ledger, view = _ledger()
    view[:SLOT_BYTES] = data[:SLOT_BYTES].ljust(SLOT_BYTES, b"\0")
    memory = bytearray(_BUFFER_BYTES)
    head = data[SLOT_BYTES:][: layout.CONSUMER + 8]
    memory[: len(head)] = head
    for slot in ledger.used():
        before = slot.read()
        writer = BufferWriter(memoryview(memory), slot)
        writer.publish(VF)
        for number in range(_CAPACITY + 2):
            writer.write(make_record(before.next_transaction + number))
        writer.end()
        after = slot.read()
        assert after.producer + after.lost == before.producer + before.lost + _CAPACITY + 2
        reader = TraceReader(MemorySource(memory))
        shown = list(reader.read())
        reader.release()
        return after, len(shown)
    return None


def _accounts() -> tuple[bytes, ...]:
    made = []
    ledger, view = _ledger()
    view[:] = bytes(LEDGER_BYTES)
    for drops, producer, lost in (
        (False, 0, 0),
        (True, 3, 0),
        (True, 9, 5),
        (False, 2**40, 0),
        (True, 7, 7),
    ):
        slot = ledger.claim(Account(7, drops, (1, 2), 9, producer, lost, lost))
        made.append(view[:SLOT_BYTES] + bytes(layout.CONSUMER) + struct.pack("<Q", producer))
        slot.free()
    return tuple(made)


def _inspections(data: bytes) -> object:
    """The kernel's list of a VF's BARs, NUL, and its configuration space."""
    text, _, config = data.partition(b"\0")
    values = {"READ_RESOURCES": to_text(text), "READ_CONFIG": config.hex()}
    result = SimpleNamespace(value=lambda verb: values[verb.name])

    async def read(*_given: object) -> object:
        return result

    facts = SimpleNamespace(numa_node=0, iommu_group=None)
    site = cast(Site, SimpleNamespace(read=read, vf=lambda _subject: SimpleNamespace(facts=facts)))
    try:
        return _finish(show_resources(_SUBJECT, site))
    finally:
        if config:
            _finish(show_registers(_SUBJECT, site))


ENTRIES = (
    Entry(
        "error-data",
        _cut,
        (ValueError,),
        _bundles,
        ("sriovd.core.error_data.cut", "sriovd.core.error_data.error_data", "sriovd.core.discretion"),
        (*JSON_WORDS, str(VF).encode(), str(_OTHER).encode(), b"[ 1.5] vfio-pci ", b": "),
        1 << 20,
        is_json=True,
        quick_inputs=300,
    ),
    Entry(
        "discretion",
        _discretion,
        NO_ERRORS,
        lambda: (b"frozen", f"[ 1.5] {VF}: reset".encode(), f"as {_OTHER}, and 'x'".encode()),
        ("sriovd.core.discretion",),
        (str(VF).encode(), str(_OTHER).encode(), b"01:10.4", b":", b".", b" ", b"VF", b"\xc2\xa0"),
        2048,
    ),
    Entry(
        "bundle-title",
        _titles,
        NO_ERRORS,
        _title_seeds,
        ("sriovd.core.recovery.titles",),
        (b" was ", b", ", b"VF 1", b"0000:01:00.0"),
        1024,
    ),
    Entry(
        "trace-ledger",
        _account,
        (ValueError,),
        _accounts,
        ("sriovd.core.trace.ledger", "sriovd.core.trace.buffer"),
        tuple(
            struct.pack("<Q", number) for number in (0, 1, 2, 3, 5, 1 << 31, 1 << 32, 2**63 - 1, 2**64 - 1)
        ),
        SLOT_BYTES + layout.CONSUMER + 8,
    ),
    Entry(
        "inspections",
        _inspections,
        (SriovdError,),
        lambda: tuple(IGB_VF.encode() + b"\0" + each for each in (*configs(), b"")),
        ("sriovd.core.inspect.table", "sriovd.core.inspect.resources"),
        (b"0x", b"\n", b" ", b"0x0000000000140204", b"\xff" * 8, b"-1", b"_"),
        LEGACY_CONFIG_BYTES * 16 + 1024,
        quick_inputs=1000,
    ),
)
