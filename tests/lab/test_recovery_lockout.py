"""Non-fatal errors, from which the kernel recovers: who is frozen, who is told what, and who has to wait."""

from __future__ import annotations

import statistics

import pytest

from sriovd.backend.base import Severity
from tests.lab.client import IGB0, IGB1, Client, adapter_path, function_path, kernel_vfs
from tests.lab.desired import policy_file, wait_pf_in_sync
from tests.lab.errors import inject_error
from tests.lab.leasing import VF, Tenant, tenants_may_lease
from tests.lab.recovery import (
    ADAPTER_STATES,
    RECOVERY,
    SLOTS,
    VF_STATES,
    Answer,
    Watching,
    adapter,
    assert_in_order,
    freeze_usecs,
    lease_all,
    vf_states,
    wait_frozen,
    wait_recovered,
)
from tests.lab.tenant import TenantVm, pf_address
from tests.lab.trace import WriteTrace
from tests.lab.waiting import wait_until

USER, PF_ADDRESS = "tenant1", "10.0.0.1"
FREEZE_LIMIT_USEC = 10_000
ROUNDS = 4  # of each adapter: one less than its budget
REFUSED = ("Frozen", "LockedOut")
MANUAL = """\
[match]
address = "0000:01:00.0"
[functions]
num-vfs = 7
driver = "vfio-pci"
[recovery]
permission = "manual"
"""


def test_owners_are_refused_until_the_adapter_is_verified(fresh: Client) -> None:
    """All VFs are leased, one is in a VM, and every owner asks for its own VF all the time."""
    guest, pf = fresh.guest, adapter_path(SLOTS[IGB0])
    with tenants_may_lease(guest), policy_file(fresh, MANUAL):
        wait_pf_in_sync(fresh, IGB0)
        Tenant(fresh, USER).lease(VF)
        owners = {VF: USER} | dict.fromkeys(lease_all(fresh, IGB0, but=VF), "orchestrator")
        with pf_address(guest, IGB0, PF_ADDRESS), TenantVm.start(guest, USER, VF, peer=PF_ADDRESS) as vm:
            vm.wait_for_replies(2)
            with Watching(guest, unfreeze=owners) as watching, WriteTrace(guest) as trace:
                inject_error(guest, IGB0, Severity.NONFATAL)
                watching.wait_online(IGB0, list(owners))
                writes, told = trace.writes(), watching.announcements()
                answers = {vf: watching.answers(vf) for vf in owners}
            assert_in_order([each for each in told if each.path == pf], ADAPTER_STATES)
            permitting = next(
                n for n, each in enumerate(told) if (each.path, each.state) == (pf, "permitting")
            )
            for vf, owner in owners.items():
                own = [(n, each) for n, each in enumerate(told) if each.path == function_path(vf)]
                assert_in_order([each for _, each in own], VF_STATES)
                place = {each.state: n for n, each in own}
                assert place["locked-out"] < permitting < place["permitted"], owner
                assert own[0][1].cause == "propagated"
                granted = first_granted(answers[vf])
                assert granted.usec > told[permitting].usec
                locked = told[place["locked-out"]].usec
                meanwhile = [
                    w for w in writes if vf in (w.target[:12], w.text) and locked < w.usec < granted.asked
                ]
                assert meanwhile == []
                print(vf, "locked out for", granted.usec - locked, "us:", *(a.answer for a in answers[vf]))
            assert vm.status() == "internal-error"  # QEMU stops a VM whose VF has seen an error
            vm.reboot()
            vm.wait_for_replies(2)


def first_granted(answers: list[Answer]) -> Answer:
    """The first answer after the refusals, of which there is one at least."""
    refused = [n for n, each in enumerate(answers) if each.answer in REFUSED]
    assert any(each.answer == "LockedOut" for each in answers), answers
    assert refused == list(range(refused[0], refused[-1] + 1)), answers  # never granted in between
    return answers[refused[-1] + 1]


@pytest.mark.timeout(300)
def test_all_are_frozen_within_ten_milliseconds(fresh: Client) -> None:
    guest, before = fresh.guest, len(freeze_usecs(fresh.guest))
    pfs = (IGB0, IGB1)
    for pf in pfs:
        fresh.set_num_vfs(pf, 7, driver="vfio-pci")
        lease_all(fresh, pf)
    for number in range(1, ROUNDS + 1):
        for pf in pfs:
            inject_error(guest, pf, Severity.NONFATAL)
        for pf in pfs:
            wait_frozen(fresh, pf, number)
            wait_recovered(fresh, pf)
    taken = sorted(freeze_usecs(guest)[before:])
    print(f"{len(taken)} freezes of 8 PEs: median {statistics.median(taken):.0f} us, all {taken}")
    assert len(taken) == ROUNDS * len(pfs)
    assert taken[-1] < FREEZE_LIMIT_USEC


def test_error_of_one_vf_freezes_that_vf(fresh: Client) -> None:
    """The kernel tells of all eight functions."""
    guest = fresh.guest
    fresh.set_num_vfs(IGB0, 7, driver="vfio-pci")
    vfs = list(kernel_vfs(guest, IGB0))
    lease_all(fresh, IGB0)
    uevents = guest.start("exec udevadm monitor --kernel --property --subsystem-match=pci", timeout_s=60.0)
    wait_until(lambda: "KERNEL" in uevents.output().stdout, 20.0, "the monitor of uevents")
    with Watching(guest) as watching:
        inject_error(guest, vfs[2], Severity.NONFATAL)
        watching.wait_for(function_path(vfs[2]), "online")
        told = watching.announcements()
    begin = "ERROR_EVENT=BEGIN_RECOVERY"
    wait_until(lambda: uevents.output().stdout.count(begin) == 1 + len(vfs), 20.0, "all to be walked")
    uevents.signal(15)
    uevents.wait(20.0)
    assert {each.path for each in told} == {function_path(vfs[2])}
    assert [each.state for each in told] == ["frozen", "permitted", "recovering", "online"]
    assert told[0].cause == "own"
    assert adapter(fresh, IGB0) == "online"
    assert adapter(fresh, IGB0, "Freezes") == 0
    assert fresh.get(function_path(vfs[2]), RECOVERY, "Freezes") == 1
    print(f"{(told[-1].usec - told[0].usec) / 1000:.1f} ms from frozen to online")


@pytest.mark.parametrize("driver", ["none", "pci-stub"])
def test_the_audit_knows_what_will_defeat_the_kernel(fresh: Client, driver: str) -> None:
    """A VF without error handlers: the kernel gives the whole adapter up, and sriovd does not."""
    guest = fresh.guest
    guest.run("modprobe pci-stub")
    fresh.set_num_vfs(IGB0, 7, driver="vfio-pci")
    vf = list(kernel_vfs(guest, IGB0))[3]
    fresh.bind(vf, driver)
    drivers = kernel_vfs(guest, IGB0)
    path = function_path(vf)
    audit = wait_until(lambda: fresh.get(path, RECOVERY, "Audit"), 10.0, "a finding of the audit")
    print("VF:", *audit, "adapter:", *adapter(fresh, IGB0, "Audit"), sep="\n")
    assert any(("no driver" if driver == "none" else driver) in finding.lower() for finding in audit)
    assert adapter(fresh, IGB0, "Audit") != []
    guest.forget_kernel_messages()
    inject_error(guest, IGB0, Severity.NONFATAL)
    wait_frozen(fresh, IGB0, 1)
    wait_recovered(fresh, IGB0)
    assert guest.kernel_messages().count("device recovery failed") == 1
    assert kernel_vfs(guest, IGB0) == drivers
    assert set(vf_states(fresh, IGB0).values()) == {"online"}
    print(f"rung {adapter(fresh, IGB0, 'Rung')}")
