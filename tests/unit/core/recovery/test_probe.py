"""Whether a function lives: from configuration spaces that a real kernel showed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.core.recovery.probe import Signs, is_alive, is_bus_master, master_step, read_signs
from tests.unit.core.recovery.samples import DEAD, PF, VF, change, load_configs

SRIOV = 0x160  # of the igb
LOST = {0x04: 0x0010_0000, **dict.fromkeys(range(0x10, 0x28, 4), 0)}  # command and BARs after a reset


def test_a_pf_that_lives() -> None:
    assert read_signs(load_configs()[PF].hex()) == Signs(True, True, True, 7)


def test_a_pf_after_a_reset_answers_and_has_lost_all() -> None:
    config = change(load_configs()[PF], {**LOST, SRIOV + 0x08: 0, SRIOV + 0x10: 0})
    assert read_signs(config.hex()) == Signs(answers=True)


def test_a_pf_that_has_lost_only_its_vfs() -> None:
    config = change(load_configs()[PF], {SRIOV + 0x08: 0})
    signs = read_signs(config.hex())
    assert signs.keeps_registers
    assert not signs.vf_enable


@pytest.mark.parametrize("value", ["", DEAD.hex(), DEAD.hex()[:128]])
def test_what_does_not_answer_has_no_signs(value: str) -> None:
    assert read_signs(value) == Signs()


@given(st.binary(max_size=4096))
def test_no_configuration_space_is_too_strange(config: bytes) -> None:
    signs = read_signs(config.hex())
    assert signs.answers or signs == Signs()


def test_capabilities_that_go_round_are_left() -> None:
    looped = change(load_configs()[PF], {0x100: 0x100_10001})
    signs = read_signs(looped.hex())
    assert signs.answers
    assert not signs.vf_enable


def test_a_vf_lives_by_its_command_register_alone() -> None:
    """Its vendor and device id are all-ones by specification."""
    config = load_configs()[VF]
    assert is_alive(config[4:8].hex())
    assert not is_alive("ffffffff")
    assert not is_alive("")


@pytest.mark.parametrize(
    ("command", "is_master"), [("06001000", True), ("02001000", False), ("ffffffff", False)]
)
def test_who_may_do_dma(command: str, is_master: bool) -> None:
    assert is_bus_master(command) is is_master


@pytest.mark.parametrize(("on", "argument"), [(True, "4 2 4 4"), (False, "4 2 4 0")])
def test_dma_is_one_bit(on: bool, argument: str) -> None:
    step = master_step(VF, on=on)
    assert step.argument == argument
    assert step.writes
