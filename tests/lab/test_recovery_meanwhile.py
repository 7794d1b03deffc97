"""While an adapter recovers from a fatal error: a wish, the error of another adapter, a hot removal."""

from __future__ import annotations

from sriovd.backend.base import Severity
from tests.lab.client import (
    FUNCTION,
    IGB0,
    IGB1,
    NAME,
    ROOT,
    Client,
    adapter_path,
    function_path,
    kernel_vfs,
)
from tests.lab.desired import link_vfs
from tests.lab.errors import inject_error
from tests.lab.holding import holder
from tests.lab.recovery import (
    RECOVERY,
    SLOTS,
    Watching,
    adapter,
    by_hand,
    error_records,
    error_usecs,
    lease_all,
    set_attributes,
)
from tests.lab.waiting import wait_until

LIMIT = 1.3
EXTRA, EXTRA_PORT = "0000:04:00.0", "rp4"
EXTRA_PATH = adapter_path("0000:04:00")


def vlans(client: Client, pf: str) -> list[int]:
    """The VLAN of each VF, 0 for none."""
    told = [vf.get("vlan_list") or [{}] for vf in link_vfs(client.guest, pf)]
    return [each[0].get("vlan", 0) for each in told]


def test_a_vlan_set_meanwhile_is_there_afterwards(fresh: Client) -> None:
    """The old wishes of the others come back, the new one of VF 3 is applied."""
    guest = fresh.guest
    fresh.set_num_vfs(IGB0, 7, driver="vfio-pci")
    vfs = list(kernel_vfs(guest, IGB0))
    for number, vf in enumerate(vfs):
        set_attributes(fresh, vf, "vlan", "u", 100 + number)
    with Watching(guest) as watching:
        inject_error(guest, IGB0, Severity.FATAL)
        watching.wait_for_any(adapter_path(SLOTS[IGB0]), "frozen")
        wait = ("wait-usec", "t", 0)
        ask = ("sa{sv}a{sv}", vfs[3], 1, "vlan", "u", 200, 1, *wait)
        job, state = fresh.ask("SetVFAttributes", *ask)
        stage, kept = (fresh.get(job, f"{NAME}.Job", name) for name in ("Stage", "State"))
        bad = fresh.refused("SetVFAttributes", "sa{sv}a{sv}", vfs[4], 1, "vlan", "u", 5000, 0)
        meanwhile = adapter(fresh, IGB0)
        watching.wait_online(IGB0, vfs)
    print(f"asked when {meanwhile}: {state}, stage {stage!r}")
    assert meanwhile != "online"
    assert (state, kept) == ("running", "queued")
    assert bad.name == "InvalidArgument"  # validated at once
    wait_until(lambda: fresh.get(job, f"{NAME}.Job", "State") == "done", 30.0, "the job to be done")
    assert vlans(fresh, IGB0) == [100, 101, 102, 200, 104, 105, 106]


def test_two_adapters_recover_in_the_time_of_one(fresh: Client) -> None:
    """The kernel has one lock for removing and finding devices and one for links: what two cost more than
    one by hand is the kernel's."""
    guest, pfs = fresh.guest, (IGB0, IGB1)
    hand_one_s, _ = by_hand(guest, "right", IGB0)
    hand_two_s, steps = by_hand(guest, "right", *pfs)
    print(f"by hand: one {hand_one_s:.2f} s, two {hand_two_s:.2f} s ({steps})")
    leases = {}
    for pf in pfs:
        fresh.set_num_vfs(pf, 7, driver="vfio-pci")
        leases[pf] = lease_all(fresh, pf)
    one_s = recovery_seconds(fresh, {IGB0: leases[IGB0]})
    two_s = recovery_seconds(fresh, leases)
    print(f"sriovd: one {one_s:.2f} s, two {two_s:.2f} s, ratio {two_s / one_s:.2f}")
    assert two_s <= LIMIT * one_s + max(0.0, hand_two_s - hand_one_s)


def recovery_seconds(client: Client, leases: dict[str, dict[str, str]]) -> float:
    """A fatal error of each of those PFs, one after the other: from the first to the last VF online."""
    guest = client.guest
    with Watching(guest) as watching, error_records(guest):
        for pf in leases:
            inject_error(guest, pf, Severity.FATAL)
        for pf, vfs in leases.items():
            watching.wait_online(pf, list(vfs))
        usec = max(watching.last_usec("online", list(vfs)) for vfs in leases.values())
        return (usec - error_usecs(guest)[0]) / 1e6


def test_a_card_pulled_meanwhile_is_removed_and_works_when_it_is_back(fresh: Client) -> None:
    """The adapter waits for a VF to be closed when its slot is powered off. The PF's interface stays down:
    igb never returns when a dead PF is removed whose interface is up."""
    guest = fresh.guest
    restarts, before = fresh.unit_property("NRestarts"), lasting_objects(fresh)
    plug(fresh, "pulled")
    fresh.set_num_vfs(EXTRA, 7, driver="vfio-pci")
    vfs = [function_path(vf) for vf in kernel_vfs(guest, EXTRA)]
    with Watching(guest) as watching, holder(fresh, fresh.get(vfs[0], FUNCTION, "IOMMUGroup")):
        inject_error(guest, EXTRA, Severity.FATAL)
        waits = wait_until(lambda: fresh.get(EXTRA_PATH, RECOVERY, "WaitsFor"), 30.0, "it to wait for a VF")
        print(f"pulled while {fresh.get(EXTRA_PATH, RECOVERY, 'State')}: {waits}")
        guest.unplug("pulled", deadline_s=60.0)
        wait_until(lambda: EXTRA_PATH not in lasting_objects(fresh), 30.0, "the adapter's object to go")
        told = watching.announcements()
    adapters = [each.state for each in told if each.path == EXTRA_PATH]
    print("the adapter:", *adapters)
    assert adapters[0] == "frozen"
    assert "online" not in adapters
    assert adapters[-1] == "removed"
    assert {each.path for each in told} <= {EXTRA_PATH, function_path(EXTRA), *vfs}
    assert lasting_objects(fresh) == before
    assert fresh.unit_property("NRestarts") == restarts
    assert "Traceback" not in guest.run("journalctl --boot -u sriovd -o cat").stdout

    plug(fresh, "again")
    assert fresh.set_num_vfs(EXTRA, 7, driver="vfio-pci")[1] == "done"
    assert fresh.get(EXTRA_PATH, RECOVERY, "State") == "online"
    fresh.set_num_vfs(EXTRA, 0)
    guest.unplug("again", deadline_s=60.0)


def plug(client: Client, identifier: str) -> None:
    client.guest.plug("igb", identifier, EXTRA_PORT)
    wait_until(lambda: client.functions().get(EXTRA) == "igb", 30.0, "the card in its slot")


def lasting_objects(client: Client) -> set[str]:
    """All object paths but those of jobs, which stay for a while."""
    paths = client.guest.run("busctl --list tree org.sriovd1").stdout.split()
    return {path for path in paths if not path.startswith(f"{ROOT}/job")}
