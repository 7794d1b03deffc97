"""A tenant's VM with a VF, by hand: what the tests of leases and of upgrades stand on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sriovd.backend.base import Severity
from tests.lab.client import IGB0, Client, function_path
from tests.lab.errors import inject_error
from tests.lab.recovery import RECOVERY
from tests.lab.tenant import TenantFailed, TenantVm, give_group, pf_address, set_vf_mac
from tests.lab.waiting import wait_until

VF, MAC = "0000:01:10.0", "02:00:00:00:00:07"
OTHER_VF = "0000:01:10.2"
PF_ADDRESS, USER = "10.0.0.1", "tenant1"


@pytest.fixture
def prepared(client: Client) -> Iterator[Client]:
    """Two VFs, the first one with a MAC address and on vfio-pci, and the PF with an address."""
    client.set_num_vfs(IGB0, 2)
    with pf_address(client.guest, IGB0, PF_ADDRESS):
        set_vf_mac(client.guest, IGB0, 0, MAC)
        client.bind(VF, "vfio-pci")
        yield client


def test_vm_of_an_ordinary_user_uses_its_vf_and_keeps_it(prepared: Client) -> None:
    client, guest = prepared, prepared.guest
    give_group(guest, VF, USER)
    began = time.monotonic()
    with TenantVm.start(guest, USER, VF, peer=PF_ADDRESS) as tenant:
        assert tenant.mac() == MAC
        print(f"the VM has its MAC address after {time.monotonic() - began:.1f} s")
        tenant.wait_for_replies(1)
        print(f"and pings after {time.monotonic() - began:.1f} s")
        assert guest.run(f"stat -c %U /proc/{tenant.pid}").stdout.strip() == USER
        for method, signature, arguments in (
            ("Unbind", "sa{sv}", (VF, 0)),
            ("SetNumVFs", "sua{sv}", (IGB0, 0, 0)),
        ):
            refusal = client.refused(method, signature, *arguments)
            assert refusal.name == "InUse", refusal
            assert f"{tenant.comm} (pid {tenant.pid})" in refusal.text, refusal
        tenant.wait_for_replies(2)
        assert tenant.lost() == []
        ended = time.monotonic()
        tenant.shutdown()
        print(f"shut down in {time.monotonic() - ended:.1f} s, all {time.monotonic() - began:.1f} s")
    client.ask("Unbind", "sa{sv}", VF, 0)
    assert client.functions()[VF] == ""


def test_vm_that_an_error_has_stopped_is_rebooted(prepared: Client) -> None:
    """The kernel recovers from the error; VFIO has told QEMU of it, which stops the VM for good."""
    guest = prepared.guest
    prepared.bind(OTHER_VF, "vfio-pci")  # without a driver it would defeat the kernel
    give_group(guest, VF, USER)
    with TenantVm.start(guest, USER, VF, peer=PF_ADDRESS) as tenant:
        tenant.wait_for_replies(1)
        assert tenant.status() == "running"
        inject_error(guest, VF, Severity.NONFATAL)
        wait_until(lambda: tenant.status() == "internal-error", 20.0, "QEMU to stop the VM")
        wait_until(lambda: is_recovered(prepared), 20.0, "sriovd to have recovered the VF")
        tenant.reboot()
        tenant.wait_for_replies(1)
        assert tenant.status() == "running"


def is_recovered(client: Client) -> bool:
    """Frozen once, and online again."""
    freezes, state = (client.get(function_path(VF), RECOVERY, name) for name in ("Freezes", "State"))
    return (freezes, state) == (1, "online")


def test_lost_pings_are_seen(prepared: Client) -> None:
    """The PF's interface goes down and up again under the running VM."""
    guest = prepared.guest
    give_group(guest, VF, USER)
    with TenantVm.start(guest, USER, VF, peer="10.0.0.9") as tenant:  # nobody has this address
        tenant.mac()
        with pytest.raises(TenantFailed, match="1 more replies: not within 10 s"):
            tenant.wait_for_replies(1, deadline_s=10.0)
        assert tenant.lost()[0] == 0


def test_vm_without_rights_to_its_group_says_so(prepared: Client) -> None:
    """That root opened nothing for it."""
    with TenantVm.start(prepared.guest, "stranger", VF) as tenant, pytest.raises(TenantFailed) as caught:
        tenant.mac()
    assert "Permission denied" in str(caught.value)
