"""A tenant from its lease to its release: a VM of an ordinary user with a leased VF through VFIO, which
outlives the daemon, and after which nothing is left for the next tenant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.client import IGB0, MANAGER, NAME, ROOT, Client, refusal_of
from tests.lab.desired import COUNTS, link_vfs, policy_file, wait_pf_in_sync
from tests.lab.leasing import RULE, VF, Tenant, group_owner, tenants_may_lease
from tests.lab.tenant import TenantVm, make_user, pf_address
from tests.lab.trace import WriteTrace
from tests.lab.waiting import wait_until

USER, NEXT_USER = "tenant1", "tenant2"
PF_ADDRESS = "10.0.0.1"
INDEX = 0
POLICY = """\
[match]
address = "0000:01:00.0"
[functions]
num-vfs = 7
driver = "vfio-pci"
[vf.defaults]
spoof-check = true
"""
OPENING = Path(__file__).with_name("opening.py")


@pytest.fixture
def tenant(client: Client) -> Iterator[Tenant]:
    """A user who may lease and nothing else, on an igb PF under a policy."""
    guest = client.guest
    with tenants_may_lease(guest), policy_file(client, POLICY):
        wait_until(lambda: len(link_vfs(guest, IGB0)) == COUNTS[IGB0], 60.0, "the VFs")
        with pf_address(guest, IGB0, PF_ADDRESS):
            yield Tenant(client, USER)


def test_vm_of_a_tenant(client: Client, tenant: Tenant) -> None:
    guest = client.guest
    mac = link_vfs(guest, IGB0)[INDEX]["address"]
    number = tenant.lease()
    assert group_owner(client, VF) == USER
    client.ask("SetVFAttributes", "sa{sv}a{sv}", VF, 1, "trust", "b", "true", 0)  # the policy is silent
    with TenantVm.start(guest, USER, VF, peer=PF_ADDRESS) as vm:
        assert vm.mac() == mac
        vm.wait_for_replies(3)
        refused = client.run("call", NAME, ROOT, MANAGER, "Release", "tsa{sv}", number, USER, 0, user=USER)
        assert refusal_of(refused).name == "InUse"
        assert f"{vm.comm} (pid {vm.pid})" in refusal_of(refused).text
        assert client.refused("Reset", "sa{sv}", VF, 0).name == "InUse"

        # restarts, the hard way too: nothing is written, no ping is lost, the lease stands
        with WriteTrace(guest) as trace:
            kill = f"kill -9 {client.unit_property('MainPID')}"
            for restart in (kill, "systemctl restart sriovd"):
                guest.run(restart, timeout_s=60.0)
                client.start()
                assert client.get(f"{ROOT}/lease/{number}", f"{NAME}.Lease", "State") == "active"
                vm.wait_for_replies(3)
            assert trace.writes() == []
        assert vm.lost() == []
        vm.shutdown()

    with WriteTrace(guest) as trace:
        tenant.release(number)
        assert f"{VF}/reset" in [write.target for write in trace.writes()]
    after = link_vfs(guest, IGB0)[INDEX]
    assert (after["trust"], after["address"], after["spoofchk"]) == (False, mac, True)
    assert group_owner(client, VF) == "root"
    assert client.functions()[VF] == "vfio-pci"
    wait_pf_in_sync(client, IGB0)

    following = Tenant(client, NEXT_USER)
    number = following.lease()
    assert group_owner(client, VF) == NEXT_USER
    with TenantVm.start(guest, NEXT_USER, VF, peer=PF_ADDRESS) as vm:
        assert vm.mac() == mac  # the place's, not the tenant's
        vm.wait_for_replies(1)
        vm.shutdown()
    following.release(number)


def test_the_open_group_comes_over_the_bus(client: Client, tenant: Tenant) -> None:
    """Twice: what the first has closed the second can have, and the node stays the tenant's."""
    number = tenant.lease()
    client.guest.put("/run/opening.py", OPENING.read_bytes())
    for _ in range(2):
        command = ["runuser", "-u", USER, "--", "python3", "/run/opening.py", str(number), USER]
        told = client.guest.run(command).stdout.splitlines()
        assert told == ["flags 1", "second org.sriovd1.Error.InUse"]
        assert group_owner(client, VF) == USER
    tenant.release(number)


def test_what_a_tenant_may_not_do(client: Client, tenant: Tenant) -> None:
    """With a rule that grants `lease`, leasing and one's own leases are all there is."""
    number = tenant.lease()
    stranger = Tenant(client, NEXT_USER)
    for each in (number, number + 7):  # another's, and none: the same answer
        refusal = client.refused("Release", "tsa{sv}", each, USER, 0, user=stranger.user)
        assert refusal.name == "NotOwner"
        assert refusal.text == f"You have no lease {each} as '{USER}'. (Leases end by Release.)"
    refusals: tuple[tuple[str, str, tuple[str | int, ...]], ...] = (
        ("SetNumVFs", "sua{sv}", (IGB0, 7, 0)),
        ("Bind", "ssa{sv}", (VF, "none", 0)),
        ("Reset", "sa{sv}", (VF, 0)),
        ("SetVFAttributes", "sa{sv}a{sv}", (VF, 1, "trust", "b", "true", 0)),
        ("Apply", "sa{sv}", ("", 0)),
        ("Reload", "a{sv}", (0,)),
        ("Remove", "sa{sv}", (IGB0, 0)),
    )
    for method, signature, arguments in refusals:
        assert client.refused(method, signature, *arguments, user=USER).name == "NotAuthorized", method
    assert client.refused("Plan", "a{sv}", 0, user=USER).name == "NotAuthorized"
    assert dict(tenant.ask("GetVFAttributes", "s", VF)[0])["spoof-check"]["data"] is True  # his own
    tenant.release(number)


def test_user_without_rights_sees_and_changes_nothing(client: Client, tenant: Tenant) -> None:
    """And a rule grants exactly what it names."""
    make_user(client.guest, "nobody1")
    functions = client.run("call", NAME, ROOT, MANAGER, "ListFunctions", user="nobody1")
    assert json.loads(functions.stdout)["data"] == [[]]
    with WriteTrace(client.guest) as trace:
        refusal = client.refused("Lease", "sa{sv}", "nobody1", 0, user="nobody1")
        assert refusal.name == "NotAuthorized"
        assert trace.writes() == []
    rule = RULE.replace("org.sriovd1.lease", "org.sriovd1.configure").replace("tenant", "nobody")
    client.guest.put("/etc/polkit-1/rules.d/41-nobody.rules", rule.encode())
    try:
        wait_until(lambda: may_configure(client, "nobody1"), 20.0, "the rule to be read")
        assert client.refused("Lease", "sa{sv}", "nobody1", 0, user="nobody1").name == "NotAuthorized"
        assert client.refused("Bind", "ssa{sv}", VF, "none", 0, user="nobody1").name == "NotAuthorized"
    finally:
        client.guest.run("rm /etc/polkit-1/rules.d/41-nobody.rules")


def may_configure(client: Client, user: str) -> bool:
    """A VF that is his: there is none, which he is told only then."""
    words = ("SetVFAttributes", "sa{sv}a{sv}", VF, 1, "max-tx-rate", "u", 0, 0)
    return client.refused(*words, user=user).name == "NoSuchFunction"
