"""Configuration space as steps and files show it, and interfaces switched by a step."""

from __future__ import annotations

import errno
import os

import pytest

from sriovd.backend.base import Fault, Severity
from sriovd.backend.steps import StepResult, Verb
from sriovd.backend.vf_attributes import parse_report
from sriovd.pci import PciAddress

from .errors import ALL_ONES, config
from .support import IGB, NVME, VF, Sim, ignore, run_async, script, step

PORT = "0000:00:01.0"
BUS_MASTER = "4 2 4 4"  # offset, width, mask, value


def run_steps(sim: Sim, *steps: tuple[Verb, str, str]) -> list[StepResult]:
    """What comes of them, each by itself."""
    results: list[StepResult] = []

    async def main() -> None:
        chains = [(step(verb, address, argument),) for verb, address, argument in steps]
        for chain in await sim.backend.run("", script(*chains), ignore).finished:
            results.extend(chain.results)

    run_async(main)
    return results


def read(sim: Sim, address: str, argument: str) -> str:
    """The value, or the errno's name."""
    return shown(run_steps(sim, (Verb.READ_CONFIG, address, argument))[0])


def update(sim: Sim, address: str, argument: str) -> str:
    return shown(run_steps(sim, (Verb.UPDATE_CONFIG, address, argument))[0])


def shown(result: StepResult) -> str:
    return errno.errorcode[result.errno] if result.errno else result.value


@pytest.mark.parametrize("address", [IGB, VF, PORT])
def test_reading_gives_what_the_file_has(sim: Sim, address: str) -> None:
    sim.enable(IGB, 1)
    everything = read(sim, address, "0 4096")
    assert bytes.fromhex(everything) == config(sim, address)
    assert read(sim, address, "0 64") == everything[:128]
    assert read(sim, address, "52 1") == everything[104:106]
    assert read(sim, address, "4090 64") == everything[-12:]
    assert read(sim, address, "4096 4") == ""


def test_updating_changes_the_bits_of_the_mask_and_says_what_was(sim: Sim) -> None:
    sim.enable(IGB, 1)
    assert update(sim, VF, BUS_MASTER) == "0"
    assert update(sim, VF, "4 2 4 65535") == "4"
    assert read(sim, VF, "4 2") == "0400" == config(sim, VF)[4:6].hex()
    assert update(sim, VF, "4 2 4 0") == "4"
    assert read(sim, VF, "4 4") == "00001000"
    assert not sim.device(VF).model.may_dma  # type: ignore[union-attr]


def test_updating_leaves_other_bits_alone(sim: Sim) -> None:
    before = int.from_bytes(bytes.fromhex(read(sim, IGB, "4 2")), "little")
    assert update(sim, IGB, "4 2 4 0") == str(before)
    assert read(sim, IGB, "4 2") == (before & ~4).to_bytes(2, "little").hex()


def test_nothing_is_written_where_nothing_answers(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.backend.freeze_function(PciAddress.parse(VF), frozen=True)
    assert update(sim, VF, "4 2 4 0") == "65535"
    assert read(sim, VF, "0 4") == "ffffffff"
    sim.backend.freeze_function(PciAddress.parse(VF), frozen=False)
    assert read(sim, VF, "4 2") == "0000"


@pytest.mark.parametrize("argument", ["", "4", "4 2 4", "4 3 4 4", "4 2 x 4", "4 2 -4 4", "4  2 4 4"])
def test_an_update_that_makes_no_sense_is_refused(sim: Sim, argument: str) -> None:
    before = read(sim, IGB, "0 4096")
    assert update(sim, IGB, argument) == "EINVAL"
    assert read(sim, IGB, "0 4096") == before


def test_a_register_of_ones_is_taken_for_nobody(sim: Sim) -> None:
    assert update(sim, IGB, "12 1 255 255") == "0"
    assert update(sim, IGB, "12 1 255 0") == "255"
    assert read(sim, IGB, "12 1") == "ff"
    assert update(sim, IGB, "12 2 255 0") == "255" and read(sim, IGB, "12 2") == "0000"


def test_vfs_end_with_the_register_that_enables_them(sim: Sim) -> None:
    sim.enable(IGB, 1)
    assert update(sim, IGB, f"{0x168} 2 1 0") == str(0x19)
    assert config(sim, VF) == ALL_ONES
    assert sim.read(f"{IGB}/sriov_numvfs") == "1\n"


def test_registers_may_lie_anywhere_but_beyond_the_end(sim: Sim) -> None:
    assert update(sim, IGB, "4095 2 1 1") == update(sim, IGB, "4096 1 1 1") == "EFBIG"
    assert update(sim, IGB, "11 2 65280 21504") == "2"  # class code and cache line size: the latter changes
    assert read(sim, IGB, "11 2") == "0254"


def test_nobody_has_no_configuration(sim: Sim) -> None:
    assert read(sim, "0000:07:00.0", "0 64") == update(sim, "0000:07:00.0", BUS_MASTER) == "ENOENT"
    assert read(sim, IGB, "0 -1") == read(sim, IGB, "64") == "EINVAL"


@pytest.mark.parametrize("verb", [Verb.READ_CONFIG, Verb.UPDATE_CONFIG, Verb.SWITCH_LINK])
def test_faults_meet_the_new_verbs(sim: Sim, verb: Verb) -> None:
    argument = {Verb.READ_CONFIG: "0 64", Verb.UPDATE_CONFIG: BUS_MASTER, Verb.SWITCH_LINK: "down"}[verb]
    sim.backend.inject_fault(Fault(verb, PciAddress.parse(IGB), errno=errno.EIO, times=1))
    first, second = run_steps(sim, (verb, IGB, argument), (verb, IGB, argument))
    assert (first.errno, second.errno) == (errno.EIO, 0)


def test_interfaces_are_switched_and_tell_it(sim: Sim) -> None:
    def ups(result: StepResult) -> int:
        return parse_report(result.value).up

    look = (Verb.READ_LINK, IGB, "")
    first, down, second, up, third = run_steps(
        sim, look, (Verb.SWITCH_LINK, IGB, "down"), look, (Verb.SWITCH_LINK, IGB, "up"), look
    )
    assert (down.errno, up.errno) == (0, 0)
    assert [ups(first), ups(second), ups(third)] == [1, 0, 1]
    path = sim.backend.host.tree.path(sim.expand(f"{IGB}/net"))
    with open(f"{path}/{os.listdir(path)[0]}/flags") as file:
        assert file.read() == "0x1003\n"


@pytest.mark.parametrize(
    ("address", "argument", "outcome"),
    [(IGB, "sideways", "EINVAL"), (IGB, "", "EINVAL"), (NVME, "up", "ENODEV"), (VF, "up", "ENOENT")],
)
def test_what_cannot_be_switched(sim: Sim, address: str, argument: str, outcome: str) -> None:
    assert shown(run_steps(sim, (Verb.SWITCH_LINK, address, argument))[0]) == outcome


def test_the_interface_of_a_dead_adapter_can_be_switched_off_and_not_on(sim: Sim) -> None:
    sim.backend.inject_error(PciAddress.parse(IGB), Severity.FATAL, 0, ())
    down, up = run_steps(sim, (Verb.SWITCH_LINK, IGB, "down"), (Verb.SWITCH_LINK, IGB, "up"))
    assert (shown(down), shown(up)) == ("", "ENODEV")
    for path, value in ((f"{IGB}/remove", "1"), (f"{PORT}/rescan", "1")):
        sim.must(path, value)
    assert shown(run_steps(sim, (Verb.SWITCH_LINK, IGB, "up"))[0]) == ""
