"""Recovery from errors by the simulated kernel: who is told what and in which order, what is left."""

from __future__ import annotations

import time

import pytest

from sriovd.backend.base import LinkChanged, Severity
from sriovd.backend.model import VirtualFunctionModel
from sriovd.backend.simulated.drivers import Vote
from sriovd.backend.simulated.error_rules import handle_error, meet_error
from sriovd.backend.simulated.kernel import Call
from sriovd.backend.simulated.recovery_rules import merge_votes
from sriovd.backend.simulated.reset_rules import GIVE_UP_USEC
from sriovd.backend.steps import Access
from sriovd.pci import PciAddress
from tests.conformance.recorded import recording_path
from tests.lab.recipe import DEFAULT_KERNEL

from .errors import (
    ALL_ONES,
    PORT,
    config,
    equip,
    inject,
    log,
    pf_model,
    said,
)
from .support import IGB, IGB2, VF, VF1, Sim, describe, run_async


@pytest.mark.parametrize("address", [IGB, VF1])
def test_a_nonfatal_error_walks_the_whole_subtree_and_leaves_everything_as_it_is(
    card: Sim, address: str
) -> None:
    before = config(card, IGB)
    assert inject(card, address, Severity.NONFATAL) == [
        f"nonfatal {address}",
        *said("BEGIN_RECOVERY", IGB, VF, VF1),
        *said("SUCCESSFUL_RECOVERY", IGB, VF, VF1),
    ]
    pf = pf_model(card)
    assert pf.may_dma and pf.sriov.enabled_vfs == 2
    assert config(card, IGB)[0x10:0xA0] == before[0x10:0xA0], "after that Device Status tells of it"
    assert log(card)[-1] == f"pcieport {PORT}: AER: device recovery successful"


@pytest.mark.parametrize("driver", ["", "pci-stub"])
def test_a_function_without_error_handlers_defeats_the_recovery_of_all(sim: Sim, driver: str) -> None:
    sim.enable(IGB, 2)
    sim.bind(VF, "vfio-pci")
    if driver:
        sim.bind(VF1, driver)
    command = pf_model(sim).read(4, 2)
    assert inject(sim, IGB, Severity.NONFATAL) == [
        f"nonfatal {IGB}",
        *said("BEGIN_RECOVERY", IGB, VF),
        *said("FAILED_RECOVERY", IGB, VF, VF1),
    ]
    assert pf_model(sim).read(4, 2) == command and pf_model(sim).sriov.enabled_vfs == 2
    assert log(sim, "can't recover") == [
        f"{driver or 'pci'} {VF1}: AER: can't recover (no error_detected callback)"
    ]
    assert log(sim)[-1] == f"pcieport {PORT}: AER: device recovery failed"


def test_a_fatal_error_ends_the_adapter_and_sysfs_goes_on_as_if_it_had_not(card: Sim) -> None:
    assert inject(card, IGB, Severity.FATAL) == [
        f"fatal {IGB}",
        *said("BEGIN_RECOVERY", IGB, VF, VF1),
        *said("FAILED_RECOVERY", IGB, VF, VF1),
    ]
    dead = config(card, IGB)
    assert dead[:4] == bytes.fromhex("8680c910"), "its capabilities can be read"
    assert (dead[4:6], dead[0x10:0x18], dead[0x168:0x16A], dead[0x170:0x172]) == (
        b"\0\0", bytes(8), b"\0\0", b"\0\0",
    )  # fmt: skip
    assert config(card, VF) == config(card, VF1) == ALL_ONES
    assert card.read(f"{IGB}/sriov_numvfs") == "2\n" and card.driver(VF) == "vfio-pci"
    assert not pf_model(card).may_dma
    assert log(card, "reset")[-2:] == [
        f"pcieport {PORT}: AER: Root Port link has been reset (-25)",
        f"pcieport {PORT}: AER: subordinate device reset failed",
    ]


def test_only_the_adapter_below_that_port_dies(card: Sim) -> None:
    before = config(card, IGB2)
    inject(card, IGB, Severity.FATAL)
    assert config(card, IGB2) == before


def test_a_fatal_error_takes_a_second_in_which_nobody_gets_at_the_configuration(card: Sim) -> None:
    host = card.backend.host
    dev = meet_error(host, PciAddress.parse(IGB), Severity.FATAL, 0, ())
    usec = 0
    for wait in handle_error(host, dev, Severity.FATAL):
        usec += wait.usec
        assert card.read(f"{VF}/config") == card.write(f"{VF}/driver_override", "x") == "blocks"
        assert card.read(f"{VF}/vendor") == "0x8086\n"
    assert usec == 1_050_000
    assert card.write(f"{VF}/driver_override", "x") == "ok"


def test_a_dead_adapter_comes_back_by_remove_and_rescan(card: Sim) -> None:
    inject(card, IGB, Severity.FATAL)
    card.must(f"{IGB}/sriov_numvfs", "0")
    card.must(f"{IGB}/remove", "1")
    card.must(f"{PORT}/rescan", "1")
    card.enable(IGB, 7)
    for index in range(7):
        card.bind(f"0000:01:10.{2 * index}" if index < 4 else f"0000:01:11.{2 * index - 8}", "vfio-pci")
    pf = pf_model(card)
    assert pf.may_dma and pf.sriov.enabled_vfs == 7 and pf.bar_windows()[0].address
    assert config(card, VF)[4:8] != b"\xff" * 4
    assert inject(card, IGB, Severity.NONFATAL)[-1].startswith("SUCCESSFUL_RECOVERY")


def test_a_recorded_adapter_dies_and_comes_back_as_the_real_one_did(root: str) -> None:
    sim = Sim(root, fixture=str(recording_path(DEFAULT_KERNEL)))
    sim.backend.load_driver("vfio-pci")
    port = "0000:00:03.0"
    sim.enable(IGB, 7)
    vfs = [str(dev.address) for dev in sim.backend.host.list_vfs(sim.device(IGB))]
    for vf in vfs:
        sim.bind(vf, "vfio-pci")
    assert inject(sim, IGB, Severity.FATAL) == [
        f"fatal {IGB}",
        *said("BEGIN_RECOVERY", IGB, *vfs),
        *said("FAILED_RECOVERY", IGB, *vfs),
    ]
    assert config(sim, IGB)[4:6] == b"\0\0" and config(sim, vfs[6]) == ALL_ONES
    for path, value in ((f"{IGB}/sriov_numvfs", "0"), (f"{IGB}/remove", "1"), (f"{port}/rescan", "1")):
        sim.must(path, value)
    sim.enable(IGB, 7)
    for vf in vfs:
        sim.bind(vf, "vfio-pci")
    assert pf_model(sim).may_dma and config(sim, vfs[6])[4:8] != b"\xff" * 4
    assert inject(sim, IGB, Severity.NONFATAL)[-1] == f"SUCCESSFUL_RECOVERY {vfs[6]}"


def test_on_a_host_that_takes_its_time_the_record_is_there_first(root: str) -> None:
    sim = equip(Sim(root, time_scale=0.1))
    told: list[str] = []

    async def main() -> None:
        await sim.backend.start()
        sim.backend.inject_error(PciAddress.parse(IGB), Severity.FATAL, 0, ())
        began = time.monotonic()
        async for event in sim.backend.events():
            if not isinstance(event, LinkChanged):
                told.append(describe(event))
            if len(told) == 7:
                break
        assert time.monotonic() - began >= 0.105

    run_async(main)
    assert told[:2] == [f"fatal {IGB}", f"BEGIN_RECOVERY {IGB}"] and told[6] == f"FAILED_RECOVERY {VF1}"


def test_a_reset_of_a_dead_pf_brings_its_vfs_back_and_not_itself(card: Sim) -> None:
    """pci_restore_state writes back the zeros that it has just saved; SR-IOV the kernel knows better."""
    inject(card, IGB, Severity.FATAL)
    card.must(f"{IGB}/reset", "1")
    pf = pf_model(card)
    assert pf.sriov.enabled_vfs == 2 and pf.sriov.vf_bar_windows()[0].address
    assert config(card, VF)[4:8] == bytes.fromhex("00001000")
    assert config(card, IGB)[4:6] == b"\0\0" and not pf.may_dma


def test_a_vf_of_a_dead_adapter_that_is_reset_keeps_the_kernel_for_a_minute(card: Sim) -> None:
    inject(card, IGB, Severity.FATAL)
    call: Call = card.kernel.start(Access.WRITE, f"bus/pci/devices/{VF}/reset", b"1")
    wait = call.advance()
    assert wait is not None and wait.usec == GIVE_UP_USEC == 65_535_000
    assert card.write(f"{IGB}/reset", "1") == "blocks", "a reset of the PF queues behind it"
    assert card.read(f"{VF}/config") == "blocks"
    assert card.write(f"{IGB}/sriov_numvfs", "0") == "blocks"
    assert call.advance() is None
    while card.kernel.blocked:
        card.kernel.resume()
    assert log(card, "giving up") == [f"vfio-pci {VF}: not ready 65535ms after FLR; giving up"]


def test_where_the_link_comes_back_so_does_the_adapter(root: str) -> None:
    sim = equip(Sim(root, links_return=True))
    sim.bind(VF, "vfio-pci")
    sim.enable(IGB2, 1)
    sim.bind("0000:02:10.0", "igbvf")
    before = {each: config(sim, each)[:0x100] for each in (IGB, IGB2, "0000:02:10.0")}
    for pf, vfs in ((IGB, (VF, VF1)), (IGB2, ("0000:02:10.0",))):
        assert inject(sim, pf, Severity.FATAL) == [
            f"fatal {pf}",
            *said("BEGIN_RECOVERY", pf, *vfs),
            *said("SUCCESSFUL_RECOVERY", pf, *vfs),
        ]
        assert pf_model(sim, pf).may_dma
    command = slice(0x04, 0x06)
    assert {each: config(sim, each)[command] for each in before} == {
        each: text[command] for each, text in before.items()
    }
    assert config(sim, VF) != ALL_ONES


def test_a_second_error_waits_until_the_first_is_dealt_with(card: Sim) -> None:
    card.device(VF).lock.held = True  # a driver that does not come back
    for address in (IGB, VF1):
        with pytest.raises(BlockingIOError):
            card.backend.inject_error(PciAddress.parse(address), Severity.NONFATAL, 0, ())
    assert card.events() == [f"nonfatal {IGB}", f"BEGIN_RECOVERY {IGB}"]
    card.device(VF).lock.held = False
    while card.kernel.blocked:
        card.kernel.resume()
    told = card.events()
    assert told.index(f"nonfatal {VF1}") == told.index(f"SUCCESSFUL_RECOVERY {VF1}") + 1


def test_a_frozen_function_reads_ones_loses_writes_and_does_no_dma(card: Sim) -> None:
    address = PciAddress.parse(VF)
    vf = card.device(VF).model
    assert isinstance(vf, VirtualFunctionModel)
    vf.write(4, 2, 4)
    card.backend.freeze_function(address, frozen=True)
    assert config(card, VF) == ALL_ONES and not vf.may_dma
    vf.write(4, 2, 0)
    card.backend.freeze_function(address, frozen=False)
    assert vf.read(4, 2) == 4 and vf.may_dma


@pytest.mark.parametrize("counts", [("0",), ("0", "3")])
def test_a_recovered_pf_has_the_vfs_that_the_kernel_knows_by_then(
    root: str, counts: tuple[str, ...]
) -> None:
    sim = equip(Sim(root, links_return=True))
    dev = meet_error(sim.backend.host, PciAddress.parse(IGB), Severity.FATAL, 0, ())
    for wait in handle_error(sim.backend.host, dev, Severity.FATAL):
        if wait.wchan == "pcie_do_recovery":  # nobody holds a lock
            for count in counts:
                sim.must(f"{IGB}/sriov_numvfs", count)
    assert pf_model(sim).sriov.enabled_vfs == int(counts[-1])
    assert all(config(sim, name) != ALL_ONES for name in sim.names())


@pytest.mark.parametrize(
    ("total", "new", "merged"),
    [
        (Vote.CAN_RECOVER, Vote.NEED_RESET, Vote.NEED_RESET),
        (Vote.NEED_RESET, Vote.CAN_RECOVER, Vote.NEED_RESET),
        (Vote.DISCONNECT, Vote.NEED_RESET, Vote.NEED_RESET),
        (Vote.DISCONNECT, Vote.CAN_RECOVER, Vote.DISCONNECT),
        (Vote.NEED_RESET, Vote.NO_AER_DRIVER, Vote.NO_AER_DRIVER),
        (Vote.NO_AER_DRIVER, Vote.NEED_RESET, Vote.NO_AER_DRIVER),
        (Vote.RECOVERED, Vote.DISCONNECT, Vote.DISCONNECT),
    ],
)
def test_votes_are_merged_as_the_kernel_does(total: Vote, new: Vote, merged: Vote) -> None:
    assert merge_votes(total, new) is merged
