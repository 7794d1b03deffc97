"""Adapters: routing ids, which VF exists when, and what a dead, frozen or absent function reads."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sriovd.backend.model import PROFILES, Adapter
from sriovd.backend.model.header import Bar
from sriovd.backend.model.msi import MsixProfile
from sriovd.backend.model.profiles import with_total_vfs
from sriovd.backend.model.sriov import SriovProfile, VfRouting
from sriovd.pci import PciAddress
from sriovd.pci_registers import Sriov
from tests.unit.model.cards import build_adapter, build_pf, disable_vfs, enable_vfs, sriov_write

ALL_ONES = 0xFFFF_FFFF


@pytest.mark.parametrize(
    ("profile", "slot", "ari", "count", "index", "address"),
    [
        ("igb", "0000:01:00.0", 0, 7, 0, "0000:01:10.0"),
        ("igb", "0000:01:00.0", 0, 7, 6, "0000:01:11.4"),
        ("igb", "0001:ff:00.0", 0, 8, 7, "0001:ff:11.6"),
        ("nvme", "0000:03:00.0", 0, 120, 119, "0000:03:0f.0"),
        ("dlb", "0000:05:00.0", 0x10, 256, 0, "0000:05:00.1"),
        ("dlb", "0000:05:00.0", 0x10, 256, 254, "0000:05:1f.7"),
        ("dlb", "0000:05:00.0", 0x10, 256, 255, "0000:06:00.0"),
        ("dlb", "0000:05:00.0", 0, 256, 0, "0000:06:00.0"),
        ("dlb", "0000:05:00.0", 0, 7, 6, "0000:05:00.7"),
    ],
)
def test_where_a_vf_is(profile: str, slot: str, ari: int, count: int, index: int, address: str) -> None:
    adapter = build_adapter(profile, PciAddress.parse(slot))
    (pf,) = adapter.physical_functions
    sriov_write(pf, Sriov.CONTROL, 2, ari)
    enable_vfs(pf, count)
    vf = pf.virtual_function(index)
    assert str(vf.address) == address
    assert adapter.function_at(vf.rid) is vf
    assert adapter.read_config(vf.rid, 0, 4) == ALL_ONES
    assert adapter.read_config(vf.rid, 4, 2) == 0


def test_every_routing_id_answers_for_one_function() -> None:
    adapter = build_adapter("igb", physical_functions=2)
    for pf in adapter.physical_functions:
        enable_vfs(pf, 8)
    rids = [function.rid for function in adapter.functions]
    assert len(rids) == len(set(rids)) == 18
    assert {rid for rid in range(0x10000) if adapter.function_at(rid)} == set(rids)


def test_vfs_come_and_go_with_vf_enable() -> None:
    adapter = build_adapter("igb")
    (pf,) = adapter.physical_functions
    assert adapter.function_at(0x180) is None
    enable_vfs(pf, 2)
    stale = pf.virtual_functions[0]
    stale.write(4, 2, 4)
    disable_vfs(pf)
    assert (stale.read(4, 2), stale.present, adapter.function_at(stale.rid)) == (0xFFFF, False, None)
    enable_vfs(pf, 2)
    fresh = pf.virtual_functions[0]
    assert fresh is not stale and fresh.read(4, 2) == 0
    stale.write(4, 2, 4)
    assert (stale.read(4, 2), fresh.read(4, 2)) == (0xFFFF, 0), "an old handle never reaches the new VF"


def test_a_vf_that_does_not_exist_is_named() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 2)
    with pytest.raises(ValueError, match=r"0000:01:00\.0 has no VF 2: 2 exist"):
        pf.virtual_function(2)


def test_accesses_to_nowhere() -> None:
    adapter = build_adapter("igb")
    assert [adapter.read_config(0x180, 0, width) for width in (1, 2, 4)] == [0xFF, 0xFFFF, ALL_ONES]
    adapter.write_config(0x180, 4, 2, 4)
    with pytest.raises(ValueError, match="0x1: not aligned"):
        adapter.read_config(0x180, 1, 2)
    with pytest.raises(ValueError, match="0x10000 does not fit 2 bytes"):
        adapter.write_config(0x180, 4, 2, 0x10000)
    enable_vfs(adapter.physical_functions[0], 1)
    assert adapter.read_config(0x180, 4, 2) == 0


def test_frozen_is_one_functions_matter() -> None:
    pf = build_pf("igb")
    enable_vfs(pf, 2)
    first, second = pf.virtual_functions
    first.frozen = True
    first.write(4, 2, 4)
    assert (first.read(4, 4), first.config_bytes(), first.present) == (ALL_ONES, b"\xff" * 4096, True)
    assert (second.read(4, 2), pf.read(0, 4)) == (0, 0x10C9_8086)
    first.frozen = False
    assert first.read(4, 2) == 0, "the write was lost"
    pf.frozen = True
    disable_vfs(pf)
    pf.frozen = False
    assert (len(pf.virtual_functions), second.reachable) == (2, True)


def test_bad_accesses_raise_even_when_frozen() -> None:
    pf = build_pf("igb")
    pf.frozen = True
    with pytest.raises(ValueError, match="width 3"):
        pf.read(0, 3)
    with pytest.raises(ValueError, match="0x10000 does not fit 2 bytes"):
        pf.write(4, 2, 0x10000)
    with pytest.raises(ValueError, match="0x1: not aligned"):
        pf.write(1, 4, 0)


def test_surprise_down_and_back() -> None:
    adapter = build_adapter("igb")
    (pf,) = adapter.physical_functions
    enable_vfs(pf, 2)
    vf = pf.virtual_functions[0]
    pf.inject_uncorrectable(1 << 12)
    pf.frozen = True
    adapter.surprise_down()
    assert {adapter.read_config(rid, 4, 4) for rid in (pf.rid, vf.rid)} == {ALL_ONES}
    adapter.write_config(pf.rid, 4, 2, 4)
    adapter.restore()
    assert (pf.read(0, 4), pf.read(4, 2), pf.read(0x104, 4)) == (0x10C9_8086, 0, 0)
    assert (pf.virtual_functions, vf.read(4, 2), pf.frozen) == ([], 0xFFFF, False)


def test_hot_reset_keeps_the_error_log() -> None:
    adapter = build_adapter("igb", physical_functions=2)
    for pf in adapter.physical_functions:
        enable_vfs(pf, 1)
        pf.inject_uncorrectable(1 << 12)
    adapter.hot_reset()
    for pf in adapter.physical_functions:
        assert (pf.virtual_functions, pf.read(0x104, 4)) == ([], 0x1000)


def test_a_recorded_configuration_is_taken_over_vfs_included() -> None:
    source, target = build_pf("igb"), build_pf("igb")
    enable_vfs(source, 5)
    source.write(0x04, 2, 0x0406)
    target.load_config(source.config_bytes())
    assert (target.config_bytes(), len(target.virtual_functions)) == (source.config_bytes(), 5)
    with pytest.raises(ValueError, match="byte 0x000 is 0x36, this device has 0x86"):
        target.load_config(build_pf("nvme").config_bytes())


def test_total_vfs_is_a_profiles_matter() -> None:
    pf = Adapter(with_total_vfs(PROFILES["nvme"], 16), PciAddress.parse("0000:03:00.0")).physical_functions[
        0
    ]
    enable_vfs(pf, 17)
    assert pf.virtual_functions == []
    enable_vfs(pf, 16)
    assert len(pf.virtual_functions) == 16


@pytest.mark.parametrize(
    ("profile", "slot", "names"),
    [("igb", "0000:01:00.1", "0000:01:00.1: the address of its function 0"),
     ("dlb", "0000:ff:00.0", "dlb at 0000:ff:00.0: its last VF would lie past bus ff")],
)  # fmt: skip
def test_an_impossible_place_is_refused(profile: str, slot: str, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        build_adapter(profile, PciAddress.parse(slot))


def test_an_impossible_profile_is_refused() -> None:
    routing = (VfRouting(1, 1),)
    with pytest.raises(ValueError, match="TotalVFs 0"):
        SriovProfile(0x160, 0x10CA, 0, routing, ())
    with pytest.raises(ValueError, match="supported page sizes 0x1: must include 0x553"):
        SriovProfile(0x160, 0x10CA, 8, routing, (), supported_page_sizes=1)
    with pytest.raises(ValueError, match="a row for any NumVFs"):
        SriovProfile(0x160, 0x10CA, 8, (VfRouting(1, 1, num_vfs_from=2),), ())
    with pytest.raises(ValueError, match="BAR 0: size 0x3000"):
        Bar(0, 0x3000)
    with pytest.raises(ValueError, match="BAR 5: outside 0 to 4"):
        Bar(5, 0x1000, is_64bit=True)
    with pytest.raises(ValueError, match="2049 vectors"):
        MsixProfile(0x40, 2049, 0, 0, 0, 0)
    igb = PROFILES["igb"]
    with pytest.raises(ValueError, match="without SR-IOV"):
        Adapter(
            replace(igb, pf=replace(igb.pf, extended=igb.pf.extended[:2])), PciAddress.parse("0000:01:00.0")
        )
    with pytest.raises(ValueError, match="without PCI Express"):
        Adapter(replace(igb, pf=replace(igb.pf, capabilities=())), PciAddress.parse("0000:01:00.0"))
    with pytest.raises(ValueError, match="0x160, must be at 0x100"):
        Adapter(
            replace(igb, pf=replace(igb.pf, extended=igb.pf.extended[2:])), PciAddress.parse("0000:01:00.0")
        )
