"""kill -9 of sriovd in every state of an adapter with a fatal error: it ends as if undisturbed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sriovd.backend.base import Severity
from tests.lab.client import IGB0, IGB1, Client, adapter_path
from tests.lab.errors import inject_error
from tests.lab.recovery import (
    ADAPTER_STATES,
    SLOTS,
    Watching,
    adapter,
    lease_all,
    picture,
    set_attributes,
    wait_recovered,
)
from tests.lab.waiting import wait_until

# The adapters in turn: one has five freezes an hour.
KILLS = [(state, (IGB0, IGB1)[number % 2]) for number, state in enumerate(ADAPTER_STATES[:-1])]
RECOVER_S = 90.0
Leases = dict[str, dict[str, str]]


@pytest.fixture
def leased(fresh: Client) -> Iterator[tuple[Client, Leases]]:
    """7 VFs of both adapters, each with a VLAN of its own and leased."""
    leases = {}
    for pf in (IGB0, IGB1):
        fresh.set_num_vfs(pf, 7, driver="vfio-pci")
        leases[pf] = lease_all(fresh, pf)
        for number, vf in enumerate(leases[pf]):
            set_attributes(fresh, vf, "vlan", "u", 100 + number)
    yield fresh, leases


@pytest.mark.timeout(900)
def test_killed_in_every_state(leased: tuple[Client, Leases]) -> None:
    client, leases = leased
    before = {pf: picture(client, pf, leases[pf]) for pf in leases}
    for state, pf in KILLS:
        path = adapter_path(SLOTS[pf])
        with Watching(client.guest, kill=(path, state)) as watching:
            inject_error(client.guest, pf, Severity.FATAL)
            wait_until(watching.killed, 60.0, f"{state} to be announced")
            wait_until(lambda: client.unit_property("SubState") == "running", 30.0, "sriovd to run again")
            wait_recovered(client, pf, deadline_s=RECOVER_S)
            told = watching.announcements(path)
        assert {pf: picture(client, pf, leases[pf]) for pf in leases} == before, state
        assert adapter(client, pf, "WaitsFor") == ""
        seconds = (told[-1].usec - told[0].usec) / 1e6
        print(f"killed when {state}: {seconds:.1f} s in all;", " ".join(each.state for each in told))
