"""The readiness audit: every finding, what it names, and that a ready adapter has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from sriovd.backend.base import ErrorPath
from sriovd.core.inventory import Function
from sriovd.core.recovery.audit import AuditFacts, Finding, audit_adapter, audit_pf, audit_vf
from sriovd.core.recovery.audit_rules import PF_RULES, VF_RULES
from sriovd.core.recovery.vocabulary import Rung
from sriovd.pci import PciAddress
from tests.unit.core.minikernel import PF, make_pf, make_vf

SLOT = str(PF.slot)
SECOND = PciAddress.parse("0000:01:00.1")
GOOD_PATH = ErrorPath((PciAddress.parse("0000:00:01.0"),), has_aer=True, is_native=True, is_recorded=True)
ALL = tuple(Rung)
NO_RESCAN = (Rung.KERNEL, Rung.FUNCTION_RESET, Rung.DRIVER_REBIND)


def pf(driver: str = "ice", address: PciAddress = PF, **changes: object) -> Function:
    return Function(replace(make_pf(address, driver=driver), **changes), 1)  # type: ignore[arg-type]


def vf(index: int = 0, driver: str = "vfio-pci", **changes: object) -> Function:
    return Function(replace(make_vf(index, driver=driver), **changes), 1)  # type: ignore[arg-type]


def elsewhere(driver: str) -> Function:
    """A VF whose bus is not its PF's."""
    return vf(driver=driver, address=PciAddress.parse("0000:02:00.0"))


def adapter(
    *pfs: Function,
    vfs: Sequence[Function] = (),
    rungs: Sequence[Rung] = ALL,
    path: ErrorPath = GOOD_PATH,
) -> AuditFacts:
    pfs = pfs or (pf(),)
    return AuditFacts(SLOT, pfs, {each.address: path for each in pfs}, vfs, rungs)


def show(findings: Sequence[Finding]) -> list[str]:
    return [str(each) for each in findings]


OF_VFS = [
    (vf(driver=""), "blocker", "has no driver with error handlers", "Bind it to vfio-pci"),
    (
        vf(driver="pci-stub"),
        "blocker",
        "(pci-stub) has no driver with error handlers",
        "Bind it to vfio-pci",
    ),
    (vf(driver="uio_pci_generic"), "blocker", "has no driver with error handlers", "Bind it to vfio-pci"),
    (vf(driver="iavf"), "blocker", "has no driver with error handlers", "Bind it to vfio-pci"),
    (vf(driver="my_vf"), "warning", "(my_vf) has a driver that is not known", "Look for error_detected"),
    (elsewhere("vfio-pci"), "warning", "has another bus number than its PF", "Let its owner listen"),
    (elsewhere(""), "warning", "has another bus number than its PF", "freezes and permits it"),
    (vf(reset_methods=()), "warning", "has no reset method", "Write 'default' to its reset_method"),
]


@pytest.mark.parametrize(("function", "severity", "what", "advice"), OF_VFS)
def test_what_is_wrong_with_a_vf(function: Function, severity: str, what: str, advice: str) -> None:
    [finding] = audit_vf(function)
    assert (finding.severity, finding.target) == (severity, str(function.address))
    assert f"VF {function.address}" in finding.what
    assert what in finding.what
    assert advice in finding.advice


@pytest.mark.parametrize("driver", ["vfio-pci", "igbvf", "nvme"])
def test_a_vf_that_is_ready(driver: str) -> None:
    assert audit_vf(vf(driver=driver)) == []


def test_the_worst_of_a_vf_comes_first() -> None:
    assert [each.severity for each in audit_vf(vf(driver="", reset_methods=()))] == ["blocker", "warning"]


OF_PFS = [
    (pf(""), GOOD_PATH, "blocker", "has no driver, so that the kernel's", "Bind it to its driver"),
    (pf("ena", reset_methods=("flr",)), GOOD_PATH, "blocker", "ena, which has no error handlers", "Allow"),
    (pf("pci-stub"), GOOD_PATH, "blocker", "pci-stub, which has no error handlers", "Allow the other rungs"),
    (pf("my_nic"), GOOD_PATH, "warning", "my_nic, which is not known to have", "Look for error_detected"),
    (pf(reset_methods=()), GOOD_PATH, "warning", "has no reset method", "Write 'default'"),
    (pf("igb"), GOOD_PATH, "note", "igb, which takes no part", "Nothing need be done"),
    (pf(), replace(GOOD_PATH, ports=()), "warning", "has no port above it", "slot below a root port"),
    (pf(), replace(GOOD_PATH, has_aer=False), "warning", "has no AER capability", "by its own probe"),
    (pf(), replace(GOOD_PATH, is_native=False), "warning", "only uevents, counters", "pcie_ports=native"),
    (pf(), replace(GOOD_PATH, is_recorded=False), "note", "records of errors of PF", "Mount tracefs"),
]


@pytest.mark.parametrize(("function", "path", "severity", "what", "advice"), OF_PFS)
def test_what_is_wrong_with_a_pf(
    function: Function, path: ErrorPath, severity: str, what: str, advice: str
) -> None:
    finding = next(each for each in audit_pf(function, path, ALL) if what in each.what)
    assert (finding.severity, finding.target) == (severity, str(PF))
    assert f"PF {PF}" in finding.what
    assert advice in finding.advice
    assert finding in audit_adapter(adapter(function, path=path))


@pytest.mark.parametrize("driver", ["ice", "nvme", "i40e"])
def test_an_adapter_that_is_ready(driver: str) -> None:
    assert audit_adapter(adapter(pf(driver), vfs=[vf(index) for index in range(7)])) == []


def test_where_firmware_handles_errors_nobody_misses_the_records() -> None:
    path = replace(GOOD_PATH, is_native=False, is_recorded=False)
    assert [each.severity for each in audit_pf(pf(), path, ALL)] == ["warning"]


def test_a_rung_that_is_forbidden_is_not_missed() -> None:
    function = pf("igb", reset_methods=())
    assert audit_pf(function, replace(GOOD_PATH, ports=()), (Rung.KERNEL, Rung.DRIVER_REBIND)) == []


def test_vfs_are_told_of_together() -> None:
    vfs = [vf(index, "" if index in (1, 4) else "vfio-pci") for index in range(7)]
    vfs[6] = vf(6, "pci-stub")
    assert show(audit_adapter(adapter(vfs=vfs))) == [
        "blocker: 3 of 7 VFs have no driver with error handlers, so that the kernel's own recovery of the"
        f" whole adapter will fail: {vfs[1].address}, {vfs[4].address}, {vfs[6].address} (pci-stub)."
        " Bind them to vfio-pci, which has them."
    ]


def test_one_vf_of_several() -> None:
    [finding] = audit_adapter(adapter(vfs=[vf(0), vf(1, reset_methods=())]))
    assert finding.what.startswith("1 of 2 VFs has no reset method")
    assert finding.advice.startswith("Write 'default' to its")
    assert finding.target == SLOT


def test_of_many_vfs_five_are_named() -> None:
    vfs = [vf(index, "") for index in range(60)]
    [finding] = audit_adapter(adapter(vfs=vfs))
    assert "60 of 60 VFs" in finding.what
    assert finding.what.endswith(" and 55 more.")
    assert [str(each.address) in finding.what for each in vfs].count(True) == 5


def test_as_many_as_are_named_are_all() -> None:
    [finding] = audit_adapter(adapter(vfs=[vf(index, "") for index in range(5)]))
    assert finding.what.endswith(f"{make_vf(4).address}.")


NOTHING_LEFT = [
    (
        adapter(rungs=(Rung.KERNEL,)),
        "function-reset, driver-rebind, remove-rescan forbidden by policy",
        "Allow",
    ),
    (adapter(rungs=()), "forbidden by policy", 'Allow "remove-rescan"'),
    (
        adapter(pf("igb"), rungs=(Rung.KERNEL, Rung.FUNCTION_RESET)),
        "driver-rebind, remove-rescan forbidden by policy; function-reset impossible here",
        'Allow "remove-rescan"',
    ),
    (
        adapter(pf("", reset_methods=()), path=replace(GOOD_PATH, ports=())),
        "function-reset, driver-rebind, remove-rescan impossible here",
        "slot below a root port",
    ),
    (
        adapter(pf(), pf("igb", SECOND), rungs=(Rung.FUNCTION_RESET,)),
        "function-reset impossible here",
        "Allow",
    ),
]


@pytest.mark.parametrize(("facts", "what", "advice"), NOTHING_LEFT)
def test_nothing_is_left_when_the_kernel_fails(facts: AuditFacts, what: str, advice: str) -> None:
    found = [each for each in audit_adapter(facts) if "no rung left" in each.what]
    assert [(each.severity, each.target) for each in found] == [("blocker", SLOT)]
    assert what in found[0].what
    assert advice in found[0].advice


def test_something_is_left_but_not_for_a_fatal_error() -> None:
    [finding] = audit_adapter(adapter(rungs=NO_RESCAN))
    assert (finding.severity, finding.target) == ("warning", SLOT)
    assert "forbids remove-rescan" in finding.what


def test_every_pf_is_looked_at_and_the_worst_come_first() -> None:
    found = audit_adapter(adapter(pf("igb"), pf("ena", SECOND), vfs=[vf(driver="my_vf")]))
    assert [(each.severity, each.target) for each in found] == [
        ("blocker", str(SECOND)),
        ("warning", SLOT),
        ("note", str(PF)),
        ("note", str(SECOND)),
    ]


def test_a_pf_whose_path_is_unknown_is_told_of_as_the_worst_case() -> None:
    facts = replace(adapter(), paths={})
    assert {each.severity for each in audit_adapter(facts)} == {"warning"}


def test_every_rule_is_tried_here() -> None:
    """A rule that no case above makes hold would never be seen to be wrong."""
    assert all(any(rule.holds(function) for function, *_ in OF_VFS) for rule in VF_RULES)
    assert all(any(rule.holds(function, path) for function, path, *_ in OF_PFS) for rule in PF_RULES)
    every = [*show(audit_adapter(adapter(vfs=[each[0] for each in OF_VFS])))]
    every += [str(each) for function, path, *_ in OF_PFS for each in audit_pf(function, path, ALL)]
    assert all(text.endswith(".") and "{" not in text and ". " in text for text in every)
