"""Traces over the lives of daemons, VFs and leases."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from sriovd.backend.base import Fault, Severity, Uevent, UeventAction
from sriovd.backend.driver_events import DriverMessage
from sriovd.backend.steps import Chain, ChainResult, Script, Step, StepResult, Verb
from sriovd.core import scripts
from sriovd.core.errors import SriovdError
from sriovd.core.lease.record import LeaseState
from sriovd.core.trace.stream import Stream
from sriovd.core.trace.transaction import transaction
from sriovd.trace.record import RecordType

from ..lease.leasehost import ALICE, BOB, IGB, VF0, on_host, until, world
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
        await until(lambda: operations(recorder.tail((IGB, 0), lease.number))[-1] == "removed")
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
async def test_an_owner_is_not_told_which_operator_has_frozen_his_vf(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        await host.engine.take_up_recovery()
        host.engine.recovery.recover(VF0, "uid 0 (:1.5)")
        with pytest.raises(SriovdError, match="an operator asked for it") as refused:
            await host.engine.executor.run(str(IGB.slot), scripts.reset_script(VF0))
        assert "uid" not in str(refused.value)


@on_host
async def test_a_late_message_of_a_former_owners_vf_is_not_the_next_owners(tmp_path: Path) -> None:
    """The journal tells a driver's messages seconds late (backend/linux/driver_messages.py)."""
    async with world(tmp_path, vfs=1) as host:
        first, recorder = await host.lend(ALICE, "alice"), host.engine.recorder
        late_usec = time.monotonic_ns() // 1000
        await host.leases.release(first.number, force=False)
        second = await host.lend(BOB, "bob")
        for text, at_usec in (("alice's MAC", late_usec), ("bob's MAC", time.monotonic_ns() // 1000)):
            recorder.take(DriverMessage(VF0, "igbvf", text, at_usec))
        own = [each.arguments for each in recorder.tail((IGB, 0), second.number)]
        assert "bob's MAC" in own
        assert "alice's MAC" not in own
        assert "alice's MAC" in [each.arguments for each in recorder.tail((IGB, 0))]


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
        assert wanted == [True]
        await host.leases.release(leases[1].number, force=False)
        assert wanted == [True, False]


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
