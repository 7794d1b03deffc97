"""bind, unbind, drivers_probe, driver_override: a stock kernel's answers, one by one."""

from __future__ import annotations

import pytest

from sriovd.backend.base import DriverState

from .support import IGB, NVME, NVME_VF, VF, VF1, Sim

# (file, written, outcome) on an unbound VF without override, sriov_drivers_autoprobe 0
WITHOUT_OVERRIDE = [
    ("drivers/vfio-pci/bind", VF, "ENODEV"),
    ("drivers/igbvf/bind", VF, "ENODEV"),
    ("drivers_probe", VF, "ok"),
    ("drivers_probe", f"{VF}\n", "ok"),
    ("drivers/vfio-pci/unbind", VF, "ENODEV"),
    ("drivers/vfio-pci/bind", "", "ok"),
    ("drivers_probe", "", "ok"),
    ("drivers_probe", "\n", "ENODEV"),
    ("drivers_probe", "nonsense", "ENODEV"),
    ("drivers_probe", "0000:01:10", "ENODEV"),
    ("drivers_probe", "01:10.0", "ENODEV"),
    ("drivers_probe", f"{VF} ", "ENODEV"),
    ("drivers_probe", "0000:01:10.9", "ENODEV"),
    ("drivers_probe", "0000:7f:00.0", "ENODEV"),
    ("drivers_probe", f" {VF}", "ENODEV"),
    ("drivers_probe", "0000:01:1F.7", "ENODEV"),
    ("drivers/vfio-pci/unbind", "../../x", "ENODEV"),
    ("drivers/nonexistent/bind", VF, "ENOENT"),
    (f"{VF}/driver/unbind", VF, "ENOENT"),
]


@pytest.mark.parametrize(("path", "data", "outcome"), WITHOUT_OVERRIDE)
def test_vf_without_override(sim: Sim, path: str, data: str, outcome: str) -> None:
    sim.enable(IGB, 1)
    assert sim.write(path, data) == outcome
    assert sim.driver(VF) == ""
    assert sim.events() == []


def test_the_story_of_an_override(sim: Sim) -> None:
    """The sequence of the observed kernel, step by step."""
    sim.enable(IGB, 1)
    for path, data, outcome, driver in (
        (f"{VF}/driver_override", "igbvf", "ok", ""),
        ("drivers/vfio-pci/bind", VF, "ENODEV", ""),
        (f"{VF}/driver_override", "vfio-pci", "ok", ""),
        ("drivers/igbvf/bind", VF, "ENODEV", ""),
        ("drivers/vfio-pci/bind", VF, "ok", "vfio-pci"),
        ("drivers/vfio-pci/bind", VF, "EBUSY", "vfio-pci"),
        ("drivers/igbvf/bind", VF, "ENODEV", "vfio-pci"),
        ("drivers_probe", VF, "ok", "vfio-pci"),
        (f"{VF}/driver_override", "igbvf", "ok", "vfio-pci"),
        ("drivers/igbvf/bind", VF, "EBUSY", "vfio-pci"),
        ("drivers_probe", VF, "ok", "vfio-pci"),
        ("drivers/igbvf/unbind", VF, "ENODEV", "vfio-pci"),
        ("drivers/vfio-pci/unbind", VF, "ok", ""),
        ("drivers/vfio-pci/unbind", VF, "ENODEV", ""),
        ("drivers_probe", VF, "ok", "igbvf"),
    ):
        assert sim.write(path, data) == outcome, (path, data)
        assert sim.driver(VF) == driver, (path, data)
    assert sim.events() == [f"bind {VF}", f"unbind {VF}", f"bind {VF}"]


@pytest.mark.parametrize(
    ("data", "outcome", "value"),
    [
        ("vfio-pci\n", "ok", "vfio-pci\n"),
        ("vfio-pci\n\n", "ok", "vfio-pci\n"),
        ("vfio\npci", "ok", "vfio\n"),
        ("a\0b", "ok", "a\n"),
        (" vfio-pci ", "ok", " vfio-pci \n"),
        ("\0", "ok", "(null)\n"),
        ("\n", "ok", "(null)\n"),
        ("", "ok", "old\n"),
        ("x" * 4094, "ok", "x" * 4094 + "\n"),
        ("x" * 4095, "EINVAL", "old\n"),
        ("x" * 5000, "EINVAL", "old\n"),
    ],
)
def test_driver_override_values(sim: Sim, data: str, outcome: str, value: str) -> None:
    sim.must(f"{IGB}/driver_override", "old")
    assert sim.write(f"{IGB}/driver_override", data) == outcome
    assert sim.read(f"{IGB}/driver_override") == value


def test_autoprobe_does_not_give_vfio_what_no_override_names(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "1")
    assert sim.write("drivers/vfio-pci/bind", VF) == "ENODEV"
    assert sim.write("drivers/igbvf/bind", VF) == "ok"


def test_a_driver_that_nobody_has_loaded_takes_nothing(sim: Sim) -> None:
    sim.enable(IGB, 1)
    assert sim.backend.driver_state("uio_pci_generic") is DriverState.NOT_LOADED
    assert sim.backend.driver_state("no-such-driver") is DriverState.UNKNOWN
    assert sim.backend.driver_state("vfio-pci") is DriverState.LOADED
    sim.must(f"{VF}/driver_override", "uio_pci_generic")
    assert sim.write("drivers_probe", VF) == "ok"
    assert sim.write("drivers/uio_pci_generic/bind", VF) == "ENOENT"
    assert sim.driver(VF) == ""
    sim.backend.load_driver("uio_pci_generic")
    assert sim.driver(VF) == "uio_pci_generic"
    assert sim.backend.driver_state("uio_pci_generic") is DriverState.LOADED


def test_an_nvme_vf_without_resources_refuses_its_driver(sim: Sim) -> None:
    sim.enable(NVME, 1)
    sim.must(f"{NVME_VF}/driver_override", "nvme")
    assert sim.write("drivers/nvme/bind", NVME_VF) == "ENODEV"
    assert sim.write("drivers_probe", NVME_VF) == "ok"
    assert (sim.driver(NVME_VF), sim.events()) == ("", [])
    assert not sim.exists(f"drivers/nvme/{NVME_VF}")
    sim.backend.assign_resources(sim.device(NVME_VF).address)
    assert sim.write("drivers/nvme/bind", NVME_VF) == "ok"


def test_binding_shows_in_attributes_and_registers(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.bind(VF, "igbvf")
    model = sim.device(VF).model
    assert sim.read(f"{VF}/enable") == "1\n"
    assert sim.read(f"{VF}/uevent").startswith("DRIVER=igbvf\nPCI_CLASS=20000\nPCI_ID=8086:10CA\n")
    assert sim.exists(f"drivers/igbvf/{VF}")
    assert model.config_bytes()[4] & 4  # Bus Master Enable
    sim.must("drivers/igbvf/unbind", VF)
    assert sim.read(f"{VF}/enable") == "0\n"
    assert not model.config_bytes()[4] & 4
    assert not sim.exists(f"{VF}/net")


def test_pf_driver_igb_destroys_its_vfs_when_it_goes(sim: Sim) -> None:
    sim.enable(IGB, 2)
    sim.must("drivers/igb/unbind", IGB)
    assert sim.events() == [f"remove {VF}", f"remove {VF1}", f"unbind {IGB}"]
    assert sim.read(f"{IGB}/sriov_numvfs") == "0\n"


def test_pf_driver_nvme_leaves_its_vfs_behind(sim: Sim) -> None:
    sim.enable(NVME, 3)
    sim.must("drivers/nvme/unbind", NVME)
    assert sim.read(f"{NVME}/sriov_numvfs") == "3\n"
    assert sim.write(f"{NVME}/sriov_numvfs", "0") == "ENOENT"
    sim.must(f"{NVME}/driver_override", "vfio-pci")
    assert sim.write("drivers/vfio-pci/bind", NVME) == "EBUSY"
    sim.must(f"{NVME}/driver_override", "\n")
    sim.must("drivers/nvme/bind", NVME)
    sim.must(f"{NVME}/sriov_numvfs", "0")


def test_dynamic_ids(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "1")
    assert sim.write("drivers/pci-stub/new_id", "8086") == "EINVAL"
    assert sim.write("drivers/pci-stub/new_id", "8086 10ca") == "ok"
    assert sim.driver(VF) == "pci-stub"
    assert sim.write("drivers/pci-stub/new_id", "8086 10ca") == "EEXIST"
    assert sim.write("drivers/pci-stub/remove_id", "8086 10ca") == "ok"
    assert sim.write("drivers/pci-stub/remove_id", "8086 10ca") == "ENODEV"


def test_synthetic_uevents(sim: Sim) -> None:
    assert sim.write(f"{IGB}/uevent", "change") == "ok"
    assert sim.events() == [f"change {IGB}"]
    assert sim.write(f"{IGB}/uevent", "frobnicate") == "EINVAL"
