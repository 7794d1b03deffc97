"""A bundle survives JSON, and nothing that is not one comes back as one."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.base import ErrorRecord, Severity
from sriovd.core.recovery.bundle import Bundle, BundleKind, FunctionDump, FunctionRole, pack_config
from sriovd.pci import PciAddress
from tests.unit.core.recovery.samples import PF, VF, make_bundle

BUNDLE = make_bundle()

addresses = st.builds(PciAddress.from_rid, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
numbers = st.integers(0, 2**63 - 1)
dwords = st.integers(0, 2**32 - 1)
texts = st.text(max_size=20)
lines = st.lists(texts, max_size=3).map(tuple)
counters = st.dictionaries(
    addresses,
    st.dictionaries(st.sampled_from(Severity), st.dictionaries(texts, numbers, max_size=3)),
    max_size=3,
)
bundles = st.builds(
    Bundle,
    number=numbers,
    slot=addresses.map(lambda address: str(address.slot)),
    kind=st.sampled_from(BundleKind),
    taken_usec=st.integers(0, 253_402_300_799_999_999),
    title=texts,
    reason=texts,
    functions=st.lists(
        st.builds(
            FunctionDump, addresses, st.sampled_from(FunctionRole), texts, st.binary(max_size=4096), texts
        ),
        max_size=3,
    ).map(tuple),
    records=st.lists(
        st.builds(
            ErrorRecord,
            addresses,
            st.sampled_from(Severity),
            dwords,
            st.lists(dwords, max_size=4).map(tuple),
            numbers,
        ),
        max_size=3,
    ).map(tuple),
    counters_before=counters,
    counters_after=counters,
    kernel_log=lines,
    actions=lines,
    left_out=lines,
    taken_monotonic_usec=numbers,
)


@given(bundles)
def test_a_bundle_survives_json(bundle: Bundle) -> None:
    assert Bundle.from_dict(json.loads(json.dumps(bundle.to_dict()))) == bundle


def test_a_bundle_of_a_former_release_does_not_know_its_boots_clock() -> None:
    data = BUNDLE.to_dict() | {"taken_monotonic_usec": 5}
    assert Bundle.from_dict(data).taken_monotonic_usec == 5
    del data["taken_monotonic_usec"]
    assert Bundle.from_dict(data).taken_monotonic_usec == 0


def test_what_is_stored_is_plain() -> None:
    data = BUNDLE.to_dict()
    assert data["functions"][2] == {
        "address": "0000:01:10.0",
        "role": "VF",
        "driver": "",
        "config": pack_config(b""),
        "note": "it could not be read: EIO",
    }
    assert data["records"] == [
        {
            "address": "0000:01:00.0",
            "severity": "nonfatal",
            "status": 0x4000,
            "tlp_header": [0x40000001, 0x0100050F, 0xFEE00000, 0],
            "at_usec": 123_456_789,
        }
    ]
    assert data["counters_before"][str(PF)] == {"corrected": {"RxErr": 2, "total": 2}}
    assert data["counters_before"][str(VF)] == {}
    assert data["kind"] == "freeze"


def pack(config: bytes) -> str:
    return base64.b64encode(config).decode()


WRONG: list[tuple[str, object, str]] = [
    ("number", -1, "not a whole number"),
    ("number", True, "not a whole number"),
    ("slot", "0000:01:00.0", "not a PCI slot"),
    ("slot", 1, "not text"),
    ("kind", "thaw", "not a valid BundleKind"),
    ("kind", None, "not text"),
    ("taken_usec", 253_402_300_800_000_000, "not a whole number"),
    ("title", 1, "not text"),
    ("reason", None, "not text"),
    ("functions", {}, "not a list"),
    ("functions", [1], "a function dump is no table: 1"),
    ("functions", [{}], "a function dump has fields too many or too few: 'address', 'config'"),
    ("records", ["x"], "an error record is no table"),
    ("counters_before", [], "not a table"),
    ("counters_before", {"here": {}}, "not a PCI address"),
    ("counters_after", {str(PF): {"bad": {}}}, "not a valid Severity"),
    ("counters_after", {str(PF): {"fatal": {"total": 1.0}}}, "not a whole number"),
    ("counters_after", {str(PF): {"fatal": 3}}, "3 is not a table"),
    ("kernel_log", "text", "not a list"),
    ("actions", [1], "not text"),
    ("left_out", None, "not a list"),
    ("taken_monotonic_usec", -1, "not a whole number"),
]


@pytest.mark.parametrize(("field", "value", "complaint"), WRONG, ids=lambda each: repr(each)[:24])
def test_a_wrong_field_is_named(field: str, value: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=f"a bundle's {field} is wrong: .*{complaint}"):
        Bundle.from_dict({**BUNDLE.to_dict(), field: value})


WRONG_DUMPS: list[tuple[str, object, str]] = [
    ("address", "01:00.0", "not a PCI address"),
    ("role", "root", "not a valid FunctionRole"),
    ("driver", None, "not text"),
    ("note", 1, "not text"),
    ("config", None, "not text"),
    ("config", "%%%", "base64"),
    ("config", "é", "ASCII"),
    ("config", pack(b"no zlib"), "cannot be unpacked"),
    ("config", pack(zlib.compress(bytes(100))[:-2]), "cut off"),
    ("config", pack(zlib.compress(bytes(100)) + b"x"), "something follows"),
    ("config", pack(zlib.compress(bytes(4097))), "longer than 4096"),
    ("config", pack(zlib.compress(bytes(10**8))), "longer than 4096"),
]


@pytest.mark.parametrize(("field", "value", "complaint"), WRONG_DUMPS, ids=lambda each: repr(each)[:24])
def test_a_wrong_field_of_a_function_is_named(field: str, value: object, complaint: str) -> None:
    dump = {**BUNDLE.functions[0].to_dict(), field: value}
    with pytest.raises(
        ValueError, match=f"functions is wrong: a function dump's {field} is wrong: .*{complaint}"
    ):
        Bundle.from_dict({**BUNDLE.to_dict(), "functions": [dump]})


WRONG_RECORDS: list[tuple[str, object]] = [
    ("address", "x"),
    ("severity", "bad"),
    ("status", -1),
    ("status", 2**32),
    ("tlp_header", [2**32]),
    ("tlp_header", 1),
    ("at_usec", "now"),
]


@pytest.mark.parametrize(("field", "value"), WRONG_RECORDS, ids=lambda each: repr(each)[:24])
def test_a_wrong_field_of_an_error_is_named(field: str, value: object) -> None:
    record = {**BUNDLE.to_dict()["records"][0], field: value}
    with pytest.raises(ValueError, match=f"records is wrong: an error record's {field} is wrong: "):
        Bundle.from_dict({**BUNDLE.to_dict(), "records": [record]})


@pytest.mark.parametrize("field", sorted(BUNDLE.to_dict().keys() - {"taken_monotonic_usec"}))
def test_a_missing_field_is_named(field: str) -> None:
    data = BUNDLE.to_dict()
    del data[field]
    with pytest.raises(ValueError, match=f"too few: '{field}'"):
        Bundle.from_dict(data)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(BUNDLE.to_dict())), json_values)
def test_anything_else_is_a_value_error_or_a_bundle(field: str, value: object) -> None:
    try:
        bundle = Bundle.from_dict({**BUNDLE.to_dict(), field: value})
    except ValueError:
        return
    assert Bundle.from_dict(bundle.to_dict()) == bundle


@given(json_values)
def test_what_is_no_table_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a bundle "):
        Bundle.from_dict(value)
