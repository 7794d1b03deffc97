"""What a VF has, told from what a real kernel showed and from what makes no sense."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.errors import BackendFailed
from sriovd.core.inspect.resources import read_bars, read_msix
from sriovd.core.inspect.site import Site, Subject
from sriovd.core.inspect.table import show_resources
from tests.unit.core.recovery.samples import VF, load_configs

IGB_VF = """\
0x00000000fe800000 0x00000000fe803fff 0x0000000000140204
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000fe81c000 0x00000000fe81ffff 0x000000000014220c
0x000000000000d000 0x000000000000d01f 0x0000000000040101
0x00000000fe900000 0x00000000fe900fff 0x0000000000040200
0x00000000fea00000 0x00000000feafffff 0x0000000000040200
"""


def test_sizes_and_kinds_and_no_addresses() -> None:
    assert read_bars(IGB_VF) == {
        "bar0-bytes": 16384, "bar0-kind": "64-bit memory",
        "bar3-bytes": 16384, "bar3-kind": "64-bit prefetchable memory",
        "bar4-bytes": 32, "bar4-kind": "I/O ports",
        "bar5-bytes": 4096, "bar5-kind": "32-bit memory",
    }  # fmt: skip


def test_vectors_of_a_real_vf() -> None:
    assert read_msix(load_configs()[VF]) == {"msix-vectors": 3, "msix-bar": 3, "msix-enabled": True}


@given(st.binary(max_size=256))
def test_any_bytes_are_read(config: bytes) -> None:
    assert read_msix(config)["msix-vectors"] in range(2049)


@pytest.mark.parametrize(
    "text", ["0xfe800000", "0x1000 0x1fff 0xfe\x00", "0x2000 0x1fff 0x40200", "0 -1 200"]
)
def test_a_list_of_bars_that_makes_no_sense_is_a_failure_without_addresses(text: str) -> None:
    async def read(*_given: object) -> object:
        return SimpleNamespace(value=lambda _verb: text)

    facts = SimpleNamespace(numa_node=0, iommu_group=None)
    site = SimpleNamespace(read=read, vf=lambda _subject: SimpleNamespace(facts=facts))
    with pytest.raises(BackendFailed) as refused:
        asyncio.run(show_resources(Subject(VF, (VF, 0)), cast(Site, site)))
    assert str(refused.value) == "The kernel's list of its BARs makes no sense."
