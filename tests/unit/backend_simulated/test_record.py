"""The recorder, and hosts that start from what it wrote."""

from __future__ import annotations

import subprocess

import pytest

from sriovd.backend.simulated import SimulatedBackend
from sriovd.backend.simulated.fixture import Attribute, FixtureError, Link, format_fixture, parse_fixture
from sriovd.backend.simulated.record import Recorder, main
from sriovd.pci import PciAddress

from .support import IGB, IGB2, NVME, NVME_VF, VF, VF1, Sim


def record(sim: Sim, *addresses: str, blocking: bool = True, anonymize: bool = False) -> str:
    """The text of a recording of the simulated host."""
    complaints: list[str] = []
    recorder = Recorder(
        sim.backend.host.tree.root, blocking=blocking, anonymize=anonymize, warn=complaints.append
    )
    text = format_fixture(recorder.record([PciAddress.parse(address) for address in addresses]))
    assert complaints == []
    return text


def restart(root: str, text: str) -> Sim:
    """A host that starts from a recording."""
    return Sim(f"{root}/again", fixture=parse_fixture(text.encode(), "again.sysfs"))


def busy(sim: Sim) -> Sim:
    """Some VFs on different drivers."""
    sim.enable(IGB, 3)
    sim.bind(VF, "vfio-pci")
    sim.bind(VF1, "igbvf")
    sim.enable(NVME, 2)
    sim.bind(NVME_VF, "pci-stub")
    sim.must("0000:03:00.2/reset_method", "\n")
    return sim


@pytest.mark.parametrize("blocking", [True, False])
def test_what_is_recorded_starts_again_and_is_the_same(sim: Sim, root: str, blocking: bool) -> None:
    text = record(busy(sim), blocking=blocking)
    assert record(restart(root, text), blocking=blocking) == text


def test_the_restarted_host_lives(sim: Sim, root: str) -> None:
    again = restart(root, record(busy(sim)))
    assert again.names() == sim.names()
    assert (again.driver(VF), again.driver(VF1), again.driver(NVME_VF)) == ("vfio-pci", "igbvf", "pci-stub")
    assert again.read(f"{IGB}/sriov_numvfs") == "3\n"
    assert again.write(f"{IGB}/sriov_numvfs", "2") == "EBUSY"
    assert again.write("drivers/vfio-pci/bind", VF) == "EBUSY"
    again.must("drivers/vfio-pci/unbind", VF)
    again.must(f"{IGB}/reset", "1")
    again.must(f"{IGB}/sriov_numvfs", "0")
    assert again.events() == [
        f"unbind {VF}",
        f"remove {VF}",
        f"unbind {VF1}",
        f"remove {VF1}",
        "remove 0000:01:10.4",
    ]
    again.enable(IGB, 7)
    again.must(f"{IGB}/remove", "1")
    again.must("rescan", "1")
    assert again.names() == [IGB, IGB2, NVME, NVME_VF, "0000:03:00.2"]
    assert again.write("0000:03:00.2/reset", "1") == "ENOTTY"


def test_without_blocking_reads_overrides_are_concluded_from_drivers(sim: Sim, root: str) -> None:
    text = record(busy(sim), blocking=False)
    again = restart(root, text)
    assert "sriov_numvfs 0644 unread" in text
    assert again.read(f"{VF}/driver_override") == "vfio-pci\n"
    assert again.read(f"{VF1}/driver_override") == "(null)\n"
    assert again.read(f"{NVME_VF}/driver_override") == "pci-stub\n"


def test_only_the_asked_for_adapter(sim: Sim) -> None:
    recording = parse_fixture(record(busy(sim), VF).encode(), "t")
    names = {path.rpartition("/")[2] for path in recording.directories if path.startswith("devices/pci")}
    assert {IGB, VF, VF1, "0000:00:01.0"} <= names
    assert not {IGB2, NVME} & names


def test_anonymous_recordings(sim: Sim) -> None:
    path = sim.backend.host.tree.path(f"bus/pci/devices/{IGB}/net/eth0/address")
    with open(path, encoding="ascii") as file:
        mac = file.read().strip()
    assert mac in record(sim)
    assert mac not in record(sim, anonymize=True)


def test_registers_read_as_recorded_even_where_the_model_knows_better(sim: Sim, root: str) -> None:
    """A vendor's own capability and a serial number are kept; what software may write still works."""
    recording = parse_fixture(record(busy(sim)).encode(), "t")
    directory = f"devices/pci0000:00/0000:00:01.0/{IGB}"
    entry = recording.directories[directory]["config"]
    assert isinstance(entry, Attribute) and entry.data is not None
    config = bytearray(entry.data)
    config[0x300:0x30C] = bytes.fromhex("030001001122334455667788")
    config[0x50:0x54] = bytes.fromhex("05708101")  # MSI, which the model is not asked for
    recording.directories[directory]["config"] = Attribute(0o644, bytes(config))
    again = Sim(f"{root}/again", fixture=recording)
    model = again.device(IGB).model
    assert model.config_bytes() == bytes(config)
    again.must(f"{IGB}/reset", "1")
    assert model.config_bytes() == bytes(config)
    again.must(f"{IGB}/sriov_numvfs", "0")
    assert model.config_bytes()[0x300:0x30C] == config[0x300:0x30C]


def test_what_the_recorded_kernel_did_not_show_is_not_shown(sim: Sim, root: str) -> None:
    """An older kernel, another IOMMU: what our kernel would add is taken away, from new VFs too."""
    recording = parse_fixture(record(busy(sim)).encode(), "t")
    for directory, entries in recording.directories.items():
        if directory.startswith("devices/pci"):
            entries.pop("power_state", None)
            entries.pop("iommu", None)
    again = Sim(f"{root}/again", fixture=recording)
    assert not again.exists(f"{IGB}/iommu")
    assert not again.exists(f"{IGB}/power_state")
    again.must("drivers/igb/unbind", IGB)
    again.must("drivers/igb/bind", IGB)
    again.enable(IGB, 1)
    assert not again.exists(f"{IGB}/power_state")
    assert not again.exists(f"{VF}/power_state")


def test_what_our_kernel_does_not_know_is_kept(sim: Sim, root: str) -> None:
    recording = parse_fixture(record(sim).encode(), "t")
    entries = recording.directories[f"devices/pci0000:00/0000:00:01.0/{IGB}"]
    entries["pools"] = Attribute(0o444)
    entries["firmware_node"] = Link("../../../LNXSYSTM:00")
    recording.directories["bus/pci/slots/3"] = {"address": Attribute(0o444, b"0000:01:00\n")}
    again = Sim(f"{root}/again", fixture=recording)
    assert again.exists(f"{IGB}/pools")
    assert again.link(f"{IGB}/firmware_node") == "../../../LNXSYSTM:00"
    assert again.read("bus/pci/slots/3/address") == "0000:01:00\n"


# (attribute of the PF, its new entry or None to drop it, what the complaint says)
HARM = [
    ("config", Attribute(0o644, bytes(64)), "64 bytes of configuration space"),
    ("config", Attribute(0o644, bytes(4096)), "no SR-IOV capability"),
    ("config", None, "at least the 64 bytes"),
    ("vendor", Attribute(0o444, b"intel\n"), "b'intel\\n' is not a number"),
    ("vendor", Link("../x"), "a file is needed here"),
    ("sriov_totalvfs", Attribute(0o444, b"\xff"), "is not a number"),
    ("aer_dev_fatal", Attribute(0o444, b"RxErr 1\n\n"), "a name and a number"),
    ("resource", Attribute(0o444, b"0x1 0x2\n"), "three hexadecimal numbers"),
    ("driver", Attribute(0o644, b"igb\n"), "a symlink is needed here"),
    ("driver", Link("../../../../bus/pci/drivers/nobody"), "no directory bus/pci/drivers/nobody"),
    ("class", None, "class: is needed and not in the recording"),
]


@pytest.mark.parametrize(("name", "entry", "message"), HARM)
def test_recordings_of_impossible_devices(
    sim: Sim, root: str, name: str, entry: object, message: str
) -> None:
    recording = parse_fixture(record(sim).encode(), "harm.sysfs")
    entries = recording.directories[f"devices/pci0000:00/0000:00:01.0/{IGB}"]
    if entry is None:
        del entries[name]
    else:
        entries[name] = entry  # type: ignore[assignment]
    with pytest.raises(FixtureError) as caught:
        SimulatedBackend(f"{root}/again", fixture=recording)
    assert message in str(caught.value)
    assert str(caught.value).startswith("harm.sysfs:")
    assert IGB in str(caught.value)


def test_command_line(sim: Sim, root: str, capsys: pytest.CaptureFixture[str]) -> None:
    output = f"{root}/out.sysfs"
    assert main(["--root", sim.backend.host.tree.root, "--output", output, IGB]) == 0
    assert SimulatedBackend(f"{root}/again", fixture=output).list_functions() == [PciAddress.parse(IGB)]
    assert main(["--root", sim.backend.host.tree.root, "0000:07:00.0"]) == 1
    assert main(["--root", sim.backend.host.tree.root, "7:0.0"]) == 1
    errors = capsys.readouterr().err
    assert "no PF or VF is at 0000:07:00.0" in errors
    assert "'7:0.0' is not a PCI address" in errors


def test_a_host_without_sriov_says_so(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    empty = Sim(root, machine=())
    assert main(["--root", empty.backend.host.tree.root]) == 0
    output = capsys.readouterr()
    assert "no PF and no VF is here" in output.err
    assert parse_fixture(output.out.encode(), "t").directories["bus/pci/devices"] == {}


def test_an_occupied_directory_is_refused(sim: Sim) -> None:
    with pytest.raises(FileExistsError, match="empty directory"):
        SimulatedBackend(sim.backend.host.tree.root)


def test_lspci_reads_the_tree(sim: Sim) -> None:
    busy(sim)
    path = f"sysfs.path={sim.backend.host.tree.root}/bus/pci"
    listing = subprocess.run(
        ["lspci", "-O", path, "-D", "-n"], capture_output=True, text=True, check=True
    ).stdout
    assert f"{VF} 0200: 8086:10ca (rev 01)" in listing
    assert f"{NVME} 0108: 1b36:0010 (rev 02)" in listing
    assert len(listing.splitlines()) == 1 + 3 + 3 + 5
    detail = subprocess.run(
        ["lspci", "-O", path, "-D", "-vvv", "-s", IGB], capture_output=True, text=True, check=True
    )
    for line in (
        "Initial VFs: 8, Total VFs: 8, Number of VFs: 3",
        "VF offset: 128, stride: 2, Device ID: 10ca",
        "IOVCtl:\tEnable+ Migration- Interrupt- MSE+ ARIHierarchy+",
        "Kernel driver in use: igb",
        "IOMMU group: 4",
    ):
        assert line in detail.stdout
