"""An ordinary user collects the error data of the VF that it leases: of an error from which its adapter
recovers and of one from which it does not, while it is locked out and afterwards."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sriovd.backend.base import Severity
from tests.lab.client import IGB0, NAME, Client, function_path, kernel_vfs
from tests.lab.desired import policy_file, wait_pf_in_sync
from tests.lab.errors import inject_error
from tests.lab.holding import holder
from tests.lab.leasing import VF, Tenant, tenants_may_lease
from tests.lab.recovery import SLOTS, adapter, standings, wait_recovered
from tests.lab.waiting import wait_until

COLLECTING = Path(__file__).with_name("collecting.py")
OWNER, NEIGHBOUR, THEIRS = "tenant1", "tenant2", "0000:01:10.2"
POISONED_TLP = 1 << 12  # of which the kernel logs the header, as it does not of all
TLP = (0x40000001, 0x0100050F, 0xFEE00000, 0)
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
POLICY = """\
[match]
address = "0000:01:00.0"
[functions]
num-vfs = 7
driver = "vfio-pci"
[recovery]
permission = "manual"
"""
STRICT = f'{POLICY}non-fatal = "quarantine"\n'


@contextmanager
def two_tenants(client: Client, policy: str) -> Iterator[Tenant]:
    """Two users who lease a VF each of the same adapter; the first."""
    with tenants_may_lease(client.guest), policy_file(client, policy):
        wait_pf_in_sync(client, IGB0)
        tenant = Tenant(client, OWNER)
        tenant.lease(VF)
        Tenant(client, NEIGHBOUR).lease(THEIRS)
        client.guest.put("/run/collecting.py", COLLECTING.read_bytes())
        yield tenant


def collect(client: Client, others: list[str]) -> dict[str, Any]:
    """What the owner of VF is told, by both deliveries; with "refused" of the inspection beside it."""
    command = ["runuser", "-u", OWNER, "--", "python3", "/run/collecting.py", VF, OWNER]
    text = client.guest.run(command, timeout_s=60.0).stdout
    told: dict[str, Any] = json.loads(text)
    assert (told["seals"], told["mode"], told["same"]) == (SEALS, 0, True)
    for word in (*others, *(other.removeprefix("0000:") for other in others), NEIGHBOUR):
        assert word not in text, word
    document: dict[str, Any] = told["document"]
    print(describe(document), "inspection:", told["refused"] or "done")
    return document | {"refused": told["refused"].removeprefix(f"{NAME}.Error.")}


def describe(document: dict[str, Any]) -> str:
    error, state = document["error"] or {}, document["state"]
    return (
        f"{document['kind']}: {state['state']} ({state['cause']}), adapter {state['adapter']};"
        f" {error.get('title')}; own {error.get('records')}; adapter's {error.get('adapter_errors')};"
        f" log {error.get('kernel_log')}; did {error.get('actions')}; now: {document['now']['missing']}"
    )


def wait_state(client: Client, state: str) -> None:
    """Until the VF is in that state; a rung may have taken it away meanwhile."""
    path = function_path(VF)
    wait_until(lambda: standings(client).get(path, {}).get("State") == state, 60.0, f"the VF to be {state}")


def test_of_an_error_from_which_the_adapter_recovers(fresh: Client) -> None:
    guest = fresh.guest
    with two_tenants(fresh, POLICY) as tenant:
        others = [each for each in kernel_vfs(guest, IGB0) if each != VF]
        assert collect(fresh, others)["kind"] == "none"
        link = guest.run(f"readlink /sys/bus/pci/devices/{THEIRS}/iommu_group").stdout.strip()
        with holder(fresh, int(link.rpartition("/")[2])):  # the neighbour keeps all waiting
            inject_error(guest, IGB0, Severity.FATAL)
            wait_until(lambda: THEIRS in adapter(fresh, IGB0, "WaitsFor"), 60.0, "the VF to be closed")
            locked = collect(fresh, others)
        assert (locked["kind"], locked["state"]["state"]) == ("recoverable", "locked-out")
        assert locked["error"]["title"] == "frozen by an error of its adapter"
        assert [each["of"] for each in locked["error"]["adapter_errors"]] == ["PF"]
        assert (locked["refused"], locked["now"]["config"]) == ("LockedOut", "")
        wait_state(fresh, "permitted")
        permitted = collect(fresh, others)
        assert (permitted["kind"], permitted["refused"]) == ("recoverable", "Frozen")
        assert permitted["error"] == locked["error"]
        assert tenant.ask("Unfreeze", "ssa{sv}", VF, OWNER, 0) == ["online"]
        after = collect(fresh, others)
        assert (after["kind"], after["state"]["state"], after["refused"]) == ("recoverable", "online", "")
        assert len(after["now"]["config"]) == 2 * 4096
        fresh.ask("Unfreeze", "ssa{sv}", THEIRS, NEIGHBOUR, 0)
        wait_recovered(fresh, IGB0)


def test_of_errors_from_which_nothing_recovers(fresh: Client) -> None:
    """First the VF's own, then its adapter's, both quarantined by policy."""
    guest = fresh.guest
    with two_tenants(fresh, STRICT) as tenant:
        others = [each for each in kernel_vfs(guest, IGB0) if each != VF]
        inject_error(guest, VF, Severity.NONFATAL, POISONED_TLP, TLP)
        wait_state(fresh, "failed")
        wait_until(lambda: fresh.ask("ListBundles", "s", SLOTS[IGB0])[0], 30.0, "the bundle")
        failed = collect(fresh, others)
        assert (failed["kind"], failed["refused"]) == ("unrecoverable", "Quarantined")
        (own,) = failed["error"]["records"]
        assert (own["severity"], own["errors"]) == ("nonfatal", ["TLP"])
        assert own["tlp_header"] == [f"{word:08x}" for word in TLP]
        assert failed["error"]["config"]
        inject_error(guest, IGB0, Severity.NONFATAL)
        wait_until(lambda: adapter(fresh, IGB0) == "quarantined", 60.0, "the quarantine")
        wait_until(lambda: len(fresh.ask("ListBundles", "s", SLOTS[IGB0])[0]) > 1, 30.0, "the last bundle")
        lost = collect(fresh, others)
        assert (lost["kind"], lost["state"]["adapter"]) == ("unrecoverable", "quarantined")
        assert lost["error"]["title"] == "given up with its adapter"
        fresh.ask("Lift", "sa{sv}", SLOTS[IGB0], 0)
        wait_until(lambda: adapter(fresh, IGB0) == "online", 60.0, "the adapter to be online")
        fresh.ask("Lift", "sa{sv}", VF, 0)
        wait_state(fresh, "online")
        after = collect(fresh, others)
        assert (after["state"]["state"], after["refused"]) == ("online", "")
        assert [each["cause"] for each in after["bundles"]][:2] == ["own", "adapter"]
        assert tenant.ask("Inspect", "ssa{sv}", VF, "recovery", 1, "owner", "s", OWNER)
        fresh.ask("Unfreeze", "ssa{sv}", THEIRS, NEIGHBOUR, 0)
