"""vfio-pci: holders, PFs with VFs, enable_sriov, nodes."""

from __future__ import annotations

import asyncio

import pytest

from sriovd.backend.base import Holder

from .support import IGB, VF, VF1, Sim

QEMU = Holder(4711, "qemu-system-x86")
PARAMETER = "module/vfio_pci/parameters/enable_sriov"


def test_nodes_exist_while_bound(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.bind(VF, "vfio-pci")
    group = sim.device(VF).group
    tree = sim.backend.host.tree
    assert sim.exists(f"{VF}/vfio-dev/vfio0")
    assert tree.path(f"class/vfio/{group}")
    assert sim.link(f"devices/../class/vfio/{group}") == f"../../devices/virtual/vfio/{group}"
    sim.must("drivers/vfio-pci/unbind", VF)
    assert not sim.exists(f"{VF}/vfio-dev")
    assert sim.link(f"devices/../class/vfio/{group}") == ""


def test_unbind_waits_until_the_holder_closes(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.bind(VF, "vfio-pci")
    vf = sim.device(VF).address
    sim.backend.open_device(vf, QEMU)
    assert sim.write("drivers/vfio-pci/unbind", VF) == "blocks"
    assert sim.driver(VF) == ""  # the link goes first
    assert sim.events() == []
    assert sim.read(f"{VF}/driver_override") == "blocks"  # the device's lock is held
    assert sim.read(f"{IGB}/driver_override") == "(null)\n"
    sim.backend.close_device(vf)
    sim.kernel.resume()
    assert sim.events() == [f"unbind {VF}"]
    assert sim.read(f"{VF}/driver_override") == "vfio-pci\n"


def test_destroying_a_held_vf_blocks_readers_of_numvfs(sim: Sim) -> None:
    sim.enable(IGB, 2)
    sim.bind(VF1, "vfio-pci")
    sim.backend.open_device(sim.device(VF1).address, QEMU)
    assert sim.write(f"{IGB}/sriov_numvfs", "0") == "blocks"
    assert sim.read(f"{IGB}/sriov_numvfs") == "blocks"
    assert sim.read(f"{IGB}/sriov_totalvfs") == "7\n"
    assert sim.events() == [f"remove {VF}"]
    sim.backend.close_device(sim.device(VF1).address)
    sim.kernel.resume()
    assert sim.events() == [f"unbind {VF1}", f"remove {VF1}"]
    assert sim.read(f"{IGB}/sriov_numvfs") == "0\n"


def test_holders_are_found_by_address(sim: Sim) -> None:
    sim.enable(IGB, 2)
    sim.bind(VF, "vfio-pci")
    vf, other = sim.device(VF).address, sim.device(VF1).address
    with pytest.raises(ValueError, match="not bound to vfio-pci"):
        sim.backend.open_device(other, QEMU)
    sim.backend.open_device(vf, QEMU)
    assert asyncio.run(sim.backend.find_holders([vf, other])) == {vf: (QEMU,)}


def test_a_pf_with_vfs_is_refused(sim: Sim) -> None:
    sim.enable(IGB, 2)
    sim.must(f"{IGB}/driver_override", "vfio-pci")
    sim.must("drivers/igb/unbind", IGB)  # takes the VFs along
    assert sim.write("drivers/vfio-pci/bind", IGB) == "ok"
    assert sim.read(f"{IGB}/sriov_totalvfs") == "8\n"
    assert sim.write(f"{IGB}/sriov_numvfs", "3") == "ENOENT"  # enable_sriov is off


def test_enable_sriov_captures_vfs_and_takes_them_away_again(sim: Sim) -> None:
    sim.must(PARAMETER, "Y")
    assert sim.read(PARAMETER) == "Y\n"
    sim.must("drivers/igb/unbind", IGB)
    sim.bind(IGB, "vfio-pci")
    sim.must(f"{IGB}/sriov_numvfs", "3")
    assert (sim.driver(VF), sim.read(f"{VF}/driver_override")) == ("vfio-pci", "vfio-pci\n")
    sim.must("drivers/vfio-pci/unbind", IGB)
    assert sim.read(f"{IGB}/sriov_numvfs") == "0\n"
    assert not sim.exists(VF)


def test_kernel_drivers_keep_out_of_a_group_that_is_held(sim: Sim) -> None:
    sim.enable(IGB, 2)
    sim.bind(VF, "vfio-pci")
    host = sim.backend.host
    other = sim.device(VF1)
    group = sim.device(VF).group
    assert group is not None and other.group is not None
    host.groups.remove(other.name, other.group)
    other.group, _ = host.groups.add(other.name, group)
    sim.backend.open_device(sim.device(VF).address, QEMU)
    sim.must(f"{VF1}/driver_override", "igbvf")
    assert sim.write("drivers/igbvf/bind", VF1) == "EBUSY"
    sim.must(f"{VF1}/driver_override", "pci-stub")
    assert sim.write("drivers/pci-stub/bind", VF1) == "ok"
