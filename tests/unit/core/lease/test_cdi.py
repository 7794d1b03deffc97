"""The CDI document against the specification's rules, which are written down here a second time.

Sources, all in https://github.com/cncf-tags/container-device-interface: specs-go/config.go (fields) and
version.go (lowest version), pkg/parser/parser.go (names), pkg/cdi/container-edits.go and spec.go (the rest).
"""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.lease.cdi import cdi_document, cdi_filename, check_qualified_name, qualified_name
from sriovd.pci import PciAddress

LETTERS, ALNUM = string.ascii_letters, string.ascii_letters + string.digits
FIELDS = {
    "document": {"cdiVersion", "kind", "annotations", "devices", "containerEdits"},
    "device": {"name", "annotations", "containerEdits"},
    "edits": {"env", "deviceNodes", "netDevices", "mounts", "hooks", "additionalGIDs", "intelRdt"},
    "node": {"path", "hostPath", "type", "major", "minor", "fileMode", "permissions", "uid", "gid"},
}


def is_word(text: str, first: str, more: str) -> bool:
    """parser.go, validateVendorOrClassName and ValidateDeviceName."""
    return bool(text) and text[0] in first and text[-1] in ALNUM and set(text) <= set(ALNUM + more)


def lowest_version(document: dict[str, Any]) -> str:
    """version.go, requiresV040 to requiresV110."""
    edits = [document.get("containerEdits", {}), *(each["containerEdits"] for each in document["devices"])]
    used = {field for edit in edits for field in edit}
    if "netDevices" in used:
        return "1.1.0"
    if {"intelRdt", "additionalGIDs"} & used:
        return "0.7.0"
    if any("annotations" in each for each in [document, *document["devices"]]):
        return "0.6.0"
    if "." in document["kind"].partition("/")[2]:
        return "0.6.0"
    if any(device["name"][0].isdigit() for device in document["devices"]):
        return "0.5.0"
    if any("hostPath" in node for edit in edits for node in edit.get("deviceNodes", [])):
        return "0.5.0"
    return "0.4.0" if any("type" in mount for edit in edits for mount in edit.get("mounts", [])) else "0.3.0"


def check_document(document: dict[str, Any]) -> None:
    """spec.go, validate and ParseSpec, which refuses unknown fields."""
    assert document.keys() <= FIELDS["document"]
    assert document["cdiVersion"] == lowest_version(document)
    vendor, slash, word = document["kind"].partition("/")
    assert slash
    assert is_word(vendor, LETTERS, "_-.")
    assert is_word(word, LETTERS, "_-.")
    names = [device["name"] for device in document["devices"]]
    assert names
    assert len(set(names)) == len(names)
    for device in document["devices"]:
        assert device.keys() <= FIELDS["device"]
        assert is_word(device["name"], ALNUM, "_-.:")
        assert device["containerEdits"], "a device without edits is invalid"
        check_edits(device["containerEdits"])


def check_edits(edits: dict[str, Any]) -> None:
    """container-edits.go, Validate."""
    assert edits.keys() <= FIELDS["edits"]
    assert all(line.find("=") > 0 for line in edits["env"])
    for node in edits["deviceNodes"]:
        assert node.keys() <= FIELDS["node"]
        assert node["path"].startswith("/dev/")
        assert set(node["permissions"]) <= set("rwm")


numbers, groups = st.integers(1, 2**63 - 1), st.integers(0, 2**31 - 1)
addresses = st.builds(PciAddress.from_rid, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)).map(str)


@given(numbers, groups, addresses)
def test_a_document_obeys_the_specification(number: int, group: int, address: str) -> None:
    document = json.loads(cdi_document(number, group, address))
    check_document(document)
    assert qualified_name(number) == f"{document['kind']}={document['devices'][0]['name']}"


def test_a_document_says_what_it_shall() -> None:
    nodes = [{"path": path, "permissions": "rw"} for path in ("/dev/vfio/vfio", "/dev/vfio/42")]
    edits = {"env": ["SRIOVD_VF=0000:01:10.0", "SRIOVD_LEASE=7"], "deviceNodes": nodes}
    assert json.loads(cdi_document(7, 42, "0000:01:10.0")) == {
        "cdiVersion": "0.3.0",
        "kind": "sriovd.org/vf",
        "devices": [{"name": "lease-7", "containerEdits": edits}],
    }
    assert cdi_document(7, 42, "0000:01:10.0") == cdi_document(7, 42, "0000:01:10.0")
    assert qualified_name(7) == "sriovd.org/vf=lease-7"


@given(numbers)
def test_the_file_name_is_that_of_a_transient_document(number: int) -> None:
    assert cdi_filename(number) == f"sriovd.org-vf_lease-{number}.json"


WRONG = [(0, 1, "0000:01:10.0"), (-1, 1, "0000:01:10.0"), (1, -1, "0000:01:10.0"), (1, 1, "01:10.0")]


@pytest.mark.parametrize(("number", "group", "address"), WRONG)
def test_what_cannot_be_is_refused(number: int, group: int, address: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        cdi_document(number, group, address)


def test_a_file_name_needs_a_lease() -> None:
    with pytest.raises(ValueError, match="0 is not the number of a lease"):
        cdi_filename(0)


GOOD = ["a.b/c=d", "vendor.com/device=gpu0", "v/c-1_2=a:b.c-d_e9", "V1/C1=D1", f"v/{'c' * 63}=d"]
BAD = [
    *[
        "",
        "v",
        "v/c",
        "v=d",
        "/c=d",
        "v/=d",
        "v/c=",
        "1v/c=d",
        "v/1c=d",
        "v-/c=d",
        "v/c_=d",
        "v/c=d-",
        "v/c=-d",
    ],
    *["v /c=d", "v/c=d e", "v/c=d\n", "v/c/c=d", "v/c=d=e", "v/ç=d", f"v/{'c' * 64}=d", f"{'v' * 254}/c=d"],
    *["v/c=1d", "v/c.c=d"],  # allowed by 0.5.0 and 0.6.0, not by 0.3.0
]


@pytest.mark.parametrize("name", GOOD)
def test_a_good_name_passes(name: str) -> None:
    check_qualified_name(name)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a qualified device name"):
        check_qualified_name(name)


@given(st.text("ab1/=.-_:", max_size=12))
def test_whatever_passes_is_a_name_for_the_go_library(name: str) -> None:
    try:
        check_qualified_name(name)
    except ValueError:
        return
    vendor, word, device = name.replace("=", "/", 1).split("/", 2)
    assert is_word(vendor, LETTERS, "_-.")
    assert is_word(word, LETTERS, "_-.")
    assert is_word(device, ALNUM, "_-.:")
