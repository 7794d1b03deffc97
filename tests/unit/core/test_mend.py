"""What a killed daemon has left, and what is done about it."""

from __future__ import annotations

from dataclasses import replace

from sriovd.backend.base import FunctionFacts, PhysicalFacts, VirtualFacts
from sriovd.backend.steps import Script
from sriovd.core import scripts
from sriovd.core.inventory import Function
from sriovd.core.mend import find_mending
from sriovd.core.scripts import Binding
from sriovd.core.store import Intent
from sriovd.pci import PciAddress

PF, VF, VF2 = map(PciAddress.parse, ("0000:01:00.0", "0000:01:10.0", "0000:01:10.2"))


def facts(address: PciAddress, driver: str, *, autoprobe: bool = False) -> FunctionFacts:
    physical = PhysicalFacts(7, 128, 2, 0x10CA, autoprobe) if address == PF else None
    virtual = None if address == PF else VirtualFacts(PF, 0)
    return FunctionFacts(
        address, 1, 0x8086, 0x10C9, 0, 0, 0x020000, 1, driver, None, -1, (), (), "", physical, virtual
    )


def host(*all_facts: FunctionFacts) -> dict[PciAddress, Function]:
    return {each.address: Function(each, 1) for each in all_facts}


def intent(script: Script, *, same_boot: bool = True) -> Intent:
    steps = tuple(str(step) for chain in script.chains for step in chain.steps if step.writes)
    return Intent(1, "0000:01:00", "somebody", script.title, steps, same_boot)


def bind_to(driver: str) -> Script:
    chains = (scripts.bind_chain(Binding(VF, "igbvf", driver)), scripts.bind_chain(Binding(VF2, "", driver)))
    return Script("a bind", chains)


def written(script: Script) -> list[str]:
    return [str(step) for chain in script.chains for step in chain.steps]


def test_functions_that_were_to_have_a_driver_are_stranded_without() -> None:
    mending = find_mending([intent(bind_to("vfio-pci"))], host(facts(VF, ""), facts(VF2, "")), {}, ())
    assert mending.stranded == dict.fromkeys((VF, VF2), "sriovd ended in the middle of a bind")
    mending = find_mending([intent(bind_to("default"))], host(facts(VF, ""), facts(VF2, "igbvf")), {}, ())
    assert list(mending.stranded) == [VF]


def test_one_that_was_to_have_none_is_not() -> None:
    assert not find_mending([intent(bind_to("none"))], host(facts(VF, ""), facts(VF2, "")), {}, ()).stranded


def test_functions_that_are_gone_and_what_another_kernel_did_are_nothing() -> None:
    assert not find_mending([intent(bind_to("vfio-pci"))], {}, {}, ()).stranded
    old = intent(bind_to("vfio-pci"), same_boot=False)
    assert not find_mending([old], host(facts(VF, "")), {}, ()).stranded


def test_a_step_of_a_newer_daemon_is_no_reason_to_fall() -> None:
    strange = Intent(1, "0000:01:00", "x", "y", ("bind", "bind nobody x", "dance", f"bind {VF}"), True)
    assert list(find_mending([strange], host(facts(VF, "")), {}, ()).stranded) == [VF]


def test_the_flag_is_put_back_when_there_are_no_vfs() -> None:
    functions = host(facts(PF, "igb", autoprobe=False))
    mending = find_mending((), functions, {PF: 0}, {PF})
    [(pf, script)] = mending.scripts
    assert (pf.address, written(script)) == (PF, [f"set-autoprobe {PF} 1"])
    assert mending.settled == (PF,)


def test_nothing_is_written_where_the_flag_is_right() -> None:
    mending = find_mending((), host(facts(PF, "igb", autoprobe=True)), {PF: 0}, {PF})
    assert (mending.scripts, mending.settled) == ((), (PF,))
    mending = find_mending((), host(facts(PF, "igb", autoprobe=False)), {PF: 2}, {PF})
    assert (mending.scripts, mending.settled) == ((), ())
    mending = find_mending((), host(facts(PF, "igb", autoprobe=False)), {PF: 0}, ())
    assert (mending.scripts, mending.settled) == ((), ()), "it is not sriovd's"
    assert find_mending((), {}, {}, {PF}).scripts == ()


def test_what_an_interrupted_probe_has_opened_is_closed_whosever_it_is() -> None:
    quiet, opened = facts(PF, "igb", autoprobe=False), facts(PF, "igb", autoprobe=True)
    probe = scripts.probe_script(quiet, bind_to("default").chains, "a probe")
    for quieted in ({PF}, set[PciAddress]()):
        for count in (2,) if quieted else (2, 0):
            [(_, script)] = find_mending([intent(probe)], host(opened), {PF: count}, quieted).scripts
            assert written(script) == [f"set-autoprobe {PF} 0"]
        assert not find_mending([intent(probe)], host(quiet), {PF: 2}, quieted).scripts


def test_somebody_elses_choice_stays() -> None:
    """The flag is on while there are VFs, and no script had opened it."""
    opened = host(facts(PF, "igb", autoprobe=True))
    create = scripts.create_script(replace(opened[PF].facts), 2, "vfio-pci")
    for left in ([], [intent(bind_to("vfio-pci"))], [intent(create)]):
        assert not find_mending(left, opened, {PF: 2}, {PF}).scripts
