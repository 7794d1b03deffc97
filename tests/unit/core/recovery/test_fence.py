"""Fences: what they take, and that exactly that is put back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sriovd.backend.steps import Chain, ChainResult, Script, StepResult, Verb
from sriovd.core.inventory import Function
from sriovd.core.recovery.fence import fence_script, look_script, read_masters, unfence_chain, unfence_script
from sriovd.core.recovery.snapshot import VfShot
from tests.unit.core.minikernel import make_vf

SLOT = "0000:01:00"


def vf(index: int = 0, methods: tuple[str, ...] = ("flr",), generation: int = 1) -> Function:
    return Function(replace(make_vf(index), reset_methods=methods), generation)


def shot(methods: tuple[str, ...] = ("flr", "pm"), bus_master: bool = True) -> VfShot:
    return VfShot(0, vf().address, 1, "vfio-pci", methods, bus_master)


def spell(script: Script) -> list[str]:
    return [f"{step.verb} {step.argument}" for chain in script.chains for step in chain.steps]


def test_looking_writes_nothing() -> None:
    assert not look_script(SLOT, [vf(0), vf(1)]).writes


def test_resets_are_taken_before_dma_and_one_failure_stops_no_other() -> None:
    script = fence_script(SLOT, [vf(0), vf(1)])
    assert spell(script) == ["set-reset-method ", "update-config 4 2 4 0"] * 2
    assert len(script.chains) == 4, "each its own chain"
    assert not script.stop_on_failure


def test_what_has_no_resets_loses_none() -> None:
    assert spell(fence_script(SLOT, [vf(methods=())])) == ["update-config 4 2 4 0"]


def test_who_may_do_dma_is_read_off() -> None:
    vfs = [vf(0), vf(1), vf(2)]
    values = ["06001000", "02001000", None]
    results = [
        ChainResult(chain, (StepResult(chain.steps[0], 0 if value else 5, value or ""),))
        for chain, value in zip(look_script(SLOT, vfs).chains, values, strict=True)
    ]
    assert read_masters(vfs, results) == {0: True, 1: False, 2: False}
    assert read_masters(vfs, results[:1]) == {0: True}


FENCED = vf(methods=())
PUT_BACK = [
    (FENCED, shot(), ["set-reset-method flr pm", "update-config 4 2 4 4"]),
    (FENCED, shot(bus_master=False), ["set-reset-method flr pm"]),
    (vf(methods=("flr",)), shot(), ["update-config 4 2 4 4"]),
    (FENCED, shot(methods=()), ["update-config 4 2 4 4"]),
    (vf(), shot(bus_master=False), None),
    (vf(methods=(), generation=2), shot(), None),  # made anew: nothing was ever taken from it
]


@pytest.mark.parametrize(("function", "picture", "steps"), PUT_BACK)
def test_what_was_found_is_put_back(function: Function, picture: VfShot, steps: list[str] | None) -> None:
    chain = unfence_chain(function, picture)
    assert (chain and spell(unfence_script(SLOT, [chain]))) == steps


def test_a_fence_concerns_vfs_alone() -> None:
    fenced = vf(3)
    chains: list[Chain] = list(fence_script(SLOT, [fenced]).chains)
    assert {step.address for chain in chains for step in chain.steps} == {fenced.address}
    assert {step.verb for chain in chains for step in chain.steps} == {
        Verb.SET_RESET_METHOD,
        Verb.UPDATE_CONFIG,
    }
