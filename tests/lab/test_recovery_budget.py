"""Six errors within an hour: the sixth quarantines the adapter, which is left alone until root lifts it."""

from __future__ import annotations

from sriovd.backend.base import Severity
from tests.lab.client import IGB0, IGB1, Client, function_path
from tests.lab.errors import inject_error
from tests.lab.recovery import (
    RECOVERY,
    SLOTS,
    Watching,
    adapter,
    lease_all,
    picture,
    vf_states,
    wait_frozen,
    wait_recovered,
)
from tests.lab.tenant import make_user
from tests.lab.trace import WriteTrace
from tests.lab.waiting import wait_until

BUDGET = 5
RESETS = ("reset", "remove", "rescan", "sriov_numvfs", "bind", "unbind", "drivers_probe")


def test_the_sixth_quarantines_until_it_is_lifted(fresh: Client) -> None:
    guest, slot = fresh.guest, SLOTS[IGB0]
    fresh.set_num_vfs(IGB0, 7, driver="vfio-pci")
    leases = lease_all(fresh, IGB0)
    before = picture(fresh, IGB0, leases)
    for number in range(1, BUDGET + 1):
        inject_error(guest, IGB0, Severity.NONFATAL)
        wait_frozen(fresh, IGB0, number)
        wait_recovered(fresh, IGB0)
    with WriteTrace(guest) as trace:
        inject_error(guest, IGB0, Severity.NONFATAL)
        wait_until(lambda: adapter(fresh, IGB0) == "quarantined", 30.0, "the quarantine")
        assert "online" not in vf_states(fresh, IGB0).values()
        assert [w for w in trace.writes() if w.target.rpartition("/")[2] in RESETS] == []
    print(f"quarantined: {adapter(fresh, IGB0, 'Reason')} {adapter(fresh, IGB0, 'WaitsFor')}")
    vf = next(iter(leases))
    requests: tuple[tuple[str, str, tuple[str | int, ...]], ...] = (
        ("Bind", "ssa{sv}", (vf, "pci-stub", 0)),
        ("Reset", "sa{sv}", (vf, 0)),
        ("Unfreeze", "ssa{sv}", (vf, "orchestrator", 0)),
        ("Recover", "sa{sv}", (slot, 0)),
    )
    for method, signature, arguments in requests:
        refusal = fresh.refused(method, signature, *arguments)
        assert refusal.name == "Quarantined", (method, refusal)
    assert adapter(fresh, IGB1) == "online"  # and works
    fresh.set_num_vfs(IGB1, 2)

    guest.run("systemctl restart sriovd", timeout_s=60.0)  # does not lift anything
    assert adapter(fresh, IGB0) == "quarantined"
    make_user(guest, "nobody1")
    assert fresh.refused("Lift", "sa{sv}", slot, 0, user="nobody1").name == "NotAuthorized"
    fresh.ask("Lift", "sa{sv}", slot, 0)
    wait_recovered(fresh, IGB0)
    assert picture(fresh, IGB0, leases) == before
    with Watching(guest) as watching:  # a budget of its own again
        inject_error(guest, IGB0, Severity.NONFATAL)
        watching.wait_online(IGB0, list(leases))
    assert fresh.get(function_path(vf), RECOVERY, "State") == "online"
