"""remove, rescan, plug, unplug."""

from __future__ import annotations

import os

import pytest

from sriovd.backend.model import PhysicalFunctionModel
from sriovd.pci import PciAddress

from .support import IGB, IGB2, NVME, NVME_VF, VF, VF1, Sim

PORT = "0000:00:01.0"


@pytest.mark.parametrize("path", ["rescan", f"{PORT}/rescan"])
def test_remove_and_rescan_bring_a_pf_back_without_vfs(sim: Sim, path: str) -> None:
    sim.enable(IGB, 2)
    sim.must(f"{IGB}/remove", "1")
    assert sim.events() == [f"remove {VF}", f"remove {VF1}", f"unbind {IGB}", f"remove {IGB}"]
    assert sim.names() == [IGB2, NVME]
    sim.must(path, "1")
    assert sim.events() == [f"add {IGB}", f"bind {IGB}"]
    assert sim.read(f"{IGB}/sriov_numvfs") == "0\n"
    assert sim.read(f"{IGB}/sriov_drivers_autoprobe") == "1\n"


def test_nvme_vfs_stay_behind_when_their_pf_is_removed(sim: Sim) -> None:
    sim.enable(NVME, 1)
    sim.must(f"{NVME}/remove", "1")
    assert sim.events() == [f"unbind {NVME}", f"remove {NVME}"]
    assert sim.exists(NVME_VF)
    assert sim.link(f"{NVME_VF}/physfn") == f"../{NVME}"
    sim.must("rescan", "1")
    assert sim.write(f"{NVME}/sriov_numvfs", "1") == "EEXIST"


def test_a_successor_is_another_object(sim: Sim) -> None:
    address = PciAddress.parse(IGB)
    identities = set()
    for _ in range(5):
        facts = sim.backend.read_function(address)
        assert facts is not None
        identities.add(facts.identity)
        sim.must(f"{IGB}/remove", "1")
        assert sim.backend.read_function(address) is None
        sim.must("rescan", "1")
        now = os.stat(sim.backend.host.tree.path(f"bus/pci/devices/{IGB}")).st_ino
        assert now != facts.identity


@pytest.mark.parametrize(
    ("path", "data", "outcome"),
    [
        (f"{IGB}/remove", "0", "ok"),
        (f"{IGB}/remove", "x", "EINVAL"),
        (f"{IGB}/remove", "", "ok"),
        ("rescan", "0", "ok"),
        ("rescan", "x", "EINVAL"),
        ("rescan", "1", "ok"),
        (f"{IGB}/rescan", "1", "ok"),
    ],
)
def test_what_removes_and_finds_nothing(sim: Sim, path: str, data: str, outcome: str) -> None:
    assert sim.write(path, data) == outcome
    assert sim.events() == []
    assert sim.names() == [IGB, IGB2, NVME]


def test_a_removed_port_takes_everything_below_along(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.must(f"{PORT}/remove", "1")
    assert sim.events() == [
        f"remove {VF}",
        f"unbind {IGB}",
        f"unbind {PORT}",
        f"remove {IGB}",
        f"remove {PORT}",
    ]
    sim.must("rescan", "1")
    assert sim.names() == [IGB, IGB2, NVME]


def test_plug_and_unplug(sim: Sim) -> None:
    place = PciAddress.parse("0000:08:00.0")
    sim.backend.plug("nvme", place)
    port = "0000:00:01.3"  # made with the plug: what is found is added first and bound afterwards
    assert sim.events() == [f"add {port}", f"add {place}", f"bind {port}", f"bind {place}"]
    assert str(place) in sim.names()
    sim.enable(str(place), 2)
    sim.bind("0000:08:00.2", "pci-stub")
    model = sim.device(str(place)).model
    sim.backend.unplug(place)
    assert sim.events() == [
        "unbind 0000:08:00.2",
        "remove 0000:08:00.2",
        "remove 0000:08:00.1",
        f"unbind {place}",
        f"remove {place}",
    ]
    assert str(place) not in sim.names()
    assert isinstance(model, PhysicalFunctionModel) and not model.present
    sim.must("rescan", "1")
    assert str(place) not in sim.names()


@pytest.mark.parametrize(
    ("profile", "place", "message"),
    [
        ("nvme", IGB, "has an adapter already"),
        ("ixgbe", "0000:08:00.0", "igb, nvme, dlb"),
        ("igb", "0000:08:01.0", "one slot"),
        ("dlb", "0000:00:00.0", "bus 00 is the host bridge's"),
        ("dlb", "0000:ff:00.0", "past bus ff"),
    ],
)
def test_what_cannot_be_plugged(sim: Sim, profile: str, place: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sim.backend.plug(profile, PciAddress.parse(place))
    assert sim.events() == []


def test_unplugging_nothing(sim: Sim) -> None:
    with pytest.raises(ValueError, match=r"nothing is plugged in at 0000:09:00\.0"):
        sim.backend.unplug(PciAddress.parse("0000:09:00.0"))
