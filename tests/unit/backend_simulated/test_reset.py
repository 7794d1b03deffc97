"""reset and reset_method."""

from __future__ import annotations

import pytest

from sriovd.backend.model import PhysicalFunctionModel, VirtualFunctionModel

from .support import IGB, NVME, VF, VF1, Sim

METHODS = [
    ("\n", "ok", ""),
    ("bus", "EINVAL", "flr\n"),
    ("x", "EINVAL", "flr\n"),
    ("flr x", "EINVAL", "flr\n"),
    ("flr", "ok", "flr\n"),
    ("flr\n", "ok", "flr\n"),
    ("default", "ok", "flr\n"),
    ("", "ok", "flr\n"),
    ("flr bus", "EINVAL", "flr\n"),
]


@pytest.mark.parametrize(("data", "outcome", "value"), METHODS)
def test_reset_method_of_a_vf(sim: Sim, data: str, outcome: str, value: str) -> None:
    sim.enable(IGB, 1)
    assert sim.write(f"{VF}/reset_method", data) == outcome
    assert sim.read(f"{VF}/reset_method") == value


def test_methods_of_pfs_and_ports(sim: Sim) -> None:
    assert sim.read(f"{IGB}/reset_method") == "flr pm bus\n"
    assert sim.read(f"{NVME}/reset_method") == "flr bus\n"
    assert sim.read("0000:00:01.0/reset_method") == "ENOENT"


@pytest.mark.parametrize(
    ("data", "outcome"), [("1", "ok"), ("0", "EINVAL"), ("x", "EINVAL"), ("2", "EINVAL"), ("", "ok")]
)
def test_reset_takes_a_one(sim: Sim, data: str, outcome: str) -> None:
    sim.enable(IGB, 1)
    model = sim.device(VF).model
    assert isinstance(model, VirtualFunctionModel)
    assert sim.write(f"{VF}/reset", data) == outcome
    assert model.flr_count == (1 if data == "1" else 0)
    assert sim.events() == []


def test_without_methods_there_is_no_reset_but_its_file(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.must(f"{VF}/reset_method", "\n")
    assert sim.exists(f"{VF}/reset")
    assert sim.write(f"{VF}/reset", "1") == "ENOTTY"
    sim.must(f"{VF}/reset_method", "default")
    assert sim.write(f"{VF}/reset", "1") == "ok"


@pytest.mark.parametrize("method", ["flr", "pm", "bus"])
def test_a_pf_comes_back_from_reset_with_its_vfs(sim: Sim, method: str) -> None:
    sim.enable(IGB, 3)
    sim.bind(VF1, "igbvf")
    pf = sim.device(IGB).model
    assert isinstance(pf, PhysicalFunctionModel)
    before = pf.config_bytes()
    if method == "bus":  # VFs share the bus, so that it is no longer on offer
        assert sim.write(f"{IGB}/reset_method", "bus") == "EINVAL"
        return
    sim.must(f"{IGB}/reset_method", method)
    sim.must(f"{IGB}/reset", "1")
    assert pf.config_bytes() == before
    assert sim.read(f"{IGB}/sriov_numvfs") == "3\n"
    vf = sim.device(VF1).model
    assert isinstance(vf, VirtualFunctionModel)
    assert vf.present and not vf.bus_master  # nobody has saved the VF's own registers


def test_a_vf_keeps_its_registers_over_its_own_reset(sim: Sim) -> None:
    sim.enable(IGB, 1)
    sim.bind(VF, "igbvf")
    before = sim.device(VF).model.config_bytes()
    sim.must(f"{VF}/reset", "1")
    assert sim.device(VF).model.config_bytes() == before


def test_a_function_that_does_not_answer_makes_the_reset_give_up(sim: Sim) -> None:
    sim.enable(IGB, 1)
    vf = sim.device(VF).model
    assert isinstance(vf, VirtualFunctionModel)
    vf.frozen = True
    assert sim.write(f"{VF}/reset", "1") == "ENOTTY"
    vf.frozen = False
    assert sim.write(f"{VF}/reset", "1") == "ok"
