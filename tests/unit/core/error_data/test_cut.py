"""A bundle that is full of others, cut for one VF: nothing of them is left, and all of its own is."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.error_data.cut import Cut, cut_bundle
from sriovd.core.recovery.bundle import Bundle, BundleKind, FunctionDump, FunctionRole
from sriovd.core.recovery.titles import Concern
from sriovd.pci import PciAddress

VF, PF, PORT, OTHER, UNKNOWN = (
    PciAddress.parse(text)
    for text in ("0000:01:10.2", "0000:01:00.0", "0000:00:03.0", "0000:01:10.4", "0000:01:11.6")
)
SECRET = 0xDEADBEEF
OWN_TLP = (0x40000001, 0x0000010F, 0xFEE00000, 0)
MARKERS = (
    "0000:01:10.4", "01:10.4", "0000:01:11.6", "VF 3", "7 VFs", "'neighbour'", "neighbour (uid 1001)",
    "lease 9", "qemu-kvm (pid 4242)", "02:00:00:00:00:33",
)  # fmt: skip
LOG = f"[   12.345678] vfio-pci {VF}: vfio_bar_restore: reset recovery - restoring BARs"
ACTION = f"[13.000001] resetting {VF}: done"

dirty = st.builds(
    "".join,
    st.lists(
        st.sampled_from((str(VF), f"[ 1.5] vfio-pci {VF}: ", f"resetting {VF}: ", "reset, ", " ", *MARKERS)),
        max_size=6,
    ),
)
lines = st.lists(dirty, max_size=4).map(tuple)
marked = st.sampled_from(MARKERS)
addresses = st.sampled_from((VF, PF, PORT, OTHER, UNKNOWN))
severities = st.sampled_from(Severity)
others_records = st.builds(
    ErrorRecord,
    st.sampled_from((PF, PORT, OTHER, UNKNOWN)),
    severities,
    st.integers(0, 2**32 - 1),
    st.just((SECRET,) * 4),
    st.integers(0, 10**12),
)
counters = st.dictionaries(
    addresses, st.dictionaries(severities, st.dictionaries(marked, st.just(SECRET)), max_size=3)
)
dumps = st.builds(
    FunctionDump,
    st.sampled_from((VF, OTHER)),
    st.just(FunctionRole.VF),
    marked,
    st.just(b"\x01\x02"),
    dirty,
)
bundles = st.builds(
    Bundle,
    number=st.just(5),
    slot=st.just("0000:01:00"),
    kind=st.sampled_from(BundleKind),
    taken_usec=st.just(17),
    title=dirty,
    reason=dirty,
    functions=st.lists(dumps, max_size=3).map(
        lambda each: (*each, FunctionDump(PORT, FunctionRole.PORT, "pcieport", b"\xde\xad\xbe\xef"))
    ),
    records=st.lists(others_records, max_size=4).map(tuple),
    counters_before=counters,
    counters_after=counters,
    kernel_log=lines,
    actions=lines,
    left_out=lines,
)


def shown(cut: Cut) -> str:
    """Everything that is in it, as text."""
    return json.dumps(asdict(cut), default=lambda value: value.hex())


@given(bundles, st.sampled_from(Concern))
def test_nothing_of_anybody_else_is_left(bundle: Bundle, why: Concern) -> None:
    text = shown(cut_bundle(bundle, VF, PF, why))
    for marker in (*MARKERS, str(SECRET), "deadbeef"):
        assert marker not in text, marker


def own_bundle() -> Bundle:
    """One in which there is something of everybody."""
    counted = {Severity.NONFATAL: {"TLP": 1, "total": 1}}
    return Bundle(
        number=5,
        slot="0000:01:00",
        kind=BundleKind.FREEZE,
        taken_usec=17,
        title="VF 1 of 0000:01:00.0, VF 2 of 0000:01:00.0 was frozen",
        reason=f"{OTHER} met a nonfatal error",
        functions=(
            FunctionDump(PF, FunctionRole.PF, "igb", b"\1"),
            FunctionDump(PORT, FunctionRole.PORT, "pcieport", b"\2"),
            FunctionDump(OTHER, FunctionRole.VF, "vfio-pci", b"\3"),
            FunctionDump(VF, FunctionRole.VF, "vfio-pci", b"\4", f"reset {OTHER} hangs"),
        ),
        records=(
            ErrorRecord(VF, Severity.NONFATAL, 1 << 12, OWN_TLP, 50),
            ErrorRecord(VF, Severity.NONFATAL, 1 << 14, OWN_TLP, 100),
            ErrorRecord(OTHER, Severity.NONFATAL, 1 << 12, (SECRET,) * 4, 110),
            ErrorRecord(PF, Severity.FATAL, 1 << 18, (SECRET,) * 4, 120),
            ErrorRecord(PORT, Severity.CORRECTED, 1 << 6, (), 130),
            ErrorRecord(UNKNOWN, Severity.FATAL, 1 << 18, (), 140),
        ),
        counters_before={OTHER: counted},
        counters_after={VF: counted, OTHER: counted, PF: counted},
        kernel_log=(LOG, f"[ 1.0] igb {PF}: VF 1 is gone", f"[ 1.0] vfio-pci {OTHER}: reset", f"{VF}: no"),
        actions=(
            ACTION,
            f"[13.0] resetting {OTHER}: done",
            "[13.0] fencing the VFs of 0000:01:00: done",
            f"[-1.0] resetting {VF}: done",
        ),
        left_out=("3 functions",),
    )


def test_all_of_its_own_is_there() -> None:
    cut = cut_bundle(own_bundle(), VF, PF, Concern.OWN)
    assert (cut.number, cut.kind, cut.taken_usec) == (5, BundleKind.FREEZE, 17)
    assert (cut.driver, cut.config) == ("vfio-pci", b"\4")
    assert [each.at_usec for each in cut.records] == [50, 100]
    assert cut.records[0].tlp_header == OWN_TLP
    assert [(each.of, each.severity.value, each.errors, each.at_usec) for each in cut.adapter_errors] == [
        ("PF", "fatal", ("MalfTLP",), 120), ("port", "corrected", ("BadTLP",), 130),
    ]  # fmt: skip
    assert cut.counters_before == {}
    assert cut.counters_after == {Severity.NONFATAL: {"TLP": 1, "total": 1}}
    assert (cut.kernel_log, cut.actions) == ((LOG,), (ACTION,))


def test_what_a_former_owner_met_is_not_shown() -> None:
    cut = cut_bundle(own_bundle(), VF, PF, Concern.OWN, since_usec=60)
    assert [each.at_usec for each in cut.records] == [100]
    for since_usec, errors, log, actions in (
        (120, 2, (LOG,), (ACTION,)),
        (125, 1, (LOG,), (ACTION,)),
        (12_345_678, 0, (LOG,), (ACTION,)),
        (12_345_679, 0, (), (ACTION,)),
        (13_000_002, 0, (), ()),
    ):
        cut = cut_bundle(own_bundle(), VF, PF, Concern.OWN, since_usec)
        assert (len(cut.adapter_errors), cut.kernel_log, cut.actions) == (errors, log, actions)


@pytest.mark.parametrize(
    ("kind", "why", "title"),
    [
        (BundleKind.FREEZE, Concern.OWN, "frozen by an error of its own"),
        (BundleKind.FREEZE, Concern.ADAPTER, "frozen by an error of its adapter"),
        (BundleKind.GIVE_UP, Concern.OWN, "given up after an error of its own"),
        (BundleKind.GIVE_UP, Concern.ADAPTER, "given up with its adapter"),
    ],
)
def test_it_is_told_from_its_own_point_of_view(kind: BundleKind, why: Concern, title: str) -> None:
    assert cut_bundle(Bundle(1, "0000:01:00", kind, 0, "", ""), VF, PF, why).title == title


def test_a_vf_that_is_not_in_the_bundle() -> None:
    cut = cut_bundle(Bundle(1, "0000:01:00", BundleKind.GIVE_UP, 0, "", ""), VF, PF, Concern.ADAPTER)
    assert (cut.driver, cut.config, cut.records) == ("", b"", ())
