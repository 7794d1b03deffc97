"""Tenants of sriovd in the guest: ordinary users whom a polkit rule lets lease, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.client import MANAGER, NAME, ROOT, Client, function_path, refusal_of
from tests.lab.guest import Guest
from tests.lab.tenant import make_user

VF = "0000:01:10.0"
RULE = """\
polkit.addRule(function(action, subject) {
    if (action.id === "org.sriovd1.lease" && subject.user.indexOf("tenant") === 0) {
        return polkit.Result.YES;
    }
});
"""
RULES = "/etc/polkit-1/rules.d/40-tenants.rules"


class Tenant:
    """An ordinary user with busctl."""

    def __init__(self, client: Client, user: str) -> None:
        self._client = client
        self.user = user
        make_user(client.guest, user)

    def ask(self, method: str, signature: str, *arguments: str | int) -> Any:
        """A call of the Manager that must succeed."""
        result = self._client.run("call", NAME, ROOT, MANAGER, method, signature, *arguments, user=self.user)
        assert result.status == 0, refusal_of(result)
        return json.loads(result.stdout)["data"]

    def lease(self, vf: str = VF) -> int:
        """Lease that VF; the lease's number."""
        path, function, state = self.ask("Lease", "sa{sv}", self.user, 1, "address", "s", vf)
        assert (function, state) == (function_path(vf), "active")
        return int(path.rpartition("/")[2])

    def release(self, number: int) -> None:
        _, state = self.ask("Release", "tsa{sv}", number, self.user, 0)
        assert state == "done"


@contextmanager
def tenants_may_lease(guest: Guest) -> Iterator[None]:
    """Users whose name begins with `tenant` may use leases."""
    guest.put(RULES, RULE.encode())
    try:
        yield
    finally:
        guest.run(f"rm -f {RULES}")


def group_owner(client: Client, vf: str) -> str:
    path = f"/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/{vf}/iommu_group))"
    return client.guest.run(f"stat -c %U {path}").stdout.strip()
