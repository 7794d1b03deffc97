"""A tenant sees in its own memory all that happens to its VF, and nothing of any other."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sriovd.backend.base import Severity
from sriovd.core.messages import Message
from sriovd.trace.reader import Entry, TraceReader
from sriovd.trace.record import Direction, Record, RecordType, Status
from sriovd.trace.source import MemorySource
from sriovd.trace.text import format_entry
from tests.lab.client import IGB0, Client, kernel_vfs
from tests.lab.desired import link_vfs, policy_file, wait_pf_in_sync
from tests.lab.errors import inject_error
from tests.lab.guest import Guest
from tests.lab.leasing import VF, Tenant, tenants_may_lease
from tests.lab.recovery import lease_all
from tests.lab.tenant import TenantVm, pf_address
from tests.lab.waiting import wait_until

HERE = Path(__file__).parent
PROGRAM, COPY = "/run/tracing.py", "/run/trace.copy"
USER, PF_ADDRESS = "tenant1", "10.0.0.1"
OTHER_MAC = "02:00:00:00:00:99"
KIB = 4100
POLICY = """\
[match]
address = "0000:01:00.0"
[functions]
num-vfs = 7
driver = "none"
[vf.defaults]
trust = false
spoof-check = true
"""
DENIED = "VF 0 requested MAC filter but is administratively denied"
OVERRIDE = "VF 0 attempted to override administratively set MAC address"
INCIDENT = [
    "adapter-frozen", "frozen", "adapter-collecting", "locked-out", "adapter-resetting", "adapter-restoring",
    "adapter-verifying", "adapter-permitting", "permitted", "adapter-online", "recovering", "online",
]  # fmt: skip


class Trace:
    """What a tenant has in its memory."""

    def __init__(self, guest: Guest, memory: str) -> None:
        self._guest = guest
        self._memory = memory

    def copy(self) -> bytes:
        """The memory as it is now."""
        self._guest.run(f"cp {self._memory} {COPY}")
        return self._guest.get(COPY)

    def read(self) -> list[Record]:
        return [entry.record for entry in read(self.copy())[0]]

    def wait_for(self, operation: str, deadline_s: float = 60.0) -> None:
        """Until a record has that operation, or an argument that begins so."""

        def is_there() -> bool:
            told = ((each.operation, each.arguments) for each in self.read())
            return any(word == operation or text.startswith(operation) for word, text in told)

        wait_until(is_there, deadline_s, f"{operation!r} in the trace")


@contextmanager
def traced(guest: Guest, user: str, vf: str) -> Iterator[Trace]:
    """The tenant has its VF traced, and asks all the time for it to be unfrozen."""
    guest.put(PROGRAM, (HERE / "tracing.py").read_bytes())
    command = ["runuser", "-u", user, "--", "python3", PROGRAM, vf, user, "overwrite", str(KIB), "unfreeze"]
    running = guest.start(command, timeout_s=280.0)
    wait_until(lambda: "tracing" in running.output().stdout, 30.0, "the trace to begin")
    _, pid, fd, capacity = running.output().stdout.split()
    assert int(capacity) == (KIB - 4) * 4
    try:
        yield Trace(guest, f"/proc/{pid}/fd/{fd}")
    finally:
        running.signal(15)
        running.wait(20.0)


def read(memory: bytes) -> tuple[list[Entry], str]:
    """The records, none of which may be missing, and all of them as Python tells them."""
    reader = TraceReader(MemorySource(memoryview(memory)))
    entries = list(reader.read())
    assert (reader.lost, reader.damaged) == (0, 0)
    return entries, "".join(f"{format_entry(entry)}\n" for entry in entries)


def read_in_c(memory: bytes, directory: Path) -> str:
    """The same as the C reader tells it."""
    source, headers = HERE.parent / "unit/trace/reader.c", HERE.parent.parent / "sriovd/trace"
    subprocess.run(["gcc", "-std=c11", f"-I{headers}", source, "-o", directory / "reader"], check=True)
    (directory / "trace").write_bytes(memory)
    done = subprocess.run([directory / "reader", directory / "trace"], capture_output=True, check=True)
    return done.stdout.decode()


def assert_one_tree(records: Sequence[Record]) -> None:
    known: set[int] = set()
    for place, record in enumerate(records):
        assert (record.parent in known) == (place > 0), record
        known.add(record.transaction)


def find(records: Sequence[Record], operation: str, **named: object) -> Record:
    """The first record of that operation with those fields."""
    for each in records:
        if each.operation == operation and all(getattr(each, key) == value for key, value in named.items()):
            return each
    raise AssertionError(f"no {operation} with {named} among {[each.operation for each in records]}")


def test_a_tenant_sees_all_of_its_vf_and_nothing_else(fresh: Client, tmp_path: Path) -> None:
    guest = fresh.guest
    with tenants_may_lease(guest), policy_file(fresh, POLICY):
        wait_pf_in_sync(fresh, IGB0)
        others = [vf for vf in kernel_vfs(guest, IGB0) if vf != VF]
        with pf_address(guest, IGB0, PF_ADDRESS):
            mac = link_vfs(guest, IGB0)[0]["address"]
            Tenant(fresh, USER).lease(VF)
            lease_all(fresh, IGB0, owner="neighbour", but=VF)
            with traced(guest, USER, VF) as trace:
                with TenantVm.start(guest, USER, VF, peer=PF_ADDRESS) as vm:
                    assert vm.mac() == mac
                    trace.wait_for(DENIED)
                    assert not vm.change_mac(OTHER_MAC)
                    trace.wait_for(OVERRIDE)
                    vm.wait_for_replies(1)
                    inject_error(guest, IGB0, Severity.NONFATAL)
                    trace.wait_for("online")
                memory = trace.copy()
    entries, text = read(memory)
    assert read_in_c(memory, tmp_path) == text
    records = [entry.record for entry in entries]
    print(text[:20000])
    assert entries[0].sequence == 1
    check_bring_up(records)
    check_incident(records)
    assert_one_tree(records)
    assert {str(each.vf) for each in records} == {VF}
    others_known = [word for word in (*others, "neighbour") if word in text]
    assert others_known == []
    assert not re.search(r"\bVF [1-6]\b", text)


def read_audit_trail(guest: Guest, cursor: str) -> list[tuple[str, str, str]]:
    """Operation, requester and outcome of every mutation after that place in the system's journal. Chosen
    here: journalctl before 255, given a place and a match, leaves out the first that matches."""
    lines = guest.run(f"journalctl --output=json --after-cursor='{cursor}'").stdout.splitlines()
    told = [each for each in map(json.loads, lines) if each.get("MESSAGE_ID") == Message.MUTATION]
    return [(each["SRIOVD_OPERATION"], each["SRIOVD_REQUESTER"], each["SRIOVD_OUTCOME"]) for each in told]


def test_every_mutation_is_in_the_journal_with_who_asked(fresh: Client) -> None:
    shown = fresh.guest.run("journalctl --lines=0 --show-cursor").stdout
    cursor = shown.rpartition("cursor: ")[2].strip()
    with tenants_may_lease(fresh.guest):
        fresh.set_num_vfs(IGB0, 1)
        tenant = Tenant(fresh, USER)
        number = tenant.lease()
        fresh.refused("Bind", "ssa{sv}", VF, "pci-stub", 0)  # it is leased: nothing is begun
        tenant.release(number)
        trail = read_audit_trail(fresh.guest, cursor)
        print(*trail, sep="\n")
        uid = int(fresh.guest.run(f"id -u {USER}").stdout)
        assert ("PrepareLease", f"{USER} (uid {uid})", "done") in trail
        assert ("CleanLease", f"{USER} (uid {uid})", "done") in trail
        (made,) = [row for row in trail if row[0] == "SetNumVFs"]
        assert made[1].startswith("uid 0 (:1.")
        assert made[2] == "done"
        assert not [row for row in trail if row[0] == "Bind"]


def check_bring_up(records: Sequence[Record]) -> None:
    """From the VF's appearance to the hand-over to its owner, and what its VM asked for."""
    assert find(records, "set-vf-attribute", type=RecordType.NETLINK, status=Status.OK).arguments[:2] == "0 "
    call = find(records, "Lease", type=RecordType.BEGIN, direction=Direction.FROM_OWNER)
    job = find(records, "PrepareLease", parent=call.transaction)
    bind = find(records, "bind", type=RecordType.WRITE, status=Status.OK, parent=job.transaction)
    handed = find(records, "hand-over", type=RecordType.HAND_OVER, status=Status.OK)
    assert records.index(bind) < records.index(handed)
    assert find(records, "add", type=RecordType.UEVENT)
    asked = [each.arguments for each in records if each.type is RecordType.DRIVER]
    assert any(each.startswith(DENIED) for each in asked), asked
    assert any(each.startswith(OVERRIDE) for each in asked), asked


def check_incident(records: Sequence[Record]) -> None:
    """From the error to the VF in service again; refused unfreezes in between."""
    error = find(records, "pf-error", type=RecordType.ERROR)
    frozen = find(records, "adapter-frozen", type=RecordType.RECOVERY)
    states = [each for each in records if each.type is RecordType.RECOVERY]
    assert [each.operation for each in states][: len(INCIDENT)] == INCIDENT
    assert {each.parent for each in states[1 : len(INCIDENT)]} == {frozen.transaction}
    locked = records.index(find(records, "locked-out"))
    permitted = records.index(find(records, "permitted"))
    refused = [
        each
        for each in records[locked:permitted]
        if (each.type, each.operation, each.status) == (RecordType.END, "Unfreeze", Status.REFUSED)
    ]
    print(f"{len(refused)} refused, such as: {refused[0].arguments if refused else ''}")
    assert refused
    assert refused[0].arguments.startswith("LockedOut: ")
    told = [each.arguments for each in records if each.type is RecordType.UEVENT]
    assert any("ERROR_EVENT=BEGIN_RECOVERY" in each for each in told), told
    assert frozen.parent in (error.transaction, find(records, "lease").transaction)
