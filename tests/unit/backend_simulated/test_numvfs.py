"""sriov_numvfs and its neighbours: errno, order of events, links, registers."""

from __future__ import annotations

import pytest

from sriovd.backend.model import PhysicalFunctionModel
from sriovd.backend.simulated.drivers import DRIVERS, Driver, PciId, SriovSupport

from .support import IGB, NVME, NVME_VF, VF, Sim

# (driver bound, VFs there before, what is written, outcome): a stock kernel's answers
NUMVFS = [
    (True, 0, "9", "ERANGE"),
    (True, 0, "8", "ERANGE"),
    (True, 0, "x", "EINVAL"),
    (True, 0, "-1", "EINVAL"),
    (True, 0, "70000", "EINVAL"),
    (True, 0, "", "ok"),
    (True, 0, " 3 ", "EINVAL"),
    (True, 0, "0", "ok"),
    (True, 0, "0x3", "ok"),
    (True, 0, "\n", "EINVAL"),
    (True, 0, "7\n", "ok"),
    (True, 3, "3", "ok"),
    (True, 3, "3\n", "ok"),
    (True, 3, "+3", "ok"),
    (True, 3, "03", "ok"),
    (True, 3, "2", "EBUSY"),
    (True, 3, "5", "EBUSY"),
    (True, 3, "4 ", "EINVAL"),
    (True, 3, "9", "ERANGE"),
    (True, 3, "0", "ok"),
    (True, 3, "0\0", "ok"),
    (False, 0, "2", "ENOENT"),
    (False, 0, "0", "ok"),
    (False, 0, "9", "ERANGE"),
    (False, 0, "8", "ENOENT"),
    (False, 0, "x", "EINVAL"),
]


@pytest.mark.parametrize(("bound", "before", "data", "outcome"), NUMVFS)
def test_errno_of_numvfs(sim: Sim, bound: bool, before: int, data: str, outcome: str) -> None:
    if before:
        sim.enable(IGB, before)
    if not bound:
        sim.must("drivers/igb/unbind", IGB)
    assert sim.write(f"{IGB}/sriov_numvfs", data) == outcome
    expected = {"0x3": 3, "7\n": 7, "0": 0, "0\0": 0}.get(data, before) if outcome == "ok" else before
    assert sim.read(f"{IGB}/sriov_numvfs") == f"{expected}\n"
    assert len(sim.backend.list_virtual_functions(sim.device(IGB).address)) == expected


def test_creation_tells_add_then_change_for_each_vf_and_change_of_the_pf_last(sim: Sim) -> None:
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "0")
    sim.must(f"{IGB}/sriov_numvfs", "3")
    vfs = [VF, "0000:01:10.2", "0000:01:10.4"]
    assert sim.events() == [f"{action} {vf}" for vf in vfs for action in ("add", "change")] + [
        f"change {IGB}"
    ]


def test_autoprobed_vfs_are_bound_after_their_links(sim: Sim) -> None:
    sim.must(f"{IGB}/sriov_numvfs", "2")
    vfs = [VF, "0000:01:10.2"]
    assert sim.events() == [f"{action} {vf}" for vf in vfs for action in ("add", "change", "bind")] + [
        f"change {IGB}"
    ]
    assert sim.driver(VF) == "igbvf"
    assert sim.exists(f"{VF}/net/eth2")
    assert not sim.exists(f"{VF}/waiting_for_supplier")


def test_a_driver_that_will_not_have_the_vfs_leaves_them_alone(sim: Sim) -> None:
    sim.must(f"{NVME}/sriov_numvfs", "2")
    assert sim.events() == [
        f"add {NVME_VF}",
        f"change {NVME_VF}",
        "add 0000:03:00.2",
        "change 0000:03:00.2",
        f"change {NVME}",
    ]
    assert sim.driver(NVME_VF) == ""


def test_destruction_tells_unbind_and_remove_in_order_and_nothing_of_the_pf(sim: Sim) -> None:
    sim.enable(IGB, 3)
    sim.bind("0000:01:10.2", "vfio-pci")
    sim.must(f"{IGB}/sriov_numvfs", "0")
    assert sim.events() == [
        f"remove {VF}",
        "unbind 0000:01:10.2",
        "remove 0000:01:10.2",
        "remove 0000:01:10.4",
    ]
    assert not sim.exists(VF)
    assert not sim.exists(f"{IGB}/virtfn0")


def test_tree_of_a_vf(sim: Sim) -> None:
    sim.enable(IGB, 7)
    assert sim.link(VF) == "../../../devices/pci0000:00/0000:00:01.0/0000:01:10.0"
    assert sim.link(f"{VF}/physfn") == f"../{IGB}"
    assert sim.link(f"{IGB}/virtfn6") == "../0000:01:11.4"
    assert sim.link(f"{VF}/subsystem") == "../../../../bus/pci"
    assert sim.link(f"{VF}/iommu_group").startswith("../../../../kernel/iommu_groups/")
    for name, text in {
        "vendor": "0x8086\n",
        "device": "0x10ca\n",
        "class": "0x020000\n",
        "revision": "0x01\n",
        "subsystem_device": "0x1100\n",
        "driver_override": "(null)\n",
        "enable": "0\n",
        "power_state": "unknown\n",
        "reset_method": "flr\n",
        "dma_mask_bits": "32\n",
        "modalias": "pci:v00008086d000010CAsv00001AF4sd00001100bc02sc00i00\n",
        "sriov_vf_msix_count": "EACCES",
        "reset": "EACCES",
        "sriov_numvfs": "ENOENT",
        "remove": "ENOENT",
        "rescan": "ENOENT",
    }.items():
        assert sim.read(f"{VF}/{name}") == text, name


def test_registers_follow(sim: Sim) -> None:
    model = sim.device(IGB).model
    assert isinstance(model, PhysicalFunctionModel)
    sim.enable(IGB, 5)
    assert (
        model.sriov.num_vfs,
        model.sriov.vf_enable,
        model.sriov.vf_memory_space,
        model.sriov.ari_hierarchy,
    ) == (5, True, True, True)
    with open(sim.backend.host.tree.path(f"bus/pci/devices/{IGB}/config"), "rb") as file:
        assert file.read() == model.config_bytes()
    sim.must(f"{IGB}/sriov_numvfs", "0")
    assert (model.sriov.num_vfs, model.sriov.vf_enable) == (0, False)


def test_totalvfs_is_the_drivers_while_it_is_bound(sim: Sim) -> None:
    assert sim.read(f"{IGB}/sriov_totalvfs") == "7\n"
    sim.must("drivers/igb/unbind", IGB)
    assert sim.read(f"{IGB}/sriov_totalvfs") == "8\n"
    sim.must("drivers/igb/bind", IGB)
    assert sim.read(f"{IGB}/sriov_totalvfs") == "7\n"


@pytest.mark.parametrize(
    ("data", "outcome", "value"),
    [
        ("x", "EINVAL", 0),
        ("2", "EINVAL", 0),
        ("y", "ok", 1),
        ("on", "ok", 1),
        ("off", "ok", 0),
        ("", "ok", 0),
        ("1x", "ok", 1),
    ],
)
def test_drivers_autoprobe_of_a_pf(sim: Sim, data: str, outcome: str, value: int) -> None:
    sim.must(f"{IGB}/sriov_drivers_autoprobe", "0")
    assert sim.write(f"{IGB}/sriov_drivers_autoprobe", data) == outcome
    assert sim.read(f"{IGB}/sriov_drivers_autoprobe") == f"{value}\n"


@pytest.mark.parametrize(("data", "outcome"), [("4", "EOPNOTSUPP"), ("-1", "EINVAL"), ("x", "EINVAL")])
def test_msix_count_of_a_vf(sim: Sim, data: str, outcome: str) -> None:
    sim.enable(IGB, 1)
    assert sim.write(f"{VF}/sriov_vf_msix_count", data).replace("ENOTSUP", "EOPNOTSUPP") == outcome


def test_a_driver_may_enable_fewer_and_the_write_succeeds(root: str) -> None:
    short = Driver("igb", (PciId(0x8086, 0x10C9),), sriov=SriovSupport(grants=4))
    sim = Sim(root, drivers=(short, *(driver for driver in DRIVERS if driver.name != "igb")))
    sim.must(f"{IGB}/sriov_numvfs", "6")
    assert sim.read(f"{IGB}/sriov_numvfs") == "4\n"


def test_vfs_past_the_buses_of_the_port_are_no_memory(root: str) -> None:
    sim = Sim(root, machine=(("dlb", "0000:04:00.0"),))
    port = sim.device("0000:00:01.0")
    assert port.buses is not None
    port.buses = type(port.buses)(4, 4)
    assert sim.write("0000:04:00.0/sriov_numvfs", "256") == "ENOMEM"
    assert sim.read("0000:04:00.0/sriov_numvfs") == "0\n"
    assert sim.write("0000:04:00.0/sriov_numvfs", "255") == "ok"


def test_a_vf_on_the_next_bus_lies_below_the_same_port(root: str) -> None:
    sim = Sim(root, machine=(("dlb", "0000:04:00.0"),))
    sim.enable("0000:04:00.0", 256)
    assert sim.link("0000:05:00.0") == "../../../devices/pci0000:00/0000:00:01.0/0000:05:00.0"


def test_groups_are_numbered_from_the_lowest_free(sim: Sim) -> None:
    sim.enable(IGB, 3)
    groups = [sim.device(name).group for name in (VF, "0000:01:10.2", "0000:01:10.4")]
    assert groups == [7, 8, 9]
    sim.enable(NVME, 1)
    assert sim.device(NVME_VF).group == 10
    sim.must(f"{IGB}/sriov_numvfs", "0")
    assert not sim.exists("bus/pci/../../kernel/iommu_groups/8")
    sim.enable(NVME, 1)
    sim.enable(IGB, 1)
    assert sim.device(VF).group == 7


def test_numvfs_is_no_vfs_attribute_and_files_have_modes(sim: Sim) -> None:
    sim.enable(IGB, 1)
    assert sim.write(f"{VF}/sriov_numvfs", "1") == "ENOENT"
    assert sim.write(f"{IGB}/sriov_totalvfs", "1") == "EACCES"
    assert sim.write("0000:7f:00.0/sriov_numvfs", "1") == "ENOENT"
