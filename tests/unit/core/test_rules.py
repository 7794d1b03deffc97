"""Every refusal: its class, that its sentence names the function, and that its hint says the next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sriovd.backend.base import DriverState, FunctionFacts, Holder
from sriovd.core import rules
from sriovd.core.errors import (
    BindFailed,
    InUse,
    InvalidArgument,
    NotSupported,
    NumVfsRejected,
    Quarantined,
    SriovdError,
)
from sriovd.core.inventory import Function
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import PF, make_pf, make_vf

VF = make_vf(0).address


def pf(driver: str = "igb") -> Function:
    return Function(make_pf(driver=driver), 1)


def vf(index: int = 0, **changes: object) -> Function:
    return Function(replace(make_vf(index), **changes), 1)  # type: ignore[arg-type]


def nic_vf(driver: str = "igbvf", net_interfaces: tuple[str, ...] = ()) -> Function:
    return vf(class_code=0x020000, driver=driver, net_interfaces=net_interfaces)


HOLDERS = {make_vf(index).address: (Holder(1234 + index, "qemu"),) for index in range(7)}
HELD_VFS = [vf(index) for index in range(7)]


def described(
    functions: Sequence[Function], holders: Mapping[PciAddress, Sequence[Holder]]
) -> Mapping[PciAddress, str]:
    """Those of `functions` that somebody uses."""
    texts = {each.address: rules.describe_use(each, holders, "") for each in functions}
    return {address: text for address, text in texts.items() if text}


REFUSALS: list[tuple[Callable[[], None], type[SriovdError], list[str], str]] = [
    (lambda: rules.check_vf_count(pf(), 0, 8), NumVfsRejected, [str(PF), "8", "allows 7"], "0 to 7"),
    (lambda: rules.check_vf_count(pf(), 4, 5), NumVfsRejected, [str(PF), "from 4 to 5"], "Set 0 VFs first"),
    (
        lambda: rules.check_vf_count(pf(""), 0, 1),
        NumVfsRejected,
        [str(PF), "no driver"],
        "Bind its PF driver",
    ),
    (lambda: rules.check_vf_count(vf(), 0, 1), InvalidArgument, [str(VF), "is a VF"], "Ask its PF"),
    (lambda: rules.check_driver_name("../x"), InvalidArgument, ["'../x'"], "'vfio-pci'"),
    (
        lambda: rules.check_driver_state("nvme", DriverState.NOT_LOADED),
        BindFailed,
        ["nvme", "not loaded"],
        "modprobe nvme",
    ),
    (
        lambda: rules.check_driver_state("nvmee", DriverState.UNKNOWN),
        InvalidArgument,
        ["nvmee"],
        "/sys/bus/pci/drivers",
    ),
    (
        lambda: rules.check_bindable(pf(), 3, "vfio-pci"),
        InUse,
        [str(PF), "3 VFs", "vfio-pci"],
        "Set 0 VFs first",
    ),
    (lambda: rules.check_resettable(vf(reset_methods=()), 0), NotSupported, [str(VF)], "reset_method"),
    (lambda: rules.check_resettable(pf(), 3), InUse, [str(PF), "3 VFs"], "force"),
    (lambda: rules.check_removable(vf()), InvalidArgument, [str(VF)], str(PF)),
    (
        lambda: rules.check_in_service(replace(vf(), quarantine="it would not bind.")),
        Quarantined,
        [str(VF), "it would not bind."],
        "Bind it",
    ),
    (lambda: rules.check_unused(described([vf()], HOLDERS)), InUse, [str(VF), "qemu (pid 1234)"], "force"),
    (
        lambda: rules.check_unused(described(HELD_VFS, HOLDERS)),
        InUse,
        [str(VF), "qemu (pid 1238)", "and 2 more"],
        "force",
    ),
    (
        lambda: rules.check_unused(described([nic_vf()], {})),
        InUse,
        [str(VF), "network namespace"],
        "End that use",
    ),
]


@pytest.mark.parametrize(("check", "error", "parts", "hint"), REFUSALS)
def test_refusal(check: Callable[[], None], error: type[SriovdError], parts: list[str], hint: str) -> None:
    with pytest.raises(SriovdError) as refusal:
        check()
    assert type(refusal.value) is error
    for part in parts:
        assert part in refusal.value.message
    assert hint in refusal.value.hint
    assert refusal.value.message.endswith(".")


ALLOWED: list[Callable[[], None]] = [
    *(lambda count=count: rules.check_vf_count(pf(), 0, count) for count in (0, 1, 7)),
    lambda: rules.check_vf_count(pf(), 4, 4),
    lambda: rules.check_vf_count(pf(), 4, 0),
    lambda: rules.check_vf_count(pf(""), 0, 0),
    lambda: rules.check_driver_state("igb", DriverState.LOADED),
    lambda: rules.check_bindable(pf(), 0, "vfio-pci"),
    lambda: rules.check_bindable(vf(), 0, "vfio-pci"),
    lambda: rules.check_resettable(pf(), 0),
    lambda: rules.check_removable(pf()),
    lambda: rules.check_in_service(vf()),
    lambda: rules.check_unused(described([], HOLDERS)),
    lambda: rules.check_unused(described([pf()], HOLDERS)),
    lambda: rules.check_unused(described([vf()], {})),
    lambda: rules.check_unused(described([vf()], {VF: ()})),
]


@pytest.mark.parametrize("check", ALLOWED)
def test_allowed(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    "name", ["default", "none", "vfio-pci", "pci-stub", "mlx5_core", "8139too", "a" * 63]
)
def test_driver_names(name: str) -> None:
    rules.check_driver_name(name)


BAD_NAMES = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "-x",
    "vfio pci",
    "vfio-pci\n",
    "a" * 64,
    "trèiber",
    "a\0",
    "%s",
    "{0}",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_driver_name(name: str) -> None:
    with pytest.raises(InvalidArgument):
        rules.check_driver_name(name)


@given(st.text())
def test_an_accepted_name_is_one_path_component(name: str) -> None:
    """The name becomes part of a path below /sys/bus/pci/drivers."""
    try:
        rules.check_driver_name(name)
    except InvalidArgument as error:
        assert len(error.message) < 700
    else:
        assert name.isascii()
        assert "/" not in name
        assert name not in ("", ".", "..")


ELSEWHERE: list[tuple[FunctionFacts, bool]] = [
    (nic_vf().facts, True),
    (nic_vf(net_interfaces=("ens1v0",)).facts, False),
    (nic_vf(driver="").facts, False),
    (nic_vf(driver="vfio-pci").facts, False),
    (nic_vf(driver="pci-stub").facts, False),
    (make_pf(), False),
    (make_vf(0, driver="nvme"), False),
]


@pytest.mark.parametrize(("facts", "expected"), ELSEWHERE)
def test_netdev_is_elsewhere(facts: FunctionFacts, expected: bool) -> None:
    assert rules.netdev_is_elsewhere(Function(facts, 1)) is expected
