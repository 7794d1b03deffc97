"""A fatal error of a PF, from which the kernel does not recover: the adapter is back as it was, in about the
time that it takes by hand, and a tenant's VM with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sriovd.backend.base import Severity
from tests.lab.client import IGB0, MANAGER, NAME, ROOT, Client, adapter_path, function_path, refusal_of
from tests.lab.desired import policy_file, wait_pf_in_sync
from tests.lab.errors import inject_error
from tests.lab.guest import Guest
from tests.lab.leasing import VF, Tenant, group_owner, tenants_may_lease
from tests.lab.recovery import (
    RECOVERY,
    SLOTS,
    VF_STATES,
    Watching,
    adapter,
    assert_climbed,
    assert_in_order,
    by_hand,
    error_records,
    error_usecs,
    lease_all,
    picture,
    set_attributes,
)
from tests.lab.tenant import TenantVm, pf_interface
from tests.lab.waiting import wait_until

LIMIT = 1.5  # times what it takes by hand in the right order
USER, PF_ADDRESS = "tenant1", "10.0.0.1"
ADAPTER_PATH = adapter_path(SLOTS[IGB0])
POLICY = """\
[match]
address = "0000:01:00.0"
[functions]
num-vfs = 7
driver = "vfio-pci"
[vf.defaults]
vlan = 100
"""
NETWORK = f"""\
[Match]
Path=pci-{IGB0}
[Network]
Address={PF_ADDRESS}/24
LinkLocalAddressing=no
"""
NETWORK_FILE = "/run/systemd/network/10-pf.network"


@pytest.fixture(scope="module")
def floor_s(guest: Guest) -> float:
    """By hand in the right order, in this boot."""
    seconds, steps = by_hand(guest, "right", IGB0)
    print(f"by hand {seconds:.2f} s: {steps}")
    return seconds


@contextmanager
def network_management(guest: Guest) -> Iterator[None]:
    """systemd-networkd with an address for the PF, as on a host: sriovd does not care for addresses."""
    guest.put(NETWORK_FILE, NETWORK.encode())
    guest.run("systemctl start systemd-networkd", timeout_s=60.0)
    try:
        yield
    finally:
        guest.run(f"systemctl stop systemd-networkd.socket systemd-networkd; rm {NETWORK_FILE}")
        guest.run(f"ip address flush dev {pf_interface(guest, IGB0)}", check=False)


def wait_address(guest: Guest) -> None:
    """Until the PF's interface has a carrier and its address again."""
    shown = f"ip -brief address show {pf_interface(guest, IGB0)}"
    wait_until(
        lambda: {"UP", f"{PF_ADDRESS}/24"} <= set(guest.run(shown).stdout.split()), 30.0, "the address"
    )


@contextmanager
def seven_vfs(client: Client, policy: bool) -> Iterator[None]:
    """7 VFs with VLAN and MAC: told by a policy file, or set by calls."""
    if policy:
        with policy_file(client, POLICY):
            wait_pf_in_sync(client, IGB0)
            yield
        return
    client.set_num_vfs(IGB0, 7, driver="vfio-pci")
    for number, vf in enumerate(client.vfs(IGB0)):
        set_attributes(client, vf, "mac", "s", f"02:00:00:00:01:{number:02x}", "vlan", "u", 100 + number)
    yield


@pytest.mark.parametrize("policy", [False, True], ids=["by calls", "by policy"])
def test_back_as_before_without_a_command(fresh: Client, floor_s: float, policy: bool) -> None:
    guest = fresh.guest
    guest.run(f"ip link set {pf_interface(guest, IGB0)} up")
    with seven_vfs(fresh, policy):
        leases = lease_all(fresh, IGB0)
        before = picture(fresh, IGB0, leases)
        with Watching(guest) as watching, error_records(guest):
            inject_error(guest, IGB0, Severity.FATAL)
            watching.wait_online(IGB0, list(leases))
            (error,) = error_usecs(guest)
            told = watching.announcements()
            permitted_s, online_s = (
                (watching.last_usec(state, list(leases)) - error) / 1e6 for state in ("permitted", "online")
            )
        assert_climbed([each for each in told if each.path == ADAPTER_PATH])
        for vf in leases:
            assert_in_order([each for each in told if each.path == function_path(vf)], VF_STATES)
        assert picture(fresh, IGB0, leases) == before
        assert "UP" in guest.run(f"ip -brief link show {pf_interface(guest, IGB0)}").stdout  # a new name?
    way = ", ".join(
        f"{each.state} {(each.usec - error) / 1e6:.2f}" for each in told if each.path == ADAPTER_PATH
    )
    print(f"last VF permitted after {permitted_s:.2f} s, online {online_s:.2f} s; by hand {floor_s:.2f} s")
    print(f"ratio {online_s / floor_s:.2f}; rung {adapter(fresh, IGB0, 'Rung')}; the adapter: {way}")
    assert permitted_s <= LIMIT * floor_s
    assert online_s <= LIMIT * floor_s


def test_a_vm_is_ended_and_begins_again_after_permission(fresh: Client) -> None:
    guest, path = fresh.guest, function_path(VF)
    with tenants_may_lease(guest), policy_file(fresh, POLICY.replace("vlan = 100", "spoof-check = true")):
        wait_pf_in_sync(fresh, IGB0)
        with network_management(guest):
            wait_address(guest)
            tenant = Tenant(fresh, USER)
            number = tenant.lease(VF)
            before = picture(fresh, IGB0, {VF: f"{ROOT}/lease/{number}"})
            with TenantVm.start(guest, USER, VF, peer=PF_ADDRESS) as vm:
                vm.wait_for_replies(2)
                inject_error(guest, IGB0, Severity.FATAL)
                told = wait_until(
                    lambda: [
                        text for text in [adapter(fresh, IGB0, "WaitsFor")] if VF in text or vm.comm in text
                    ],
                    30.0,
                    "sriovd to wait for the VF to be closed",
                )
                print(f"the adapter waits for: {told[0]}")
                print(f"the VF waits for: {fresh.get(path, RECOVERY, 'WaitsFor')}")
                assert vm.status() == "internal-error"
                refused = fresh.run(
                    "call", NAME, ROOT, MANAGER, "Unfreeze", "ssa{sv}", VF, USER, 0, user=USER
                )
                assert refusal_of(refused).name in ("Frozen", "LockedOut")
                print(f"{refusal_of(refused).name}: {refusal_of(refused).text}")
            (state,) = tenant.ask("WaitPermitted", "sst", VF, USER, 60_000_000)
            assert state in ("permitted", "recovering", "online")
            wait_until(lambda: fresh.get(path, RECOVERY, "State") == "online", 30.0, "the VF to be online")
            assert picture(fresh, IGB0, {VF: f"{ROOT}/lease/{number}"}) == before
            assert group_owner(fresh, VF) == USER
            wait_address(guest)
            with TenantVm.start(guest, USER, VF, peer=PF_ADDRESS) as again:
                again.wait_for_replies(2)
                again.shutdown()
        tenant.release(number)


@pytest.mark.timeout(300)
def test_the_wrong_order_costs_more_than_a_minute(guest: Guest, floor_s: float) -> None:
    """Why VFs are locked out: what one reset of a VF does to a dead adapter. No test of sriovd."""
    seconds, steps = by_hand(guest, "naive", IGB0)
    print(f"by hand, with a VF's reset first: {seconds:.1f} s ({steps}); in the right order {floor_s:.1f} s")
    assert seconds > floor_s + 60
