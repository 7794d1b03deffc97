"""Who finds what in which VF's trace: the rules of all of core on a simulated host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from sriovd.backend.base import Fault, Severity
from sriovd.backend.vf_attributes import VfAttributes
from sriovd.core import scripts
from sriovd.core.errors import LockedOut, NotOwner
from sriovd.core.lease.choose import Wish
from sriovd.core.lifecycle import CountOptions
from sriovd.core.messages import FIELDS_ATTRIBUTE, Message
from sriovd.core.trace import recorder as module
from sriovd.core.trace.transaction import transaction
from sriovd.trace.record import Record, RecordType, Status

from ..lease.leasehost import ALICE, BOB, IGB, VF0, VF1, World, on_host, until, world

FATAL = 0x40000


def operations(records: Sequence[Record], *types: RecordType) -> list[str]:
    return [each.operation for each in records if not types or each.type in types]


def assert_one_tree(records: Sequence[Record]) -> None:
    """Every record was caused by one before it, all of them by the first."""
    known: set[int] = set()
    for place, record in enumerate(records):
        assert (record.parent in known) == (place > 0), record
        known.add(record.transaction)


async def set_vlan(host: World, vlan: int) -> None:
    job = host.engine.lifecycle.set_attributes(VF0, VfAttributes(vlan=vlan), "an operator")
    await job.wait(20_000_000)
    assert job.error is None


@on_host
async def test_an_owner_finds_the_whole_bring_up_of_his_vf_in_one_tree(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=0) as host:
        job = host.engine.lifecycle.set_num_vfs(IGB, 2, CountOptions("pci-stub"), "policy")
        await job.wait(20_000_000)
        await set_vlan(host, 7)
        with transaction("Lease", "uid 1000"):
            lease = await host.lend(wish=Wish(address=VF0))
        records = host.engine.recorder.tail((IGB, 0), lease.number)
        assert_one_tree(records)
        done = operations(records, RecordType.WRITE, RecordType.NETLINK, RecordType.HAND_OVER)
        assert done == [
            "set-driver-override", "bind", "set-vf-attribute", "take-back", "set-driver-override", "unbind",
            "bind", "hand-over",
        ]  # fmt: skip
        assert {"SetNumVFs", "SetAttributes", "Lease", "PrepareLease", "add"} <= {*operations(records)}
        assert all(each.vf == VF0 for each in records)


@on_host
async def test_the_next_owner_finds_nothing_of_the_one_before_and_an_operator_does(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        first = await host.lend(ALICE, "alice")
        await set_vlan(host, 77)
        await host.leases.release(first.number, force=False)
        second = await host.lend(BOB, "bob")
        recorder = host.engine.recorder
        own = recorder.tail((IGB, 0), second.number)
        assert_one_tree(own)
        assert not any("alice" in each.arguments or "77" in each.arguments for each in own)
        assert recorder.tail((IGB, 0), first.number) == ()
        everything = recorder.tail((IGB, 0))
        assert any("alice" in each.arguments for each in everything)
        assert any("vlan 77" in each.arguments for each in everything)


@on_host
async def test_what_is_done_to_one_vf_is_not_in_the_trace_of_another(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        lease = await host.lend(wish=Wish(address=VF1))
        before = host.engine.recorder.tail((IGB, 1), lease.number)
        await set_vlan(host, 9)
        await host.lend(BOB, "bob", Wish(address=VF0))
        assert host.engine.recorder.tail((IGB, 1), lease.number) == before


@on_host
async def test_a_refusal_of_an_owner_is_in_his_trace_and_a_strangers_is_not(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        lease = await host.lend(ALICE, "alice")

        def ask(uid: int) -> None:
            with transaction("Unfreeze", f"uid {uid}"):
                host.leases.require_own_at(VF0, uid, "alice")
                raise LockedOut("not yet")

        with pytest.raises(LockedOut):
            ask(ALICE)
        with pytest.raises(NotOwner):
            ask(BOB)
        records = host.engine.recorder.tail((IGB, 0), lease.number)
        asked = [each for each in records if each.operation == "Unfreeze"]
        assert [each.type for each in asked] == [RecordType.BEGIN, RecordType.END]
        assert (asked[1].status, asked[1].arguments) == (Status.REFUSED, "LockedOut: not yet")


@on_host
async def test_an_error_its_recovery_and_what_is_refused_meanwhile_are_one_tree(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=1) as host:
        await host.engine.take_up_recovery()
        lease = await host.lend(ALICE, "alice")
        host.backend.inject_fault(Fault("rescan-port", hang=True))
        host.backend.inject_fault(Fault("rescan-bus", hang=True))
        host.backend.inject_error(IGB, Severity.FATAL, FATAL, ())
        pe = host.engine.recovery
        await until(lambda: pe.vf_standing(VF0).state == "locked-out")
        with pytest.raises(LockedOut):
            await host.engine.executor.run(str(IGB.slot), scripts.reset_script(VF0))
        host.backend.clear_faults()
        await until(lambda: pe.vf_standing(VF0).state in ("permitted", "online"))
        if pe.vf_standing(VF0).state == "permitted":
            await pe.unfreeze(VF0)
        await until(lambda: pe.vf_standing(VF0).state == "online")
        records = host.engine.recorder.tail((IGB, 0), lease.number)
        assert_one_tree(records)
        states = operations(records, RecordType.RECOVERY)
        told = [
            "adapter-frozen",
            "frozen",
            "locked-out",
            "adapter-verifying",
            "permitted",
            "recovering",
            "online",
        ]
        assert [each for each in states if each in told] == told
        frozen = next(each for each in records if each.operation == "adapter-frozen")
        for name in ("locked-out", "reset", "permitted", "online"):
            assert next(each for each in records if each.operation == name).parent == frozen.transaction


@on_host
async def test_a_write_that_hangs_is_told_when_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sriovd.core.execute._STEP_DEADLINE_SEC", {})
    monkeypatch.setattr("sriovd.core.execute._OTHER_STEP_DEADLINE_SEC", 0.05)
    async with world(tmp_path, vfs=1) as host:
        host.backend.inject_fault(Fault("reset", VF0, hang=True))
        job = host.engine.lifecycle.reset(VF0, True, "an operator")
        await job.wait(20_000_000)
        reset = next(each for each in host.engine.recorder.tail((IGB, 0)) if each.type is RecordType.RESET)
        assert (reset.operation, reset.status) == ("reset", Status.FAILED)
        assert "has not returned" in reset.arguments
        assert reset.latency_nsec >= 50_000_000


@on_host
async def test_a_vf_that_is_gone_for_good_leaves_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as host:
        assert host.engine.recorder.tail((IGB, 0))
        await host.set_num_vfs(0)
        await until(lambda: not host.engine.recorder.tail((IGB, 0)))
        recorder = host.engine.recorder
        assert not recorder._traces and not recorder._leased and not recorder._away


@on_host
async def test_what_is_told_of_functions_that_never_come_is_bounded(tmp_path: Path) -> None:
    async with world(tmp_path, vfs=0) as host:
        recorder = host.engine.recorder
        for number in range(3 * module.KEPT_EARLY):
            recorder._stream_of(VF0._replace(domain=number + 1))
        assert len(recorder._early) == module.KEPT_EARLY


@on_host
async def test_every_mutation_and_every_refusal_is_in_the_journal_with_who_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with world(tmp_path, vfs=1) as host:
        caplog.clear()
        with transaction("Lease", "uid 1000 (:1.7)"):
            await host.lend(ALICE, "alice")
        await set_vlan(host, 5)
        told = [getattr(each, FIELDS_ATTRIBUTE, {}) for each in caplog.records]
        trail = [each for each in told if each.get("MESSAGE_ID") == Message.MUTATION]
        rows = [
            (each["SRIOVD_OPERATION"], each["SRIOVD_REQUESTER"], each["SRIOVD_OUTCOME"]) for each in trail
        ]
        assert ("PrepareLease", "alice (uid 1000)", "done") in rows
        assert ("Lease", "uid 1000 (:1.7)", "done") in rows  # the hand-over
        assert ("SetAttributes", "an operator", "done") in rows
        assert all(each["SRIOVD_ADAPTER"] == "0000:01:00" for each in trail)
        await asyncio.sleep(0)
