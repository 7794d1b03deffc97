"""Traces over the lives of daemons, VFs and leases."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sriovd.backend.base import Fault, KernelEvent, Severity, Uevent, UeventAction
from sriovd.backend.driver_events import DeviceReport, DriverMessage, ReportSource
from sriovd.backend.steps import Chain, ChainResult, Script, Step, StepResult, Verb
from sriovd.core import scripts
from sriovd.core.errors import SriovdError
from sriovd.core.lease.choose import Wish
from sriovd.core.lease.record import LeaseState
from sriovd.core.recovery.automaton import AdapterState, VfState
from sriovd.core.trace.notes import Mark
from sriovd.core.trace.recorder import LATE_NSEC
from sriovd.core.trace.stream import Stream
from sriovd.core.trace.transaction import transaction
from sriovd.core.trace.witness import _MARKS, _mark_of
from sriovd.trace.record import RecordType

from ..lease.leasehost import ALICE, BOB, IGB, IGB2, VF0, on_host, until, world
from .test_recorder import operations, set_vlan
from .test_stream import Sink

FATAL = 0x40000


@on_host
async def test_the_trace_of_a_lease_whose_vf_is_away_goes_on_when_it_is_back(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend()
        await host.crash()
        host.backend.kernel.write(f"bus/pci/devices/{IGB}/sriov_numvfs", "0")
        await host.begin()
        recorder = host.engine.recorder
        recorder.seed(lease.number, 100)
        recorder.attach(lease.number, sink := Sink(), True)
        assert [each.transaction for each in sink.written] == list(range(100, 100 + len(sink.written)))
        await host.set_num_vfs(1)
        await host.until_state(lease.number, LeaseState.ACTIVE)
        assert {"bind", "hand-over"} <= {*operations(sink.written)}
        assert sink.written[-1].vf == VF0


@on_host
async def test_nobody_waits_for_a_vf_whose_lease_ended_while_it_was_away(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend()
        host.backend.kernel.write(f"bus/pci/devices/{IGB}/sriov_numvfs", "0")
        await host.until_state(lease.number, LeaseState.ABSENT)
        recorder = host.engine.recorder
        assert recorder._place_of(VF0) == (IGB, 0)
        await host.leases.release(lease.number, force=False)
        assert recorder._place_of(VF0) is None


@on_host
async def test_an_incident_is_over_when_its_vf_is_gone(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend()
        await host.engine.take_up_recovery()
        recovery, recorder = host.engine.recovery, host.engine.recorder
        host.backend.inject_fault(Fault("rescan-port", hang=True))
        host.backend.inject_fault(Fault("rescan-bus", hang=True))
        host.backend.inject_error(IGB, Severity.FATAL, FATAL, ())
        await until(lambda: recovery.vf_standing(VF0).state == "locked-out")
        assert recorder._traces[IGB, 0].stream.read() and recorder._traces[IGB, 0].stream._incident
        host.backend.unplug(IGB)
        await until(lambda: "removed" in operations(recorder.tail((IGB, 0), lease.number)))
        assert not recorder._traces[IGB, 0].stream._incident


@on_host
async def test_the_incident_of_a_vf_that_is_away_ends_with_its_adapters(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend()
        host.backend.kernel.write(f"bus/pci/devices/{IGB}/sriov_numvfs", "0")
        await host.until_state(lease.number, LeaseState.ABSENT)
        await host.engine.take_up_recovery()
        host.backend.inject_error(IGB, Severity.FATAL, FATAL, ())
        recorder = host.engine.recorder
        await until(lambda: "adapter-online" in operations(recorder.tail((IGB, 0), lease.number)))
        assert "adapter-frozen" in operations(recorder.tail((IGB, 0), lease.number))
        assert not recorder._traces[IGB, 0].stream._incident


@on_host
async def test_an_incident_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend()
        await host.engine.take_up_recovery()
        for verb in ("rescan-port", "rescan-bus"):
            host.backend.inject_fault(Fault(verb, hang=True))
        host.backend.inject_error(IGB, Severity.FATAL, FATAL, ())
        stored = host.engine.recovery._lives._stored
        await until(lambda: any(vf.state is VfState.LOCKED_OUT for pe in stored.values() for vf in pe.vfs))
        await host.restart()
        await host.engine.take_up_recovery()
        with pytest.raises(SriovdError):
            await host.engine.executor.run(str(IGB.slot), scripts.reset_script(VF0))
        host.backend.clear_faults()
        recovery = host.engine.recovery
        await until(lambda: recovery.vf_standing(VF0).state in ("permitted", "online"))
        if recovery.vf_standing(VF0).state == "permitted":
            await recovery.unfreeze(VF0)
        await until(lambda: recovery.vf_standing(VF0).state == "online")
        records = host.engine.recorder.tail((IGB, 0), lease.number)
        found = {each.operation: each for each in reversed(records)}
        for name in ("reset", "permitted", "online"):
            assert found[name].parent == found["locked-out"].transaction, name


def test_every_state_but_two_may_begin_an_incident() -> None:
    """The first that a new daemon is told of may be any."""
    well = {state for state in VfState if _MARKS[state] is not Mark.INCIDENT}
    assert well == {VfState.ONLINE, VfState.REMOVED}
    for is_out in (False, True):
        marks = {state: _mark_of(state, is_out) for state in AdapterState}
        assert marks.pop(AdapterState.ONLINE) is (None if is_out else Mark.END_OF_INCIDENT)
        assert marks.pop(AdapterState.REMOVED) is None
        assert {*marks.values()} == {Mark.INCIDENT}


class NeverWalked(dict[Any, Any]):
    """A dictionary that is only asked for one of its keys; `walks` counts what goes through all."""

    walks = 0

    def _walk(self) -> Any:
        NeverWalked.walks += 1
        return ()

    __iter__ = keys = values = items = _walk


@on_host
async def test_what_one_vf_or_adapter_costs_does_not_depend_on_the_others(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        await host.set_num_vfs(1, IGB2)
        leases = [await host.lend(wish=Wish(pf=pf)) for pf in (IGB, IGB2)]
        recorder = host.engine.recorder
        recorder._away, recorder._leased = NeverWalked(recorder._away), NeverWalked(recorder._leased)
        host.backend.kernel.write(f"bus/pci/devices/{IGB}/sriov_numvfs", "0")
        await host.until_state(leases[0].number, LeaseState.ABSENT)
        assert recorder._place_of(VF0) == (IGB, 0)
        await host.set_num_vfs(1)
        await host.until_state(leases[0].number, LeaseState.ACTIVE)
        assert not len(recorder._away)
        recorder.note_adapter(str(IGB.slot), "frozen", lambda _: None)
        told = [operations(recorder.tail((lease.pf, 0), lease.number)) for lease in leases]
        assert ["adapter-frozen" in each for each in told] == [True, False]
        await host.leases.release(leases[0].number, force=False)
        recorder.note_adapter(str(IGB.slot), "frozen", lambda _: None)
        assert "adapter-frozen" not in operations(recorder._traces[IGB, 0].stream.read())
        assert NeverWalked.walks == 0


@on_host
async def test_an_owner_is_not_told_which_operator_has_frozen_his_vf(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        await host.engine.take_up_recovery()
        host.engine.recovery.recover(VF0, "uid 0 (:1.5)")
        with pytest.raises(SriovdError, match="an operator asked for it") as refused:
            await host.engine.executor.run(str(IGB.slot), scripts.reset_script(VF0))
        assert "uid" not in str(refused.value)


LATE = (
    lambda text, at_usec: DriverMessage(VF0, "igbvf", text, at_usec),
    lambda text, at_usec: DriverMessage(IGB, "igb", f"VF 0 {text}", at_usec),
    lambda text, at_usec: DeviceReport(VF0, ReportSource.HEALTH, text, at_usec),
)


@pytest.mark.parametrize("make", LATE)
@on_host
async def test_a_late_message_of_a_former_owners_vf_is_not_the_next_owners(
    tmp_path: Path, make: Callable[[str, int], KernelEvent]
) -> None:
    """journald stamps a driver's message when it receives it, which may be seconds after it was said."""
    async with world(tmp_path, vfs=1) as host:
        first, recorder = await host.lend(ALICE, "alice"), host.engine.recorder
        await host.leases.release(first.number, force=False)
        second = await host.lend(BOB, "bob")
        now_usec = time.monotonic_ns() // 1000
        late_usec = recorder._traces[IGB, 0].since_nsec // 1000 + LATE_NSEC // 1000
        for text, at_usec in (("alice's", now_usec), ("hers", late_usec - 1), ("bob's", late_usec + 1)):
            recorder.take(make(text, at_usec))
        own = " ".join(each.arguments for each in recorder.tail((IGB, 0), second.number))
        assert "bob's" in own
        assert "alice's" not in own and "hers" not in own
        everything = " ".join(each.arguments for each in recorder.tail((IGB, 0)))
        assert "alice's" in everything and "hers" in everything


@on_host
async def test_a_late_message_is_not_the_next_owners_when_the_vf_was_made_again_meanwhile(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, vfs=1) as host:
        first, recorder = await host.lend(ALICE, "alice"), host.engine.recorder
        await host.leases.release(first.number, force=False)
        await host.set_num_vfs(0)
        await until(lambda: not recorder.tail((IGB, 0)))
        await host.set_num_vfs(1)
        second = await host.lend(BOB, "bob")
        now_usec = time.monotonic_ns() // 1000
        for text, at_usec in (("alice's", now_usec), ("bob's", now_usec + LATE_NSEC // 1000)):
            recorder.take(DriverMessage(VF0, "igbvf", text, at_usec))
        own = [each.arguments for each in recorder.tail((IGB, 0), second.number)]
        assert "bob's" in own and "alice's" not in own


@on_host
async def test_ended_leases_are_remembered_for_a_moment_only(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        recorder = host.engine.recorder
        for index, now_nsec in enumerate((5, 5 + LATE_NSEC, 6 + LATE_NSEC)):
            recorder._note_ended((IGB, index), now_nsec)
        assert list(recorder._ended) == [(IGB, 1), (IGB, 2)]


@on_host
async def test_what_removes_a_vf_is_not_told_of_the_next_at_its_address(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        await host.set_num_vfs(0)
        recorder = host.engine.recorder
        await until(lambda: not recorder.tail((IGB, 0)))
        for action in (UeventAction.UNBIND, UeventAction.REMOVE):  # late
            recorder.take(Uevent(action, VF0))
        await host.set_num_vfs(1)
        lease = await host.lend()
        assert not {"unbind", "remove"} & {
            *operations(recorder.tail((IGB, 0), lease.number), RecordType.UEVENT)
        }


@on_host
async def test_what_is_told_of_a_vf_that_comes_back_elsewhere_is_its_owners(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend()
        await host.crash()
        host.backend.kernel.write(f"bus/pci/devices/{IGB}/sriov_numvfs", "0")
        await host.begin()
        recorder = host.engine.recorder
        recorder.take(Uevent(UeventAction.ADD, VF0, {"DRIVER": "early"}))
        await host.set_num_vfs(1)
        await host.until_state(lease.number, LeaseState.ACTIVE)
        assert "DRIVER=early" in [each.arguments for each in recorder.tail((IGB, 0), lease.number)]


@on_host
async def test_a_lease_that_a_former_daemon_left_released_can_be_traced_until_it_is_forgotten(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend()
        left = replace(lease, number=lease.number + 1, index=7, state=LeaseState.RELEASED)
        host.leases._lives.recall(left)
        host.engine.recorder.seed(left.number, 100)
        assert host.engine.recorder.next_transaction(left.number) >= 100


@on_host
async def test_registers_that_were_read_are_not_kept(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        step = Step(Verb.READ_CONFIG, VF0, "4096")
        chain = Chain(VF0, (step, Step(Verb.UPDATE_CONFIG, VF0, "4 2 4 4")))
        read = ChainResult(chain, (StepResult(step, 0, "ff" * 4096),))
        host.engine.recorder.note_chain(None, Script("looking", (chain,)), read)
        (_, _, kept) = host.engine.recorder._traces[IGB, 0].stream._entries[-1]
        assert isinstance(kept, ChainResult)
        assert len(kept.results[0].value) < 1000


@on_host
async def test_a_defect_of_tracing_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path, vfs=0) as host:

        def fail(*_: object) -> None:
            raise RuntimeError("a defect")

        for name in ("put", "put_of", "put_ends"):
            monkeypatch.setattr(Stream, name, fail)
        monkeypatch.setattr("sriovd.core.trace.joining.join", fail)
        await host.set_num_vfs(1)
        lease = await host.lend()
        host.backend.inject_error(VF0, Severity.CORRECTED, 0, ())
        await set_vlan(host, 7)
        await host.leases.release(lease.number, force=False)
        await host.set_num_vfs(0)
        assert "A record was lost" in caplog.text


@on_host
async def test_drivers_are_listened_to_while_anybody_traces(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=2) as host:
        wanted: list[bool] = []
        recorder = host.engine.recorder
        recorder.on_wanted = wanted.append
        leases = [await host.lend(), await host.lend()]
        for lease in leases:
            recorder.attach(lease.number, Sink(), False)
        recorder.detach(leases[0].number)
        recorder.detach(leases[0].number)
        assert wanted == [True, True]  # each may find that something has failed meanwhile
        await host.leases.release(leases[1].number, force=False)
        assert wanted == [True, True, False]


@on_host
async def test_who_only_looks_is_in_the_trace_when_the_owner_has_asked_for_it(tmp_path: Path) -> None:
    """Policy looks at all VFs of a PF when something has happened to one."""
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend(ALICE, "alice")
        step = Step(Verb.READ_DRIVER_OVERRIDE, VF0)
        script = Script("looking", (Chain(VF0, (step,)),))
        before = len(host.engine.recorder.tail((IGB, 0), lease.number))
        with transaction("Plan", "uid 0"):
            await host.engine.executor.run(str(IGB.slot), script)
        assert len(host.engine.recorder.tail((IGB, 0), lease.number)) == before
        with transaction("Inspect", "uid 1000"):
            host.leases.require_own_at(VF0, ALICE, "alice")
            await host.engine.executor.run(str(IGB.slot), script)
        *_, begin, read, end = host.engine.recorder.tail((IGB, 0), lease.number)
        assert (begin.operation, read.operation, end.operation) == (
            "Inspect", "read-driver-override", "Inspect",
        )  # fmt: skip
        assert read.parent == begin.transaction


@on_host
async def test_a_trace_is_over_with_its_lease_whatever_fails_then(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        first, recorder = await host.lend(ALICE, "alice"), host.engine.recorder
        recorder.attach(first.number, Sink(), False)

        def fail(_: bool) -> None:
            raise OSError("the journal is gone")

        recorder.on_wanted = fail
        await host.leases.release(first.number, force=False)
        second = await host.lend(BOB, "bob")
        assert not any("alice" in each.arguments for each in recorder.tail((IGB, 0), second.number))
        assert recorder._traces[IGB, 0].stream.sink is None
