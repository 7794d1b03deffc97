"""The record of a lease survives JSON, and nothing that is not one comes back as one."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.errors import InvalidArgument
from sriovd.core.lease.record import Lease, LeaseState, check_name
from sriovd.pci import PciAddress

PF = PciAddress.parse("0000:01:00.0")
LEASE = Lease(7, 1000, "vm web-1", PF, 3, 2, "vfio-pci", "none", True, LeaseState.ACTIVE)
PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))

leases = st.builds(
    Lease,
    number=st.integers(1, 2**63 - 1),
    uid=st.integers(0, 2**32 - 2),
    name=st.text(PRINTABLE, min_size=1, max_size=64),
    pf=st.builds(PciAddress.from_rid, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
    index=st.integers(0, 65534),
    generation=st.integers(1, 2**63 - 1),
    driver=st.sampled_from(["vfio-pci", "pci-stub", "default", "none", "igbvf"]),
    home=st.sampled_from(["vfio-pci", "pci-stub", "default", "none", "igbvf"]),
    held_by_descriptor=st.booleans(),
    state=st.sampled_from(LeaseState),
    reason=st.text(min_size=1),
    begun_usec=st.integers(0, 2**63 - 1),
)


@given(leases)
def test_a_record_survives_json(lease: Lease) -> None:
    assert Lease.from_dict(json.loads(json.dumps(lease.to_dict()))) == lease


def test_what_is_stored_is_plain() -> None:
    assert LEASE.to_dict() == {
        "number": 7,
        "uid": 1000,
        "name": "vm web-1",
        "pf": "0000:01:00.0",
        "index": 3,
        "generation": 2,
        "driver": "vfio-pci",
        "home": "none",
        "held_by_descriptor": True,
        "state": "active",
        "reason": "",
        "begun_usec": 0,
    }
    assert {type(value) for value in LEASE.to_dict().values()} == {int, str, bool}


WRONG: list[tuple[str, object]] = [
    ("number", 0),
    ("number", "7"),
    ("number", True),
    ("number", 7.0),
    ("number", 2**63),
    ("uid", -1),
    ("uid", 2**32 - 1),
    ("name", ""),
    ("name", "a\nb"),
    ("name", None),
    ("pf", "01:00.0"),
    ("pf", 5),
    ("pf", ["0000:01:00.0"]),
    ("index", -1),
    ("index", 65535),
    ("generation", 0),
    ("driver", "../x"),
    ("driver", ""),
    ("held_by_descriptor", 1),
    ("held_by_descriptor", "true"),
    ("state", "lent"),
    ("state", 1),
    ("reason", None),
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=lambda each: repr(each)[:24])
def test_a_wrong_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"record's {field} is wrong"):
        Lease.from_dict({**LEASE.to_dict(), field: value})


@pytest.mark.parametrize("field", [field for field in LEASE.to_dict() if field != "begun_usec"])
def test_a_missing_field_is_named(field: str) -> None:
    data = LEASE.to_dict()
    del data[field]
    with pytest.raises(ValueError, match=f"too few: '{field}'"):
        Lease.from_dict(data)


def test_a_record_of_an_older_sriovd_does_not_say_when_it_began() -> None:
    data = LEASE.to_dict()
    del data["begun_usec"]
    assert Lease.from_dict(data) == LEASE


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(ValueError, match="too many or too few: 'colour'"):
        Lease.from_dict({**LEASE.to_dict(), "colour": "red"})


def test_a_failed_lease_has_a_reason() -> None:
    failed = replace(LEASE, state=LeaseState.FAILED, reason="the reset failed")
    assert Lease.from_dict(failed.to_dict()) == failed
    with pytest.raises(ValueError, match="reason is missing"):
        Lease.from_dict({**failed.to_dict(), "reason": ""})


@given(st.text(PRINTABLE, min_size=1, max_size=64))
def test_a_printable_name_is_fine(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "x" * 65, "a\tb", "line\n", "\x7f", "\x00", "Zoë", "\u202e"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot name the owner"):
        check_name(name)


def test_a_lease_names_itself_and_its_place() -> None:
    assert str(LEASE) == "lease 7 (VF 3 of 0000:01:00.0)"
