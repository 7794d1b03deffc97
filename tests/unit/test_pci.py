"""PCI addresses: what is one, and where a PF's VFs are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.pci import AddressError, PciAddress, PciSlot, vf_address, vf_index

ADDRESSES = st.builds(
    PciAddress, st.integers(0, 0xFFFF_FFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7)
)

GOOD = [
    ("0000:01:10.2", PciAddress(0, 1, 0x10, 2)),
    ("0000:00:00.0", PciAddress(0, 0, 0, 0)),
    ("ffff:ff:1f.7", PciAddress(0xFFFF, 0xFF, 0x1F, 7)),
    ("0000:AF:0A.0", PciAddress(0, 0xAF, 0x0A, 0)),
    ("10000:01:00.0", PciAddress(0x10000, 1, 0, 0)),  # VMD domains have more than four digits
]


@pytest.mark.parametrize(("text", "address"), GOOD)
def test_parse(text: str, address: PciAddress) -> None:
    assert PciAddress.parse(text) == address
    assert str(address) == text.lower()


BAD = [
    "",
    "01:10.2",  # a domain guessed wrong would reach another device
    "0000:01:10",
    "0000:01:20.0",  # device 32
    "0000:01:10.8",
    "000:01:10.2",
    "0000:1:10.2",
    "0000:01:10.2 ",
    "0000:01:10.2\n",
    " 0000:01:10.2",
    "0000:0g:10.2",
    "000000000:01:10.2",
    "0000.01.10.2",
    "../../0000:01:10.2",
    "\u0660\u0660\u0660\u0660:01:10.2",  # digits, but not of ours
    "0000:01:10.\u0662",
]


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_address_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(AddressError, match=r"write it like 0000:01:00\.0") as refusal:
        PciAddress.parse(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["", "01:00", "0000:01:00.0", "0000:01:20", "0000:01:00\n"])
def test_what_is_no_slot_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match=r"write it like 0000:01:00$"):
        PciSlot.parse(text)


def test_a_refusal_does_not_repeat_a_novel() -> None:
    with pytest.raises(AddressError) as refusal:
        PciAddress.parse("x" * 100_000)
    assert len(str(refusal.value)) < 200


@given(st.text())
def test_any_text_is_an_address_or_refused(text: str) -> None:
    try:
        address = PciAddress.parse(text)
    except AddressError:
        return
    assert str(address) == text.lower()


@given(ADDRESSES)
def test_texts_and_routing_ids_lead_back(address: PciAddress) -> None:
    assert PciAddress.parse(str(address)) == address
    assert PciAddress.from_rid(address.domain, address.rid) == address
    assert PciSlot.parse(str(address.slot)) == address.slot
    assert str(address).startswith(f"{address.slot}.")


@given(ADDRESSES, ADDRESSES)
def test_the_order_is_that_of_the_routing_ids(one: PciAddress, other: PciAddress) -> None:
    assert (one < other) == ((one.domain, one.rid) < (other.domain, other.rid))


@pytest.mark.parametrize("rid", [-1, 0x10000])
def test_a_routing_id_has_16_bits(rid: int) -> None:
    with pytest.raises(AddressError, match=f"{rid:#x}"):
        PciAddress.from_rid(0, rid)


VFS = [
    ("0000:01:00.0", 0x80, 2, 0, "0000:01:10.0"),  # igb
    ("0000:01:00.0", 0x80, 2, 6, "0000:01:11.4"),
    ("0000:01:00.1", 0x80, 2, 0, "0000:01:10.1"),
    ("0000:01:00.0", 1, 1, 6, "0000:01:00.7"),
    ("0000:01:00.0", 1, 1, 126, "0000:01:0f.7"),  # nvme
    ("0000:01:00.0", 1, 1, 255, "0000:02:00.0"),  # the sum carries into the bus number
    ("0000:01:00.0", 0x100, 1, 0, "0000:02:00.0"),
]


@pytest.mark.parametrize(("pf", "offset", "stride", "index", "vf"), VFS)
def test_where_vfs_are(pf: str, offset: int, stride: int, index: int, vf: str) -> None:
    assert str(vf_address(PciAddress.parse(pf), offset, stride, index)) == vf
    assert vf_index(PciAddress.parse(pf), offset, stride, PciAddress.parse(vf)) == index


NOT_ITS_VFS = [
    ("0000:01:00.0", 0x80, 2, "0000:01:10.1"),  # the other PF's
    ("0000:01:00.0", 0x80, 2, "0000:01:0f.7"),  # before the first
    ("0000:01:00.0", 0x80, 2, "0001:01:10.0"),  # another domain
    ("0000:01:00.0", 0x80, 0, "0000:01:10.2"),  # without a stride there is but one VF
]


@pytest.mark.parametrize(("pf", "offset", "stride", "address"), NOT_ITS_VFS)
def test_where_vfs_are_not(pf: str, offset: int, stride: int, address: str) -> None:
    assert vf_index(PciAddress.parse(pf), offset, stride, PciAddress.parse(address)) is None


def test_behind_the_last_bus_there_is_no_vf() -> None:
    with pytest.raises(AddressError, match="0x10000"):
        vf_address(PciAddress(0, 0xFF, 0, 0), 0x100, 1, 0)


@given(ADDRESSES, st.integers(0, 0xFFFF), st.integers(1, 0xFFFF), st.integers(0, 0xFFFF))
def test_index_is_the_inverse_of_address(pf: PciAddress, offset: int, stride: int, index: int) -> None:
    try:
        vf = vf_address(pf, offset, stride, index)
    except AddressError:
        assert pf.rid + offset + stride * index > 0xFFFF
    else:
        assert vf_index(pf, offset, stride, vf) == index
