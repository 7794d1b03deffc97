"""Which accesses each verb makes, literally; and that what a bind has done can always be undone."""

from __future__ import annotations

import errno

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sriovd.backend.base import FunctionFacts
from sriovd.backend.steps import Chain, ChainResult, Script, Step, StepResult, Verb
from sriovd.core import scripts
from sriovd.core.scripts import DEFAULT, NONE, Binding
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import PF, MiniKernel, make_pf, make_vf

VF = make_vf(0).address
QUIET_PF = make_pf(drivers_autoprobe=0)


def spell(chain: Chain | None) -> list[str]:
    """The steps in words, without the function's address; what a read must find after a `=`."""
    assert chain is not None
    return [
        str(step).replace(f" {step.address}", "") + ("" if step.expect is None else f"={step.expect}")
        for step in chain.steps
    ]


def spell_script(script: Script | None) -> list[list[str]]:
    assert script is not None
    return [spell(chain) for chain in script.chains]


BIND_CHAINS = [
    (
        Binding(VF, "", "vfio-pci"),
        ["read-driver-override", "set-driver-override vfio-pci", "bind vfio-pci", "read-driver=vfio-pci"],
    ),
    (
        Binding(VF, "igbvf", "vfio-pci"),
        [
            "read-driver-override",
            "set-driver-override vfio-pci",
            "unbind igbvf",
            "bind vfio-pci",
            "read-driver=vfio-pci",
        ],
    ),
    (
        Binding(VF, "vfio-pci", DEFAULT),
        ["read-driver-override", "set-driver-override", "unbind vfio-pci", "probe", "read-driver"],
    ),
    (
        Binding(VF, "vfio-pci", NONE),
        ["read-driver-override", "set-driver-override none", "unbind vfio-pci", "read-driver="],
    ),
    (Binding(VF, "", NONE), ["read-driver-override", "set-driver-override none", "read-driver="]),
]


@pytest.mark.parametrize(("binding", "steps"), BIND_CHAINS)
def test_bind_chain(binding: Binding, steps: list[str]) -> None:
    chain = scripts.bind_chain(binding)
    assert (chain.subject, spell(chain)) == (VF, steps)
    assert {step.address for step in chain.steps} == {VF}


SATISFIED = [
    ("vfio-pci", "vfio-pci", True),
    ("vfio-pci", "pci-stub", False),
    ("igbvf", DEFAULT, True),
    ("vfio-pci", DEFAULT, False),
    ("pci-stub", DEFAULT, False),
    ("", DEFAULT, False),
    ("", NONE, False),
    ("igbvf", NONE, False),
]


@pytest.mark.parametrize(("driver", "wanted", "expected"), SATISFIED)
def test_is_satisfied(driver: str, wanted: str, expected: bool) -> None:
    assert scripts.is_satisfied(make_vf(0, driver=driver), wanted) is expected


def test_unbind_chain() -> None:
    assert spell(scripts.unbind_chain(VF, "igbvf")) == ["unbind igbvf", "read-driver="]


def test_create_script_keeps_drivers_away() -> None:
    assert spell_script(scripts.create_script(make_pf(), 7)) == [["set-autoprobe 0", "set-num-vfs 7"]]
    assert spell_script(scripts.create_script(QUIET_PF, 7)) == [["set-num-vfs 7"]]


def test_create_script_binds_on_the_way_once_the_first_and_the_last_vf_are_where_they_should() -> None:
    script = scripts.create_script(make_pf(), 3, "vfio-pci")
    look = ["read-vf 0=0000:01:10.0", "read-vf 2=0000:01:10.4"]
    bind = ["set-driver-override vfio-pci", "bind vfio-pci"]
    assert spell_script(script) == [["set-autoprobe 0", "set-num-vfs 3", *look], bind, bind, bind]
    assert [chain.subject for chain in script.chains] == [
        PF,
        *(make_vf(index).address for index in range(3)),
    ]
    assert script.stop_on_failure
    script = scripts.create_script(QUIET_PF, 1, NONE)
    look = ["read-vf 0=0000:01:10.0", "read-vf 0=0000:01:10.0"]
    assert spell_script(script) == [["set-num-vfs 1", *look], ["set-driver-override none"]]


NOT_ON_THE_WAY = [
    (make_pf(), ""),
    (make_pf(), DEFAULT),  # the kernel chooses, and the flag would be in its way
    (make_pf(), "igbvf"),  # may give the VF up after its probe has returned
    (make_pf(driver="vfio-pci"), "vfio-pci"),  # the kernel has bound them by then
    (make_pf(PciAddress.parse("0000:ff:1f.0")), "vfio-pci"),  # VFs beyond the last bus
]


@pytest.mark.parametrize(("pf", "driver"), NOT_ON_THE_WAY)
def test_create_script_leaves_to_others_what_has_to_be_looked_at(pf: FunctionFacts, driver: str) -> None:
    assert spell_script(scripts.create_script(pf, 3, driver)) == [["set-autoprobe 0", "set-num-vfs 3"]]


def test_a_vf_that_is_not_where_it_was_computed_is_no_failure_of_the_kernel() -> None:
    look = Step(Verb.READ_VF, PF, "2", expect="0000:01:10.4")
    assert scripts.is_elsewhere(StepResult(look, 0, ""))
    assert scripts.is_elsewhere(StepResult(look, 0, "0000:01:10.6"))
    assert not scripts.is_elsewhere(StepResult(look, errno.ENOENT))
    assert not scripts.is_elsewhere(StepResult(Step(Verb.READ_DRIVER, VF, expect="x"), 0, "y"))


def test_destroy_script_puts_the_flag_back_where_it_was_turned_off() -> None:
    restoring = scripts.destroy_script(QUIET_PF, 7, restore_autoprobe=True)
    assert spell_script(restoring) == [["set-num-vfs 0"], ["set-autoprobe 1"]]
    assert spell_script(scripts.destroy_script(QUIET_PF, 7, restore_autoprobe=False)) == [["set-num-vfs 0"]]
    assert spell_script(scripts.destroy_script(QUIET_PF, 0, restore_autoprobe=True)) == [["set-autoprobe 1"]]


def test_probe_script_opens_a_quiet_pf_for_as_long_as_it_takes() -> None:
    chain = scripts.bind_chain(Binding(VF, "vfio-pci", DEFAULT))
    script = scripts.probe_script(QUIET_PF, (chain,), "testing")
    assert spell_script(script) == [["set-autoprobe 1"], spell(chain), ["set-autoprobe 0"]]
    assert not script.stop_on_failure
    assert spell_script(scripts.quieten_script(QUIET_PF)) == [["set-autoprobe 0"]]


def test_without_a_quiet_pf_the_first_failure_ends_the_script() -> None:
    chain = scripts.bind_chain(Binding(VF, "", "vfio-pci"))
    script = scripts.probe_script(None, (chain,), "testing")
    assert (script.chains, script.stop_on_failure) == ((chain,), True)
    assert scripts.quieten_script(None) is None


def test_reset_remove_and_rescan() -> None:
    assert spell_script(scripts.reset_script(VF)) == [["reset"]]
    assert spell_script(scripts.remove_script(make_pf(), has_vfs=False)) == [["remove"]]
    with_vfs = scripts.remove_script(make_pf(), has_vfs=True)
    assert spell_script(with_vfs) == [["set-num-vfs 0"], ["remove"]]
    assert with_vfs.stop_on_failure, "a PF whose VFs stay must not be removed"
    assert spell_script(scripts.rescan_script()) == [["rescan-bus"]]


def result_of(binding: Binding, *values: str, failed: int = 0) -> ChainResult:
    """What became of the bind_chain: a value for each step tried, and the last one's errno."""
    chain = scripts.bind_chain(binding)
    pairs = list(zip(chain.steps, values, strict=False))
    results = [StepResult(step, 0, value) for step, value in pairs]
    results[-1] = StepResult(results[-1].step, failed, results[-1].value)
    return ChainResult(chain, tuple(results))


FROM_VFIO = Binding(VF, "vfio-pci", "igbvf")
FROM_NOTHING = Binding(VF, "", "igbvf")
UNDO_CHAINS = [
    # The override is rewritten before the old driver is bound, and put right afterwards.
    (
        result_of(FROM_VFIO, "(null)", "", "", "", failed=errno.ENODEV),
        FROM_VFIO,
        ["set-driver-override vfio-pci", "bind vfio-pci", "set-driver-override", "read-driver=vfio-pci"],
    ),
    (
        result_of(FROM_VFIO, "vfio-pci", "", "", "", failed=errno.ENODEV),
        FROM_VFIO,
        ["set-driver-override vfio-pci", "bind vfio-pci", "read-driver=vfio-pci"],
    ),
    # Nothing but the override was changed.
    (
        result_of(FROM_VFIO, "vfio-pci", "", "", failed=errno.EBUSY),
        FROM_VFIO,
        ["set-driver-override vfio-pci", "read-driver=vfio-pci"],
    ),
    # It went through: other functions failed.
    (
        result_of(FROM_VFIO, "vfio-pci", "", "", "", "igbvf"),
        FROM_VFIO,
        ["set-driver-override vfio-pci", "unbind igbvf", "bind vfio-pci", "read-driver=vfio-pci"],
    ),
    (
        result_of(FROM_NOTHING, "none", "", "", "igbvf"),
        FROM_NOTHING,
        ["set-driver-override none", "unbind igbvf", "read-driver="],
    ),
]


@pytest.mark.parametrize(("done", "binding", "steps"), UNDO_CHAINS)
def test_undo_chain(done: ChainResult, binding: Binding, steps: list[str]) -> None:
    assert spell(scripts.undo_chain(binding, done)) == steps


@pytest.mark.parametrize("tried", [1, 2])
def test_what_has_changed_nothing_needs_no_undoing(tried: int) -> None:
    done = result_of(FROM_VFIO, *["x"] * tried, failed=errno.ENODEV)
    assert scripts.undo_chain(FROM_VFIO, done) is None


DRIVERS = ["", "igbvf", "vfio-pci", "pci-stub"]
OVERRIDES = ["", "none", "igbvf", "vfio-pci", "pci-stub"]


@given(
    driver=st.sampled_from(DRIVERS),
    override=st.sampled_from(OVERRIDES),
    wanted=st.sampled_from([DEFAULT, NONE, "igbvf", "vfio-pci", "pci-stub", "not-loaded"]),
    failing=st.integers(0, 5),
    quiet=st.booleans(),
)
def test_undoing_a_bind_leaves_driver_and_override_as_they_were(
    driver: str, override: str, wanted: str, failing: int, quiet: bool
) -> None:
    """From any state, towards any driver, failing at any step or not at all (then others have failed)."""
    kernel = MiniKernel(make_pf(drivers_autoprobe=int(not quiet)), make_vf(0, driver=driver))
    kernel.overrides[VF] = override
    binding = Binding(VF, driver, wanted)
    done = run_failing_at(kernel, scripts.bind_chain(binding), failing)
    undo = scripts.undo_chain(binding, done)
    if undo is not None:
        assert kernel.run_chain(undo).ok
    assert (kernel.driver(VF), kernel.overrides[VF]) == (driver, override)


def run_failing_at(kernel: MiniKernel, chain: Chain, position: int) -> ChainResult:
    """Do the chain's steps until the one at `position`, which fails without being done."""
    results: list[StepResult] = []
    for index, step in enumerate(chain.steps):
        # A driver link cannot fail to be read while its function exists: its absence is the answer "none".
        assume(
            not (index == position and step.verb is Verb.READ_DRIVER and Step(Verb.PROBE, VF) in chain.steps)
        )
        results.append(StepResult(step, errno.EIO) if index == position else kernel.do(step))
        if not results[-1].ok:
            break
    return ChainResult(chain, tuple(results))
